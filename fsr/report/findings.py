"""Two or three sentences per table and for the training curves, made from numbers each time they are asked for."""

from typing import Any

import numpy as np
import pandas as pd

from fsr import experiments, statistics, store, tables
from fsr.files import MissingRecord, UsageError
from fsr.reference import MIN_SEEDS
from fsr.report.wording import bracket, interval, number, points, seeds, side
from fsr.tables import labels
from fsr.tables.rules import log_gaps

GAIN = ": gain over "
MAIN = f"AT + FSR{GAIN}AT"
REMADE = {"mini": ("T1", "T4", "T7")}  # first records, which are made again
REASONS = ("FSR learns", "Training", "L_sep", "The gain needs", "The separation is", "Bypassing")
CLOSE = 0.1  # of a loss: below it training follows the log
HYPOTHESIS = "These records are made again: until then this is a hypothesis."


class Findings(list[str]):
    """Sentences that a notebook shows as a list."""

    def _repr_markdown_(self) -> str:
        return "\n".join(f"- {sentence}" for sentence in self or ["Not run yet."])


def frame(profile: str, name: str) -> pd.DataFrame:
    """A table's numbers, a row per number."""
    return tables.table(profile, name)


def reported(profile: str, name: str) -> pd.DataFrame:
    """This project's numbers of the weights that the profile reports, without what was not run."""
    numbers, weights = frame(profile, name), experiments.profile_of(profile).report_checkpoint
    ours = numbers["kind"].isin(["ours", "gain"]) & (numbers["checkpoint"] == weights) & numbers["value"].notna()
    return numbers[ours].drop_duplicates(["dataset", "network", "row", "metric"])


def cell(numbers: pd.DataFrame, row: str, metric: str) -> dict | Any:
    """The first number of this row and metric, or None."""
    matches = numbers[(numbers["row"] == row) & (numbers["metric"] == metric)]
    return None if matches.empty else matches.iloc[0].to_dict()


def main_gain(numbers: pd.DataFrame, profile: str) -> dict | None:
    """What FSR adds to AT under AutoAttack, or under Ensemble where that was not run; None without either."""
    strong = cell(numbers, MAIN, experiments.profile_of(profile).autoattack)
    return strong or cell(numbers, MAIN, "ensemble")


def answer(profile: str) -> str:
    """Does FSR make AT more robust here?  Setting, effect, interval, images and seeds."""
    run, gain = experiments.profile_of(profile).base, main_gain(reported(profile, "T1"), profile)
    where = f"{labels.dataset(run.dataset)}, {labels.network(run)}, {run.epochs} epochs"
    if gain is None:
        return f"{where}: not run yet."
    attack = labels.metric(gain["metric"])
    effect = {1: f"FSR raises accuracy under {attack}", -1: f"FSR lowers accuracy under {attack}"}
    sentences = effect.get(side(gain), f"FSR's effect under {attack} is undecided")
    return f"{where}: {sentences}, {points(gain)} ({gain['n']:,.0f} images, {seeds([gain['seeds']])})."


def _whitebox(profile: str) -> list[str]:
    numbers = reported(profile, "T1")
    gain, clean = main_gain(numbers, profile), cell(numbers, MAIN, "clean")
    if gain is None or clean is None:
        return []
    at, both = (number(cell(numbers, row, gain["metric"])["value"]) for row in ("AT", "AT + FSR"))
    sentences = [answer(profile), f"AT keeps {at} % of the images, AT + FSR {both} %."]
    sentences.append(f"Without attack FSR changes accuracy by {points(clean)}.")
    others = numbers[(numbers["kind"] == "gain") & (numbers["metric"] == "ensemble")].to_dict("records")
    ways = [side(one) for one in others if (one["row"], one["network"]) != (MAIN, gain["network"])]
    text = f"raises Ensemble in {ways.count(1)}, lowers it in {ways.count(-1)}; {ways.count(0)} undecided"
    return sentences + ([f"Of {len(ways)} other pairs FSR {text}."] if ways else [])


def _listed(numbers: pd.DataFrame, metric: str) -> list[str]:
    """Per baseline: which rows lie above it, below it, and which are undecided."""
    gains = numbers[(numbers["kind"] == "gain") & (numbers["metric"] == metric)].to_dict("records")
    sentences = []
    for base in dict.fromkeys(gain["row"].split(GAIN)[1] for gain in gains):
        for way, word in {1: "Above", -1: "Below", 0: "Undecided against"}.items():
            some = [gain for gain in gains if gain["row"].endswith(GAIN + base) and side(gain) == way]
            items = [gain["row"].split(GAIN)[0] + (f" {bracket(gain)}" if way else "") for gain in some]
            about = f"{labels.metric(metric)}, {seeds([gain['seeds'] for gain in some])}" if some else ""
            sentences += [f"{word} {base} ({about}): {'; '.join(items)}."] if some else []
    return sentences


