"""What all commands share: the app itself, how loud it is, and the options that mean the same everywhere."""

import logging
import sys
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from fsr import files
from fsr.files import UsageError, did_you_mean

log = logging.getLogger("fsr")
EPILOG = "Examples:  python -m fsr run-all    python -m fsr status --profile mini    python -m fsr -v train whitebox"
app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None, epilog=EPILOG)


@app.callback()
def everywhere(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Warnings, failures and results only.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Also where failures come from.")] = False,
) -> None:
    """Feature Separation and Recalibration (CVPR 2023), replicated: train, evaluate, audit and report."""
    if quiet and verbose:
        raise UsageError("--quiet and --verbose exclude each other; give one of them")
    log.setLevel(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)


def log_to_stderr() -> None:
    """Our own messages only: what libraries log is their business."""
    for old in [h for h in log.handlers if isinstance(h, logging.StreamHandler)]:
        log.removeHandler(old)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


def is_quiet() -> bool:
    """Was --quiet given?"""
    return log.level > logging.INFO


def say(line: str) -> None:
    """One line about what was done; nothing with --quiet."""
    if not is_quiet():
        typer.echo(line)


def show(tasks: Iterable) -> AbstractContextManager:
    """Progress of tasks on stderr: bars on a terminal, lines in a file, nothing with --quiet."""
    from fsr.cli.progress import live

    return nullcontext(lambda *_: None) if is_quiet() else live(tasks)


def _profiles(incomplete: str) -> list[str]:
    from fsr import experiments

    return [name for name in experiments.PROFILES if name.startswith(incomplete)]


def _sets(context: typer.Context, incomplete: str) -> list[str]:
    from fsr import experiments

    sets = experiments.SETS.get(context.params.get("profile") or "demo", experiments.SETS["demo"])
    return [name for name in sets if name.startswith(incomplete)] + _runs(sets["all"], incomplete)


def _runs(planned, incomplete: str) -> list[str]:
    """Ids of these planned runs and of those recorded here, once enough is typed to mean a run and not a set."""
    from fsr.config import run_id

    known = {run_id(run) for run in planned}.union(known_runs("")) if "-" in incomplete else ()
    return sorted(name for name in known if name.startswith(incomplete))


def _any_runs(incomplete: str) -> list[str]:
    from fsr import experiments

    return _runs([run for sets in experiments.SETS.values() for run in sets["all"]], incomplete)


def known_runs(incomplete: str) -> list[str]:
    """Ids of the runs recorded in these results that begin so."""
    found = sorted(p.parent.name for p in (files.results() / "runs").glob("*/config.json"))
    return [name for name in found if name.startswith(incomplete)]


def _attacks(incomplete: str) -> list[str]:
    from fsr.attacks import ATTACKS

    return [name for name in ATTACKS if name.startswith(incomplete)]


class Executor(StrEnum):
    """Where tasks run."""

    local = "local"
    inline = "inline"
    ray = "ray"


Profile = Annotated[
    str,
    typer.Option("--profile", "-p", help="ci, demo, mini, headline, headline40 or paper.", autocompletion=_profiles),
]
Which = Annotated[
    str,
    typer.Argument(metavar="SET", help="A set of the profile (whitebox ...) or a run id.", autocompletion=_sets),
]
RunId = Annotated[
    str,
    typer.Argument(metavar="RUN", help="A run id; `python -m fsr status` lists them.", autocompletion=_any_runs),
]
Attack = Annotated[
    str | None,
    typer.Option(help="Only this attack of fsr.attacks.ATTACKS; prints accuracies.", autocompletion=_attacks),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; by default a GPU when there is one.")]
Root = Annotated[Path | None, typer.Option(help="Results and figures lie below it; default: this repository.")]
DataDir = Annotated[Path | None, typer.Option("--data", help="Folder of the data sets; default: data/ below the root.")]
Minutes = Annotated[float | None, typer.Option(help="Stop cleanly after so many minutes; run it again to go on.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes side by side; default: what fits the machine.")]
Dry = Annotated[bool, typer.Option("--dry-run", help="Only say what would be computed, and about how long it takes.")]
Deterministic = Annotated[
    bool,
    typer.Option(
        "--deterministic",
        help="Bit-identical on one machine where torch has deterministic kernels; else it warns. Slower on a GPU.",
    ),
]
Board = Annotated[bool, typer.Option("--tensorboard", help="Also write TensorBoard event files.")]
Where = Annotated[Executor, typer.Option(help="Worker processes here, this process alone, or a Ray cluster.")]
Address = Annotated[str, typer.Option(help="Of the Ray cluster.")]


def known_profile(name: str) -> str:
    """The name, or UsageError with the one that was probably meant."""
    from fsr import experiments

    if name not in experiments.PROFILES:
        meant = did_you_mean(name, experiments.PROFILES)
        raise UsageError(f"unknown profile {name!r}{meant}; choose one of {', '.join(experiments.PROFILES)}")
    return name


def options_of(device: str | None, minutes: float | None, tensorboard: bool = False, elsewhere: bool = False):
    """runs.Options of what was typed; fails at once when the device is not there."""
    from fsr import hardware
    from fsr.runs import Options

    if minutes is not None and not minutes > 0:
        raise UsageError(f"--limit-minutes must be positive, not {minutes:g}")
    if tensorboard and find_spec("tensorboard") is None:
        raise UsageError("--tensorboard needs a package that is not here: pip install -e '.[tensorboard]'")
    if not elsewhere:
        hardware.device_named(device)
    elif device not in (None, "cpu", "cuda"):  # on a cluster Ray chooses which, and the driver needs no GPU
        raise UsageError(f"--device {device}: with --executor ray give cpu or cuda, or leave it out")
    deadline = time.monotonic() + 60 * minutes if minutes else None
    return Options(device=device, deadline=deadline, tensorboard=tensorboard)


def writable_root() -> None:
    """Fail at once, not after hours, when results cannot be written."""
    files.writable(files.results(), "--root")
