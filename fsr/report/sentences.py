"""Two or three sentences per table and for the training curves, made from numbers each time they are asked for."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

import pandas as pd

from fsr import experiments, reference, statistics, store, tables
from fsr.files import choose
from fsr.plots.curves import official
from fsr.plots.style import cells, histories
from fsr.reference import MIN_SEEDS
from fsr.tables import labels, outcomes
from fsr.tables.labels import UNDECIDED, change, measured, seeds, side
from fsr.tables.verdict import log_gaps

GAIN = ": gain over "
MAIN = f"AT + FSR{GAIN}AT"
NO_REASONS = ("Ensemble accuracy minus", "Recalibration changes", "At epoch")  # how these sentences begin


class Findings(list[str]):
    """Sentences that a notebook shows as a list."""

    def _repr_markdown_(self) -> str:
        return "\n".join(f"- {sentence}" for sentence in self or ["Not run yet."])


def reported(profile: str, name: str) -> pd.DataFrame:
    """A table; of one of attacks, this project's recorded numbers of the weights that the profile reports."""
    if "metric" not in (frame := tables.table(profile, name)):
        return frame
    return cells(profile, name, kind=["ours", "gain"], checkpoint=experiments.profile_of(profile).report_checkpoint)


def cell(numbers: pd.DataFrame, row: str, metric: str) -> dict | None:
    """The first number of this row and metric, or None."""
    return next(iter(numbers[(numbers["row"] == row) & (numbers["metric"] == metric)].to_dict("records")), None)


def main_gain(numbers: pd.DataFrame, profile: str) -> dict | None:
    """What FSR adds to AT under AutoAttack, or under Ensemble where that has more seeds; None without either."""
    gains = [cell(numbers, MAIN, metric) for metric in (experiments.profile_of(profile).autoattack, "ensemble")]
    return max(filter(None, gains), key=lambda gain: gain["seeds"], default=None)


def claimed() -> str:
    """The gain that the paper's abstract claims, what others found, and whether 100 epochs were run here."""
    results = reference.known_results().groupby(["kind", "metric"])["value"].first()
    text = f"The paper's abstract claims a gain of up to {results['paper', 'max_robust_gain_points']:g} points. "
    text += f"A third party ran their code (AT + FSR, 100 epochs): {results['rerun', 'ensemble']:g} % in Ensemble."
    done = any(main_gain(reported(name, "T1"), name) for name in ("headline", "paper"))
    return text + ("" if done else " The authors train 100 epochs on all images; that setting has not been run here.")


def _compared(numbers: pd.DataFrame, gain: dict) -> str:
    """Both accuracies where they are of the gain's seeds and images, and the gain."""
    baseline, with_fsr = (cell(numbers, row, gain["metric"]) or {} for row in ("AT", "AT + FSR"))
    if any((one.get("seeds"), one.get("n")) != (gain["seeds"], gain["n"]) for one in (baseline, with_fsr)):
        return f"of AT + FSR minus that of AT is {change(gain)}"
    return f"is {measured(baseline['value'])} % for AT and {measured(with_fsr['value'])} % for AT + FSR, {change(gain)}"


def answer(profile: str) -> str:
    """Does FSR make AT more robust here?  Setting, accuracies, effect, interval, weights, images and seeds."""
    setting, numbers = labels.setting(profile), reported(profile, "T1")
    if (gain := main_gain(numbers, profile)) is None:
        return f"{setting}: not run yet."
    compared, found = _compared(numbers, gain).removesuffix(UNDECIDED), side(gain) or "undecided"
    text = f"{found} in {seeds([gain['seeds']])}. {labels.metric(gain['metric'])} accuracy {compared}"
    spread = ", spread over seeds not counted" * (gain["seeds"] < MIN_SEEDS)
    return f"{setting}: {text} ({labels.WEIGHTS[gain['checkpoint']]}, {gain['n']:,.0f} images{spread})."


