"""Two or three sentences per table and for the training curves, made from numbers each time they are asked for."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from fsr import experiments, statistics, store, tables
from fsr.files import MissingRecord, UsageError
from fsr.reference import MIN_SEEDS
from fsr.tables import labels
from fsr.tables.verdict import log_gaps

GAIN = ": gain over "
MAIN = f"AT + FSR{GAIN}AT"
COUNTS = ("no", "one", "two", "three", "four", "five")
WAYS = {1: ("raises accuracy", "Above"), -1: ("lowers accuracy", "Below"), 0: ("", "Undecided against")}
REMADE = {"mini": ("T1", "T4", "T7")}  # first records, which are made again
HYPOTHESIS = "These records are made again: until then this is a hypothesis."
REASONS = ("FSR learns", "Training", "L_sep", "The gain needs", "The separation is", "Bypassing")
CLOSE = 0.1  # of a loss: below it training follows the log


class Findings(list[str]):
    """Sentences that a notebook shows as a list."""

    def _repr_markdown_(self) -> str:
        return "\n".join(f"- {sentence}" for sentence in self or ["Not run yet."])


def number(fraction: float, sign: bool = False) -> str:
    """Percent or points: 44.6, with sign +1.2 or −1.2; a second decimal where one would hide the sign."""
    digits = 2 if sign and abs(fraction) < 0.0005 and round(fraction, 4) else 1
    return f"{round(100 * fraction, digits) + 0.0:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def change(cell: dict, unit: str = " points", sign: bool = True) -> str:
    """A difference with its interval: −2.9 points [−3.4, −2.3]."""
    value, low, high = (number(cell[name], sign) for name in ("value", "low", "high"))
    return f"{value}{unit} [{low}, {high}]"


def side(cell: dict) -> int:
    """1 or −1 for an interval above or below zero, 0 for one that includes it (undecided)."""
    return int(cell["low"] > 0) - int(cell["high"] < 0)


def seeds(counts) -> str:
    """`one seed`, or `one to three seeds`."""
    ends = [COUNTS[int(end)] if end < len(COUNTS) else f"{end:.0f}" for end in (min(counts), max(counts))]
    return " to ".join(dict.fromkeys(ends)) + (" seed" if max(counts) == 1 else " seeds")


def reported(profile: str, name: str, weights: str = "") -> pd.DataFrame:
    """This project's recorded numbers of these weights, by default of those that the profile reports.

    low and high are of the interval that decides: over seeds and images from three seeds on, else over images.
    """
    frame = tables.table(profile, name)
    if "metric" not in frame:
        return frame
    frame = frame[frame["kind"].isin(["ours", "gain"]) & frame["value"].notna()]
    frame = frame[frame["checkpoint"] == (weights or experiments.profile_of(profile).report_checkpoint)]
    both = (frame["seeds"] >= MIN_SEEDS) & frame[["seeds_low", "seeds_high"]].notna().all(axis=1)
    low, high = (frame[end].mask(both, frame[f"seeds_{end}"]) for end in ("low", "high"))
    return frame.assign(low=low, high=high).drop_duplicates(["dataset", "network", "row", "metric"])


def cell(numbers: pd.DataFrame, row: str, metric: str) -> dict | None:
    """The first number of this row and metric, or None."""
    return next(iter(numbers[(numbers["row"] == row) & (numbers["metric"] == metric)].to_dict("records")), None)


def share(numbers: pd.DataFrame, row: str, metric: str) -> str:
    """An accuracy as 44.6 %."""
    return f"{number(numbers[(numbers['row'] == row) & (numbers['metric'] == metric)]['value'].iloc[0])} %"


def gains(numbers: pd.DataFrame, metric: str) -> list[dict]:
    """What every row adds to its baseline under this attack."""
    return numbers[(numbers["kind"] == "gain") & (numbers["metric"] == metric)].to_dict("records")


def main_gain(numbers: pd.DataFrame, profile: str) -> dict | None:
    """What FSR adds to AT under AutoAttack, or under Ensemble where that was not run; None without either."""
    return cell(numbers, MAIN, experiments.profile_of(profile).autoattack) or cell(numbers, MAIN, "ensemble")


def answer(profile: str) -> str:
    """Does FSR make AT more robust here?  Setting, effect, interval, images and seeds."""
    run, gain = experiments.profile_of(profile).base, main_gain(reported(profile, "T1"), profile)
    where = f"{labels.dataset(run.dataset)}, {labels.network(run)}, {run.epochs} epochs"
    if gain is None:
        return f"{where}: not run yet."
    attack, does = labels.metric(gain["metric"]), WAYS[side(gain)][0]
    effect = f"FSR {does} under {attack}" if does else f"FSR's effect under {attack} is undecided"
    return f"{where}: {effect}, {change(gain)} ({gain['n']:,.0f} images, {seeds([gain['seeds']])})."


def _whitebox(profile: str, numbers: pd.DataFrame) -> list[str]:
    gain, clean = main_gain(numbers, profile), cell(numbers, MAIN, "clean")
    if gain is None or clean is None:
        return []
    at, both = (share(numbers, row, gain["metric"]) for row in ("AT", "AT + FSR"))
    sentences = [answer(profile), f"AT keeps {at} of the images, AT + FSR {both}."]
    sentences.append(f"Without attack FSR changes accuracy by {change(clean)}.")
    main, pairs = (MAIN, gain["network"]), gains(numbers, "ensemble")
    ways = [side(one) for one in pairs if (one["row"], one["network"]) != main]
    text = f"raises Ensemble in {ways.count(1)}, lowers it in {ways.count(-1)}; {ways.count(0)} undecided"
    return sentences + ([f"Of {len(ways)} other pairs FSR {text}."] if ways else [])


def _listed(numbers: pd.DataFrame, metric: str) -> list[str]:
    """Per baseline: which rows lie above it, below it, and which are undecided."""
    sentences, found = [], gains(numbers, metric)
    for base in dict.fromkeys(gain["row"].split(GAIN)[1] for gain in found):
        for way, (_, word) in WAYS.items():
            some = [gain for gain in found if gain["row"].endswith(GAIN + base) and side(gain) == way]
            items = [gain["row"].split(GAIN)[0] + (f" {change(gain, '')}" if way else "") for gain in some]
            about = f"{labels.metric(metric)}, {seeds([gain['seeds'] for gain in some])}" if some else ""
            sentences += [f"{word} {base} ({about}): {'; '.join(items)}."] if some else []
    return sentences


def _deactivation(profile: str, numbers: pd.DataFrame) -> list[str]:
    if set(numbers["row"]) <= {"AT", "AT + FSR", MAIN}:
        return []
    strong = experiments.profile_of(profile).autoattack
    doubt = numbers[(numbers["metric"] == strong) & ~numbers["flags"].fillna("none").eq("none")]["row"].tolist()
    sure = numbers[~numbers["row"].str.split(GAIN).str[0].isin(doubt)]
    return _listed(sure, strong) + ([f"{labels.metric(strong)}'s own flags doubt {', '.join(doubt)}."] if doubt else [])


def _blackbox(profile: str, numbers: pd.DataFrame) -> list[str]:
    found = [gain for metric in numbers["metric"].unique() if metric != "clean" for gain in gains(numbers, metric)]
    items = "; ".join(f"{labels.metric(gain['metric'])} {change(gain, '')}" for gain in found)
    return [f"What FSR adds to AT in points ({seeds([gain['seeds'] for gain in found])}): {items}."] if found else []


def _components(profile: str, numbers: pd.DataFrame) -> list[str]:
    sentences, without = _listed(numbers, "ensemble"), "recalibration without L_sep"
    full, part = (cell(numbers, f"{row}{GAIN}AT", "ensemble") for row in ("AT + FSR", without))
    if full and part and side(full) and side(full) != side(part):
        sure = "" if part["seeds"] >= MIN_SEEDS else f", a hypothesis of {seeds([part['seeds']])}"
        rows = {"AT": "AT", "FSR": "AT + FSR", "without L_sep": without}
        shares = ", ".join(f"{name} {share(numbers, row, 'ensemble')}" for name, row in rows.items())
        what = "The gain needs L_sep" if side(full) > 0 else "L_sep is what costs robustness"
        sentences.append(f"{what} (Ensemble: {shares}{sure}).")
    pgd, cw = (cell(numbers, f"m = 1 at test (FSR bypassed){GAIN}AT + FSR", metric) for metric in ("pgd20", "cw"))
    if pgd and cw:
        changes = f"{change(pgd)} under PGD-20, by {change(cw)} under C&W"
        sentences.append(f"Bypassing FSR at test changes accuracy by {changes}.")
        apart = max(pgd["low"], cw["low"]) > min(pgd["high"], cw["high"])
        sentences += ["What FSR does at test depends on the attack."] if apart else []
    return sentences


def _sweep(profile: str, numbers: pd.DataFrame) -> list[str]:
    both, ensemble = (numbers, reported(profile, "T5")), "kind == 'ours' and metric == 'ensemble'"
    found, usual = (frame.query(ensemble) for frame in both)
    if found["value"].nunique() < 2 or usual.empty:
        return []
    ends = [found.loc[at] for at in (found["value"].idxmin(), found["value"].idxmax())]
    low, high = (f"{number(row['value'])} % ({row['row']})" for row in ends)
    text = f"Ensemble lies between {low} and {high}; the default has {number(usual['value'].iloc[0])} %."
    return [text, f"A sweep of {seeds(found['seeds'])} describes and decides nothing."]


def _streams(profile: str, numbers: pd.DataFrame) -> list[str]:
    numbers = numbers[numbers["checkpoint"] == experiments.profile_of(profile).report_checkpoint]
    numbers = numbers.query("attack == 'pgd20' and accuracy.notna()")
    if numbers.empty:
        return []
    wide = numbers.pivot_table(index=["seed", "n"], columns=["probe", "stream"], values="accuracy")
    changes = []
    for probe, stream in (("aux", "robust"), ("knn", "recalibrated")):
        mean, _, low, high, count = statistics.seed_summary(wide[probe, stream] - wide[probe, "nonrobust"])
        half = 1.96 * np.sqrt(0.5 / numbers["n"].min())  # the widest interval that n images allow
        ends = {"low": low, "high": high} if count >= MIN_SEEDS else {"low": mean - half, "high": mean + half}
        changes.append({"value": mean} | ends)
    learnt, cues = side(changes[0]) > 0, ("changes nothing that can be decided", "returns cues", "removes cues")
    robust, nonrobust = (number(wide["aux", stream].mean()) for stream in ("robust", "nonrobust"))
    text = f"the auxiliary head is right on {robust} % from f⁺, {nonrobust} % from f⁻ ({seeds([len(wide)])})"
    step = f"recalibration {cues[side(changes[1])]}: f̃⁻ minus f⁻ is {change(changes[1])}"
    return [f"The separation is {'' if learnt else 'not '}learnt: {text}.", f"By nearest neighbours {step}."]


def _overhead(profile: str, numbers: pd.DataFrame) -> list[str]:
    sentences = []
    for network, part in numbers.dropna(subset=["params", "macs"]).groupby("network", sort=False):
        at, both = part.sort_values("fsr")[["params", "macs"]].to_numpy(float)[[0, -1]]
        params, macs = (number(ratio, True) for ratio in both / at - 1)
        sentences.append(f"{network}: FSR adds {params} % parameters and {macs} % multiply-adds.")
    return sentences


def _audit(profile: str, numbers: pd.DataFrame) -> list[str]:
    found = numbers.pivot_table(index=["row", "n"], columns="item", values="correct", sort=False)
    found, sentences = found.reindex(columns=["authors' protocol", "worst case"]).dropna().astype(int), []
    for (row, n), protocol, worst in found.itertuples():
        text = f"{number(protocol / n)} % under the authors' protocol, {number(worst / n)} % in the worst case"
        sentences.append(f"{row}: {text} ({n:,.0f} images).")
    if len(found) == 2:
        lost = (found.iloc[:, 0] - found.iloc[:, 1]).tolist()
        broken = np.repeat([True, False], lost)
        p = statistics.mcnemar_exact(broken, ~broken) if len(broken) else 1.0
        fact = "undecided" if p > 0.05 else f"more {'with' if lost[1] > lost[0] else 'without'} FSR"
        sentences.append(f"Beyond the protocol the audit breaks {lost[0]} images of AT, {lost[1]} of AT + FSR: {fact}.")
    return sentences


def _verdict(profile: str, numbers: pd.DataFrame) -> list[str]:
    states = numbers.groupby("verdict", sort=False)["id"].agg(", ".join)
    return [answer(profile), *reasons(profile), *(f"{name.capitalize()}: {ids}." for name, ids in states.items())]


def _training(profile: str, _: pd.DataFrame) -> list[str]:
    pair = experiments.main_pair(profile)
    try:
        at, both = (store.history(run).set_index("epoch") for run in pair)
    except MissingRecord:
        return []
    last = int(both.index[both["lr"] == both["lr"].max()].max())  # of the constant learning rate
    epochs = sorted({max(1, last // 3), max(1, 2 * last // 3), last})
    best = at["train_adv_acc"].cummax().loc[:last]
    match = np.interp(both["train_adv_acc"].loc[epochs], best, best.index)
    slow = bool((match < epochs).all())
    text = f"its epochs {', '.join(map(str, epochs))} match AT's {', '.join(f'{epoch:.1f}' for epoch in match)}"
    sentences = [f"FSR learns {'' if slow else 'no '}more slowly: {text} in training accuracy under attack."]
    gap = both["ema_held_robust_acc"] - at["ema_held_robust_acc"]
    ends = [f"{number(gap.loc[epoch], True)} at epoch {epoch}" for epoch in dict.fromkeys((*epochs, gap.index[-1]))]
    sentences.append(f"Held out, under attack, EMA: AT + FSR minus AT is {', '.join(ends)} (points).")
    sentences += ["That FSR acts like a regulariser is a hypothesis."] if slow else []
    if (pair[1].dataset, pair[1].width, pair[1].train_size) == ("cifar10", None, None):  # the size of the authors' log
        gaps, accuracy = log_gaps(both.loc[5:last])
        text = ", ".join(f"{apart:.3f} ({loss})" for loss, apart in gaps.items()) + f", epochs 5 to {last}"
        what = "follows" if max(gaps.values()) < CLOSE else "departs from"
        sentences.append(f"Training {what} the log of the authors' code: mean gap of losses {text}.")
        text = f"{number(accuracy / 100)} points (compared after the runs)"
        sentences.append(f"The mean gap of training accuracy under attack is {text}.")
    return sentences


def reasons(profile: str) -> list[str]:
    """What may explain the answer: the sentences on training, the separation loss, the streams and the mask at test."""
    sentences = [sentence for name in ("F5", "T4", "T7") for sentence in findings(profile, name)]
    chosen = [sentence for sentence in sentences if sentence.startswith(REASONS)]
    return [*chosen, HYPOTHESIS] if HYPOTHESIS in sentences else chosen


FINDERS: dict[str, Callable[[str, pd.DataFrame], list[str]]] = {"T1": _whitebox, "T2": _deactivation, "F5": _training}
FINDERS |= {"T3": _blackbox, "T4": _components, "T5": _sweep, "T6": _sweep, "T7": _streams, "T8": _overhead}
FINDERS |= {"T9": _audit, "T10": _verdict, "T11": lambda profile, numbers: _listed(numbers, "ensemble")}


def findings(profile: str, name: str) -> Findings:
    """What a table (T1 to T11) or the training curves (F5) say, in sentences; empty where nothing was run."""
    if name not in FINDERS:
        raise UsageError(f"no findings for {name!r}; choose one of {', '.join(FINDERS)}")
    sentences = FINDERS[name](profile, reported(profile, name) if name != "F5" else pd.DataFrame())
    return Findings([*sentences, HYPOTHESIS] if sentences and name in REMADE.get(profile, ()) else sentences)
