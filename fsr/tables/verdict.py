"""T10: the claims that a profile can decide, ours beside them, and what follows."""

from collections import namedtuple
from dataclasses import replace

import pandas as pd

from fsr import experiments, reference, statistics, store
from fsr.config import AUDIT_VERSION, Evaluation
from fsr.experiments import Row
from fsr.reference import CLAIMS, MIN_SEEDS, Claim
from fsr.tables import analyses, labels, outcomes, robustness
from fsr.tables.labels import number, span

STATES = {True: "reproduced", False: "contradicted"}  # of what others claim
OWN_STATES = {True: "supported", False: "not supported"}
FEW_SEEDS = {True: "points towards", False: "points against"}
COLUMNS = ["id", "claim", "kind", "source", "stated", "unit", "ours", "low", "high", "seeds", "tolerance", "verdict"]
COLUMNS += ["reason", "test", "checkpoint", "changed_after_the_runs"]
EPOCHS = range(5, 30)  # of the comparison with the authors' log: one learning rate, the first ripples over
# Ours for one claim in its unit; holds: None while undecided; without a value nothing was measured
Finding = namedtuple("Finding", "ours low high seeds holds reason", defaults=(None, None, None, 1, None, ""))
NOTHING = Finding(seeds=0, reason="not run")


def _row(profile: str, name: str, kind: str = "whitebox") -> Row:
    """A set's row on the main network, which comes first."""
    return next(row for row in experiments.ROWS[profile][kind] if row.name == name)


def _column(profile: str, metric: str, checkpoint: str, kind: str = "whitebox") -> Evaluation:
    return replace(experiments.columns(profile, kind)[metric], checkpoint=checkpoint)


def lead(profile: str, claim: Claim, row: str, base: str, *weights: str) -> tuple[str, Finding]:
    """A named row minus another in points: holds above minus the tolerance, fails below 0; mirrored for `below`."""
    ours, theirs = (_row(profile, name, claim.rows) for name in (row, base))
    after, before = (_column(profile, claim.metric, name, claim.rows) for name in weights or 2 * [claim.checkpoint])
    cell = outcomes.decided(outcomes.gain(ours.runs, theirs.runs, after, before))
    doubt = outcomes.accuracy(theirs.runs, before).get("flags") not in (None, "none")
    name = weights[0] if weights else f"over {base}" + "†" * doubt
    if "value" not in cell:
        return name, NOTHING
    low, high = 100 * cell["low"], 100 * cell["high"]
    least, most = (-high, -low) if claim.below else (low, high)
    holds = False if most < 0 else True if least > -claim.tolerance else None
    return name, Finding(100 * cell["value"], low, high, cell["seeds"], holds)


def all_of(findings: dict[str, Finding], below: bool = False) -> Finding:
    """Of several leads the least certain one; one that fails decides, one that is open leaves it open."""
    each = list(findings.values())
    if len(each) == 1:
        return each[0]
    if lacking := [name for name, one in findings.items() if one.ours is None]:
        return NOTHING._replace(reason=f"not run: {', '.join(lacking)}")
    sure = [one for name, one in findings.items() if not name.endswith("†")] or each  # of AutoAttack
    least = max(sure, key=lambda one: one.high) if below else min(sure, key=lambda one: one.low)
    states, seeds = {one.holds for one in each}, min(one.seeds for one in each)
    parts = [f"{n} {number(f.ours, sign=True)} {span(f.low, f.high, sign=True)}" for n, f in findings.items()]
    holds = False if False in states else None if None in states else True
    return least._replace(holds=holds, seeds=seeds, reason="; ".join(parts))


def hundred_epochs(profile: str, claim: Claim) -> Finding:
    """The gains of AT + FSR over AT at `last`, `best` and EMA: slow start, overfitting, or neither of them."""
    findings = [lead(profile, claim, "AT + FSR", "AT", name, name)[1] for name in experiments.CHECKPOINTS]
    if findings[0].ours is None or len({one.seeds for one in findings}) > 1:  # of the same seeds
        return NOTHING
    last, best, ema = findings
    far, rise = max(best, ema, key=lambda one: abs(one.ours)), last.ours - max(best.ours, ema.ours)
    slow, overfits = abs(far.ours) <= claim.tolerance, rise >= claim.tolerance
    states = {"slow_start": far._replace(holds=slow), "overfitting": Finding(rise, seeds=last.seeds, holds=overfits)}
    return states.get(claim.rule, ema._replace(holds=not (slow or overfits) and ema.ours < -claim.tolerance))