def _gains(numbers: pd.DataFrame, metric: str, base: str = "") -> dict[str, dict]:
    """What every row adds to this baseline, or to its own, under this attack, by the row's name."""
    home, selected = next(iter(numbers["network"]), ""), (numbers["kind"] == "gain") & (numbers["metric"] == metric)
    rows = numbers[selected & numbers["row"].str.endswith(base)].to_dict("records")
    return {one["row"].split(GAIN)[0] + f" ({one['network']})" * (one["network"] != home): one for one in rows}


def _listed(subject: str, gains: dict[str, dict]) -> list[str]:
    """All gains in points, with their seeds; AT + FSR alone needs no list."""
    if set(gains) <= {"AT + FSR"}:
        return []
    texts = {name: measured(one["value"], one["low"], one["high"], sign=True) for name, one in gains.items()}
    counts = {name: f" ({seeds([one['seeds']])})" for name, one in gains.items()}
    shared = next(iter(counts.values())) if len(set(counts.values())) == 1 else ""  # said once
    items = (f"{name} {text}{'' if shared else counts[name]}" for name, text in texts.items())
    return [f"{subject}, in points{shared}: {'; '.join(items)}."]


def _whitebox(profile: str, numbers: pd.DataFrame) -> list[str]:
    clean, others = cell(numbers, MAIN, "clean"), _gains(numbers, "ensemble")
    if main_gain(numbers, profile) is None or clean is None:
        return []
    others.pop("AT + FSR", None)
    sentences = [answer(profile), f"Accuracy without attack {_compared(numbers, clean)}."]
    return sentences + _listed("Ensemble accuracy of other pairs, with FSR minus without", others)


def _deactivation(profile: str, numbers: pd.DataFrame) -> list[str]:
    autoattack = experiments.profile_of(profile).autoattack
    doubt = numbers[(numbers["metric"] == autoattack) & ~numbers["flags"].fillna("none").eq("none")]["row"].tolist()
    warnings = [f"{labels.metric(autoattack)} is in doubt for {', '.join(doubt)} (left out here)."] if doubt else []
    gains = {name: gain for name, gain in _gains(numbers, autoattack).items() if name not in doubt}
    return _listed(f"{labels.metric(autoattack)} accuracy minus AT's", gains) + warnings


def _blackbox(profile: str, numbers: pd.DataFrame) -> list[str]:
    gains = {labels.metric(name): cell(numbers, MAIN, name) for name in numbers["metric"].unique() if name != "clean"}
    return _listed("AT + FSR minus AT", {name: gain for name, gain in gains.items() if gain})


def _components(profile: str, numbers: pd.DataFrame) -> list[str]:
    sentences = _listed("Ensemble accuracy minus AT's", _gains(numbers, "ensemble", f"{GAIN}AT"))
    sentences += _over_controls(profile, experiments.profile_of(profile).report_checkpoint)
    pgd, cw = (cell(numbers, f"m = 1 at test (FSR bypassed){GAIN}AT + FSR", metric) for metric in ("pgd20", "cw"))
    if pgd and cw:
        effects = f"PGD-20 accuracy by {change(pgd)}, C&W accuracy by {change(cw)}"
        sentences.append(f"Removing FSR at test time changes {effects}.")
    return sentences


def _minus(profile: str, base: str, *weights: str, metric: str = "ensemble", first: int | None = None) -> dict:
    """Accuracy of AT + FSR minus that of another row of T4, on the first seeds, or all that both have."""
    kind = "study" if experiments.ROWS[profile]["study"] else "components"
    after, before = (replace(experiments.columns(profile, kind)[metric], checkpoint=name) for name in weights)
    runs = {one.name: one.runs[:first] for one in experiments.ROWS[profile][kind]}
    return outcomes.decided(outcomes.gain(runs["AT + FSR"], runs.get(base, ()), after, before))


def _over_controls(profile: str, weights: str) -> list[str]:
    """What AT + FSR adds to its controls: itself without L_sep, a branch without a mask, heads; and to AT there."""
    names = ("recalibration without L_sep", *experiments.CONTROLS)
    gains = {f"over {name}": gain for name in names if "value" in (gain := _minus(profile, name, weights, weights))}
    if not gains:
        return []
    there = {"over AT": _minus(profile, "AT", weights, weights, first=min(one["seeds"] for one in gains.values()))}
    return _listed(f"Gain of AT + FSR in Ensemble, {labels.WEIGHTS[weights]}", there | gains)


