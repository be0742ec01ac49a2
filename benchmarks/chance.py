"""`python -m benchmarks.chance --minutes 9 --out DIR --seed 1 --checkpoint last`: one seed's pair with all of a GPU.

Starts side by side what shares a GPU well: one `benchmarks.session` for AT + FSR, one for AT (training, the authors'
protocol, figures, sweeps, audit), and for each of the two networks a crew (`benchmarks.crew`), which waits for its
weights and then does AutoAttack on them. Where CUDA's multi-process service is installed it is switched on, with the
sessions before the crews. A process that fails is started again; everything stops in time, is packed into DIR, and goes
on with the same command. What each process says is in DIR/logs.
"""

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import session
from fsr import paths, store
from fsr.errors import UsageError

STARTS = 3  # of one process, before it is left alone
LOOK = 15.0  # seconds between two lines about each process
LEAST = 20.0  # seconds under which nothing is started again
GRACE = 60.0  # seconds for what is in hand when time is up: a batch, a compilation


@dataclass
class Lane:
    """A process that is started again when it fails: its module's name, its arguments, whether others go first."""

    name: str
    module: str
    arguments: list[str]
    behind: bool = False
    log: Path = Path(os.devnull)
    process: subprocess.Popen | None = None
    starts: int = field(default=0)

    def start(self, deadline: float) -> None:
        """Start it, with what is left of the time."""
        left = max(0.0, deadline - time.monotonic()) / 60
        line = [sys.executable, "-m", f"benchmarks.{self.module}", *self.arguments, "--minutes", f"{left:.2f}"]
        first = {"CUDA_MPS_CLIENT_PRIORITY": "1"} if self.behind else {}
        with self.log.open("a") as log:
            self.process = subprocess.Popen(line, stdout=log, stderr=log, env=os.environ | first)
        self.starts += 1

    def code(self) -> int | None:
        """Exit code, None while it runs."""
        return self.process.poll() if self.process else None

    def last(self) -> str:
        """The last line that it wrote."""
        lines = self.log.read_text(errors="replace").strip().splitlines() if self.log.exists() else []
        return lines[-1][:150] if lines else ""


def lanes(given: argparse.Namespace) -> list[Lane]:
    """Two sessions and two crews, one of each for a network."""
    common = [f"--{name}={value}" for name in ("root", "data", "device") if (value := getattr(given, name))]
    of, plain_and_both, found = str(2 + 2 * given.members), session.pair_of(given.profile, given.seed), []
    for run in plain_and_both[::-1]:
        own = ["--profile", given.profile, "--only", run.label, "--seed", str(given.seed), "--sharing", of]
        own += ["--leave", "autoattack", "rest", "--out", str(given.out / "logs" / run.label)]
        own += ["--no-retrain"] * given.no_retrain
        found.append(Lane(name=run.label, module="session", arguments=[*own, *common]))
    for run in plain_and_both[::-1]:
        for k in range(1, given.members + 1):
            own = [store.id_of(run), f"{k}/{given.members}", "--checkpoint", given.checkpoint, "--attack", given.attack]
            own += ["--wait"] + ["--images", str(given.images)] * (given.images is not None)
            name = f"{run.label}-crew-{k}"
            found.append(Lane(name=name, module="crew", arguments=[*own, *common], behind=True))
    for lane in found:
        lane.log = given.out / "logs" / f"{lane.name}.log"
    return found


@contextlib.contextmanager
def shared_gpu():
    """CUDA's multi-process service inside, where it is installed and not already on; without it kernels take turns."""
    control = shutil.which("nvidia-cuda-mps-control")
    on = control is not None and subprocess.run([control, "-d"], capture_output=True).returncode == 0
    try:
        yield
    finally:
        if on:
            subprocess.run([control], input="quit\n", text=True, capture_output=True)


def watch(found: list[Lane], deadline: float) -> list[str]:
    """Until all are done or time is up; returns a line for every process that was given up, or did not stop."""
    spoken, told = time.monotonic(), {f"{lane.name}: " for lane in found}
    while any(lane.code() is None for lane in found) and time.monotonic() < deadline + GRACE:
        time.sleep(0.5)
        for lane in found:
            again = lane.code() not in (None, 0, 2) and lane.starts < STARTS
            if again and deadline - time.monotonic() > LEAST:
                print(f"{lane.name}: started again after: {lane.last()}", flush=True)
                lane.start(deadline)
        if time.monotonic() - spoken >= LOOK:
            spoken = time.monotonic()
            news = [text for lane in found if (text := f"{lane.name}: {lane.last()}") not in told]
            told.update(news)
            print(f"-- {max(0.0, deadline - spoken):.0f} s left", *news, sep="\n", flush=True)
    for lane in found:
        if lane.code() is None:
            lane.process.kill()
            lane.process.wait()
    return [f"{lane.name}: {lane.last()} ({lane.log})" for lane in found if lane.code() != 0]


def parsed(line: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=session.minutes, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--profile", default="headline40")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--checkpoint", choices=session.MIDDLE, default="ema", help="whose weights AutoAttack is run on"
    )
    parser.add_argument("--attack", choices=("autoattack", "autoattack-ci"), default="autoattack")
    parser.add_argument("--images", type=int, help="AutoAttack's; default: all")
    parser.add_argument("--members", type=int, default=4, help="processes per AutoAttack")
    parser.add_argument("--weights", nargs="*", choices=session.MIDDLE, default=[], help="pack these checkpoints too")
    parser.add_argument("--no-retrain", action="store_true", help="train nothing that is on record a second time")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--device")
    return parser.parse_args(line)


def main() -> int:
    """Work, pack; exit code 1 when something is left to do or failed, 2 for a wrong call."""
    given = parsed(sys.argv[1:])
    try:
        paths.use(root=given.root, data=given.data)
        planned = lanes(given)
        paths.writable(given.out, "--out")
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    (given.out / "logs").mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * given.minutes
    with shared_gpu():
        for lane in planned:
            lane.start(deadline)
        failed = watch(planned, deadline)
    for line in failed:
        print(f"not at its end: {line}", file=sys.stderr)
    print(
        session.pack(given.out),
        *session.pack_weights(list(session.pair_of(given.profile, given.seed)), given.weights, given.out),
    )
    print(session.overview(given.profile, given.seed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