def _deactivation(profile: str) -> list[str]:
    numbers, strong = reported(profile, "T2"), experiments.profile_of(profile).autoattack
    doubt = numbers[(numbers["metric"] == strong) & ~numbers["flags"].fillna("none").isin(["none"])]["row"].tolist()
    sure = numbers[~numbers["row"].str.split(GAIN).str[0].isin(doubt)]
    if set(numbers["row"]) <= {"AT", "AT + FSR", MAIN}:
        return []
    return _listed(sure, strong) + ([f"{labels.metric(strong)}'s own flags doubt {', '.join(doubt)}."] if doubt else [])


def _blackbox(profile: str) -> list[str]:
    gains = reported(profile, "T3").query("kind == 'gain' and metric != 'clean'").to_dict("records")
    items = [f"{labels.metric(gain['metric'])} {bracket(gain)}" for gain in gains]
    about = f"What FSR adds to AT in points ({seeds([gain['seeds'] for gain in gains])})" if gains else ""
    return [f"{about}: {'; '.join(items)}."] if gains else []


def _components(profile: str) -> list[str]:
    numbers = reported(profile, "T4")
    sentences = _listed(numbers, "ensemble")
    full, without = (cell(numbers, f"{row}{GAIN}AT", "ensemble") for row in ("AT + FSR", "recalibration without L_sep"))
    if full and without and side(full) and side(full) != side(without):
        sure = "" if without["seeds"] >= MIN_SEEDS else f", a hypothesis of {seeds([without['seeds']])}"
        rows = {"AT": "AT", "FSR": "AT + FSR", "without L_sep": "recalibration without L_sep"}
        shares = [f"{name} {number(cell(numbers, row, 'ensemble')['value'])} %" for name, row in rows.items()]
        what = "The gain needs L_sep" if side(full) > 0 else "L_sep is what costs robustness"
        sentences.append(f"{what} (Ensemble: {', '.join(shares)}{sure}).")
    bypass = [cell(numbers, f"m = 1 at test (FSR bypassed){GAIN}AT + FSR", metric) for metric in ("pgd20", "cw")]
    if all(bypass):
        pgd, cw = map(points, bypass)
        sentences.append(f"Bypassing FSR at test changes accuracy by {pgd} under PGD-20, by {cw} under C&W.")
        lows, highs = zip(*map(interval, bypass), strict=True)
        sentences += ["What FSR does at test depends on the attack."] if max(lows) > min(highs) else []
    return sentences


def _sweep(profile: str, name: str) -> list[str]:
    ensemble = reported(profile, name).query("kind == 'ours' and metric == 'ensemble'")
    usual = reported(profile, "T5").query("kind == 'ours' and metric == 'ensemble'")["value"].iloc[:1]
    if len(ensemble) < 2 or ensemble["value"].nunique() < 2 or usual.empty:
        return []
    ends = [ensemble.loc[at] for at in (ensemble["value"].idxmin(), ensemble["value"].idxmax())]
    low, high = (f"{number(row['value'])} % ({row['row']})" for row in ends)
    text = f"Ensemble lies between {low} and {high}; the default has {number(usual.item())} %."
    return [text, f"A sweep of {seeds(ensemble['seeds'])} describes and decides nothing."]


def _streams(profile: str) -> list[str]:
    numbers = frame(profile, "T7").query("attack == 'pgd20' and accuracy.notna()")
    numbers = numbers[numbers["checkpoint"] == experiments.profile_of(profile).report_checkpoint]
    wide = numbers.pivot_table(index=["seed", "n"], columns=["probe", "stream"], values="accuracy")
    if wide.empty:
        return []
    separation = _change(wide["aux", "robust"] - wide["aux", "nonrobust"])
    step = _change(wide["knn", "recalibrated"] - wide["knn", "nonrobust"])
    robust, nonrobust = (number(wide["aux", stream].mean()) for stream in ("robust", "nonrobust"))
    text = f"the auxiliary head is right on {robust} % from f⁺, {nonrobust} % from f⁻"
    what = {1: "returns cues", -1: "removes cues", 0: "changes nothing that can be decided"}[side(step)]
    return [
        f"The separation is {'' if side(separation) > 0 else 'not '}learnt: {text} ({seeds([len(wide)])}).",
        f"By nearest neighbours recalibration {what}: f̃⁻ minus f⁻ is {points(step)}.",
    ]