def _by_weights(profile: str, metric: str) -> dict[str, dict]:
    """What FSR adds to AT in the overfitting study, for each kind of weights, and to AT stopped early; {} elsewhere."""
    pairs = {labels.WEIGHTS[w]: (w, w) for w in experiments.CHECKPOINTS}
    if metric != "clean":
        pairs["last weights against AT stopped early"] = "last", "best"
    studied = pairs.items() if "T11" in tables.of_profile(profile) else ()
    gains = {name: _minus(profile, "AT", *weights, metric=metric) for name, weights in studied}
    return {name: gain for name, gain in gains.items() if "value" in gain}


def in_short(profile: str) -> str:
    """Where the overfitting study finds a gain, a loss or neither, and what stopping early does; '' without records."""
    states = defaultdict[str, list[str]](list)
    for name, gain in _by_weights(profile, "ensemble").items():
        states[side(gain) or "undecided"] += [name] * (name in labels.WEIGHTS.values())
    if not states:
        return ""
    found = "; ".join(f"{state} ({', '.join(names)})" for state, names in states.items() if names)
    early = tables.table(profile, "T10").query("id == 'C22'").iloc[0]
    images = f"{experiments.profile_of(profile).base.train_size:,} training images"
    return f"Where AT overfits ({images}), in Ensemble: {found}. {early['claim']}: {early['verdict']}."


def study(profile: str) -> list[str]:
    """Of the overfitting study: gains per kind of weights and over AT stopped early, under attack and without."""
    ours = cells(profile, "T11", kind="ours", metric="ensemble", row="AT").set_index("checkpoint")["value"]
    text = "AT overfits: in Ensemble {best} % with best weights, {last} % with last."
    sentences = [text.format_map(ours.map(measured))] if {"best", "last"} <= set(ours.index) else []
    for metric in ("ensemble", "clean", experiments.profile_of(profile).autoattack):
        if gains := _by_weights(profile, metric):
            images = f"{min(one['n'] for one in gains.values()):,} images"
            sentences += _listed(f"AT + FSR minus AT, {labels.metric(metric)} ({images})", gains)
    return sentences + _over_controls(profile, "last")


def _sweep(profile: str, numbers: pd.DataFrame) -> list[str]:
    rows = numbers.query("kind == 'ours' and metric == 'ensemble'").sort_values("value")
    rows = rows[rows["seeds"] == rows["seeds"].min()]  # one seed is compared with one seed
    if rows["value"].nunique() < 2:
        return []
    low, high = (f"{measured(row.value)} % ({row.row})" for row in rows.iloc[[0, -1]].itertuples())
    what, of = "places" if rows["axis"].eq("place").all() else "settings", seeds(rows["seeds"])
    return [f"Over {what} Ensemble accuracy lies between {low} and {high} ({of}, not judged)."]


def _streams(profile: str, _: pd.DataFrame) -> list[str]:
    weights = experiments.profile_of(profile).report_checkpoint
    numbers = cells(profile, "T7", attack="pgd20", checkpoint=weights)
    if numbers.empty:
        return []
    wide = numbers.pivot_table(index="seed", columns=["probe", "stream"], values="accuracy")
    means = wide.mean().map(measured)
    text = "right on {robust} % of images from robust features, {nonrobust} % from non-robust"
    mean, _, low, high, count = statistics.seed_summary(wide["knn", "recalibrated"] - wide["knn", "nonrobust"])
    undecided = UNDECIDED * (count < MIN_SEEDS or low <= 0 <= high)
    step = f"by {measured(mean, low, high, digits=2, sign=True)} points{undecided}"
    head = f"The auxiliary head, trained to be wrong on non-robust features, is {text.format_map(means['aux'])} ones"
    near = f"Nearest neighbours, not trained, are {text}, {{recalibrated}} % from recalibrated".format_map(means["knn"])
    sentences = [f"{one} (PGD-20, {seeds([count])})." for one in (head, f"{near} ones")]
    sentences[0] += " Nothing was separated." * bool((wide["aux", "robust"] - wide["aux", "nonrobust"]).mean() <= 0)
    return [*sentences, f"Recalibration changes the accuracy of nearest neighbours on non-robust features {step}."]


