"""Which number format networks were trained and attacked in: bf16 needs a processor that multiplies it."""

from collections.abc import Callable
from datetime import datetime

from fsr import experiments, store
from fsr.config import FSRSpec, Run
from fsr.tables import names
from fsr.tables.frame import Sources

USUAL = "Attacks are crafted on a bf16 copy and judged in float32; the audit (T9) crafts in float32 or TF32."
MIXED = "Trained again between two columns, with other weights as a result"

ROUNDED = "Weights rounded to float16 after training and before anything was judged, so that they could travel"


def _trainings(sources: Sources, name: str) -> list[dict]:
    """Records of the trainings whose weights were judged: the first, unless all that is shown is of later ones."""
    first, *later = store.trainings(name) or [{}]
    judged = _judged(sources, name)
    shown = [record for record in later if judged & set(record["checkpoints"].values())]
    elsewhere = judged.difference(*(record["checkpoints"].values() for record in shown))
    return [first, *shown] if elsewhere or not shown else shown


def _judged(sources: Sources, name: str) -> set[str]:
    """Digests of a run's weights behind what is shown."""
    return set().union(*(digests for (run, _), digests in sources.weights.items() if run == name))


def _unrecorded(sources: Sources, name: str) -> bool:
    """Is something shown of weights that no training's record names?"""
    recorded = [record.get("checkpoints", {}).values() for record in store.trainings(name)]
    return bool(_judged(sources, name).difference(*recorded))


def _any(sources: Sources, holds: Callable[[dict], bool]) -> list[str]:
    """Run ids of which this holds for the record of a training that is shown, sorted."""
    return [name for name in sorted(sources.runs) if any(map(holds, _trainings(sources, name)))]


def _in_float32(record: dict) -> bool:
    """Was this training computed in float32?  False for one without a record or switches (imported)."""
    return record.get("switches", {}).get("crafting") == "float32"


def _label(run: Run) -> str:
    """AT + FSR, and `varied AT + FSR` for other losses or settings of the module; places are not told apart."""
    spec = run.fsr
    varied = spec is not None and spec.kind == "fsr" and spec != FSRSpec(at=spec.at)
    return ("varied " if varied else "") + names.method(run.label)


def _listed(some: list[str]) -> str:
    """`AT + residual (seed 0), AT (seeds 0, 1)` of run ids."""
    seeds: dict[str, list[str]] = {}
    for name in some:
        run = store.config_of(name)
        seeds.setdefault(_label(run), []).append(str(run.seed))
    told = []
    for label, mine in sorted(seeds.items()):
        once = sorted(set(mine))
        runs = f"{len(mine)} runs, " if len(once) < len(mine) else ""  # of several settings, networks or data sets
        told.append(f"{label} ({runs}seed{'s' if len(once) > 1 else ''} {', '.join(once)})")
    return ", ".join(told)


def exceptions(sources: Sources) -> str:
    """What of these records was computed in float32 though bf16 was asked for, as a sentence; "" when nothing was."""
    trained = [name for name in _any(sources, _in_float32) if store.config_of(name).precision == "bf16"]
    parts = [("trainings of", trained), ("evaluations of", sorted(sources.float32))]
    told = "; ".join(f"{what} {_listed(some)}" for what, some in parts if some)
    if not told:
        return ""
    return f"On a processor without bf16 units, in float32 throughout, which is more exact: {told}."


def rounded(sources: Sources) -> str:
    """Networks whose weights were rounded to float16 before they were judged, as a sentence; "" without any."""
    some = _any(sources, lambda record: record.get("half", False))
    return f"{ROUNDED}: {_listed(some)}." if some else ""


def machines(sources: Sources) -> str:
    """Which networks were trained on which kind of device, as a sentence; "" where all were on one kind."""
    where: dict[str, list[str]] = {}
    for name in sorted(sources.runs):
        found = [record["hardware"].get("gpu") for record in _trainings(sources, name) if record.get("hardware")]
        for gpu in dict.fromkeys(found):  # imported weights come without
            where.setdefault(f"a GPU ({gpu})" if gpu else "a CPU", []).append(name)
    if len(where) < 2:
        return ""
    told = "; ".join(f"on {kind}: {_listed(some)}" for kind, some in sorted(where.items()))
    return f"Trained {told}. One recipe, but rounding differs: trained on the other each would be another network."


def in_several_parts(record: dict) -> bool:
    """Did a training take longer than from its recorded start to its end?  Older records name its last part only."""
    if "sittings" in record:
        return bool(record["sittings"][0].get("first_step"))  # begun by a version that did not write them
    if not all(record.get(key) for key in ("started", "finished", "seconds")):
        return False
    began, ended = (datetime.fromisoformat(record[key]) for key in ("started", "finished"))
    return record["seconds"] > (ended - began).total_seconds() + 60


def unnamed(sources: Sources) -> str:
    """Trainings whose record names the code and machine of their last part alone, as a sentence; "" without any."""
    some = _any(sources, in_several_parts)
    if not some:
        return ""
    return f"Stopped and gone on with; code and machine are on record for the last part alone: {_listed(some)}."


def note(profile: str, sources: Sources) -> str:
    """How the profile's attacks are crafted, as a table's note; "" where everything is float32 anyway."""
    if experiments.profile_of(profile).base.precision != "bf16":
        return ""
    return " ".join(filter(None, (USUAL, exceptions(sources))))


def twice(sources: Sources) -> str:
    """Runs with columns of two trainings that ended in different weights, as a sentence; "" without any."""
    mixed = sources.mixed()
    if not mixed:
        return ""
    told = (
        f"{MIXED}: {', '.join(mixed)}. Do not compare columns of such a row with each other; no Ensemble is made "
        "of both. Move the older evaluations away and `run-all` makes them again."
    )
    unknown = [name for name in mixed if _unrecorded(sources, name)]
    where = "on which machine and in which number format it was done, nor whether it was rounded"
    return f"{told} Of one training of {', '.join(unknown)} no record says {where}." if unknown else told
