"""`python -m benchmarks.crew RUN 2/5 --checkpoint ema --minutes 8`: one AutoAttack by five processes on one GPU.

Every attack of AutoAttack gets what the ones before left, batch by batch, and its batches do not depend on each other.
Process k of n attacks every nth batch, counted from the kth on, leaves what came of it beside the run's weights, and
waits at the end of each attack for the others' batches. The first process records the result, which is that of one
process alone. Any of them may be killed and started again: finished batches are not attacked twice. With `--wait` they
may be started before the run is trained.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.session import minutes, part_of
from fsr import paths, runs, store
from fsr.config import Evaluation, Run
from fsr.errors import FSRError, TimeUp, UsageError
from fsr.files import save_json
from fsr.progress import live
from fsr.runs import Options, Task
from fsr.runs.base import scratch
from fsr.weights import digest_of

PAUSE = 0.2  # seconds between two looks at what the others have done


class Finished(Exception):
    """The first process has recorded the result: nobody waits for anything any more."""


@dataclass(frozen=True)
class Member:
    """Process `number` of `of`; what `fsr.attacks.autoattack` takes as `share`."""

    run: Run
    evaluation: Evaluation
    options: Options
    number: int
    of: int

    def place(self, name: str, at: int) -> Path:
        """Where is kept what came of the batch of an attack that begins at `at`."""
        stem = f"partial-{self.evaluation.checkpoint}-{self.evaluation.attack_id}-{name}-{at:06d}"
        return paths.checkpoint_dir(store.id_of(self.run)) / f"{stem}.json"

    def identity(self) -> dict:
        """What a batch's file must say of itself to be of this evaluation."""
        device = self.options.torch_device.type  # batches differ between kinds of devices, and with them their outcomes
        return {"weights": digest_of(runs.weights_path(self.run, self.evaluation.checkpoint)), "device": device}

    def __call__(self, name: str, places: range, attacked: Callable[[int], dict]) -> Iterator[tuple[int, dict]]:
        """Attack one's own batches, then hand out all of them in order, as they come."""
        identity = self.identity()
        for at in places:  # by its place, as processes may begin at different ones
            mine = at // places.step % self.of == self.number - 1
            if mine and not scratch(self.place(name, at), identity):
                save_json(self.place(name, at), {**identity, **attacked(at)})
                print(f"{name}: the batch from {at} on is done", flush=True)
        for at in places:
            while not (found := scratch(self.place(name, at), identity)):
                self.options.check()
                if store.has_eval(self.run, self.evaluation):
                    raise Finished
                time.sleep(PAUSE)
            yield at, found

    def work(self) -> None:
        """Everything, from wherever the files stand."""
        if self.number > 1:
            if not store.has_eval(self.run, self.evaluation):
                runs.lend_hand(self.run, self.evaluation, self.options, self)
            return
        runs.ensure_evaluated(self.run, self.evaluation, self.options, self)
        for path in self.place("x", 0).parent.glob(self.place("*", 0).name.replace("000000", "*")):
            path.unlink(missing_ok=True)  # scratch of a record that is whole now


def parsed(line: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run's id, whose weights are here")
    parser.add_argument("part", type=part_of, metavar="K/N")
    parser.add_argument("--checkpoint", choices=("last", "best", "ema"), default="last")
    parser.add_argument("--attack", choices=("autoattack", "autoattack-ci"), default="autoattack")
    parser.add_argument("--images", type=int, help="how many test images; default: all")
    parser.add_argument("--minutes", type=minutes, required=True)
    parser.add_argument("--wait", action="store_true", help="for weights that another process is still training")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--device")
    return parser.parse_args(line)


def ready(given: argparse.Namespace, options: Options) -> Run:
    """The run, once its weights are here; UsageError, or with --wait TimeUp, when they are not."""
    while given.wait and not (paths.run_dir(given.run) / "config.json").exists():
        options.check()
        time.sleep(PAUSE)
    run = store.config_of(given.run)
    while not runs.has_weights(run, given.checkpoint):
        if not given.wait:
            raise UsageError(f"{given.run} has no {given.checkpoint} weights here; put them there, then start its crew")
        options.check()
        time.sleep(PAUSE)
    return run


def work(given: argparse.Namespace) -> None:
    """This process's part, from waiting for weights to the record."""
    evaluation = Evaluation(attack=given.attack, checkpoint=given.checkpoint, images=given.images)
    deadline = time.monotonic() + 60 * given.minutes
    options = Options(device=given.device, deadline=deadline, sharing=given.part[1])
    run = ready(given, options)
    with live([Task(run=run, evaluations=(evaluation,))]) as report:
        Member(run, evaluation, replace(options, report=report), *given.part).work()


def main() -> int:
    """Work; exit code 1 when it was stopped or failed, 2 for a wrong call, 130 for Ctrl-C."""
    given = parsed(sys.argv[1:])
    try:
        paths.use(root=given.root, data=given.data)
        work(given)
    except Finished:
        pass
    except KeyboardInterrupt:
        print("stopped; finished batches are kept, the same command goes on", file=sys.stderr)
        return 130
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    except (TimeUp, FSRError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
