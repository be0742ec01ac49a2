"""Where a profile's numbers come from: one row per finished training."""

import pandas as pd

from fsr import experiments, store
from fsr.config import Run, run_id
from fsr.tables import labels

COLUMNS = ["run", "label", "machine", "precision", "commit", "torch", "resumed", "shared", "float16_weights"]


def provenance(profile: str) -> pd.DataFrame:
    """A row per finished training of a profile: its code, machine and number format, as its record tells.

    precision: of crafting; resumed: trained in several parts; shared: its device was not its own; float16_weights: the
    weights were rounded to float16 after training, before anything was evaluated.
    """
    finished = [run for run in experiments.SETS[experiments.profile_of(profile).name]["all"] if store.is_trained(run)]
    return pd.DataFrame([_row(profile, run, store.environment(run)) for run in finished], columns=COLUMNS)


def _row(profile: str, run: Run, record: dict) -> dict:
    machine, parts = record.get("hardware") or {}, [record, *record.get("sittings", [])]
    crafting = record.get("switches", {}).get("crafting")
    return {
        "run": run_id(run),
        "label": labels.run(profile, run),
        "machine": machine.get("gpu") or machine.get("cpu"),
        "precision": {"bfloat16": "bf16"}.get(crafting, crafting or run.precision),
        "commit": (record.get("commit") or "")[:10] or None,
        "torch": record.get("versions", {}).get("torch"),
        "resumed": len(record.get("sittings", [])) > 1,
        "shared": any(part.get("sharing", 1) != 1 for part in parts),
        "float16_weights": bool(record.get("half", False)),
    }
