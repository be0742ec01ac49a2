"""T10: the claims that a profile can decide, ours beside them, and what follows."""

from collections import namedtuple
from dataclasses import replace

import numpy as np
import pandas as pd

from fsr import experiments, reference, statistics, store
from fsr.config import Evaluation
from fsr.experiments import Row
from fsr.reference import CLAIMS, MIN_SEEDS, Claim
from fsr.tables import inside, labels, outcomes, robustness
from fsr.tables.labels import number, span

STATES = {True: "reproduced", False: "contradicted"}  # of what others claim
OWN_STATES = {True: "supported", False: "not supported"}
FEW_SEEDS = {True: "points towards", False: "points against"}
COLUMNS = ["id", "claim", "kind", "source", "stated", "unit", "ours", "low", "high", "seeds", "tolerance", "verdict"]
COLUMNS += ["reason", "test", "checkpoint", "changed_after_the_runs"]
EPOCHS = range(5, 30)  # of the comparison with the authors' log: one learning rate, the first ripples over
# loss: our column in history.csv, the column in the log
BESIDE = {"classification": ("train_cls", "train_adv_loss"), "separation": ("train_sep", "train_sep_loss")}
BESIDE |= {"recalibration": ("train_rec", "train_rec_loss")}
# Ours for one claim in its unit; holds: None while undecided; without a value nothing was measured
Finding = namedtuple("Finding", "value low high seeds holds why", defaults=(None, None, None, 0, None, ""))
NOTHING = Finding(why="not run")


def _row(profile: str, name: str, kind: str = "whitebox") -> Row:
    """A set's row on the main network, which comes first."""
    return next(row for row in experiments.ROWS[profile][kind] if row.name == name)


def _column(profile: str, metric: str, checkpoint: str, kind: str = "whitebox") -> Evaluation:
    return replace(experiments.columns(profile, kind)[metric], checkpoint=checkpoint)


def lead(profile: str, claim: Claim, row: str, base: str, *weights: str) -> tuple[str, Finding]:
    """A row minus another in points, with its name; the interval is over seeds and images, below three seeds of images.

    It holds above minus the tolerance and fails below zero; where the claim says `below`, with opposite signs.
    """
    ours, theirs = (_row(profile, name, claim.rows) for name in (row, base))
    after, before = (_column(profile, claim.metric, name, claim.rows) for name in weights or 2 * [claim.checkpoint])
    cell = outcomes.gain(ours.runs, theirs.runs, after, before)
    doubt = outcomes.accuracy(theirs.runs, before).get("flags") not in (None, "none")
    name = weights[0] if weights else f"over {base}" + "†" * doubt
    if "value" not in cell:
        return name, NOTHING
    low, high = (100 * cell.get(f"seeds_{end}", cell[end]) for end in ("low", "high"))
    least, most = (-high, -low) if claim.below else (low, high)
    holds = False if most < 0 else True if least > -claim.tolerance else None
    why = "" if cell["seeds"] >= MIN_SEEDS else "interval over images alone"
    return name, Finding(100 * cell["value"], low, high, cell["seeds"], holds, why)


def all_of(found: dict[str, Finding], below: bool = False) -> Finding:
    """Of several leads the least certain one; one that fails decides, one that is open leaves it open."""
    if lacking := [name for name, each in found.items() if each.value is None]:
        return NOTHING if len(found) == 1 else Finding(why=f"not run: {', '.join(lacking)}")
    sure = [each for name, each in found.items() if not name.endswith("†")] or list(found.values())  # of AutoAttack
    least = max(sure, key=lambda each: each.high) if below else min(sure, key=lambda each: each.low)
    if len(found) == 1:
        return least
    states, seeds = {each.holds for each in found.values()}, min(each.seeds for each in found.values())
    told = [f"{n} {number(f.value, sign=True)} {span(f.low, f.high, sign=True)}" for n, f in found.items()]
    holds = False if False in states else None if None in states else True
    return least._replace(holds=holds, seeds=seeds, why="; ".join(told))


def hundred_epochs(profile: str, claim: Claim) -> Finding:
    """The gains of AT + FSR over AT at `last`, `best` and EMA: slow start, overfitting, or neither of them."""
    found = dict(lead(profile, claim, "AT + FSR", "AT", name, name) for name in experiments.CHECKPOINTS)
    whole = all_of(found)
    if whole.value is None:
        return whole
    early, rise = (found["best"], found["ema"]), found["last"].value - max(found["best"].value, found["ema"].value)
    far = max(early, key=lambda each: abs(each.value))
    slow, overfits = abs(far.value) <= claim.tolerance, rise >= claim.tolerance
    if claim.rule == "overfitting":
        return Finding(rise, seeds=whole.seeds, holds=overfits, why=whole.why)
    if claim.rule == "slow_start":
        return far._replace(holds=slow, why=all_of({"best": early[0], "ema": early[1]}).why)
    return early[1]._replace(holds=not slow and not overfits and early[1].value < -claim.tolerance)


