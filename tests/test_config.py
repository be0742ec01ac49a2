"""What a run is: typed, checked, and named by its content alone."""

import json

import numpy as np
import pytest

from fsr import files
from fsr.config import (
    DATASETS,
    Analysis,
    Evaluation,
    FSRSpec,
    PeerSpec,
    Run,
    analysis_id,
    content_id,
    diff,
    for_dataset,
    replace,
    run_from_dict,
    run_id,
    to_dict,
)
from fsr.files import UsageError


def test_ids_of_known_runs_never_change():
    # stored values: records in the repository are found by them
    assert run_id(Run()) == "cifar10-resnet18-at-s0-f641cfa360"
    assert run_id(Run(module=FSRSpec())) == "cifar10-resnet18-at+fsr-s0-1ed096158c"


def test_every_committed_record_lies_under_the_id_of_its_config():
    folders = [p.parent for p in (files.repository() / "results" / "runs").glob("*/config.json")]
    assert folders
    for folder in folders:
        run = run_from_dict(json.loads((folder / "config.json").read_text())["run"])
        assert run_id(run) == folder.name
        for path in folder.glob("evals/*.json"):
            evaluation = Evaluation(**json.loads(path.read_text())["evaluation"])
            assert f"{evaluation.checkpoint}-{evaluation.attack_id}" == path.stem
        for path in folder.glob("analyses/*.json"):
            analysis = Analysis(**json.loads(path.read_text())["analysis"])
            assert f"{analysis.checkpoint}-{analysis_id(analysis)}" == path.stem


def test_one_folder_of_images_gives_one_run_id(tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path.parent)
    monkeypatch.setenv("HOME", str(tmp_path))
    name = tmp_path.name
    names = (tmp_path, f"{tmp_path}/", name, f"{name}/../{name}", f"{tmp_path}/link", "~")
    runs = [Run(dataset=f"folder:{name}") for name in names]
    assert {run.dataset for run in runs} == {f"folder:{tmp_path}"} and len(set(map(run_id, runs))) == 1
    with pytest.raises(UsageError, match="is not a path"):
        Run(dataset="folder:a\0b")


def test_numpy_numbers_become_pythons():
    run = Run(eps=np.float64(8 / 255), seed=np.int64(3), epochs=np.int32(2))
    assert run_id(run) == run_id(Run(seed=3, epochs=2)) and type(run.eps) is float and type(run.seed) is int


def test_the_difference_of_two_configs_is_by_field():
    base = Run(module=FSRSpec())
    assert diff(base, base) == {}
    assert diff(base, replace(base, seed=2, module=FSRSpec(tau=0.5))) == {"seed": (0, 2), "module.tau": (0.1, 0.5)}
    assert diff(Run(), base) == {"module": (None, FSRSpec())}
    assert diff(Evaluation(attack="cw"), Evaluation(attack="cw", images=9)) == {"images": (None, 9)}


def test_every_field_changes_the_id():
    base = Run()
    others = [
        Run(dataset="svhn"), Run(train_size=5), Run(test_size=5), Run(holdout=0), Run(backbone="vgg16"), Run(width=8),
        Run(blocks=(1, 1, 1, 1)), Run(method="trades"), Run(module=FSRSpec()), Run(module=FSRSpec(tau=0.5)),
        Run(module=PeerSpec(name="cas")), Run(beta=6.0), Run(awp=0.01), Run(eps=0.1), Run(alpha=0.1), Run(steps=7),
        Run(epochs=3), Run(batch=64), Run(lr=0.2), Run(momentum=0.8), Run(weight_decay=0.0), Run(ema_decay=0.9),
        Run(precision="float32"), Run(sync_bn=True), Run(seed=1), Run(imported="ab"), Run(image_size=64),
    ]  # fmt: skip
    ids = {content_id(run) for run in (base, *others)}
    assert len(ids) == 1 + len(others)


@pytest.mark.parametrize("module", [None, FSRSpec(at=("layer2", "layer3"), mask="hard"), PeerSpec(name="cifs")])
def test_a_config_survives_json(module):
    run = for_dataset("digits", module=module, blocks=(1, 1, 1, 1), seed=2)
    assert run_from_dict(json.loads(json.dumps(to_dict(run)))) == run


@pytest.mark.parametrize(
    "wrong",
    [
        {"dataset": "cifar11"}, {"backbone": "resnet"}, {"method": "pgd"}, {"epochs": 0}, {"lr": -1.0},
        {"eps": float("nan")}, {"precision": "fp16"}, {"blocks": [1, 1]}, {"seed": -1}, {"eps": 8.0}, {"alpha": 2.0},
        {"width": 0}, {"blocks": (1, 0)}, {"blocks": ()}, {"train_size": 0}, {"test_size": -5}, {"beta": -1.0},
        {"momentum": 1.5}, {"ema_decay": 2.0}, {"lr": 1}, {"steps": True},  # 1 and 1.0 would hash differently
    ],
)  # fmt: skip
def test_wrong_fields_are_named_in_one_line(wrong):
    with pytest.raises(UsageError, match=f"^[^\n]*({next(iter(wrong))}|data set)[^\n]*$"):
        Run(**wrong)
    with pytest.raises(UsageError, match="not the config of a run"):
        run_from_dict(to_dict(Run()) | {"surprise": 1})


@pytest.mark.parametrize("wrong", [{"eps": 8.0}, {"eps": -0.1}, {"steps": 0}, {"images": 0}])
def test_an_evaluation_that_means_nothing_is_refused(wrong):
    with pytest.raises(UsageError, match=f"Evaluation.{next(iter(wrong))}"):
        Evaluation(attack="pgd20", **wrong)


def test_attack_ids_name_what_differs_from_the_default_and_are_file_names():
    assert Evaluation(attack="pgd20").attack_id == "pgd20"
    full = Evaluation(attack="pgd20", images=500, eps=0.1, steps=50, surrogate="a-b-c0ffee", intervention="mask_one")
    assert full.attack_id == "pgd20-n500-eps0.10000-steps50-from-c0ffee-mask_one"


def test_threat_models_are_those_of_the_specification():
    assert DATASETS["cifar10"].eps == 8 / 255 and DATASETS["cifar10"].alpha == 2 / 255
    assert DATASETS["svhn"].lr == 0.01 and DATASETS["svhn"].alpha == 1 / 255 and DATASETS["svhn"].pad == 0
    assert DATASETS["digits"].eps == 0.15 and DATASETS["digits"].alpha == DATASETS["digits"].eps / 4
    assert DATASETS["tinyimagenet"].pad == 8 and DATASETS["tinyimagenet"].classes == 200


def test_labels_name_method_and_module():
    assert Run(awp=0.005, method="trades", module=FSRSpec()).label == "trades+awp+fsr"
    assert Run(module=replace(FSRSpec(), kind="residual")).label == "at+residual"