def _overhead(profile: str, numbers: pd.DataFrame) -> list[str]:
    costs = numbers.dropna(subset=["params", "macs"]).groupby("network", sort=False)[["params", "macs"]]
    added = (costs.max() / costs.min() - 1)[costs.size() > 1].map(measured).itertuples()  # with FSR and without
    return [f"{name}: FSR adds {params} % parameters and {macs} % multiply-adds." for name, params, macs in added]


def _audit(profile: str, numbers: pd.DataFrame) -> list[str]:
    shares = numbers.pivot_table(index=["row", "n"], columns="item", values="correct", sort=False)
    shares = shares.reindex(columns=["worst case", "authors' protocol"]).dropna()
    pairs = (f"{row} {measured(b / n)} % and {measured(a / n)} %" for (row, n), a, b in shares.itertuples())
    said, of = "; ".join(pairs), f"{numbers['n'].max():,.0f} images, one seed"
    return [f"Accuracy under the authors' protocol and in the audit's worst case: {said} ({of})."] if said else []


def _verdict(profile: str, numbers: pd.DataFrame) -> list[str]:
    return [answer(profile), *["No claim is about this profile's setting."] * numbers.empty]


def _training(profile: str, _: pd.DataFrame) -> list[str]:
    rows = (row.runs for row in experiments.ROWS[profile]["whitebox"][:2])
    pairs = [pair for pair in zip(*rows) if all(map(store.is_trained, pair))]
    if not pairs:
        return []
    whole = histories(run for pair in pairs for run in pair)
    epoch = whole[whole["lr"] == whole["lr"].max()]["epoch"].max()
    shares = whole[whole["epoch"] == epoch].groupby("method")["train_adv_acc"].mean().map(measured)
    text = "training accuracy under attack is {AT} % for AT and {AT + FSR} % for AT + FSR".format_map(shares)
    sentences = [f"At epoch {epoch}, the last before the learning rate falls, {text} ({seeds([len(pairs)])})."]
    if len(official(pairs[0][1])):
        ours = histories([pairs[0][1]]).set_index("epoch").loc[5:epoch]
        text = f"Our FSR losses of epochs 5 to {ours.index[-1]} (chosen after the runs) are on average within"
        sentences.append(f"{text} {log_gaps(ours)[0]:.3f} of a third party's log of the authors' code.")
    return sentences


def reasons(profile: str) -> list[str]:
    """What may explain the answer: the sentences on training, the separation loss, the streams and the mask at test."""
    names = [name for name in ("F5", "T4", "T7", "T8", "T11") if name in ("F5", *tables.of_profile(profile))]
    sentences = [sentence for name in names for sentence in findings(profile, name)]
    return [*dict.fromkeys(sentence for sentence in sentences if not sentence.startswith(NO_REASONS))]


FINDERS: dict[str, Callable[[str, pd.DataFrame], list[str]]] = {"T1": _whitebox, "T2": _deactivation, "F5": _training}
FINDERS |= {"T3": _blackbox, "T4": _components, "T5": _sweep, "T6": _sweep, "T7": _streams, "T8": _overhead}
FINDERS |= {"T9": _audit, "T10": _verdict, "T11": lambda name, _: study(name)}


def findings(profile: str, name: str) -> Findings:
    """What a table (T1 to T11) or the training curves (F5) say, in sentences; empty where nothing was run."""
    find = choose("table or figure", name, FINDERS)
    sentences = find(profile, reported(profile, name) if name[0] == "T" else pd.DataFrame())
    return Findings(dict.fromkeys(sentences))
