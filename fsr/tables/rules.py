"""How T10 measures each claim from the records; what the measurement means is decided in `fsr.tables.verdict`."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fsr import experiments, reference, statistics, store
from fsr.config import Evaluation
from fsr.experiments import Row
from fsr.reference import MIN_SEEDS, Claim
from fsr.tables import labels, outcomes, overhead, robustness, streams
from fsr.tables.formatting import missing, number, span

EPOCHS = range(5, 30)  # of the comparison with the authors' log: one learning rate, the first ripples over


class Finding(NamedTuple):
    """Ours for one claim in its unit; holds: None while undecided; without a value nothing was measured."""

    value: float | Any = None
    low: float | Any = None
    high: float | Any = None
    seeds: int = 0
    holds: bool | None = None
    why: str = ""


NOTHING = Finding(why="not run")


def row_of(profile: str, name: str, kind: str = "whitebox") -> Row | None:
    """A set's row on the main network, which comes first."""
    return next((row for row in experiments.ROWS[profile][kind] if row.name == name), None)


def column(profile: str, metric: str, checkpoint: str, kind: str = "whitebox") -> Evaluation:
    """A column's evaluation; `autoattack` is the profile's own AutoAttack."""
    name = experiments.profile_of(profile).autoattack if metric == "autoattack" else metric
    return replace(experiments.columns(profile, kind)[name], checkpoint=checkpoint)


def above(low: float, high: float, bound: float = 0.0) -> bool | None:
    """Does an interval lie above the bound (True), below it (False), or across (None)?"""
    return True if low > bound else False if high < bound else None


def gain_between(row: Row | None, base: Row | None, after: Evaluation, before: Evaluation | None = None) -> Finding:
    """A row minus another in points; the interval is over seeds and images, over images below three seeds."""
    cell = outcomes.gain(row.runs, base.runs, after, before) if row and base else {}
    if "value" not in cell:
        return NOTHING
    low, high = (100 * cell.get(f"seeds_{end}", cell[end]) for end in ("low", "high"))
    few = "" if cell["seeds"] >= MIN_SEEDS else "interval over images alone"
    return Finding(100 * cell["value"], low, high, cell["seeds"], above(low, high), few)


def least_lead(named: dict[str, Finding]) -> Finding:
    """Of several leads that must all hold the least certain one; one below zero fails them, any open leaves it open."""
    if any(found.value is None for found in named.values()):
        return Finding(why="not run: " + ", ".join(name for name, found in named.items() if found.value is None))
    least = min(named.values(), key=lambda found: found.low)
    holds = [found.holds for found in named.values()]
    whole = False if False in holds else None if None in holds else True
    ends = {name: f"{number(f.value, sign=True)} {span(f.low, f.high, sign=True)}" for name, f in named.items()}
    told = "; ".join(f"{name} {text}" for name, text in ends.items())
    return least._replace(holds=whole, seeds=min(found.seeds for found in named.values()), why=told)


def gain(profile: str, claim: Claim, checkpoint: str) -> Finding:
    """AT + FSR minus AT, in points."""
    evaluation = column(profile, claim.metric, checkpoint)
    return gain_between(row_of(profile, "AT + FSR"), row_of(profile, "AT"), evaluation)


def largest_gain(profile: str, claim: Claim, checkpoint: str) -> Finding:
    """The largest gain among T1's robust cells; every cell must have been run; a larger one than stated is fine."""
    frame = robustness.frame("T1", profile)
    gains = frame[(frame["kind"] == "gain") & (frame["checkpoint"] == checkpoint) & (frame["metric"] != "clean")]
    done = gains.dropna(subset="value")
    if done.empty:
        return NOTHING
    top = done.loc[done["value"].idxmax()]
    why = f"{top['network']}, {top['row'].split(':')[0]}, {top['metric']}; {len(done)} of {len(gains)} cells run"
    value = float(100 * top["value"])
    holds = value >= claim.stated - claim.tolerance if len(done) == len(gains) else None
    return Finding(value, seeds=int(done["seeds"].min()), holds=holds, why=why)