def _change(values: pd.Series) -> dict:
    """Mean over seeds; Student's t interval from three seeds on, else the widest that n images allow."""
    mean, _, low, high, count = statistics.seed_summary(values)
    if count < MIN_SEEDS:
        half = 1.96 * np.sqrt(0.5 / values.index.get_level_values("n").min())
        low, high = mean - half, mean + half
    return {"value": mean, "low": low, "high": high, "seeds": count}


def _overhead(profile: str) -> list[str]:
    sentences = []
    for network, part in frame(profile, "T8").dropna(subset=["params", "macs"]).groupby("network", sort=False):
        at, both = part.sort_values("fsr")[["params", "macs"]].to_numpy(float)[[0, -1]]
        params, macs = (number(ratio, True) for ratio in both / at - 1)
        sentences.append(f"{network}: FSR adds {params} % parameters and {macs} % multiply-adds.")
    return sentences


def _audit(profile: str) -> list[str]:
    numbers, sentences, lost = frame(profile, "T9").dropna(subset=["correct"]), [], []
    for row, part in numbers.groupby("row", sort=False):
        right, n = part.set_index("item")["correct"].astype(int), int(part["n"].max())
        if not {"authors' protocol", "worst case"} <= set(right.index):
            continue
        protocol, worst = right["authors' protocol"], right["worst case"]
        text = f"{number(protocol / n)} % under the authors' protocol, {number(worst / n)} % in the worst case"
        sentences.append(f"{row}: {text} ({n:,} images).")
        lost.append(protocol - worst)
    if len(lost) == 2:
        broken = np.repeat([True, False], lost)
        p = statistics.mcnemar_exact(broken, ~broken) if len(broken) else 1.0
        fact = "undecided" if p > 0.05 else f"more {'with' if lost[1] > lost[0] else 'without'} FSR"
        sentences.append(f"Beyond the protocol the audit breaks {lost[0]} images of AT, {lost[1]} of AT + FSR: {fact}.")
    return sentences


def _verdict(profile: str) -> list[str]:
    states = frame(profile, "T10").groupby("verdict", sort=False)["id"].agg(", ".join)
    listed = [f"{state.capitalize()}: {claims}." for state, claims in states.items()]
    return [answer(profile), *reasons(profile), *listed]


def _training(profile: str) -> list[str]:
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
    full_size = pair[1].dataset == "cifar10" and pair[1].width is None and pair[1].train_size is None
    return sentences + (_beside_the_log(both.loc[5:last]) if full_size else [])


def _beside_the_log(ours: pd.DataFrame) -> list[str]:
    """How far a full-size training is from the log of the authors' code, while both learn at the same rate."""
    gaps, accuracy = log_gaps(ours)
    text = ", ".join(f"{gap:.3f} ({loss})" for loss, gap in gaps.items())
    what = "follows" if max(gaps.values()) < CLOSE else "departs from"
    return [
        f"Training {what} the log of the authors' code: mean gap of losses {text}, epochs 5 to {ours.index[-1]}.",
        f"The mean gap of training accuracy under attack is {number(accuracy / 100)} points (compared after the runs).",
    ]


def reasons(profile: str) -> list[str]:
    """What may explain the answer: the sentences on training, the separation loss, the streams and the mask at test."""
    sentences = [sentence for name in ("F5", "T4", "T7") for sentence in findings(profile, name)]
    chosen = [sentence for sentence in sentences if sentence.startswith(REASONS)]
    return [*chosen, HYPOTHESIS] if HYPOTHESIS in sentences else chosen


FINDERS = {"T1": _whitebox, "T2": _deactivation, "T3": _blackbox, "T4": _components}
FINDERS |= {"T5": lambda profile: _sweep(profile, "T5"), "T6": lambda profile: _sweep(profile, "T6"), "T7": _streams}
FINDERS |= {"T8": _overhead, "T9": _audit, "T10": _verdict, "F5": _training}
FINDERS["T11"] = lambda profile: _listed(reported(profile, "T11"), "ensemble")


def findings(profile: str, name: str) -> Findings:
    """What a table (T1 to T11) or the training curves (F5) say, in sentences; empty where nothing was run."""
    if name not in FINDERS:
        raise UsageError(f"no findings for {name!r}; choose one of {', '.join(FINDERS)}")
    sentences = FINDERS[name](profile)
    return Findings([*sentences, HYPOTHESIS] if sentences and name in REMADE.get(profile, ()) else sentences)
