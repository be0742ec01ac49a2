"""The script for a GPU that is there for minutes: most wanted first, goes on, and everything comes home."""

import subprocess
import tarfile

import pytest
from tiny import FSR_HERE, tiny_run

from benchmarks import session
from fsr import experiments, runs, store
from fsr.config import Analysis, Evaluation

PAIR = (tiny_run(epochs=1), tiny_run(epochs=1, module=FSR_HERE))


@pytest.fixture
def small(root, monkeypatch):
    """A profile whose main pair trains in seconds, and nothing but its trainings to do."""
    monkeypatch.setattr(experiments, "main_pair", lambda _profile: PAIR)
    monkeypatch.setattr(session, "stages", lambda *_: [("training", [runs.Task(run=run) for run in PAIR])])
    return root


def call(monkeypatch, out, *more: str) -> int:
    given = ["session", "--profile", "ci", "--device", "cpu", "--out", str(out), *more]
    monkeypatch.setattr("sys.argv", given)
    return session.main()


def test_both_trainings_come_before_any_evaluation_and_nothing_is_left_out():
    found = session.stages("ci")
    order = ["training", "authors' protocol", "AutoAttack, ema", "figures", "sweeps and interventions"]
    order += ["AutoAttack, last", "audit", "transfers"]
    assert [name for name, _ in found] == [*order, "AutoAttack, best", "everything else"]
    assert [bool(task.run.module) for task in found[0][1]] == [True, False]  # FSR first
    planned = {e for run in experiments.main_pair("ci") for e in experiments.evaluations("ci", "all", run)}
    assert planned <= {e for _, tasks in found for task in tasks for e in task.evaluations}


def test_two_processes_can_share_a_gpu_one_run_each_and_say_so(root, tmp_path, monkeypatch):
    both, plain = (session.stages("ci", label) for label in ("at+fsr", "at"))
    for (name, all_), (_, first), (_, second) in zip(session.stages("ci"), both, plain, strict=True):
        assert {task.run.label for task in first} <= {"at+fsr"} and {task.run.label for task in second} <= {"at"}
        others = [task for task in all_ if task.run.label not in ("at", "at+fsr")]
        assert len(first) + len(second) + len(others) == len(all_) and (not others or name == "everything else")
    monkeypatch.setattr(experiments, "main_pair", lambda _profile: PAIR)
    monkeypatch.setattr(
        session,
        "stages",
        lambda _profile, only, _seed: [("training", [runs.Task(run=run) for run in PAIR if run.label == only])],
    )
    assert call(monkeypatch, tmp_path, "--minutes", "5", "--only", "at+fsr", "--sharing", "2") == 0
    assert not store.is_trained(PAIR[0]) and store.environment(PAIR[1])["sharing"] == 2
    assert not store.alone(store.environment(PAIR[1]))


def test_parts_share_the_runs_between_processes_whenever_they_start(root, capsys):
    """Of the ci profile, three processes, the last one starting when a run is done: everything once, in one of them."""
    given = [session.parsed(["--minutes", "1", "--out", "x", "--profile", "ci", "--part", f"{k}/3"]) for k in (1, 2, 3)]
    parts = [list(session.chosen(each)) for each in given[:2]]
    first = session.stages("ci")[0][1][0].run
    done = root / "results" / "runs" / store.id_of(first)
    done.mkdir(parents=True)
    (done / "env.json").write_text("{}")
    assert store.is_trained(first)
    parts.append(list(session.chosen(given[2])))
    for (name, tasks), *shares in zip(session.stages("ci"), *parts, strict=True):
        assert sorted(t.name for t in tasks) == sorted(t.name for _, share in shares for t in share), name
    runs_of = [{task.run for _, tasks in part for task in tasks} for part in parts]
    assert not runs_of[0] & runs_of[1] and not runs_of[1] & runs_of[2] and not runs_of[0] & runs_of[2]
    sizes = [len(each) for each in runs_of]
    assert max(sizes) - min(sizes) <= 1 and sum(sizes) == len(set(experiments.SETS["ci"]["all"]))
    for wrong in ("0/3", "4/3", "2", "a/b"):
        with pytest.raises(SystemExit) as stopped:
            session.parsed(["--minutes", "1", "--out", "x", "--part", wrong])
        assert stopped.value.code == 2 and f"{wrong} is no part; type 2/4" in capsys.readouterr().err


