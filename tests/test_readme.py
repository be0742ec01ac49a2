"""README states what the records say."""

import numpy as np
import pytest

from fsr import experiments, files, store
from fsr.config import Evaluation, replace, run_id
from fsr.files import UsageError, save_json
from fsr.report.readme import BEGIN, END, block, results, rewrite
from fsr.report.speed import speed
from fsr.statistics import seed_summary


def test_the_results_in_readme_are_those_of_the_committed_records(monkeypatch):
    monkeypatch.delenv("FSR_ROOT", raising=False)
    if not store.runs():
        pytest.skip("no records in this checkout")
    text = (files.repository() / "README.md").read_text()
    assert text.split(BEGIN)[1].split(END)[0].strip() == block().strip()


def test_what_was_not_run_says_so(root):
    text = results("demo")
    assert text.count("not run") >= 12 and "| AT + FSR |" in text
    assert "Not run yet: recalibration without L_sep; " in text and "; auxiliary heads only; " in text
    assert "audit has not been run" in text


def record(run, right, images, strong):
    """The first images are right under each of the five columns and AutoAttack."""
    store.save_config(run)
    for attack, n in (*((name, images) for name in store.ENSEMBLE), ("autoattack", strong)):
        seen = np.arange(n or 500)  # demo's columns are on all 500
        store.save_evaluation(run, Evaluation(attack=attack, images=n), seen, seen < right)


def test_a_larger_profile_is_shown_once_its_pair_is_recorded_and_never_half(root):
    plain, both = experiments.main_pair("mini")
    assert block().startswith(results("demo"))
    record(plain, 900, 2000, 500)
    assert block().startswith(results("demo"))
    record(both, 940, 2000, 500)
    text = block()
    assert text.startswith("## Results (`mini`)") and results("demo") in text and "| AT | 1 | 45.0 [" in text
    assert "1 of 3 seeds so far" in text and "10 epochs: far from the paper's setting" in text
    assert "| auxiliary heads only |" not in text.split("## Results (`demo`)")[0]
    assert "AutoAttack (n = 500)" in text and "over seeds" not in text.split("## Results (`demo`)")[0]
    assert "On AutoAttack's images Ensemble leaves: AT 100.0 %, AT + FSR 100.0 %." in text


def test_what_of_the_papers_size_was_trained_is_counted(root):
    some = experiments.SETS["paper"]["all"]
    for done, told in enumerate(("none has", "1 has", "2 have")):
        assert f"Tiny ImageNet, ResNet-18, VGG-16-BN, WRN-34-10; {len(some)} trainings) {told} been run." in block()
        store.save_config(some[done])
        save_json(files.run_dir(run_id(some[done])) / "env.json", {"run_id": run_id(some[done])})


def test_rows_with_fewer_seeds_are_compared_on_the_same_ones(root):
    """AT + FSR has 80, 70 and 60 % on three seeds, the control 75 % on the first: five points behind, not ahead."""
    full = next(row for row in experiments.ROWS["demo"]["components"] if row.name == "AT + FSR").runs
    for run, right in zip(full, (400, 350, 300)):
        record(run, right, None, 100)
        record(replace(run, module=None), right - 10 * run.seed, None, 100)
    control = next(row for row in experiments.ROWS["demo"]["components"] if row.name == "auxiliary heads only").runs[0]
    record(control, 375, None, 100)
    rows = {line.split(" | ")[0]: line for line in results("demo").splitlines() if line.startswith("| ")}
    minus = "−"
    assert rows["| auxiliary heads only"].split(" | ")[1] == "1" and f"| {minus}5.0 [" in rows["| auxiliary heads only"]
    assert rows["| AT + FSR"].split(" | ")[1] == "3" and "70.0 [" in rows["| AT + FSR"]
    half = 100 * 4.3027 * 0.02 / 3**0.5  # gains of 0, 2 and 4 points; Student's t, two degrees of freedom
    ends = f"[{2 - half:+.1f}, {2 + half:+.1f}]".replace("-", minus)
    assert rows["| AT + FSR: gain over AT, interval over seeds"].count(ends) == 3


def test_seeds_that_only_one_side_has_are_said(root):
    plain, both = experiments.main_pair("mini")
    for run in (plain, replace(plain, seed=1)):
        record(run, 900, 2000, 500)
    record(both, 940, 2000, 500)
    assert "of 3 planned seeds AT has 2 so far, AT + FSR 1; gains are on those that both have." in results("mini")


def test_a_column_of_fewer_seeds_says_so(root):
    plain, both = experiments.main_pair("mini")
    record(plain, 900, 2000, 500)
    record(both, 940, 2000, 500)
    again = replace(both, seed=1)
    store.save_config(again)
    for attack in store.ENSEMBLE:
        store.save_evaluation(again, Evaluation(attack=attack, images=2000), np.arange(2000), np.arange(2000) < 960)
    row = next(line for line in results("mini").splitlines() if line.startswith("| AT + FSR | 2 |"))
    assert row.count("(1 of 2 seeds)") == 1 and row.split(" | ")[5].endswith("(1 of 2 seeds)")


