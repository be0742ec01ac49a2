"""One HTML page per profile, and the generated parts of README.md and docs/speed.md."""

import base64
from pathlib import Path

import jinja2
import pandas as pd

from fsr import experiments, files, plots, reference, tables
from fsr.files import MissingRecord, UsageError, load_json
from fsr.report import sentences as say
from fsr.tables import labels

QUESTIONS = (  # question, notebook, figures and tables in their order
    ("Does FSR make adversarially trained networks more robust?", "05-whitebox", "F7 T1"),
    ("Is repairing features better than switching them off?", "06-deactivation", "T2"),
    ("Does it hold without gradients?", "07-blackbox", "T3"),
    ("Which part matters, and would something simpler do?", "08-components", "F9 T4"),
    ("Do settings and place matter?", "09-settings", "F4 T5 T6"),
    ("What does it cost?", "09-settings", "T8"),
    ("Do recalibrated features regain cues?", "10-streams", "F3 T7 F2 F8"),
    ("Where on the image does each stream look?", "11-attention-maps", "F1"),
    ("How do the networks learn, and does longer training help?", "12-training-curves", "F5 F10 T11"),
    ("Do the attacks work?", "13-attack-strength", "F6"),
    ("Is the robustness real?", "14-audit", "T9"),
    ("Which claims hold?", "15-verdict", "T10"),
)
OURS = ["ours", "gain", "difference"]
LARGEST_FIRST = ("paper", "headline", "headline40", "overfit", "mini", "demo")
FULL_SIZE = ("w16 at+fsr", "w64 at+fsr", "w10 at+fsr", "PGD-20", "AutoAttack", "epoch", "2048")


def build(profile: str) -> Path:
    """Write results/report/<profile>.html with its tables and figures; a file that would not change is left alone."""
    return tables.write(files.report(experiments.profile_of(profile).name), page(profile))


def page(profile: str) -> str:
    """The whole report as HTML; the same records always give the same text."""
    tables.save_all(profile)
    left_out: list[str] = []
    sections, first = [], [say.answer(profile), *say.reasons(profile)]
    for question, notebook, items in QUESTIONS:
        parts: list[dict] = []
        said: list[str] = []
        for name in (name for name in items.split() if name in (*plots.FIGURES, *tables.of_profile(profile))):
            told = say.findings(profile, name) if name in say.FINDERS else []
            part = _figure(profile, name) if name in plots.FIGURES else _table(profile, name) if told else None
            parts += [part] if part else []
            left_out += [] if part else [name]
            known = first if name == "T10" else (first[0], *tables.PRELIMINARY.get(profile, []))
            said += [sentence for sentence in told if part and sentence not in known]
        if parts:
            sections.append({"question": question, "notebook": notebook, "findings": said, "parts": parts})
    others = pd.concat([tables.table(profile, name) for name in ("T1", "T2")])
    others = others[~others["kind"].isin(OURS)].drop_duplicates()
    known, end = reference.known_results(), {"others": tables.show(others).to_html() if len(others) else ""}
    known = known[(known["kind"] == "rerun") & known["source"].isin(others["source"]) & (known["note"] != "")]
    end["codes"] = known[known["unit"] == "percent"].groupby("source")["note"].first().to_dict()
    end["provenance"] = tables.provenance(profile).to_html(index=False, border=0, na_rep="")
    source = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=source, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.get_template("page.html")
    end |= {"profile": profile, "where": labels.setting(profile), "claimed": say.claimed(), "left_out": left_out}
    return template.render(first=first, sections=sections, **end)


def _figure(profile: str, name: str) -> dict | None:
    try:
        png, pdf = plots.save(profile, name)
    except MissingRecord:
        return None
    title, source = plots.TITLES[name], base64.b64encode(png.read_bytes()).decode()
    return {"name": name, "title": title, "png": source, "file": f"../../figures/{pdf.parent.name}/{pdf.name}"}


def _table(profile: str, name: str) -> dict | None:
    """The rows of the weights that the profile reports; None where most was not run."""
    frame = shown = tables.table(profile, name)
    if "metric" in frame or "stream" in frame:
        shown = shown[shown["checkpoint"] == experiments.profile_of(profile).report_checkpoint]
    if "metric" in frame:
        kinds = ["ours"] if name in ("T5", "T6") else OURS  # F4 shows their differences
        shown = shown[shown["kind"].isin(kinds)].assign(planned=shown["seeds"])  # the sentences say how many
    value = next((column for column in ("value", "accuracy", "macs") if column in shown and name != "T9"), "row")
    if shown.empty or (value in shown and shown[value].isna().mean() > 0.5):
        return None
    info, html, notes = tables.TABLES[name], tables.show(shown).to_html(), tables.notes(profile, name, frame)
    return {"name": name, "title": info.title, "html": html, "notes": notes, "file": f"../tables/{profile}/{info.stem}"}


