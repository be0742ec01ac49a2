"""What T7 to T10 and the figures about the inside say, in words, and how much of a notebook's needs is recorded."""

from itertools import pairwise

from fsr import experiments, statistics, store, tables
from fsr.config import Run
from fsr.reference import MIN_SEEDS
from fsr.report.findings import readings
from fsr.report.findings.readings import mask_records, mean_counts, stream_records
from fsr.report.findings.robustness import NOTHING
from fsr.report.findings.text import Prose, accuracy_text, budget, missing, number, percent, points
from fsr.tables import labels as words
from fsr.tables.formatting import span
from fsr.tables.overhead import PAIRED
from fsr.tables.verdict import UNTESTED

REACHES = "not zero, so twenty steps are too few there or gradients are hidden"


def progress(profile: str, notebook: str) -> Prose:
    """How much of what a notebook reads is recorded, and what to type when something is missing."""
    there: dict[tuple, bool] = {}
    for kind in experiments.NEEDS[notebook]:
        for run in experiments.SETS[experiments.profile_of(profile).name][kind]:
            there[run, "train"] = store.is_trained(run)
            there |= {(run, e): store.has_evaluation(run, e) for e in experiments.evaluations(profile, kind, run)}
            there |= {(run, a): store.has_analysis(run, a) for a in experiments.analyses(profile, kind, run)}
    done, planned = sum(there.values()), len(there)
    text = f"Profile **{profile}**: {done} of {planned} records that this notebook reads are there."
    if done < planned:
        command = f"python -m fsr run-all --profile {profile} --only {notebook.split('-')[0]}"
        text += f" The others show as *not run*; `{command}` makes them."
    return Prose(text)


def streams(profile: str) -> Prose:
    """T7 and F3 in words: the step from the non-robust to the recalibrated stream, by both probes."""
    records, weights = stream_records(profile)
    if not records:
        return Prose(NOTHING)
    total, lines = mean_counts(records), []
    for probe, name in (("aux", "the auxiliary head"), ("knn", "nearest neighbours")):
        pair = [(stream, probe) for stream in ("nonrobust", "recalibrated")]
        if all(key in total for key in pair):
            before, after = (total[key][0] / total[key][1] for key in pair)
            step = f"{percent(before)} % in the non-robust stream, {percent(after)} % recalibrated"
            lines.append(f"- by {name}: {step}, {points(after - before)}{_over_seeds(records, probe)}")
    note = "The head was trained to produce this step, so it is no evidence by itself; the neighbours were not."
    learnt = [total[stream, "aux"] for stream in ("nonrobust", "recalibrated") if (stream, "aux") in total]
    if len(learnt) == 2 and learnt[1][0] / learnt[1][1] <= learnt[0][0] / learnt[0][1]:
        note += " It does not show the step here: the separation was not learnt, so this says little about the method."
    heads = [total[stream, "aux"] for stream in ("robust", "nonrobust") if (stream, "aux") in total]
    if len(heads) == 2 and heads[0][0] / heads[0][1] <= heads[1][0] / heads[1][1]:
        robust, other = (percent(right / n) for right, n in heads)
        note += f" It finds no more in the robust stream ({robust} %) than in the other ({other} %)."
    seeds = "one seed" if len(records) == 1 else f"{len(records)} seeds"
    return Prose.of(f"Under PGD-20, {seeds}, {weights}:", "\n".join(lines), note, budget(profile))


def _over_seeds(records, probe: str) -> str:
    """Student's t interval of the step over seeds, from as many seeds on as a verdict needs."""
    counts = [mean_counts([record]) for record in records]
    steps = [
        found["recalibrated", probe][0] / found["recalibrated", probe][1]
        - found["nonrobust", probe][0] / found["nonrobust", probe][1]
        for found in counts
    ]
    _, sd, low, high, _ = statistics.seed_summary(steps)
    if len(steps) < MIN_SEEDS or low is None or high is None:
        return " (too few seeds for an interval)"
    if not sd:
        return " (the seeds do not differ: no interval)"
    return f" (over seeds {span(100 * low, 100 * high, digits=2, sign=True)})"  # as T10 prints it


def masks(profile: str) -> Prose:
    """F2 in words: the saturated share per temperature, clean and under attack."""
    lines = []
    for record, _ in mask_records(profile):
        clean, adversarial = (percent(record[name]) for name in ("saturated_clean", "saturated_adv"))
        text = f"- temperature {record['tau']:g}: {clean} % on clean images, {adversarial} % on attacked ones"
        lines.append(f"{text}; the attack moves {percent(record['flipped'])} % of the entries across one half")
    return Prose.of("Saturated share of the mask (EMA weights, seed 0):", "\n".join(lines)) if lines else Prose(NOTHING)


