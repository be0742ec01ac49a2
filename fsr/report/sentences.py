"""Two or three sentences per table and for the training curves, made from numbers each time they are asked for."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from fsr import experiments, reference, statistics, store, tables
from fsr.files import UsageError
from fsr.reference import MIN_SEEDS
from fsr.tables import labels, outcomes
from fsr.tables.verdict import log_gaps

GAIN = ": gain over "
MAIN = f"AT + FSR{GAIN}AT"
COUNTS = ("no", "one", "two", "three", "four", "five")
WAYS = {1: "a gain", -1: "a loss", 0: "undecided"}
REASONS = ("FSR needs", "AT needs", "Our FSR", "Without L_sep", "Removing FSR", "The auxiliary")


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


def gains(numbers: pd.DataFrame, metric: str) -> list[dict]:
    """What every row adds to its baseline under this attack."""
    return numbers[(numbers["kind"] == "gain") & (numbers["metric"] == metric)].to_dict("records")


def main_gain(numbers: pd.DataFrame, profile: str) -> dict | None:
    """What FSR adds to AT under AutoAttack, or under Ensemble where that was not run; None without either."""
    return cell(numbers, MAIN, experiments.profile_of(profile).autoattack) or cell(numbers, MAIN, "ensemble")


def claimed() -> str:
    """The gain that the paper's abstract claims, and whether the authors' number of epochs was run here."""
    known = reference.known_results().set_index("metric")["value"]
    told = f"The paper's abstract claims a gain of up to {known['max_robust_gain_points']:g} points."
    done = any(main_gain(reported(name, "T1"), name) for name in ("headline", "paper"))
    return told + ("" if done else " The authors train 100 epochs; that setting has not been run here.")


def _compared(numbers: pd.DataFrame, gain: dict) -> str:
    """Both accuracies where they are of the gain's seeds and images, and the gain."""
    at, both = (cell(numbers, row, gain["metric"]) or {} for row in ("AT", "AT + FSR"))
    if any((one.get("seeds"), one.get("n")) != (gain["seeds"], gain["n"]) for one in (at, both)):
        return f"of AT + FSR minus that of AT is {change(gain)}"
    return f"is {number(at['value'])} % for AT and {number(both['value'])} % for AT + FSR, {change(gain)}"


def answer(profile: str) -> str:
    """Does FSR make AT more robust here?  Setting, accuracies, effect, interval, images and seeds."""
    setting, numbers = labels.setting(profile), reported(profile, "T1")
    if (gain := main_gain(numbers, profile)) is None:
        return f"{setting}: not run yet."
    text = f"{WAYS[side(gain)]}. {labels.metric(gain['metric'])} accuracy {_compared(numbers, gain)}"
    return f"{setting}: {text} ({gain['n']:,.0f} images, {seeds([gain['seeds']])})."


def _whitebox(profile: str, numbers: pd.DataFrame) -> list[str]:
    gain, clean = main_gain(numbers, profile), cell(numbers, MAIN, "clean")
    if gain is None or clean is None:
        return []
    sentences = [answer(profile), f"Accuracy without attack {_compared(numbers, clean)}."]
    for way, does in {1: "raises", -1: "lowers", 0: "has an undecided effect on"}.items():
        some = [one for one in gains(numbers, "ensemble") if side(one) == way]
        if some := [one for one in some if (one["row"], one["network"]) != (MAIN, gain["network"])]:
            places = ["" if one["network"] == gain["network"] else f" ({one['network']})" for one in some]
            names = ", ".join(one["row"].split(GAIN)[1] + place for one, place in zip(some, places))
            sentences.append(f"FSR {does} the Ensemble accuracy of {names} ({seeds([g['seeds'] for g in some])}).")
    return sentences


def _listed(numbers: pd.DataFrame, metric: str) -> list[str]:
    """Which rows lie above their baseline or below it, and which are undecided."""
    sentences, undecided, attack = list[str](), dict[str, list[str]](), labels.metric(metric)
    for gain in gains(numbers, metric):
        (name, base), way, counted = gain["row"].split(GAIN), side(gain), seeds([gain["seeds"]])
        if way:
            low, high = sorted(way * gain[end] for end in ("low", "high"))
            size = change({"value": way * gain["value"], "low": low, "high": high}, sign=False)
            where = f"{'above' if way > 0 else 'below'} {base} under {attack}"
            sentences.append(f"{name} is {size} {where} ({counted}).")
        else:
            undecided.setdefault(base, []).append(f"{name} ({counted})")
    return sentences + [f"Undecided against {b} under {attack}: {', '.join(names)}." for b, names in undecided.items()]


