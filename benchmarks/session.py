"""`python -m benchmarks.session --minutes 8 --out DIR [--profile headline]`: the most wanted results first.

For a GPU that is at hand for minutes: trains, evaluates and analyses the profile's main pair in the order in which the
results matter, then everything else, and packs the records into one tar after each stage. Run it again with the same
--root and it goes on; it needs neither a network nor Jupyter. Weights are rounded to float16 as soon as a training is
done and before anything is evaluated; `--weights ema last` packs those weights too, in parts of 15 MiB, and

    cat DIR/weights-ema-last.* | tar -x -C ROOT

puts them where a later chance finds them, once the records of their trainings lie below that root. Then
`--no-retrain` computes what those weights allow, and trains nothing that is on record. Processes can share a device
and a root: `--part 1/4` to `--part 4/4` take every fourth run each, `--only` one of the main pair, and
`--leave autoattack` leaves it to `benchmarks.crew`. `benchmarks.chance` starts several of both at once.
"""

import argparse
import contextlib
import io
import os
import re
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from fsr import executors, experiments, paths, runs, store
from fsr.config import Evaluation, Run
from fsr.errors import FSRError, UsageError
from fsr.files import write_bytes
from fsr.progress import live
from fsr.runs import Options, Task
from fsr.runs.auditing import twin_of

PART_BYTES = 15 * 2**20
SWITCHES = ("compile", "graphs", "channels_last")
MIDDLE = ("last", "best", "ema")
LEAVE = ("autoattack", "rest")
REST = "everything else"


def pair_of(profile: str, seed: int) -> tuple[Run, Run]:
    """AT and AT + FSR on the main backbone with this seed; UsageError for one that the profile has not."""
    seeds = experiments.profile_of(profile).seeds
    if seed not in seeds:
        raise UsageError(f"{profile} has no seed {seed}; type --seed with one of {', '.join(map(str, seeds))}")
    plain, both = (replace(run, seed=seed) for run in experiments.main_pair(profile))
    return plain, both


def stages(profile: str, only: str | None = None, seed: int = 0) -> list[tuple[str, list[Task]]]:
    """Most wanted first: trainings, columns, AutoAttack on EMA, figures, sweeps, more AutoAttack, the audit, the rest.

    only: a label, at or at+fsr: nothing but its runs. seed: whose pair comes first.
    """
    pair = pair_of(profile, seed)[::-1]  # FSR first: a baseline alone says nothing new
    wanted = {run: experiments.evaluations(profile, "all", run) for run in pair}
    looks = {run: experiments.analyses(profile, "all", run) for run in pair}

    def of(run: Run, checkpoint: str, strong: bool) -> tuple:
        own = [e for e in wanted[run] if e.checkpoint == checkpoint and e.surrogate is None and e.intervention is None]
        plain = [e for e in own if (e.attack.startswith("autoattack")) == strong and e.steps is None and e.eps is None]
        return tuple(e for e in plain if strong or e.attack in experiments.COLUMNS)

    out = [("training", [Task(run=run) for run in pair])]
    columns = [Task(run=r, evaluations=of(r, c, False)) for c in ("ema", "last", "best") for r in pair]
    strong = {c: (f"AutoAttack, {c}", [Task(run=r, evaluations=of(r, c, True)) for r in pair]) for c in MIDDLE}
    quick = {run: tuple(a for a in looks[run] if a.kind != "audit") for run in pair}
    figures = ("figures", [Task(run=run, analyses=quick[run]) for run in pair])
    plain = {r: [e for e in wanted[r] if not e.attack.startswith(("autoattack", "nattack"))] for r in pair}
    own, foreign = ({r: tuple(e for e in plain[r] if bool(e.surrogate) == f) for r in pair} for f in (False, True))
    sweeps = ("sweeps and interventions", [Task(run=run, evaluations=own[run]) for run in pair])
    transfers = ("transfers", [Task(run=run, evaluations=foreign[run]) for run in pair])
    audit = ("audit", [Task(run=run, analyses=looks[run]) for run in pair])  # AT's trains its twin first
    out += [("authors' protocol", columns), strong["ema"], figures, sweeps, strong["last"], audit, transfers]
    out.append(strong["best"])
    out.append((REST, runs.tasks(profile)))
    return [(name, [task for task in tasks if only in (None, task.run.label)]) for name, tasks in out]