def overhead(profile: str) -> Prose:
    """T8 in words: what FSR adds, network by network."""
    numbers, lines = tables.table(profile, "T8").dropna(subset="fsr"), []
    several = numbers["dataset"].nunique() > 1
    for (dataset, network), pair in numbers.groupby(["dataset", "network"], sort=False):
        plain, both = (pair[pair["fsr"] == value] for value in (False, True))
        if len(plain) and len(both) and not pair[["params", "macs"]].isna().any(axis=None):
            ratio = {
                name: both[name].iloc[0] / plain[name].iloc[0] - 1
                for name in ("params", "macs", "train_seconds_per_epoch")
            }
            where = f"{words.dataset(dataset)}, {network}" if several else network
            text = f"- {where}: {_plus(ratio['params'])} parameters, {_plus(ratio['macs'])} multiply-adds"
            seconds = ratio["train_seconds_per_epoch"]
            told = not missing(seconds) and pair["timed"].all()
            rough = f", {_plus(seconds)} seconds per epoch (of one training each: rough)" if told else ""
            lines.append(text + _measured(pair) + rough)
    return Prose.of("Added by FSR:", "\n".join(lines)) if lines else Prose(NOTHING)


def _measured(pair) -> str:
    """Latency and peak memory, each as T8 shows what FSR adds to it."""
    plain, both = (pair[pair["fsr"] == value].iloc[0] for value in (False, True))
    told = ""
    if not (missing(both["latency_ms"]) or missing(both[PAIRED])):  # timed in turns, in one process
        told += f", {_plus(both['latency_ms'] / both[PAIRED] - 1)} latency"
    if not (missing(plain["peak_memory_mb"]) or missing(both["peak_memory_mb"])):
        told += f", {_plus(both['peak_memory_mb'] / plain['peak_memory_mb'] - 1)} peak memory"
    return told


def _plus(ratio: float) -> str:
    return f"{number(100 * ratio, sign=True)} %"