def _deactivation(profile: str, numbers: pd.DataFrame) -> list[str]:
    if set(numbers["row"]) <= {"AT", "AT + FSR", MAIN}:
        return []
    strong = experiments.profile_of(profile).autoattack
    doubt = numbers[(numbers["metric"] == strong) & ~numbers["flags"].fillna("none").eq("none")]["row"].tolist()
    sure = numbers[~numbers["row"].str.split(GAIN).str[0].isin(doubt)]
    told = f"{labels.metric(strong)} is in doubt for {', '.join(doubt)} (left out here)."
    return _listed(sure, strong) + ([told] if doubt else [])


def _blackbox(profile: str, numbers: pd.DataFrame) -> list[str]:
    found = [gain for metric in numbers["metric"].unique() if metric != "clean" for gain in gains(numbers, metric)]
    items = "; ".join(f"{labels.metric(gain['metric'])} {change(gain, '')}" for gain in found)
    return [f"AT + FSR minus AT in points ({seeds([gain['seeds'] for gain in found])}): {items}."] if found else []


def _components(profile: str, numbers: pd.DataFrame) -> list[str]:
    sentences, without = _listed(numbers, "ensemble"), "recalibration without L_sep"
    full, part = (cell(numbers, f"{row}{GAIN}AT", "ensemble") for row in ("AT + FSR", without))
    if full and part and side(full) and side(full) != side(part):
        effects = f"{change(part)} ({seeds([part['seeds']])}), with it by {change(full)} ({seeds([full['seeds']])})"
        sentences.append(f"Without L_sep FSR changes Ensemble accuracy by {effects}.")
        sentences.append(f"L_sep may cause the {'gain' if side(full) > 0 else 'loss'}.")
    pgd, cw = (cell(numbers, f"m = 1 at test (FSR bypassed){GAIN}AT + FSR", metric) for metric in ("pgd20", "cw"))
    if pgd and cw:
        effects = f"PGD-20 accuracy by {change(pgd)} and C&W accuracy by {change(cw)}"
        sentences.append(f"Removing FSR at test time changes {effects}.")
        apart = max(pgd["low"], cw["low"]) > min(pgd["high"], cw["high"])
        sentences += ["FSR's effect at test time depends on the attack."] if apart else []
    return sentences


def _sweep(profile: str, numbers: pd.DataFrame) -> list[str]:
    both, ensemble = (numbers, reported(profile, "T5")), "kind == 'ours' and metric == 'ensemble'"
    found, usual = (frame.query(ensemble) for frame in both)
    found = found[found["seeds"].isin(usual["seeds"].head(1))]  # one seed is compared with one seed
    if found["value"].nunique() < 2:
        return []
    ends = [found.loc[at] for at in (found["value"].idxmin(), found["value"].idxmax())]
    low, high = (f"{number(row['value'])} % ({row['row']})" for row in ends)
    text = f"Ensemble accuracy lies between {low} and {high}; the default has {number(usual['value'].iloc[0])} %."
    return [text, f"A sweep of {seeds(found['seeds'])} describes and decides nothing."]


def _streams(profile: str, numbers: pd.DataFrame) -> list[str]:
    numbers = numbers[numbers["checkpoint"] == experiments.profile_of(profile).report_checkpoint]
    numbers = numbers.query("attack == 'pgd20' and accuracy.notna()")
    if numbers.empty:
        return []
    wide = numbers.pivot_table(index=["seed", "n"], columns=["probe", "stream"], values="accuracy")
    mean, _, low, high, count = statistics.seed_summary(wide["knn", "recalibrated"] - wide["knn", "nonrobust"])
    half = 1.96 * np.sqrt(0.5 / numbers["n"].min())  # the widest interval that n images allow
    low, high = (low, high) if count >= MIN_SEEDS else (mean - half, mean + half)
    cues, robust, nonrobust = {"value": mean, "low": low, "high": high}, wide["aux", "robust"], wide["aux", "nonrobust"]
    text = f"{number(robust.mean())} % of the images correctly from robust features, {number(nonrobust.mean())} % from"
    sentences = [f"The auxiliary head classifies {text} non-robust features (PGD-20, {seeds([len(wide)])})."]
    text = f"nearest neighbours on non-robust features by {change(cues)}{'' if side(cues) else ' (undecided)'}"
    return [*sentences, f"Recalibration changes the accuracy of {text}."]


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
        fact = "the difference is undecided" if p > 0.05 else f"more with{'' if lost[1] > lost[0] else 'out'} FSR"
        told = f"Of the images that the authors' attacks leave, the audit breaks {lost[0]} of AT, {lost[1]} of AT + FSR"
        sentences.append(
            f"{told}: {fact}." if any(lost) else "The audit breaks no image that the authors' attacks leave."
        )
    return sentences


