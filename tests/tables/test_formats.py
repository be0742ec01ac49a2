"""What a table says about number formats follows from what the records say that was computed."""

import pytest

from fsr import experiments, store, tables
from fsr.config import Evaluation
from fsr.files import run_dir, save_json
from fsr.report.readme import results
from fsr.tables import formats
from fsr.tables.frame import Sources

AT, BOTH = experiments.main_pair("mini")
CLEAN = Evaluation(attack="clean", images=2000)


def trained(run, crafting):
    """A finished training that computed in this format."""
    store.save_config(run)
    record = {"switches": {"crafting": crafting}, "run_id": store.id_of(run)}
    save_json(run_dir(store.id_of(run)) / "env.json", record)


@pytest.mark.parametrize(
    "minutes, sittings, named", [(60, None, False), (600, None, True), (600, [0, 9], False), (60, [9], True)]
)
def test_a_training_with_only_its_last_part_on_record_is_named(root, minutes, sittings, named):
    store.save_config(BOTH)
    record = {"run_id": store.id_of(BOTH), "seconds": 60.0 * minutes, "started": "2026-01-01T00:00:00+00:00"}
    record |= {"finished": "2026-01-01T01:00:00+00:00"} | (
        {"sittings": [{"first_step": step} for step in sittings]} if sittings else {}
    )
    save_json(run_dir(store.id_of(BOTH)) / "env.json", record)
    sources = Sources()
    sources.add({"run_id": store.id_of(BOTH)})
    assert ("last part alone: AT + FSR (seed 0)" in formats.unnamed(sources)) == named


def evaluated(run, dtype):
    """One evaluation, all right; dtype: what its record says of its format, None for nothing."""
    crafting = {"dtype": dtype, "winograd": dtype == "float32"} if dtype else {}
    store.save_evaluation(run, CLEAN, range(2000), [True] * 2000, precision=run.precision, crafting=crafting)


def notes(name="T1", profile="mini"):
    return " ".join(tables.TABLES[name].make(profile).about.notes)


def test_without_exceptions_there_is_one_sentence(root):
    trained(AT, "bfloat16")
    evaluated(AT, None)  # records from before evaluations named their format
    evaluated(BOTH, "bfloat16")
    trained(BOTH, "bfloat16")
    assert formats.USUAL in notes() and "without bf16 units" not in notes()


def test_a_training_and_an_evaluation_in_float32_are_named(root):
    trained(AT, "float32")
    evaluated(AT, "bfloat16")
    trained(BOTH, "bfloat16")
    evaluated(BOTH, "float32")
    text = notes()
    assert formats.USUAL in text
    assert "more exact: trainings of AT (seed 0); evaluations of AT + FSR (seed 0)." in text


def test_weights_rounded_for_travelling_are_named(root):
    for run, half in ((AT, False), (BOTH, True)):
        store.save_config(run)
        save_json(run_dir(store.id_of(run)) / "env.json", {"half": half, "run_id": store.id_of(run)})
        evaluated(run, "bfloat16")
    assert f"{formats.ROUNDED}: AT + FSR (seed 0)." in notes()


def test_a_table_of_two_kinds_of_machines_names_them(records):
    write = records("mini")
    write.trained(AT, 1.0, {"device": "cpu"})
    write.trained(BOTH, 1.0, {"device": "cpu"})
    sources = Sources(runs={store.id_of(AT), store.id_of(BOTH)})
    assert formats.machines(sources) == ""
    mart = next(row for row in experiments.ROWS["mini"]["whitebox"] if row.name == "MART").runs[0]
    write.trained(mart, 1.0, {"device": "cuda", "gpu": "NVIDIA H200"})
    sources.runs.add(store.id_of(mart))
    told = "Trained on a CPU: AT (seed 0), AT + FSR (seed 0); on a GPU (NVIDIA H200): MART (seed 0). "
    assert formats.machines(sources).startswith(told)
    write.evaluation(AT, "clean", 200)
    write.evaluation(mart, "clean", 200)
    assert "on a GPU (NVIDIA H200): MART (seed 0)." in notes()