def test_latencies_are_for_a_process_alone(root):
    def kinds(*more: str) -> set:
        given = session.parsed(["--minutes", "1", "--out", "x", "--profile", "ci", *more])
        return {analysis.kind for _, tasks in session.chosen(given) for task in tasks for analysis in task.analyses}

    assert kinds() - kinds("--sharing", "2") == {"cost"} and "audit" in kinds("--sharing", "2")


def test_without_retraining_only_the_weights_that_are_here_are_looked_at(root):
    """The first run is on record with its EMA weights only; the second is not trained and needs the first one."""
    looks = tuple(Evaluation(attack="clean", checkpoint=kind) for kind in session.MIDDLE)
    figures = (Analysis(kind="features", checkpoint="ema"), Analysis(kind="streams"))
    planned = {store.id_of(run): run for run in PAIR}
    one, two = (
        runs.Task(
            run=run,
            evaluations=(*looks, Evaluation(attack="pgd20", checkpoint="ema", surrogate=store.id_of(other))),
            analyses=(*figures, Analysis(kind="audit", checkpoint="ema")),
        )
        for run, other in (PAIR, PAIR[::-1])
    )
    assert [session.allowed(task, planned) for task in (one, two)] == [one, two]  # all is still to be trained
    assert session.allowed(one, {}).evaluations == looks  # a surrogate that no plan knows
    runs.ensure_trained(PAIR[0], runs.Options(device="cpu"))
    assert [session.allowed(task, planned) for task in (one, two)] == [one, two]
    for kind in ("last", "best"):
        runs.weights_path(PAIR[0], kind).unlink()
    (runs.weights_path(PAIR[0], "ema").parent / "state.safetensors").unlink()
    left = session.allowed(one, planned)  # its surrogate and its twin are still to come
    assert left.evaluations == one.evaluations[2:] and left.analyses == (figures[0], one.analyses[-1])
    other = session.allowed(two, planned)
    assert other.evaluations == looks  # no transfer from weights that are gone, nor an audit that needs them
    assert other.analyses == (*figures, two.analyses[-1])
    before = store.environment(PAIR[0])
    done = runs.Task(run=PAIR[0], evaluations=left.evaluations[:1], analyses=figures[:1])
    assert runs.perform(done, runs.Options(device="cpu")) == [] and store.environment(PAIR[0]) == before
    assert not runs.has_weights(PAIR[0], "last")


def test_records_and_rounded_weights_come_home_and_are_found_there(small, tmp_path, monkeypatch):
    out, home = tmp_path / "out", tmp_path / "home"
    assert call(monkeypatch, out, "--minutes", "0", "--weights", "ema") == 0  # no time: what there is is packed
    assert not store.is_trained(PAIR[0]) and not list(out.glob("weights*"))
    monkeypatch.setattr(session, "PART_BYTES", 20_000)
    assert call(monkeypatch, out, "--minutes", "5", "--weights", "ema") == 0
    parts = sorted(out.glob("weights-ema.*"))
    assert len(parts) > 1 and all(part.stat().st_size <= 20_000 for part in parts)
    before = runs.weights_path(PAIR[1], "ema").read_bytes()
    home.mkdir()
    with tarfile.open(out / "records.tar.gz") as tar:
        tar.extractall(home, filter="data")
    subprocess.run(f"cat {out}/weights-ema.* | tar -x -C {home}", shell=True, check=True)
    monkeypatch.setenv("FSR_ROOT", str(home))
    for run in PAIR:
        assert store.is_trained(run) and runs.has_weights(run, "ema") and not runs.has_weights(run, "last")
    assert runs.weights_path(PAIR[1], "ema").read_bytes() == before
    assert store.environment(PAIR[1])["half"] is True