def _verdict(profile: str, numbers: pd.DataFrame) -> list[str]:
    states = numbers.groupby("verdict", sort=False)["id"].agg(", ".join)
    return [answer(profile), *reasons(profile), *(f"{name.capitalize()}: {ids}." for name, ids in states.items())]


def _training(profile: str, _: pd.DataFrame) -> list[str]:
    rows = {row.name: row.runs for row in reversed(experiments.ROWS[profile]["whitebox"])}  # the main network is first
    pairs = [pair for pair in zip(rows["AT"], rows["AT + FSR"]) if all(map(store.is_trained, pair))]
    if not pairs:
        return []
    at, both = (pd.concat([store.history(run) for run in runs], keys=range(len(pairs))) for runs in zip(*pairs))
    last, counted = int(both[both["lr"] == both["lr"].max()]["epoch"].max()), seeds([len(pairs)])
    gap = (both["train_adv_acc"] - at["train_adv_acc"])[both["epoch"] <= last]  # while the rate is constant
    means = {"AT": at.groupby("epoch").mean(), "FSR": both.groupby("epoch").mean()}
    sentences = [f"Whether FSR or AT learns faster in training is undecided ({counted})."]
    if (gap < 0).all() or (gap > 0).all():
        slow, fast = ("FSR", "AT") if (gap < 0).all() else ("AT", "FSR")
        level = means[slow].loc[:last, "train_adv_acc"].max()
        late, early = ((means[name]["train_adv_acc"] >= level).idxmax() for name in (slow, fast))
        text = f"{late} epochs to reach the training accuracy under attack that {fast} reaches after {early}"
        sentences = [f"{slow} needs {text} ({counted})."]
    held = means["FSR"]["ema_held_robust_acc"] - means["AT"]["ema_held_robust_acc"]
    ends = " and ".join(f"{number(held.loc[epoch], True)} points at epoch {epoch}" for epoch in (last, held.index[-1]))
    sentences.append(f"On held-out images under attack (EMA weights) AT + FSR minus AT is {ends} ({counted}).")
    run = pairs[0][1]
    if (run.dataset, run.backbone, run.width, run.train_size) == ("cifar10", "resnet18", None, None):  # as in the log
        losses, accuracy = log_gaps(both.loc[0].set_index("epoch").loc[5:last])
        text = f"at most {max(losses.values()):.3f} on average (epochs 5 to {last})"
        sentences.append(f"Our FSR losses differ from a third party's log of the authors' code by {text}.")
        text = f"{number(accuracy / 100)} points (compared after the runs)"
        sentences.append(f"Training accuracy under attack differs by {text}.")
    return sentences


def _strength(profile: str, _: pd.DataFrame) -> list[str]:
    pair, base = experiments.main_pair(profile), experiments.profile_of(profile).base
    planned = experiments.evaluations(profile, "strength", pair[0])
    if not planned:
        return []
    most = max(planned, key=lambda one: one.eps or 0)
    at, both = (outcomes.accuracy((run,), most).get("value", np.nan) for run in pair)
    radius = f"{255 * (most.eps or 0):.0f}/255" if base.eps < 0.1 else f"{most.eps:g}"
    told = (
        f"Under PGD-20 of radius {radius} accuracy is {number(at)} % for AT and {number(both)} % for AT + FSR (seed 0)"
    )
    return [] if np.isnan([at, both]).any() else [f"{told}; an attack that works leaves almost none."]


def reasons(profile: str) -> list[str]:
    """What may explain the answer: the sentences on training, the separation loss, the streams and the mask at test."""
    sentences = [sentence for name in ("F5", "T4", "T7") for sentence in findings(profile, name)]
    return [sentence for sentence in sentences if sentence.startswith(REASONS)] + tables.PRELIMINARY.get(profile, [])


FINDERS: dict[str, Callable[[str, pd.DataFrame], list[str]]] = {"T1": _whitebox, "T2": _deactivation, "F5": _training}
FINDERS |= {"T3": _blackbox, "T4": _components, "T5": _sweep, "T6": _sweep, "T7": _streams, "T8": _overhead}
FINDERS |= {"T9": _audit, "T10": _verdict, "T11": lambda profile, numbers: _listed(numbers, "ensemble")}
FINDERS["F6"] = _strength


def findings(profile: str, name: str) -> Findings:
    """What a table (T1 to T11) or a figure (F5, F6) say, in sentences; empty where nothing was run."""
    if name not in FINDERS:
        raise UsageError(f"no findings for {name!r}; choose one of {', '.join(FINDERS)}")
    sentences = FINDERS[name](profile, reported(profile, name) if name[0] == "T" else pd.DataFrame())
    return Findings([*dict.fromkeys((*sentences, *tables.PRELIMINARY.get(profile, [])))] if sentences else [])