def _recorded() -> dict[str, dict]:
    """The gain of FSR per profile whose main pair has been evaluated, the largest profile first."""
    gains = {name: say.main_gain(say.reported(name, "T1"), name) for name in LARGEST_FIRST}
    return {name: gain for name, gain in gains.items() if gain}


def answers() -> str:
    """The answer of the largest profile that is settled, with what may explain it, then the other answers."""
    gains = _recorded()
    if not gains:
        return "No profile that answers the question has been run here."
    settled = [name for name in gains if name not in ("demo", *tables.PRELIMINARY)] or list(gains)
    agree = len({say.side(gains[name]) for name in settled}) == 1
    lines = [f"**{say.answer(settled[0])}**" + ("" if agree else " The settings that were run do not agree."), ""]
    lines += [say.claimed(), "", *(f"- {one}" for one in say.reasons(settled[0]))]
    others = [" ".join([say.answer(name), *tables.PRELIMINARY.get(name, [])]) for name in gains if name != settled[0]]
    return "\n".join([*lines, *(["", "Other settings:", "", *(f"- {one}" for one in others)] if others else [])])


def results() -> str:
    """AT and AT + FSR in the largest recorded profile, last and EMA weights: accuracy and gain per attack."""
    (profile, gain), lines = next(iter(_recorded().items())), []
    for weights, row in ((weights, row) for weights in ("last", "ema") for row in ("AT", "AT + FSR", say.MAIN)):
        part, line = say.reported(profile, "T1", weights), {"weights": labels.WEIGHTS[weights], "row": row}
        for metric in ("clean", "pgd20", "ensemble", experiments.profile_of(profile).autoattack):
            found = say.cell(part, row, metric)
            line[labels.metric(metric)] = say.change(found, "", row == say.MAIN) if found else "not run"
        lines.append(line)
    of = f"{labels.setting(profile)}: accuracy in percent ({gain['n']:,.0f} images, {say.seeds([gain['seeds']])})."
    return of + "\n\n" + pd.DataFrame(lines).to_markdown(index=False, disable_numparse=True)


def profiles() -> str:
    """What every profile trains."""
    rows = []
    for name, profile in experiments.PROFILES.items():
        data = dict.fromkeys(labels.dataset(run.dataset) for run in experiments.SETS[name]["all"])
        row = {"profile": f"`{name}`", "data": ", ".join(data), "network": labels.network(profile.base)}
        rows.append(row | {"epochs": profile.base.epochs, "trainings": len(experiments.SETS[name]["all"])})
    return pd.DataFrame(rows).to_markdown(index=False)


def speed() -> str:
    """How many times longer the plain loop takes, per recorded benchmark: median and range of rounds."""
    lines = []
    for path in sorted((files.results() / "benchmarks").glob("*.json")):
        record = load_json(path)
        machine = record["machine"]
        where = machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} thread"
        where += "" if machine.get("bf16_units", True) else ", no bf16 units"
        for row in record["rows"]:
            if "ratio" in row and any(part in row["case"] for part in FULL_SIZE):
                times = "{median:.1f} ({low:.1f} to {high:.1f})".format(**row["ratio"])
                lines.append({"benchmark": path.stem.split("-")[0], "case": row["case"], "times": times, "on": where})
    return pd.DataFrame(lines).to_markdown(index=False, disable_numparse=True)


PARTS = {"README.md": (answers, results, profiles), "docs/speed.md": (speed,)}


def rewrite(text: str, parts) -> str:
    """The text with what stands between `<!-- name -->` and `<!-- /name -->` made anew; UsageError without marks."""
    for part in parts:
        begin, end = f"<!-- {part.__name__} -->\n", f"<!-- /{part.__name__} -->"
        if begin not in text or end not in text:
            raise UsageError(f"the marks {begin.strip()} and {end} are missing")
        before, rest = text.split(begin, 1)
        text = f"{before}{begin}{part()}\n{end}{rest.split(end, 1)[1]}"
    return text


def update_readme() -> list[Path]:
    """Bring this repository's README.md and docs/speed.md up to date; the changed files. UsageError in another root."""
    if files.root().resolve() != files.repository().resolve():
        raise UsageError("README states the records of this repository; leave out --root or --readme")
    texts = {path: (path.read_text(), parts) for name, parts in PARTS.items() if (path := files.repository() / name)}
    new = {path: rewrite(old, parts) for path, (old, parts) in texts.items()}
    return [tables.write(path, text) for path, text in new.items() if text != texts[path][0]]
