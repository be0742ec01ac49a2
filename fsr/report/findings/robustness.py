"""What T1 to T6 say, in words."""

from fsr import experiments, store
from fsr.config import Evaluation, Run
from fsr.experiments import Row
from fsr.report.findings import readings
from fsr.report.findings.text import Prose, budget, difference, percent, points
from fsr.tables import cells
from fsr.tables import labels as words
from fsr.tables.frame import Sources

NOTHING = "Nothing of this has been run yet, so there is nothing to say."
NO_MASKING = "No sign of masked gradients, as far as these attacks on these images can tell."
SOME_MASKING = "A few such images are normal: the attacks start differently. Many would be a sign of masked gradients."
AGAINST_FULL = (
    "Each against AT + FSR, Ensemble, {}. A control that does as well speaks against the method; *no "
    "difference shown* does not mean as well: the interval says how much could be hidden."
)
PROTOCOL = "These lines are of the authors' protocol, which a mask that hides gradients can flatter."
PUZZLE = "AutoAttack and Ensemble disagree about the sign: do not rank by the weaker attacks."


def _trained_twice(run: Run, *evaluations: Evaluation) -> bool:
    """Are these columns of two trainings that ended in different weights?"""
    parts = [found for e in evaluations if (found := cells.outcome(run, e)) is not None]
    return len(parts) > 1 and not store.same_weights(parts)


def _gain(row: Row, plain: tuple[Run, ...], evaluation: Evaluation) -> dict | None:
    found = cells.gain(row.runs, plain, evaluation)
    return None if found["value"] is None else found


def _strong(profile: str, kind: str) -> dict[str, Evaluation]:
    """The two columns that count: the authors' Ensemble and AutoAttack."""
    columns = experiments.columns(profile, kind)
    return {name: columns[name] for name in ("ensemble", experiments.profile_of(profile).autoattack) if name in columns}


def _gains_of(profile: str, kind: str, row: Row, plain: tuple[Run, ...], label: str) -> str | None:
    found = {name: cell for name, e in _strong(profile, kind).items() if (cell := _gain(row, plain, e)) is not None}
    if not found:
        return None
    parts = [f"{words.metric(name)} {difference(cell)}" for name, cell in found.items()]
    parts += [f"{words.metric(name)} not run" for name in _strong(profile, kind) if name not in found]
    text = f"- {label}: " + "; ".join(parts) + "."
    return " ".join([text, *_on_the_same_images(profile, kind, row, plain, found)])


def _on_the_same_images(profile: str, kind: str, row: Row, plain: tuple[Run, ...], found: dict[str, dict]) -> list[str]:
    """Ensemble's gain on AutoAttack's images, where those are fewer; and whether the two then really disagree."""
    ensemble, strong = _strong(profile, kind).values()
    if len(found) < 2 or any(_trained_twice(run, ensemble, strong) for run in (*row.runs, *plain)):
        return []  # two networks of one run can disagree about anything
    same, judge = cells.gain(row.runs, plain, ensemble, within=strong), list(found.values())[1]
    if same["value"] is None:
        return []
    fewer = same["n"] < found["ensemble"]["n"]
    told = [f"On AutoAttack's {same['n']:,} images Ensemble says {points(same['value'])}."] if fewer else []
    sure = all(cell["low"] > 0 or cell["high"] < 0 for cell in (same, judge))
    return told + ([PUZZLE] if same["value"] * judge["value"] < 0 and sure else [])


def whitebox(profile: str) -> Prose:
    """T1 and F7 in words: what FSR adds to each method."""
    found = []
    for row in readings.gain_rows(profile):
        run = row.runs[0]
        label = f"{words.dataset(run.dataset)}, {words.network(run)}, {words.method(run.method)}"
        line = _gains_of(profile, "whitebox", row, row.baseline, label)
        found.append(" ".join([line, *_warned(profile, row)]) if line else None)
    lines = [line for line in found if line]
    if not lines:
        return Prose(NOTHING)
    return Prose.of(f"What FSR adds, {readings.weights(profile)}:", "\n".join(lines), budget(profile))


def deactivation(profile: str) -> Prose:
    """T2 in words: AT + FSR against each peer."""
    rows = readings.rows(profile, "deactivation")
    ours = rows[-1]
    lines = []
    for row in rows[1:-1]:
        line = _gains_of(profile, "deactivation", ours, row.runs, f"AT + FSR against {row.name}")
        lines += [" ".join([line, *_warned(profile, row)])] if line else []
    lines += [f"- {line}" for line in _warned(profile, ours)] if lines else []
    joint = [line for row in rows[1:] if (line := _joint(profile, row)) is not None]
    if not lines:
        if len(rows) > 2 and not joint:
            return Prose(NOTHING)
        missing = "No peer has been run yet." if len(rows) > 2 else "This profile trains no peers."
        return Prose.of(missing, " ".join(joint), budget(profile) if joint else None)
    return Prose.of("\n".join(lines), " ".join(joint), budget(profile))