def largest_gain(profile: str, claim: Claim) -> Finding:
    """The largest gain among T1's robust cells; every cell must have been run; a larger one than stated is fine."""
    frame = robustness.frame("T1", profile)
    gains = frame[(frame["kind"] == "gain") & (frame["checkpoint"] == claim.checkpoint) & (frame["metric"] != "clean")]
    done = gains.dropna(subset="value")
    if done.empty:
        return NOTHING
    top = done.loc[done["value"].idxmax()]
    why = f"{top['network']}, {top['row'].split(':')[0]}, {top['metric']}; {len(done)} of {len(gains)} cells run"
    value = float(100 * top["value"])
    holds = value >= claim.stated - claim.tolerance if len(done) == len(gains) else None
    return Finding(value, seeds=int(done["seeds"].min()), holds=holds, why=why)


def overhead(profile: str, claim: Claim) -> Finding:
    """Added MACs and added seconds per epoch on the main network, the larger of them, in percent."""
    pair = inside.overhead(profile).dropna(subset="fsr").head(2)
    if len(pair) < 2 or pair["macs"].isna().any():
        return NOTHING
    more = inside.added(pair)
    added, timed = {"MACs": more["macs"], "seconds per epoch": more[inside.SECONDS]}, more[inside.SECONDS] is not None
    found = {name: value for name, value in added.items() if value is not None and not pd.isna(value)}
    why = "; ".join(f"{name} {number(value, sign=True)} %" for name, value in found.items())
    why += "" if timed else "; seconds per epoch cannot be compared: a device was shared, or another one"
    worst = max(found.values())
    return Finding(worst, seeds=1, holds=False if worst > claim.tolerance else True if timed else None, why=why)


def cues(profile: str, claim: Claim) -> Finding:
    """Accuracy of the recalibrated minus the non-robust stream under PGD-20, in points, by nearest neighbours.

    Student's t over seeds from three on; below, Newcombe's interval of a difference of two Wilson intervals.
    """
    here = inside.streams(profile).query("attack == 'pgd20' and row != 'paper' and checkpoint == @claim.checkpoint")
    table = here.pivot_table("accuracy", "seed", ["probe", "stream"])
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
    holds = True if low > 0 else False if high < 0 else None
    return Finding(100 * steps.mean(), 100 * low, 100 * high, len(steps), holds, why)


def accuracy(profile: str, claim: Claim) -> Finding:
    """AT + FSR's accuracy in percent: its 90 % t interval within the tolerance (two one-sided tests)."""
    row, evaluation = _row(profile, "AT + FSR"), _column(profile, claim.metric, claim.checkpoint)
    cell = outcomes.accuracy(row.runs, evaluation)
    if "value" not in cell:
        return NOTHING
    low, high = 100 * cell["low"], 100 * cell["high"]
    if cell["seeds"] >= MIN_SEEDS:
        found = [outcomes.outcome(run, evaluation) for run in row.runs]
        low, high = statistics.seed_summary([100 * o.mean() for o in found if o is not None], level=0.9)[2:4]
    within = claim.stated - claim.tolerance < low and high < claim.stated + claim.tolerance
    outside = low > claim.stated + claim.tolerance or high < claim.stated - claim.tolerance
    holds = True if within else False if outside else None
    return Finding(100 * cell["value"], low, high, cell["seeds"], holds)


def seconds(profile: str, claim: Claim) -> Finding:
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


def unseen(profile: str, claim: Claim) -> Finding:
    """Of AT + FSR's survivors of Ensemble the share that a query attack breaks, in percent; the larger of the two."""
    run, told = experiments.main_pair(profile)[1], {}
    white = outcomes.outcome(run, _column(profile, "ensemble", claim.checkpoint))
    for name in ("nattack", "square"):
        evaluation = _column(profile, name, claim.checkpoint, "blackbox")
        broken, seen = (None if white is None else outcomes.broken_only(run, evaluation, white)) or (0, 0)
        if not seen:
            return NOTHING
        told[f"{labels.metric(name)}: {broken} of {seen} images"] = 100 * broken / seen
    value = max(told.values())
    return Finding(value, seeds=1, holds=value <= claim.tolerance, why="; ".join(told))