def _course(frame) -> str:
    robust = frame["held_robust_acc"]
    best = int(robust.to_numpy().argmax())
    third = robust.iloc[max(0, len(robust) // 3 - 1)]
    text = f"{percent(third)} % after a third of the epochs"
    text += f", best {percent(robust.iloc[best])} % at epoch {int(frame['epoch'].iloc[best])}"
    return f"{text}, last {percent(robust.iloc[-1])} %, EMA {percent(frame['ema_held_robust_acc'].iloc[-1])} %"


def _noise(n: int) -> str:
    """Half of the widest 95 % interval that n images leave, in points."""
    low, high = statistics.wilson(n / 2, n)
    return number(50 * (high - low), digits=0)


def training(profile: str) -> Prose:
    """F5 in words: held-out robust accuracy early, at best and at the end, for both twins, seed 0."""
    lines = []
    for row in readings.curve_rows(profile):
        for run in (row.baseline[0], row.runs[0]):
            frame = readings.history(run)
            if frame is not None and "held_robust_acc" in frame and frame["held_robust_acc"].notna().any():
                lines.append(f"- {words.method(run.label)}: {_course(frame)}.")
    if not lines:
        return Prose(NOTHING)
    n = experiments.profile_of(profile).base.holdout
    chance = f"n = {n:,}: within {_noise(n)} points by chance"
    lead = f"Held-out accuracy, each method under its own training attack (compare twins only), seed 0 ({chance}):"
    return Prose.of(lead, "\n".join(lines), budget(profile))


def attack_strength(profile: str) -> Prose:
    """F6 in words: what is left at the largest radius, and the largest rise with more steps."""
    lines = []
    for row in readings.rows(profile, "strength"):
        far, steps = (readings.sweep(profile, row.runs[0], axis) for axis in ("eps", "steps"))
        asked = experiments.evaluations(profile, "strength", row.runs[0])
        largest, most = max((e.eps or 0.0 for e in asked), default=0.0), max((e.steps or 0 for e in asked), default=0)
        if len(far) > 1 and far[-1][0] < largest:
            lines.append(f"- {row.name}: the largest radius was not run yet.")
        elif len(far) > 1:
            eps, last = far[-1]
            shown = f"{255 * eps:.3g}/255" if row.runs[0].eps < 0.1 else f"{eps:.3g}"  # as F6's axis has it
            radius = f"eps {shown}, {eps / row.runs[0].eps:.3g} times the usual radius (n = {last.n:,})"
            left = f"- {row.name}: {accuracy_text(last)} left at {radius}"
            lines.append(f"{left}: {REACHES}{_unbounded(profile, row.runs[0])}." if last.value > 0 else f"{left}.")
        if len(steps) > 1:
            rise = max(b.value - a.value for (_, a), (_, b) in pairwise(steps))
            verdict = "never rises" if rise <= 0 else f"rises by at most {points(rise)}"
            short = f" up to {steps[-1][0]:.0f} steps ({most} were not run yet)" if steps[-1][0] < most else ""
            lines.append(f"- {row.name}: with more steps accuracy {verdict}{short}.")
    return Prose.of("\n".join(lines), budget(profile)) if lines else Prose(NOTHING)


def _unbounded(profile: str, run: Run) -> str:
    """What the audit's attack without a radius, which decides between the two, left of this network's images."""
    planned = (a for a in experiments.analyses(profile, "all", run) if a.kind == "audit")
    found = [store.load_analysis(run, a)[0] for a in planned if store.has_analysis(run, a)]
    value = found[0].get("indicators", {}).get("unbounded_attack_fails") if found else None
    if value is None:
        return " (the audit's unbounded attack decides; it was not run)"
    if value > 0:
        return f" (the audit's unbounded attack fails on {percent(value)} % of the images: hidden)"
    return " (the audit's unbounded attack breaks every image: too few)"


def audit(profile: str) -> Prose:
    """T9 in words: from the authors' protocol over AutoAttack to the worst case, per network."""
    numbers, lines = tables.table(profile, "T9"), []
    for name, part in numbers.groupby("row", sort=False):
        share = {r.item: r.correct / r.n for r in part.itertuples() if not missing(r.correct) and r.n}
        if "worst case" not in share or "authors' protocol" not in share:
            continue
        protocol, worst = share["authors' protocol"], share["worst case"]
        text = f"- {name}: {percent(protocol)} % under the authors' protocol"
        if "autoattack" in share:
            text += f", {percent(share['autoattack'])} % under AutoAttack{_cut(part)}"
        n = int(part["n"].max())
        lost = f"against the protocol ({round(n * (protocol - worst))} of {n} images)"
        lines.append(f"{text}, **{percent(worst)} %** in the worst case: {points(worst - protocol)} {lost}.")
    if not lines:
        return Prose(NOTHING)
    where = f"Seed {experiments.main_pair(profile)[0].seed}, {readings.weights(profile)}, {_budgets(numbers)} budget:"
    note = (
        "FSR is given more attacks than AT (on its mask, its noise, its auxiliary logits and from its own twins), and "
        "the lowest of more attacks is never higher: only a clear difference would say that the protocol's attacks had "
        "failed on it."
    )
    told = (
        " ".join(filter(None, (note, _drops(profile)))) if len(lines) > 1 else "The other network was not audited yet."
    )
    return Prose.of(where, "\n".join(lines), told, *tables.notes(profile, "T9", numbers), budget(profile))


def _cut(part) -> str:
    return " (cut to 20 steps, 300 queries)" if set(part["budget"].dropna()) == {"quick"} else ""


def _budgets(numbers) -> str:
    return " and ".join(sorted(set(numbers["budget"].dropna())))


def _losses(profile: str, run: Run):
    """(n,) bool: images that the protocol counts as robust and the audit's worst case does not; None when not run."""
    for planned in experiments.analyses(profile, "all", run):
        if planned.kind == "audit" and store.has_analysis(run, planned):
            _, arrays = store.load_analysis(run, planned)
            return arrays["authors_protocol"] & ~arrays["worst_case"]
    return None


def _drops(profile: str) -> str | None:
    """Do the two main networks lose different images between the protocol and the worst case? McNemar's exact test."""
    plain, both = (_losses(profile, run) for run in experiments.main_pair(profile))
    if plain is None or both is None:
        return None
    p = statistics.mcnemar_exact(plain, both)
    more = "more with FSR" if both.sum() > plain.sum() else "more without FSR"
    shown = "the two are not told apart" if p > 0.05 else f"{more} than chance explains"
    small = "p < 0.01" if p < 0.01 else f"p = {p:.2f}"
    return f"Here: {both.sum()} images with FSR, {plain.sum()} without ({small}, McNemar): {shown}."


def verdict(profile: str) -> Prose:
    """T10 in words: how many claims got which verdict, and which; the table says why a claim was not tested."""
    numbers = tables.table(profile, "T10")
    lines = []
    for name, part in numbers.groupby("verdict", sort=False):
        whose = {"own": " (this project's own question)"}
        told = [
            row.id if name == UNTESTED else f"{row.id}{whose.get(row.kind, '')}: {row.claim}"
            for row in part.itertuples()
        ]
        lines.append(f"- **{name}** ({len(part)}): {'; '.join(told)}.")
    return Prose.of("\n".join(lines), budget(profile))
