"""What all commands share: the app itself, how loud it is, and the options that mean the same everywhere."""

import logging
import sys
import time
from collections.abc import Callable, Iterable
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


def recorded_runs() -> list[str]:
    """Ids of the runs recorded in these results."""
    return sorted(path.parent.name for path in (files.results() / "runs").glob("*/config.json"))


def _completing(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """What the shell offers for a word that is begun: the names that begin so."""

    def offered(incomplete: str) -> list[str]:
        return [name for name in names() if name.startswith(incomplete)]

    return offered


def _profiles() -> Iterable[str]:
    from fsr import experiments

    return experiments.PROFILES


def _runs() -> Iterable[str]:
    from fsr import experiments
    from fsr.config import run_id

    planned = {run_id(run) for sets in experiments.SETS.values() for run in sets["all"]}
    return sorted(planned.union(recorded_runs()))


def _sets() -> Iterable[str]:
    from fsr import experiments

    return [*experiments.SETS["demo"], *_runs()]


def _attacks() -> Iterable[str]:
    from fsr.attacks import ATTACKS

    return ATTACKS


class Executor(StrEnum):
    """Where tasks run."""

    local = "local"
    inline = "inline"
    ray = "ray"


def _option(text: str, *names: str, **more):
    return typer.Option(*names, help=text, **more)


Profile = Annotated[
    str, _option("demo, mini, headline ...; see README.", "--profile", "-p", autocompletion=_completing(_profiles))
]
Which = Annotated[
    str,
    typer.Argument(metavar="SET", help="A set (whitebox ...) or a run id.", autocompletion=_completing(_sets)),
]
RunId = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="A run id; `python -m fsr status` lists them.", autocompletion=_completing(_runs)
    ),
]
Attack = Annotated[
    str | None,
    _option("Only this attack of fsr.attacks.ATTACKS; prints accuracies.", autocompletion=_completing(_attacks)),
]
Checkpoint = Annotated[str, _option("last, best or ema; of evaluate with --attack.")]
Device = Annotated[str | None, _option("cpu, cuda or cuda:N; by default a GPU when there is one.")]
Root = Annotated[Path | None, _option("Results and figures lie below it; default: this repository.")]
DataDir = Annotated[Path | None, _option("Folder of the data sets; default: data/ below the root.", "--data")]
Minutes = Annotated[float | None, _option("Stop cleanly after so many minutes; run it again to go on.")]
Workers = Annotated[int | None, _option("Processes side by side; default: what fits the machine.", min=1)]
Dry = Annotated[bool, _option("Only say what would be computed, and about how long it takes.", "--dry-run")]
Deterministic = Annotated[
    bool,
    _option(
        "Bit-identical on one machine where torch has deterministic kernels; else it warns. Slower on a GPU.",
        "--deterministic",
    ),
]
EventFiles = Annotated[bool, _option("Also write TensorBoard event files.", "--tensorboard")]
Where = Annotated[Executor, _option("Worker processes here, this process alone, or a Ray cluster.")]
Address = Annotated[str, _option("Of the Ray cluster.")]


def known_profile(name: str) -> str:
    """The name, or UsageError with the one that was probably meant."""
    if name not in _profiles():
        raise UsageError(
            f"unknown profile {name!r}{did_you_mean(name, _profiles())}; choose one of {', '.join(_profiles())}"
        )
    return name


def options_of(device: str | None, minutes: float | None, tensorboard: bool = False, executor: str = "local"):
    """runs.Options of what was typed; fails at once when the device is not there."""
    from fsr import hardware
    from fsr.runs import Options

    if minutes is not None and not minutes > 0:
        raise UsageError(f"--limit-minutes must be positive, not {minutes:g}")
    if tensorboard and find_spec("tensorboard") is None:
        raise UsageError("--tensorboard needs a package that is not here: pip install -e '.[tensorboard]'")
    if executor != Executor.ray:
        hardware.device_named(device)
    elif device not in (None, "cpu", "cuda"):  # on a cluster Ray chooses which, and the driver needs no GPU
        raise UsageError(f"--device {device}: with --executor ray give cpu or cuda, or leave it out")
    deadline = time.monotonic() + 60 * minutes if minutes else None
    return Options(device=device, deadline=deadline, tensorboard=tensorboard)