def small_overhead(profile: str, claim: Claim, checkpoint: str) -> Finding:
    """Added MACs and added seconds per epoch on the main network, the larger of them, in percent."""
    pair = overhead.frame(profile).dropna(subset="fsr").head(2)
    if len(pair) < 2 or pair["macs"].isna().any():
        return NOTHING
    plain, both = pair.sort_values("fsr").to_dict("records")
    added = {"MACs": 100 * (both["macs"] / plain["macs"] - 1)}
    timed = plain["timed"] and both["timed"] and plain["trained_on"] == both["trained_on"]
    if timed and not missing(plain[overhead.COST[2]]):
        added["seconds per epoch"] = 100 * (both[overhead.COST[2]] / plain[overhead.COST[2]] - 1)
    why = "; ".join(f"{name} {number(value, sign=True)} %" for name, value in added.items())
    why += "" if timed else "; seconds per epoch cannot be compared: a device was shared, or another one"
    worst = max(added.values())
    return Finding(worst, seeds=1, holds=False if worst > claim.tolerance else True if timed else None, why=why)


def _leads(profile: str, claim: Claim, checkpoint: str, kind: str, others: Iterable[str]) -> Finding:
    """AT + FSR minus each of these rows."""
    if claim.metric not in experiments.columns(profile, kind):
        return Finding(why=f"this profile runs no {labels.metric(claim.metric)} on these rows")
    evaluation, ours = column(profile, claim.metric, checkpoint, kind), row_of(profile, "AT + FSR", kind)
    rows = {name: row_of(profile, name, kind) for name in others}
    return least_lead({
        f"over {name}{_doubt(row, evaluation)}": gain_between(ours, row, evaluation) for name, row in rows.items()
    })  # fmt: skip


def _doubt(row: Row | None, evaluation: Evaluation) -> str:
    """† for a row for which AutoAttack is in doubt."""
    flags = outcomes.accuracy(row.runs, evaluation).get("flags") if row else None
    return "" if flags in (None, "none") else "†"


def deactivation(profile: str, claim: Claim, checkpoint: str) -> Finding:
    """AT + FSR minus FD, CAS and CIFS, in points; the least certain lead."""
    return _leads(profile, claim, checkpoint, "deactivation", ("AT + FD", "AT + CAS", "AT + CIFS"))


def controls(profile: str, claim: Claim, checkpoint: str) -> Finding:
    """AT + FSR minus T4's two trained controls, in points; the least certain lead."""
    return _leads(profile, claim, checkpoint, "components", experiments.CONTROLS)


def cues(profile: str, claim: Claim, checkpoint: str) -> Finding:
    """Accuracy of the recalibrated minus the non-robust stream under PGD-20, in points, by nearest neighbours.

    Student's t over seeds from three on; below, Newcombe's interval of a difference of two Wilson intervals.
    """
    frame = streams.frame(profile)
    here = frame[(frame["attack"] == "pgd20") & (frame["checkpoint"] == checkpoint) & (frame["row"] != "paper")]
    table = here.pivot_table(index="seed", columns=["probe", "stream"], values="accuracy")
    keys = [(claim.metric, "nonrobust"), (claim.metric, "recalibrated")]
    if not set(keys) <= set(table.columns):
        return NOTHING
    steps = (table[keys[1]] - table[keys[0]]).dropna()
    learnt = (table["aux", "recalibrated"] - table["aux", "nonrobust"]).mean() > 0
    why = "" if learnt else "the head that was trained for this step does not show it: separation was not learnt"
    if len(steps) >= MIN_SEEDS:
        low, high = statistics.seed_summary(steps)[2:4]
    else:
        p, n = [float(table[key].mean()) for key in keys], int(here["n"].min())
        (l0, h0), (l1, h1) = (statistics.wilson(share * n, n) for share in p)
        low = p[1] - p[0] - float(np.hypot(p[1] - l1, h0 - p[0]))
        high = p[1] - p[0] + float(np.hypot(h1 - p[1], p[0] - l0))
    return Finding(100 * steps.mean(), 100 * low, 100 * high, len(steps), above(low, high), why)