def part_of(text: str) -> tuple[int, int]:
    """2/4: the second of four; anything else is argparse's one line."""
    try:
        number, of = (int(part) for part in text.split("/"))
    except ValueError:
        number, of = 0, 0
    if not 1 <= number <= of:
        raise argparse.ArgumentTypeError(f"{text} is no part; type 2/4 for the second of four")
    return number, of


def allowed(task: Task, planned: dict[str, Run]) -> Task:
    """What of a task trains nothing that is on record: its own and others' weights are here or still to come."""

    def free(run: Run | None, kind: str = "last") -> bool:
        return run is not None and (not store.is_trained(run) or runs.has_weights(run, kind))

    def look(analysis) -> bool:
        kind = analysis.checkpoint
        return free(task.run, kind) and (analysis.kind != "audit" or free(twin_of(task.run), kind))

    def judged(evaluation) -> bool:
        source = evaluation.surrogate
        return free(task.run, evaluation.checkpoint) and (source is None or free(planned.get(source)))

    evaluations, analyses = filter(judged, task.evaluations), filter(look, task.analyses)
    return Task(run=task.run, evaluations=tuple(evaluations), analyses=tuple(analyses))


def _no_autoattack(evaluation: Evaluation) -> bool:
    return not evaluation.attack.startswith("autoattack")


def chosen(given: argparse.Namespace) -> Iterator[tuple[str, list[Task]]]:
    """The stages, each looked at when it begins, cut down to this process's part and, if so asked, to what trains
    nothing twice or to what is not AutoAttack; latencies are for a process that has the device for itself.
    """
    out, (number, of) = stages(given.profile, given.only, given.seed), given.part
    order = list(dict.fromkeys(task.run for _, tasks in out for task in tasks))  # the same in every process
    mine, planned = set(order[number - 1 :: of]), {store.id_of(r): r for r in experiments.SETS[given.profile]["all"]}
    for name, tasks in out:
        tasks = [task for task in tasks if task.run in mine]
        if given.sharing > 1:
            tasks = [replace(task, analyses=tuple(a for a in task.analyses if a.kind != "cost")) for task in tasks]
        if "rest" in given.leave and name == REST:
            tasks = []
        if "autoattack" in given.leave:
            tasks = [replace(task, evaluations=tuple(filter(_no_autoattack, task.evaluations))) for task in tasks]
        yield name, [allowed(task, planned) for task in tasks] if given.no_retrain else tasks


def pack(out: Path) -> Path:
    """Records, histories, benchmarks and outcomes so far, no weights, as one tar; atomic: a kill leaves the one before.

    Another process may be writing into the same results: what is not whole yet is left out.
    """
    out.mkdir(parents=True, exist_ok=True)
    target, half = out / "records.tar.gz", out / f"records.half.{os.getpid()}"
    with tarfile.open(half, "w:gz") as tar:
        for pattern in ("runs/**/*", "benchmarks/**/*", "checkpoints/*/partial-*.json"):
            for path in sorted(paths.results().glob(pattern)):
                if path.is_file() and path.suffix != ".tmp":
                    with contextlib.suppress(FileNotFoundError):
                        data, entry = path.read_bytes(), tarfile.TarInfo(str(path.relative_to(paths.root())))
                        entry.size, entry.mtime = len(data), path.stat().st_mtime
                        tar.addfile(entry, io.BytesIO(data))
    half.replace(target)
    return target