def _warned(profile: str, row: Row) -> list[str]:
    """What puts AutoAttack in doubt for a row's networks: its other columns then say too much."""
    wanted = experiments.columns(profile, "whitebox").get(experiments.profile_of(profile).autoattack)
    flags = cells.accuracy(row.runs, wanted, Sources()).get("flags") if wanted else None
    if flags in (None, "none"):
        return []
    return [f"AutoAttack is in doubt for {row.name} ({flags}): its accuracies above may be masked gradients."]


def _joint(profile: str, row: Row) -> str | None:
    plain, joint = (experiments.columns(profile, "deactivation")[name] for name in ("pgd20", "pgd20-joint"))
    found = [(cells.outcome(run, plain), cells.outcome(run, joint)) for run in row.runs]
    both = [(a.accuracy, b.accuracy) for a, b in found if a and b and store.same_weights([a, b])]
    if not both:
        return None
    final, other = (percent(sum(values) / len(both)) for values in zip(*both, strict=True))
    return f"{row.name}: PGD-20 on the final logits leaves {final} %, on the joint loss {other} %."


def _against_white(profile: str, row: Row) -> dict[str, tuple[int, int]]:
    """Black-box attack to (images only it breaks, survivors of Ensemble that it saw), for what was run."""
    white = readings.outcome(profile, row.runs[0], "ensemble")
    if white is None:
        return {}
    columns = experiments.columns(profile, "blackbox")
    found = {n: cells.broken_only(row.runs[0], e, white) for n, e in columns.items() if e.attack != "clean"}
    return {name: counts for name, counts in found.items() if counts is not None}


def blackbox(profile: str) -> Prose:
    """T3 in words: does any attack without gradients break images that the white-box attacks do not?"""
    found = {row.name: _against_white(profile, row) for row in readings.rows(profile, "blackbox")}
    if not any(found.values()):
        return Prose(NOTHING)
    lines = []
    for row, counts in found.items():
        told = [f"{words.metric(name)} {only} of {seen}" for name, (only, seen) in counts.items()]
        lines += [f"- {row}, images that survive Ensemble and are broken by: {', '.join(told)}."] if told else []
    some = any(only for counts in found.values() for only, _ in counts.values())
    asked = [name for name in ("nattack", "square") if not any(name in counts for counts in found.values())]
    only_transfer = (
        f" Not run: {', '.join(map(words.metric, asked))}, by queries to the network itself." if asked else ""
    )
    return Prose.of("\n".join(lines), (SOME_MASKING if some else NO_MASKING) + only_transfer, budget(profile))


def _lost(profile: str, row: Row) -> list[str]:
    """That a row's networks learnt nothing, where they did."""
    clean = cells.at(
        experiments.columns(profile, "components")["clean"], readings.report_checkpoint(profile), row.intervention
    )
    cell = cells.accuracy(row.runs, clean, Sources())
    return [f"It is {cells.GUESSING}."] * cells.guesses(cell.get("low"), row.runs[0].dataset)


def components(profile: str) -> Prose:
    """T4 in words: every variant and control against the full method."""
    rows = readings.rows(profile, "components")
    full = rows[1]
    ensemble = experiments.columns(profile, "components")["ensemble"]
    lines, good = [], []
    for row in (rows[0], *rows[2:]):
        here = cells.at(ensemble, ensemble.checkpoint, row.intervention)
        found = cells.gain(row.runs, full.runs, here, ensemble)
        if found["value"] is not None:
            lines.append(" ".join([f"- {row.name}: {difference(found)}.", *_lost(profile, row)]))
        if found["value"] is not None and found["value"] >= 0 and row is not rows[0]:
            good.append(f"{row.name} ({points(found['value'])})")
    if not lines:
        return Prose(NOTHING)
    told = f"No lower than AT + FSR here: {', '.join(good)}." if good else None
    return Prose.of(AGAINST_FULL.format(readings.weights(profile)), "\n".join(lines), told, PROTOCOL, budget(profile))


def settings(profile: str) -> Prose:
    """T5, T6 and F4 in words: every setting and place against the default of the same seed, on the same images."""
    rows = (*readings.rows(profile, "settings"), *readings.rows(profile, "placement"))
    default = experiments.main_pair(profile)[1]
    others = {row.runs[0]: row.name for row in reversed(rows) if row.runs[0] != default}
    if not others:
        return Prose("This profile varies no settings and no places.")
    ensemble = experiments.columns(profile, "settings")["ensemble"]
    found = {name: cells.gain((run,), (default,), ensemble) for run, name in reversed(others.items())}
    told = {name: cell for name, cell in found.items() if cell["value"] is not None}
    if not told:
        return Prose(NOTHING)
    lines = [f"- {name}: {difference(cell)}." for name, cell in told.items() if "no difference" not in difference(cell)]
    same = [name for name, cell in told.items() if "no difference" in difference(cell)]
    lines += [f"- no difference shown: {', '.join(same)}."] if same else []
    lead = f"Against the default setting and place, Ensemble, seed {default.seed}, one training each, "
    lead += readings.weights(profile) + ":"
    note = f"{len(told)} comparisons: of twenty without any effect one would look like one." if len(told) > 1 else None
    return Prose.of(lead, "\n".join(lines), note, PROTOCOL, budget(profile))