def accuracy(profile: str, claim: Claim, checkpoint: str) -> Finding:
    """AT + FSR's accuracy in percent: equivalent to the stated value by two one-sided t tests.

    low, high: the 90 % t interval, which decides; below three seeds Wilson's interval over images.
    """
    row, evaluation = row_of(profile, "AT + FSR"), column(profile, claim.metric, checkpoint)
    cell = outcomes.accuracy(row.runs, evaluation) if row else {}
    if row is None or "value" not in cell:
        return NOTHING
    low, high = 100 * cell["low"], 100 * cell["high"]
    if cell["seeds"] >= MIN_SEEDS:
        found = [outcomes.outcome(run, evaluation) for run in row.runs]
        low, high = statistics.seed_summary([100 * o.mean() for o in found if o is not None], level=0.9)[2:4]
    inside = low > claim.stated - claim.tolerance and high < claim.stated + claim.tolerance
    outside = low > claim.stated + claim.tolerance or high < claim.stated - claim.tolerance
    return Finding(100 * cell["value"], low, high, cell["seeds"], True if inside else False if outside else None)


def seconds(profile: str, claim: Claim, checkpoint: str) -> Finding:
    """Median seconds per epoch of AT + FSR, seed 0, on the device that the stated value names; sharing only slows."""
    run = experiments.main_pair(profile)[1]
    if not store.is_trained(run):
        return NOTHING
    value, record = float(store.history(run)["seconds"].median()), store.environment(run)
    device, gpu = claim.source.rsplit(" ", 1)[-1].strip(")"), record.get("hardware", {}).get("gpu") or ""
    if device not in gpu or (record.get("processes") or 1) > 1:
        return Finding(value, seeds=1, why=f"not on one {device}")
    fast, shared = value <= claim.stated + claim.tolerance, record.get("sharing", 1) > 1
    told = "although another training shared the device" if shared else ""
    return Finding(value, seeds=1, holds=True if fast else None if shared else False, why=told)


def unseen(profile: str, claim: Claim, checkpoint: str) -> Finding:
    """Of AT + FSR's survivors of Ensemble the share that a query attack breaks, in percent; the larger of the two."""
    run = experiments.main_pair(profile)[1]
    white = outcomes.outcome(run, column(profile, "ensemble", checkpoint))
    queries = {name: column(profile, name, checkpoint, "blackbox") for name in ("nattack", "square")}
    found = {name: outcomes.broken_only(run, e, white) for name, e in queries.items()} if white is not None else {}
    done = {name: counts for name, counts in found.items() if counts and counts[1]}
    if len(done) < len(queries):
        return NOTHING
    value = max(100 * broken / seen for broken, seen in done.values())
    why = "; ".join(f"{labels.metric(name)}: {broken} of {seen} images" for name, (broken, seen) in done.items())
    return Finding(value, seeds=1, holds=value <= claim.tolerance, why=why)


def log_gaps(ours: pd.DataFrame) -> tuple[dict[str, float], float]:
    """Mean absolute differences of a history (index: epoch) to the log of the authors' code.

    Of each loss, and of the training accuracy under attack in points.
    """
    log, pairs = reference.epoch_log().set_index("epoch").loc[ours.index], {}
    pairs["classification"] = ("train_cls", "train_adv_loss")
    pairs |= {"separation": ("train_sep", "train_sep_loss"), "recalibration": ("train_rec", "train_rec_loss")}
    apart = {name: float((ours[a] - log[b]).abs().mean()) for name, (a, b) in pairs.items()}
    return apart, float((100 * ours["train_adv_acc"] - log["train_adv_acc"]).abs().mean())


def same_curves(profile: str, claim: Claim, checkpoint: str) -> Finding:
    """Largest mean absolute difference in a loss between our history of AT + FSR and the authors' code's log."""
    run = experiments.main_pair(profile)[1]
    ours = store.history(run).set_index("epoch").reindex(EPOCHS) if store.is_trained(run) else pd.DataFrame()
    if not {"train_adv_acc", "train_cls", "train_sep", "train_rec"} <= set(ours) or ours["train_adv_acc"].isna().any():
        return NOTHING
    apart, points = log_gaps(ours)
    why = "; ".join(f"{name} loss {value:.3f}" for name, value in apart.items())
    why += f"; training accuracy under attack {number(points)} points"
    holds = max(apart.values()) <= claim.tolerance and points <= 1
    return Finding(max(apart.values()), seeds=1, holds=holds, why=f"mean absolute differences: {why}")


RULES: dict[str, Callable[[str, Claim, str], Finding]] = {"overhead": small_overhead, "study_gain_last": gain}
MEASURED = (gain, largest_gain, deactivation, controls, cues, accuracy, seconds, unseen, same_curves)
RULES |= {rule.__name__: rule for rule in MEASURED}