def test_speed_is_what_the_benchmarks_recorded_and_nothing_without_them(root):
    assert speed() == ""
    parts = {"cpu": "A CPU", "cores": 4, "threads": 1, "device": "cpu"}
    rows = [
        {"case": "AutoAttack", "images": 200, "disagreeing_images": 1, "ratio": {"median": 3, "low": 3, "high": 3}},
        {"case": "batch 32", "ratio": {"median": 9, "low": 9, "high": 9}},
    ]
    folder = files.results() / "benchmarks"
    save_json(
        folder / "evaluate-a.json", {"benchmark": "evaluate-only", "machine": parts, "rows": rows, "quick": False}
    )
    save_json(folder / "evaluate-b.json", {"benchmark": "evaluate", "machine": parts, "rows": rows, "quick": True})
    assert speed().count("3.0x; 1 of 200 images with another outcome | A CPU, 4 cores, 1 thread |") == 1
    assert "batch 32" not in speed() and block().endswith(speed())
    assert "on a GPU (`python -m benchmarks.gpu`) | not run |" in speed()
    save_json(folder / "gpu-a.json", {"benchmark": "gpu", "machine": parts | {"gpu": "A GPU"}, "rows": []})
    assert "not run" not in speed()
    rate = {"plain": 1000.0, "fast": 7000.0}
    row = {"case": "epoch of 640 images", "images": 640, "images_per_second": rate, "ratio": rows[0]["ratio"]}
    save_json(folder / "gpu-a.json", {"benchmark": "gpu", "machine": parts | {"gpu": "A GPU"}, "rows": [row]})
    line = next(line for line in speed().splitlines() if "epoch of 640" in line)
    assert "one round; 7,000 images per second" in line and "49,000 take 7.0 s, the plain loop's 49 s" in line
    assert line.endswith("| one A GPU |")


def test_of_whole_epochs_only_the_largest_case_of_each_network_is_shown(root):
    same = {"backbone": "resnet18", "ratio": {"median": 3, "low": 3, "high": 3}}
    rows = [
        {"case": f"w{w}, {n} images", "width": w, "images": n, **same} for w, n in ((16, 512), (16, 128), (64, 256))
    ]
    parts = {"cpu": "A CPU", "cores": 4, "threads": 1, "device": "cpu"}
    save_json(files.results() / "benchmarks" / "p.json", {"benchmark": "pipeline", "machine": parts, "rows": rows})
    text = speed()
    assert text.count("| whole epochs: ") == 2 and "w16, 512 images" in text and "w64, 256 images" in text


@pytest.mark.parametrize(("shift", "words"), [(0.0, "no difference is seen"), (0.05, "**bf16 differs**")])
def test_bf16_is_compared_seed_by_seed_with_what_seeds_change(root, shift, words):
    float32, change = [0.20, 0.22, 0.24], [shift - 0.01, shift, shift + 0.01]
    bf16 = [a + b for a, b in zip(float32, change)]
    by_name = {"float32": float32, "bf16": bf16, "difference": change}
    summaries = {name: seed_summary(values)._asdict() for name, values in by_name.items()}
    rows = [{"precision": p, "seed": i, "clean": v, "pgd20": v, "images": 2000}
            for p, values in (("float32", float32), ("bf16", bf16)) for i, v in enumerate(values)]  # fmt: skip
    record = {"benchmark": "precision", "rows": rows, "conclusion": {"clean": summaries, "pgd20": summaries}}
    record["machine"] = {"cpu": "A CPU", "cores": 4, "threads": 1, "device": "cpu"}
    case = {"case": "AutoAttack", "images": 9, "disagreeing_images": 0, "ratio": {"median": 3, "low": 3, "high": 3}}
    save_json(files.results() / "benchmarks" / "e.json", record | {"benchmark": "evaluate", "rows": [case]})
    save_json(files.results() / "benchmarks" / "p.json", record)
    half = 100 * 4.3027 * 0.01 / 3**0.5  # Student's t, two degrees of freedom
    low, high = (f"{100 * shift + side * half:+.1f}".replace("-", "\N{MINUS SIGN}") for side in (-1, 1))
    assert f"by {100 * shift:+.1f} [{low}, {high}] points" in speed()
    assert "standard deviation of 2.0 points in float32 and 3.0 in bf16" in speed() and words in speed()
    assert speed().count("Does bf16 cost") == 1 and "Our own plain version" in speed()


def test_a_cluster_is_told_in_a_sentence_with_its_range(root):
    def row(case, low, median, high):
        of = {"ratio": {"low": low, "median": median, "high": high}}
        return {"case": case, **of, "seconds_per_task": {"median": 0.0042}, "start_seconds": {"median": 11.7}}

    record = {"benchmark": "cluster", "machine": {"cpu": "A CPU", "cores": 2, "threads": 1, "device": "cpu"}}
    record["rows"] = [row("one process", 1, 1, 1), row("1 worker", 0.9, 0.97, 1), row("2 workers", 1.42, 1.6, 1.74)]
    save_json(files.results() / "benchmarks" / "cluster-a.json", record)
    assert speed() == ""  # the table's benchmarks are missing
    rows = [{"case": "AutoAttack", "ratio": {"median": 3, "low": 3, "high": 3}}]
    save_json(files.results() / "benchmarks" / "evaluate-a.json", {**record, "benchmark": "evaluate", "rows": rows})
    assert "(A CPU, 2 cores)" in speed() and "1.6 times as fast as one process (1.4 to 1.7), one worker 1.0" in speed()
    assert "costs 4 ms, and a command 12 s before" in speed()


def test_only_the_marked_part_is_rewritten(root, tmp_path):
    path = tmp_path / "README.md"
    path.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert rewrite(path) and not rewrite(path)
    text = path.read_text()
    assert text.startswith("before\n") and text.endswith(f"{END}\nafter\n") and "old" not in text
    path.write_text("no marks")
    with pytest.raises(UsageError, match="results"):
        rewrite(path)
