"""How long what is missing would take, at the speed of what was finished here."""

from collections.abc import Iterable

from fsr import store
from fsr.experiments import cost, fleet
from fsr.runs.tasks import Task, missing

DEVICES = (1, 8, 64)


def speed_here(device: str) -> float | None:
    """Operations per second of the trainings finished in this root alone on that kind of device; None without any."""
    finished = [(run, record) for run, record in store.finished() if store.alone(record)]
    done = [(run, record) for run, record in finished if (record.get("hardware") or {}).get("device") == device]
    return cost.measured_speed([(run, float(record["seconds"])) for run, record in done if record.get("seconds")])


def chains_left(tasks: Iterable[Task], speed: float | None) -> list[tuple[float, list[float]]]:
    """Run by run the seconds of what is missing: (training, evaluations); analyses and the audit are left out."""
    chains: dict = {}
    for task in tasks:
        wanted = tuple(e for e in task.evaluations if not store.has_evaluation(task.run, e))
        training, rest = fleet.chain(task.run, wanted, train=bool(task.trains()), speed=speed)
        before = chains.get(task.run, (0.0, []))
        chains[task.run] = (max(training, before[0]), before[1] + rest)
    return list(chains.values())


def seconds_left(tasks: Iterable[Task], speed: float | None, devices: int) -> float:
    """Seconds of what is missing of these tasks on so many GPUs; analyses and the audit, minutes each, are left out."""
    return fleet.seconds_on(devices, chains_left(tasks, speed))


def cost_table(profile: str) -> tuple[list[tuple[int, float]], bool]:
    """((devices, seconds) for 1, 8 and 64 GPUs; whether the speed was measured here or is the reference's H200)."""
    speed = speed_here("cuda")
    left = chains_left(missing(profile), speed)
    return [(count, fleet.seconds_on(count, left)) for count in DEVICES], speed is not None