def largest_gain(profile: str, claim: Claim) -> Finding:
    """The largest gain among T1's robust cells; every cell must have been run; a larger one than stated is fine."""
    frame = robustness.frame("T1", profile)
    gains = frame[(frame["kind"] == "gain") & (frame["checkpoint"] == claim.checkpoint) & (frame["metric"] != "clean")]
    done = gains.dropna(subset="value")
    if done.empty:
        return NOTHING
    top = done.loc[done["value"].idxmax()]
    reason = f"{top['network']}, {top['row'].split(':')[0]}, {top['metric']}; {len(done)} of {len(gains)} cells run"
    value = float(100 * top["value"])
    holds = value >= claim.stated - claim.tolerance if len(done) == len(gains) else None
    return Finding(value, seeds=int(done["seeds"].min()), holds=holds, reason=reason)


def overhead(profile: str, claim: Claim) -> Finding:
    """Added MACs and added seconds per epoch on the main network, the larger of them, in percent."""
    pair = analyses.overhead(profile).head(2)
    if len(pair) < 2 or pair["macs"].isna().any():
        return NOTHING
    macs, time = (100 * (pair[name].iloc[1] / pair[name].iloc[0] - 1) for name in ("macs", analyses.SECONDS))
    machines = " and ".join(pair["machine"].fillna("shared").unique())
    timed = not any(part in machines for part in (" and ", "shared"))
    compared = f"{number(time, sign=True)} %" if timed else "cannot be compared: a device was shared, or another one"
    worst = max(macs, time) if timed else macs
    reason = f"MACs {number(macs, sign=True)} %; seconds per epoch {compared}"
    return Finding(worst, holds=False if worst > claim.tolerance else True if timed else None, reason=reason)


def cues(profile: str, claim: Claim) -> Finding:
    """Accuracy of the recalibrated minus the non-robust stream under PGD-20, by neighbours; t interval over seeds."""
    here = analyses.streams(profile).query("attack == 'pgd20' and checkpoint == @claim.checkpoint")
    table = 100 * here.pivot_table("accuracy", "seed", ["stream", "probe"])
    if not {"nonrobust", "recalibrated"} <= set(table.columns.get_level_values(0)):
        return NOTHING
    steps = table["recalibrated"] - table["nonrobust"]
    mean, _, low, high, seeds = statistics.seed_summary(steps[claim.metric])
    learnt = "" if steps["aux"].mean() > 0 else "the auxiliary head does not show this step: nothing was separated"
    holds = None if low is None or low <= 0 <= high else low > 0
    return Finding(mean, low, high, seeds, holds, learnt)


def accuracy(profile: str, claim: Claim) -> Finding:
    """AT + FSR's accuracy in percent: its 90 % t interval within the tolerance (two one-sided tests)."""
    row, evaluation = _row(profile, "AT + FSR"), _column(profile, claim.metric, claim.checkpoint)
    cell = outcomes.accuracy(row.runs, evaluation)
    if "value" not in cell:
        return NOTHING
    low, high = 100 * cell["low"], 100 * cell["high"]
    if cell["seeds"] >= MIN_SEEDS:
        low, high = statistics.seed_summary([100 * value for value in cell["each"]], level=0.9)[2:4]
    least, most = claim.stated - claim.tolerance, claim.stated + claim.tolerance
    holds = True if least < low and high < most else False if low > most or high < least else None
    return Finding(100 * cell["value"], low, high, cell["seeds"], holds)


def seconds(profile: str, claim: Claim) -> Finding:
    """Median seconds per epoch of AT + FSR, seed 0, on the device that the stated value names; sharing only slows."""
    run = experiments.main_pair(profile)[1]
    if not store.is_trained(run):
        return NOTHING
    value, machine = float(store.history(run)["seconds"].median()), analyses.machine(run)
    device, fast = claim.source.rsplit(" ", 1)[-1].strip(")"), value <= claim.stated + claim.tolerance
    if device not in machine or not machine.endswith("processes: 1"):
        return Finding(value, reason=f"not on one {device}")
    return Finding(value, holds=True if fast else None if "shared" in machine else False, reason=machine)


def unseen(profile: str, claim: Claim) -> Finding:
    """Of AT + FSR's survivors of Ensemble the share that a query attack breaks, in percent, and Wilson's interval."""
    run = experiments.main_pair(profile)[1]
    white = outcomes.outcome(run, _column(profile, "ensemble", claim.checkpoint))
    attacks = [_column(profile, name, claim.checkpoint, "blackbox") for name in ("nattack", "square")]
    counts = [outcomes.broken_only(run, attack, white)[:2] for attack in attacks]
    if not all(left for _, left in counts):
        return NOTHING
    broken, left = max(counts, key=lambda one: one[0] / one[1])
    low, high = (100 * end for end in statistics.wilson(broken, left))
    holds = True if high <= claim.tolerance else False if low > claim.tolerance else None
    return Finding(100 * broken / left, low, high, holds=holds, reason=f"{broken} of {left} survivors")