def training(profile: str, claim: Claim) -> Finding:
    """The largest difference over epochs of the mean training accuracy under attack, AT + FSR minus AT, in points."""
    runs = zip(*(_row(profile, name, "study").runs for name in ("AT", "AT + FSR")))
    pairs = [[store.history(run)[claim.metric] for run in pair] for pair in runs if all(map(store.is_trained, pair))]
    if not pairs:
        return NOTHING
    apart = 100 * pd.concat([both - plain for plain, both in pairs], axis=1).mean(axis=1)
    why = f"below at {(apart < 0).sum()} of {len(apart)} epochs"
    return Finding(float(apart.max()), seeds=len(pairs), holds=bool((apart < 0).all()), why=why)


def log_gaps(ours: pd.DataFrame) -> tuple[dict[str, float], float]:
    """Mean absolute differences of a history to the authors' log: of each loss, and of the accuracy in points."""
    log = reference.epoch_log().set_index("epoch").loc[ours.index]
    apart = {name: float((ours[a] - log[b]).abs().mean()) for name, (a, b) in BESIDE.items()}
    return apart, float((100 * ours["train_adv_acc"] - log["train_adv_acc"]).abs().mean())


def same_curves(profile: str, claim: Claim) -> Finding:
    """Largest mean absolute difference in a loss between our history of AT + FSR and the authors' code's log."""
    run = experiments.main_pair(profile)[1]
    ours = store.history(run).set_index("epoch").reindex(EPOCHS) if store.is_trained(run) else pd.DataFrame()
    needed = ["train_adv_acc", *(pair[0] for pair in BESIDE.values())]
    if not set(needed) <= set(ours) or ours["train_adv_acc"].isna().any():
        return NOTHING
    apart, points = log_gaps(ours)
    why = "; ".join(f"{name} loss {value:.3f}" for name, value in apart.items())
    why += f"; training accuracy under attack {number(points)} points"
    holds = max(apart.values()) <= claim.tolerance and points <= 1
    return Finding(max(apart.values()), seeds=1, holds=holds, why=f"mean absolute differences: {why}")


RULES = {f.__name__: f for f in (largest_gain, overhead, cues, accuracy, seconds, unseen, same_curves)}
RULES |= dict.fromkeys(("slow_start", "overfitting", "real_deficit"), hundred_epochs) | {"study_training": training}


def frame(profile: str) -> pd.DataFrame:
    """A row per claim that this profile's setting can decide, in the claim's own unit.

    low, high: over seeds and images from three seeds on, over images below; of C5 and C6 to C11 over seeds.
    """
    records, units, rows = [], {"max_robust_gain_points": "points"}, ("+FSR over the same method without it",)
    typed = [cell.value for cell in robustness.paper_cells("T10", rows=rows, units=units)]  # a person may correct it
    for claim in (claim for claim in CLAIMS if profile in claim.profiles):
        stated = typed[-1] if typed and claim.rule == "largest_gain" else claim.stated
        checkpoint = claim.checkpoint or experiments.profile_of(profile).report_checkpoint
        claim = claim._replace(stated=stated, checkpoint=checkpoint)
        if claim.leads:
            found = all_of(dict(lead(profile, claim, *each) for each in claim.leads), claim.below)
        else:
            found = RULES[claim.rule](profile, claim)
        states = STATES if claim.kind in ("paper", "rerun") else OWN_STATES
        states = states if found.seeds >= claim.min_seeds else FEW_SEEDS
        verdict = "not tested" if found.value is None else states.get(found.holds, "undecided")
        row = claim._asdict() | found._asdict() | {"claim": claim.text, "ours": found.value, "reason": found.why}
        changed = claim.earlier and f"changed after the runs; before: {claim.earlier}"
        records.append(row | {"verdict": verdict, "changed_after_the_runs": changed})
    numbers = ("stated", "ours", "low", "high", "tolerance")
    return pd.DataFrame(records, columns=COLUMNS).astype(dict.fromkeys(numbers, float))


def notes(profile: str) -> list[str]:
    """What the verdicts hold for, and which claims this profile cannot decide, with what they need."""
    needs: dict[str, list[str]] = {}
    for claim in CLAIMS:
        if profile not in claim.profiles:
            needs.setdefault(claim.needs or " or ".join(claim.profiles), []).append(claim.id)
    told = "; ".join(f"{', '.join(ids)} ({what})" for what, ids in needs.items())
    return [f"Verdicts hold for {labels.setting(profile)}.", f"Claims that need another profile or more: {told}."]