def test_only_one_of_the_two_may_be_asked_for(monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        call(monkeypatch, tmp_path, "--minutes", "1", "--only", "fsr")
    assert stopped.value.code == 2 and "at+fsr" in capsys.readouterr().err


def test_packing_leaves_out_what_another_process_is_writing(root, tmp_path):
    folder = root / "results" / "runs" / "some-run"
    folder.mkdir(parents=True)
    for name in ("env.json", ".env.json-1.tmp"):
        (folder / name).write_text("{}")
    (folder / "gone.json").symlink_to(folder / "vanished")  # there when listed, gone when read
    half = root / "results" / "checkpoints" / "some-run"
    half.mkdir(parents=True)
    for name in ("partial-ema-autoattack.json", "state.safetensors"):
        (half / name).write_text("{}")
    with tarfile.open(session.pack(tmp_path)) as tar:
        partial = "results/checkpoints/some-run/partial-ema-autoattack.json"
        assert tar.getnames() == ["results/runs/some-run/env.json", partial]
    assert [path.name for path in tmp_path.glob("records*")] == ["records.tar.gz"]


@pytest.mark.parametrize("wrong", ["--profile", "--root", "--out"])
def test_a_wrong_profile_or_place_is_one_line_and_2_before_any_work(root, monkeypatch, capsys, tmp_path, wrong):
    (tmp_path / "file").write_text("x")
    value = "nonsense" if wrong == "--profile" else str(tmp_path / "file")
    assert call(monkeypatch, tmp_path / "out", "--minutes", "1", wrong, value) == 2
    told = capsys.readouterr()
    assert len(told.err.strip().splitlines()) == 1 and not told.out


@pytest.mark.parametrize("time", ["-1", "nan", "soon"])
def test_a_time_that_is_none_is_refused(monkeypatch, tmp_path, capsys, time):
    with pytest.raises(SystemExit, match="2"):
        call(monkeypatch, tmp_path, "--minutes", time)
    assert "type a number of minutes" in capsys.readouterr().err


def test_a_machine_that_is_taken_away_leaves_the_records_of_whole_stages(small, tmp_path, monkeypatch):
    parts = [(run.label, [runs.Task(run=run)]) for run in PAIR]
    monkeypatch.setattr(session, "stages", lambda *_: parts)
    inline, done = session.executors.inline, []

    def first_only(*given):
        if done:
            raise KeyboardInterrupt
        done.append(inline(*given))
        return done[0]

    monkeypatch.setattr(session.executors, "inline", first_only)
    with pytest.raises(KeyboardInterrupt):
        call(monkeypatch, tmp_path, "--minutes", "5", "--off", "compile", "graphs")
    with tarfile.open(tmp_path / "records.tar.gz") as tar:
        assert f"results/runs/{store.id_of(PAIR[0])}/env.json" in tar.getnames()
    assert store.environment(PAIR[0])["switches"]["compile"] is False


def test_the_overview_mixes_no_settings(small):
    assert session.overview("ci") == "no accuracy yet"
    store.save_eval(PAIR[1], Evaluation(attack="clean"), range(2), [True, False])  # all images, nothing else
    assert session.overview("ci").split()[-2:] == ["last", "0.5"]
    for attack, images, right in (("pgd20", 4, 1), ("pgd20", 8, 6), ("clean", None, 8)):
        size = images or 8
        evaluation = Evaluation(attack=attack, images=images)
        store.save_eval(PAIR[0], evaluation, range(size), [i < right for i in range(size)])
    for other in ({"eps": 0.1}, {"steps": 3}, {"intervention": "mask_one"}, {"surrogate": "x-y-c0ffee"}):
        store.save_eval(PAIR[0], Evaluation(attack="pgd20", images=8, **other), range(8), [False] * 8)
    lines = session.overview("ci").splitlines()
    assert lines[0].split()[-2:] == ["clean", "pgd20"] and len(lines) == 4
    assert lines[2].split()[-3:] == ["last", "1.0", "0.75"]