def audit(profile: str, claim: Claim) -> Finding:
    """Images right under the authors' protocol that the audit breaks, AT + FSR minus AT, in points; McNemar's test."""
    made = [(run, *one) for run in experiments.main_pair(profile) for one in analyses.recorded(profile, run, "audit")]
    images = {record.get("images_sha256") for *_, record in made} - {None}
    if [record.get("version") for *_, record in made] != 2 * [AUDIT_VERSION] or len(images) > 1:
        return NOTHING
    lost = [a["authors_protocol"] & ~a["worst_case"] for a in (store.load_analysis(*one[:2])[1] for one in made)]
    more, p = 100 * float(lost[1].mean() - lost[0].mean()), statistics.mcnemar_exact(*lost)
    reason = f"of {len(lost[0])} images {lost[1].sum()} with FSR, {lost[0].sum()} without; McNemar's exact p = {p:.2g}"
    return Finding(more, holds=True if more <= 0 else False if p < 0.05 else None, reason=reason)


def training(profile: str, claim: Claim) -> Finding:
    """The largest difference over epochs of the mean training accuracy under attack, AT + FSR minus AT, in points."""
    runs = zip(*(_row(profile, name, "study").runs for name in ("AT", "AT + FSR")))
    pairs = [[store.history(run)[claim.metric] for run in pair] for pair in runs if all(map(store.is_trained, pair))]
    if not pairs:
        return NOTHING
    apart = 100 * pd.concat([with_fsr - baseline for baseline, with_fsr in pairs], axis=1).mean(axis=1)
    reason = f"above 0 at {(apart >= 0).sum()} of {len(apart)} epochs, most at epoch {apart.argmax() + 1}"
    return Finding(float(apart.max()), seeds=len(pairs), holds=bool((apart < 0).all()), reason=reason)


def log_gaps(ours: pd.DataFrame) -> tuple[float, float]:
    """Mean absolute differences to the authors' log: the largest of the losses, and the accuracy's in points."""
    names = ["train_cls", "train_sep", "train_rec", "train_adv_acc"]
    *losses, accuracy = (ours[names] - reference.epoch_log().set_index("epoch").loc[ours.index, names]).abs().mean()
    return float(max(losses)), float(100 * accuracy)


def same_curves(profile: str, claim: Claim) -> Finding:
    """Largest mean absolute difference in a loss between our history of AT + FSR and the authors' code's log."""
    run = experiments.main_pair(profile)[1]
    history = store.history(run).set_index("epoch") if store.is_trained(run) else pd.DataFrame()
    if not set(EPOCHS) <= set(history.index):
        return NOTHING
    worst, points = log_gaps(history.loc[EPOCHS])
    reason = f"training accuracy under attack differs by {number(points)} points"
    return Finding(worst, holds=worst <= claim.tolerance and points <= 1, reason=reason)


RULES = {f.__name__: f for f in (largest_gain, overhead, cues, accuracy, seconds, unseen, audit, same_curves)}
RULES |= dict.fromkeys(("slow_start", "overfitting", "real_deficit"), hundred_epochs) | {"study_training": training}


def frame(profile: str) -> pd.DataFrame:
    """A row per claim that this profile's setting can decide, in the claim's unit; low, high: what decides it."""
    records = []
    for claim in (claim for claim in CLAIMS if profile in claim.profiles):
        claim = claim._replace(checkpoint=claim.checkpoint or experiments.profile_of(profile).report_checkpoint)
        leads = dict(lead(profile, claim, *each) for each in claim.leads)
        finding = all_of(leads, claim.below) if leads else RULES[claim.rule](profile, claim)
        states = STATES if claim.kind in ("paper", "rerun") else OWN_STATES
        states = states if finding.seeds >= claim.min_seeds else FEW_SEEDS
        row = claim._asdict() | finding._asdict() | {"claim": claim.text}
        row["verdict"] = "not tested" if finding.ours is None else states.get(finding.holds, "undecided")
        row["changed_after_the_runs"] = claim.earlier and f"changed after the runs; before: {claim.earlier}"
        records.append(row)
    return pd.DataFrame(records, columns=COLUMNS)


def scope(profile: str) -> str:
    """What the verdicts hold for, and which claims this profile cannot decide, with what they need."""
    needs = {c.id: c.needs or " or ".join(c.profiles) for c in CLAIMS if profile not in c.profiles}
    texts = [f"{', '.join(i for i in needs if needs[i] == what)} ({what})" for what in dict.fromkeys(needs.values())]
    return f"Verdicts hold for {labels.setting(profile)}. Claims that need another profile or more: {'; '.join(texts)}."
