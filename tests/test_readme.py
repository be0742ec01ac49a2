"""README states what the records say."""

import numpy as np
import pytest

from fsr import experiments, paths, store
from fsr.config import Evaluation, FSRSpec, replace
from fsr.errors import UsageError
from fsr.report.readme import BEGIN, END, PART, block, part, results, rewrite


def test_the_results_in_readme_are_those_of_the_committed_records(monkeypatch):
    monkeypatch.delenv("FSR_ROOT", raising=False)
    if not store.runs():
        pytest.skip("no records in this checkout")
    text = (paths.repository() / "README.md").read_text()
    assert text.split(BEGIN)[1].split(END)[0].strip() == block().strip()


def test_what_was_not_run_says_so(root):
    text = results("demo")
    assert text.count("not run") >= 32 and "| AT + FSR |" in text


def record(run, right, images, strong):
    """The first images are right under each of the five columns and AutoAttack."""
    store.save_config(run)
    for attack, n in (*((name, images) for name in store.ENSEMBLE), ("autoattack", strong)):
        store.save_eval(run, Evaluation(attack=attack, images=n), np.arange(n), np.arange(n) < right)


def test_a_larger_profile_is_shown_once_its_pair_is_recorded_and_never_half(root):
    plain, both = experiments.main_pair("mini")
    assert block() == results("demo")
    record(plain, 900, 2000, 500)
    assert block() == results("demo")
    record(both, 940, 2000, 500)
    text = block()
    assert text.startswith("## Results (`mini`)") and text.endswith(results("demo")) and "| AT | 45.0 [" in text


def test_the_part_of_cifar_is_shown_until_then_with_paired_gains(root):
    record(PART, 300, 1000, 500)
    assert part() == ""
    record(replace(PART, module=FSRSpec()), 320, 1000, 500)
    text = part()
    assert block().startswith(text) and "| AT | 30.0 [27.2, 32.9] | 30.0" in text and "60.0 [55.6, 64.2]" in text
    assert "+2.0 [+1.2, +2.9]" in text


def test_only_the_marked_part_is_rewritten(root, tmp_path):
    path = tmp_path / "README.md"
    path.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert rewrite(path) and not rewrite(path)
    text = path.read_text()
    assert text.startswith("before\n") and text.endswith(f"{END}\nafter\n") and "old" not in text
    path.write_text("no marks")
    with pytest.raises(UsageError, match="results"):
        rewrite(path)