@pytest.mark.parametrize(
    "judged, told",
    [
        ({"first"}, ""),
        ({"later"}, "Trained on a CPU: AT + FSR (seed 0); on a GPU (NVIDIA H200): AT (seed 0). "),
        ({"first", "later"}, "Trained on a CPU: AT (seed 0), AT + FSR (seed 0); on a GPU (NVIDIA H200): AT (seed 0). "),
    ],
)
def test_of_two_trainings_those_are_named_whose_weights_were_judged(records, judged, told):
    write = records("mini")
    for run in (AT, BOTH):
        write.trained(run, 1.0, {"device": "cpu"})
    later = {"run_id": store.id_of(AT), "hardware": {"device": "cuda", "gpu": "NVIDIA H200"}, "half": True}
    save_json(store.retrained_path(AT, "later"), later | {"checkpoints": {"last": "later"}})
    sources = Sources(runs={store.id_of(AT), store.id_of(BOTH)}, weights={(store.id_of(AT), "last"): judged})
    assert formats.machines(sources).startswith(told) and bool(formats.machines(sources)) == bool(told)
    assert ("AT (seed 0)" in formats.rounded(sources)) == ("later" in judged)


def test_the_verdict_names_the_machines_of_what_it_compares(records):
    write = records("mini")
    residual = next(row for row in experiments.ROWS["mini"]["components"] if "residual" in row.name).runs[0]
    write.trained(BOTH, 1.0, {"device": "cuda", "gpu": "NVIDIA H200"})
    write.evaluation(BOTH, "autoattack", 200)
    write.evaluation(residual, "autoattack", 200)
    assert "Trained on" not in notes("T10")  # one kind so far
    write.trained(residual, 1.0, {"device": "cpu"})
    told = "Trained on a CPU: AT + residual (seed 0); on a GPU (NVIDIA H200): AT + FSR (seed 0)."
    assert told in notes("T10")


def test_images_crafted_on_another_network_are_no_exception(root):
    """They are made in float32 everywhere, on processors with and without bf16 units."""
    sources = Sources()
    record = {"run_id": store.id_of(AT), "precision": "bf16", "crafting": {"dtype": "float32"}}
    sources.add(record | {"evaluation": {"checkpoint": "last", "surrogate": "x"}})
    assert not sources.float32
    sources.add(record | {"evaluation": {"checkpoint": "last", "surrogate": None}})
    assert sources.float32 == {store.id_of(AT)}
    assert "for DI and TI the AT twin" in notes("T3") and "for DI and TI" not in notes("T1")


def test_several_seeds_are_listed_together(root):
    sources = Sources()
    for run in experiments.ROWS["mini"]["whitebox"][0].runs:
        trained(run, "float32")
        sources.runs.add(store.id_of(run))
    assert formats.exceptions(sources).endswith("trainings of AT (seeds 0, 1, 2).")


@pytest.mark.parametrize("profile", ["demo", "ci"])
def test_profiles_in_float32_say_nothing_of_it(root, profile):
    assert formats.note(profile, Sources(float32={"whatever"})) == ""


def test_readme_names_the_exception(root):
    for run in (AT, BOTH):
        trained(run, "float32")
        evaluated(run, "float32")
    text = results("mini")
    assert "trainings of AT (seed 0), AT + FSR (seed 0); evaluations of AT (seed 0), AT + FSR (seed 0)." in text


def test_readme_names_no_network_of_weights_that_it_does_not_show(root):
    for run, kind in ((AT, "last"), (BOTH, "ema")):
        store.save_config(run)
        save_json(run_dir(store.id_of(run)) / "env.json", {"half": True, "run_id": store.id_of(run)})
        store.save_evaluation(run, Evaluation(attack="clean", images=2000, checkpoint=kind), range(2000), [True] * 2000)
    assert f"{formats.ROUNDED}: AT (seed 0)." in results("mini")  # which shows `last`
    assert f"{formats.ROUNDED}: AT (seed 0), AT + FSR (seed 0)." in notes()  # T1 shows both
