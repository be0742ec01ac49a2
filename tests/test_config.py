"""What a run is: typed, checked, and named by its content alone."""

import json
from dataclasses import fields

import numpy as np
import pytest

from fsr import config, files
from fsr.config import Analysis, Evaluation, FSRSpec, PeerSpec, Run, diff, replace, run_from_dict, run_id, to_dict
from fsr.files import UsageError


def test_ids_of_known_runs_never_change():
    assert run_id(Run()) == "cifar10-resnet18-at-s0-f641cfa360"
    assert run_id(Run(module=FSRSpec())) == "cifar10-resnet18-at+fsr-s0-1ed096158c"


def test_every_committed_record_lies_under_the_id_of_its_config_which_survives_json():
    folders = [p.parent for p in (files.repository() / "results" / "runs").glob("*/config.json")]
    assert folders
    for folder in folders:
        run = run_from_dict(json.loads((folder / "config.json").read_text())["run"])
        assert run_id(run) == folder.name and run_from_dict(json.loads(json.dumps(to_dict(run)))) == run
        for path in folder.glob("evals/*.json"):
            evaluation = Evaluation(**json.loads(path.read_text())["evaluation"])
            assert f"{evaluation.checkpoint}-{evaluation.attack_id}" == path.stem
        for path in folder.glob("analyses/*.json"):
            analysis = Analysis(**json.loads(path.read_text())["analysis"])
            assert f"{analysis.checkpoint}-{analysis.kind}-{config.content_id(analysis)[:6]}" == path.stem


def test_one_folder_of_images_gives_one_run_id(tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path.parent)
    monkeypatch.setenv("HOME", str(tmp_path))
    name = tmp_path.name
    names = (tmp_path, f"{tmp_path}/", name, f"{name}/../{name}", f"{tmp_path}/link", "~")
    runs = [Run(dataset=f"folder:{name}") for name in names]
    assert {run.dataset for run in runs} == {f"folder:{tmp_path}"} and len(set(map(run_id, runs))) == 1
    record = to_dict(Run(dataset=f"folder:{tmp_path}/moved"))
    (tmp_path / "moved").symlink_to(tmp_path)  # the images lie elsewhere now, and the record is the same run's
    assert to_dict(run_from_dict(record)) == record


def test_numpy_numbers_become_pythons():
    run = Run(eps=np.float64(8 / 255), seed=np.int64(3), epochs=np.int32(2), blocks=tuple(np.array([1, 2])))
    assert run_id(run) == run_id(Run(seed=3, epochs=2, blocks=(1, 2))) and type(run.eps) is float
    assert type(run.seed) is type(run.blocks[0]) is int


def test_the_difference_of_two_configs_is_by_field():
    base = Run(module=FSRSpec())
    assert diff(base, base) == {}
    assert diff(base, replace(base, seed=2, module=None)) == {"seed": (0, 2), "module": (FSRSpec(), None)}
    assert diff(FSRSpec(), FSRSpec(tau=0.5)) == {"tau": (0.1, 0.5)}


def test_every_field_changes_the_id():
    changed = {"dataset": "svhn", "backbone": "vgg16", "method": "trades", "precision": "float32", "sync_bn": True}
    changed |= {"blocks": (1, 1), "module": FSRSpec(), "beta": 6.0, "imported": "ab"}
    runs = [Run(), *(Run(module=module) for module in (FSRSpec(tau=0.5), PeerSpec(name="cas")))]
    for f in fields(Run):
        other = changed[f.name] if f.name in changed else abs((f.default or 0) - (0.5 if "float" in f.type else 7))
        runs.append(Run(**{f.name: other}))
    assert len(set(map(config.content_id, runs))) == len(runs)


WRONG = [("dataset", "cifar11"), ("backbone", "resnet"), ("method", "pgd"), ("precision", "fp16"), ("epochs", 0)]
WRONG += [("eps", float("nan")), ("eps", 8.0), ("alpha", 2.0), ("momentum", 1.5), ("ema_decay", 2.0), ("beta", -1.0)]
WRONG += [("seed", -1), ("width", 0), ("train_size", 0), ("test_size", -5), ("lr", -1.0), ("lr", float("inf"))]
WRONG += [("blocks", 2), ("blocks", (1, 1.0)), ("blocks", ()), ("eps", ()), ("module", "fsr"), ("epochs", None)]
WRONG += [("dataset", "folder:"), ("lr", 1), ("steps", True)]  # 1 and 1.0 would hash differently


@pytest.mark.parametrize("name, value", WRONG)
def test_wrong_fields_are_named_in_one_line(name, value):
    with pytest.raises(UsageError, match=f"^[^\n]*({name}|data set)[^\n]*$"):
        Run(**{name: value})


def test_what_is_no_run_or_evaluation_is_refused():
    for wrong in (to_dict(Run()) | {"surprise": 1}, to_dict(Run()) | {"module": {"type": "Other"}}, [], None):
        with pytest.raises(UsageError, match="not the config of a run"):
            run_from_dict(wrong)
    for wrong in ({"eps": 8.0}, {"eps": -0.1}, {"steps": 0}, {"images": 0}, {"checkpoint": "first"}):
        with pytest.raises(UsageError, match=f"Evaluation.{next(iter(wrong))}"):
            Evaluation(attack="pgd20", **wrong)
    for wrong in ({"kind": "../x"}, {"kind": "masks", "checkpoint": "../last"}, {"kind": "masks", "images": "all"}):
        with pytest.raises(UsageError, match="Analysis"):
            Analysis(**wrong)


def test_attack_ids_name_what_differs_from_the_default_and_are_file_names():
    assert Evaluation(attack="pgd20").attack_id == "pgd20"
    full = Evaluation(attack="pgd20", images=500, eps=0.1, steps=50, surrogate="a-b-c0ffee", intervention="mask_one")
    assert full.attack_id == "pgd20-n500-eps0.10000-steps50-from-c0ffee-mask_one"


def test_threat_models_are_those_of_the_specification():
    digits, cifar10, svhn, tiny = config.DATASETS.values()
    assert (cifar10.eps, cifar10.alpha, cifar10.lr, cifar10.pad, cifar10.flip) == (8 / 255, 2 / 255, 0.1, 4, True)
    assert (svhn.eps, svhn.alpha, svhn.lr, svhn.pad, svhn.flip) == (8 / 255, 1 / 255, 0.01, 0, False)
    assert (digits.eps, digits.alpha, digits.pad) == (0.15, 0.15 / 4, 0) and (tiny.pad, tiny.classes) == (8, 200)
