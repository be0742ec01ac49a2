"""`python -m benchmarks.session --minutes 8 --out DIR [--profile headline]`: the most wanted results first.

For a GPU that is at hand for minutes: trains, evaluates and analyses the profile's main pair in the order in which the
results matter, then everything else, and packs the records into one tar after each stage. Run it again with the same
--root and it goes on; it needs neither a network nor Jupyter. Weights are rounded to float16 as soon as a training is
done and before anything is evaluated; `--weights ema last` packs those of the main pair too, in parts of 15 MiB, and

    cat DIR/weights-ema-last.* | tar -x -C ROOT

puts them where a later chance finds them, once the records of their trainings lie below that root.
"""

import argparse
import contextlib
import io
import os
import re
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

from fsr import executors, experiments, paths, runs, store
from fsr.config import Run
from fsr.errors import FSRError, UsageError
from fsr.files import write_bytes
from fsr.progress import live
from fsr.runs import Options, Task

PART_BYTES = 15 * 2**20
SWITCHES = ("compile", "graphs", "channels_last")
MIDDLE = ("last", "best", "ema")


def stages(profile: str, only: str | None = None) -> list[tuple[str, list[Task]]]:
    """Most wanted first: trainings, columns, AutoAttack on EMA, figures, more AutoAttack, the audit, then the rest.

    only: a label, at or at+fsr: nothing but its runs.
    """
    pair = experiments.main_pair(profile)[::-1]  # FSR first: a baseline alone says nothing new
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
    audit = ("audit", [Task(run=run, analyses=looks[run]) for run in pair])  # AT's trains its twin first
    out += [("authors' protocol", columns), strong["ema"], figures, strong["last"], audit, strong["best"]]
    out.append(("everything else", runs.tasks(profile)))
    return [(name, [task for task in tasks if only in (None, task.run.label)]) for name, tasks in out]


def pack(out: Path) -> Path:
    """Records, histories and benchmarks, without weights, as one tar; atomic, so a kill leaves the one before.

    Another process may be writing into the same results: what is not whole yet is left out.
    """
    out.mkdir(parents=True, exist_ok=True)
    target, half = out / "records.tar.gz", out / f"records.half.{os.getpid()}"
    with tarfile.open(half, "w:gz") as tar:
        for name in ("runs", "benchmarks"):
            for path in sorted((paths.results() / name).rglob("*")):
                if path.is_file() and path.suffix != ".tmp":
                    with contextlib.suppress(FileNotFoundError):
                        tar.add(path, arcname=str(path.relative_to(paths.root())), recursive=False)
    half.replace(target)
    return target


def pack_weights(profile: str, checkpoints: list[str], out: Path) -> list[Path]:
    """The main pair's weights as one tar in parts, `weights-ema.00` and on; what is not trained yet is left out."""
    pair = experiments.main_pair(profile)
    trained = [(run, kind) for run in pair for kind in checkpoints if runs.has_weights(run, kind)]
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
    """Records and the weights that were asked for, packed."""
    return [pack(given.out), *pack_weights(given.profile, given.weights, given.out)]


def work(profile: str, options: Options, done: Callable[[], None] = lambda: None, only: str | None = None) -> list[str]:
    """Do the stages until the time is up, with a call of `done` after each; returns failures as lines."""
    failed = []
    for name, tasks in stages(profile, only):
        todo = [task for task in tasks if task.missing()]
        print(f"{name}: {len(todo)} of {len(tasks)} to do", flush=True)
        with live(todo) as report:
            outcome = executors.inline(todo, executors.replace(options, report=report))
        failed += outcome.failed
        if todo:
            done()  # pack: this machine may be taken away without warning
        if outcome.stopped:
            print(f"stopped ({outcome.stopped}) in: {name}", flush=True)
            break
    return failed


def overview(profile: str) -> str:
    """Accuracies of the main pair, a row per run and weights: each attack at its own settings, on the most images."""
    known = store.metrics(list(experiments.main_pair(profile)))
    plain = [
        re.fullmatch(r"(-n\d+)?", kind.removeprefix(name)) is not None
        for name, kind in zip(known["attack"], known["attack_id"], strict=True)
    ]
    known = known.loc[plain].sort_values("n").drop_duplicates(["run_id", "checkpoint", "attack"], keep="last")
    if known.empty:
        return "no accuracy yet"
    return known.pivot(index=["method", "seed", "checkpoint"], columns="attack", values="accuracy").to_string()


def main() -> int:
    """Parse, work, pack; exit code 1 when something failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--profile", default="headline")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--device")
    parser.add_argument("--weights", nargs="*", choices=MIDDLE, default=[], help="pack these checkpoints too")
    parser.add_argument("--only", choices=("at", "at+fsr"), help="only its runs: two processes can share a GPU")
    parser.add_argument("--sharing", type=int, default=1, help="how many such processes use the device at once")
    parser.add_argument("--off", nargs="*", choices=SWITCHES, default=[], help="go without these, should one fail")
    given = parser.parse_args()
    paths.use(root=given.root, data=given.data)
    off = tuple((name, False) for name in given.off)
    try:
        experiments.profile_of(given.profile)
        deadline = time.monotonic() + 60 * given.minutes
        options = Options(device=given.device, deadline=deadline, half=True, switches=off, sharing=given.sharing)
        failed = work(given.profile, options, lambda: deliver(given), given.only)
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    except FSRError as error:
        failed = [str(error)]
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    print(*deliver(given))
    print(overview(given.profile))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
