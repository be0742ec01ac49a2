"""Committed beside retrained: the difference is in points, and only what both have is compared."""

import numpy as np
import pytest
from tiny import tiny_run

from fsr import files, store
from fsr.cli.compare import compare, summary
from fsr.config import Evaluation
from fsr.files import UsageError

RUN = tiny_run()


def save(root, attack: str, correct: list[int], monkeypatch) -> None:
    monkeypatch.setenv("FSR_ROOT", str(root))
    store.save_config(RUN)
    store.save_evaluation(RUN, Evaluation(attack=attack), np.arange(len(correct)), np.array(correct, bool), seconds=1.0)


def test_differences_are_in_points_and_only_common_evaluations_count(tmp_path, monkeypatch):
    save(tmp_path / "again", "clean", [1, 1, 1, 1], monkeypatch)
    save(tmp_path / "again", "fgsm", [1, 0, 0, 0], monkeypatch)
    save(tmp_path / "here", "cw", [1, 1, 1, 1], monkeypatch)
    save(tmp_path / "here", "fgsm", [1, 1, 0, 0], monkeypatch)
    save(tmp_path / "here", "clean", [1, 1, 1, 1], monkeypatch)
    table = compare(tmp_path / "again", [RUN]).set_index("attack_id")
    assert sorted(table.index) == ["clean", "fgsm"]
    assert table.loc["fgsm", "difference"] == -25.0 and table.loc["clean", "difference"] == 0.0
    told = "2 values: 1 equal; differences: median 12.50, 95 % within 23.75, largest 25.00 points"
    assert summary(table) == told
    assert files.root() == (tmp_path / "here").resolve()


def test_a_root_without_results_is_refused(tmp_path, monkeypatch):
    save(tmp_path / "here", "clean", [1], monkeypatch)
    with pytest.raises(UsageError, match="make retrain"):
        compare(tmp_path / "nothing", [RUN])