def pack_weights(planned: list[Run], checkpoints: list[str], out: Path) -> list[Path]:
    """These runs' weights as one tar in parts, `weights-ema.00` and on; what is not trained yet is left out."""
    trained = [(run, kind) for run in planned for kind in checkpoints if runs.has_weights(run, kind)]
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as tar:
        for run, kind in trained:
            path = runs.weights_path(run, kind)
            tar.add(path, arcname=str(path.relative_to(paths.root())))
    data, parts = whole.getvalue(), []
    for start in range(0, len(data) if trained else 0, PART_BYTES):
        parts.append(out / f"weights-{'-'.join(checkpoints)}.{len(parts):02d}")
        write_bytes(parts[-1], data[start : start + PART_BYTES])
    return parts


def deliver(given: argparse.Namespace) -> list[Path]:
    """Records, and the weights that were asked for of this process's runs, packed."""
    mine = list(dict.fromkeys(task.run for _, tasks in chosen(given) for task in tasks)) if given.weights else []
    return [pack(given.out), *pack_weights(mine, given.weights, given.out)]


def work(planned: Iterable[tuple[str, list[Task]]], options: Options, done: Callable[[], None]) -> list[str]:
    """Do the stages until the time is up, with a call of `done` after each; returns failures as lines."""
    failed = []
    for name, tasks in planned:
        todo = [task for task in tasks if task.missing()]
        print(f"{name}: {len(todo)} of {len(tasks)} to do", flush=True)
        with live(todo) as report:
            outcome = executors.inline(todo, replace(options, report=report))
        failed += outcome.failed
        if todo:
            done()  # pack: this machine may be taken away without warning
        if outcome.stopped:
            print(f"stopped ({outcome.stopped}) in: {name}", flush=True)
            break
    return failed


def overview(profile: str, seed: int = 0) -> str:
    """Accuracies of the main pair, a row per run and weights: each attack at its own settings, on the most images."""
    known = store.metrics(list(pair_of(profile, seed)))
    plain = [
        re.fullmatch(r"(-n\d+)?", kind.removeprefix(name)) is not None
        for name, kind in zip(known["attack"], known["attack_id"], strict=True)
    ]
    known = known.loc[plain].sort_values("n").drop_duplicates(["run_id", "checkpoint", "attack"], keep="last")
    if known.empty:
        return "no accuracy yet"
    return known.pivot(index=["method", "seed", "checkpoint"], columns="attack", values="accuracy").to_string()


def parsed(line: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=minutes, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--profile", default="headline")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--device")
    parser.add_argument("--weights", nargs="*", choices=MIDDLE, default=[], help="pack these checkpoints too")
    parser.add_argument("--only", choices=("at", "at+fsr"), help="only its runs: two processes can share a GPU")
    parser.add_argument("--seed", type=int, default=0, help="whose pair comes first")
    parser.add_argument("--part", type=part_of, default=(1, 1), metavar="K/N", help="every Nth run, from the Kth on")
    parser.add_argument("--no-retrain", action="store_true", help="train nothing that is on record a second time")
    parser.add_argument("--leave", nargs="*", choices=LEAVE, default=[], help="do without: all AutoAttack; other runs")
    parser.add_argument("--sharing", type=int, default=1, help="how many such processes use the device at once")
    parser.add_argument("--off", nargs="*", choices=SWITCHES, default=[], help="go without these, should one fail")
    return parser.parse_args(line)


def minutes(text: str) -> float:
    """A number of minutes, 0 to pack what is there; anything else is argparse's one line."""
    with contextlib.suppress(ValueError):
        if (value := float(text)) >= 0:
            return value
    raise argparse.ArgumentTypeError(f"{text} is no time; type a number of minutes, 0 to pack what is there")


def main() -> int:
    """Work, pack; exit code 1 when something failed."""
    given = parsed(sys.argv[1:])
    off = tuple((name, False) for name in given.off)
    try:
        paths.use(root=given.root, data=given.data)
        pair_of(given.profile, given.seed)
        paths.writable(given.out, "--out")  # now, and not when the records are to be packed
        deadline = time.monotonic() + 60 * given.minutes
        options = Options(device=given.device, deadline=deadline, half=True, switches=off, sharing=given.sharing)
        failed = work(chosen(given), options, lambda: deliver(given))
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    except FSRError as error:
        failed = [str(error)]
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    print(*deliver(given))
    print(overview(given.profile, given.seed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
