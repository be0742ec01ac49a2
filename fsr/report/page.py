"""One self-contained HTML page per profile: answer first, then per question what was found, the figure, the table."""

import base64
from pathlib import Path

import jinja2
import pandas as pd

from fsr import experiments, files, plots, tables
from fsr.files import MissingRecord, write_bytes
from fsr.report.findings import FINDERS, HYPOTHESIS, answer, cell, findings, main_gain, reasons, reported
from fsr.report.wording import number, points, seeds
from fsr.tables import labels

QUESTIONS = (  # question, notebook, figures and tables in their order
    ("Does FSR make adversarially trained networks more robust?", "05-whitebox", "T1"),
    ("Is repairing features better than switching them off?", "06-deactivation", "T2"),
    ("Does it hold without gradients?", "07-blackbox", "T3"),
    ("Which part matters, and would something simpler do?", "08-components", "T4"),
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


def build(profile: str) -> Path:
    """Write results/report/<profile>.html with its tables and figures; a file that would not change is left alone."""
    path, data = files.report(experiments.profile_of(profile).name), page(profile).encode()
    if not path.exists() or path.read_bytes() != data:
        write_bytes(path, data)
    return path


def page(profile: str) -> str:
    """The whole report as HTML; the same records always give the same text."""
    tables.save_all(profile)
    first = [answer(profile), *reasons(profile)]
    sections = [_section(profile, first, *question) for question in QUESTIONS]
    source = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=source, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("page.html").render(
        profile=profile,
        answer=first[0],
        reasons=first[1:],
        numbers=_four_numbers(profile),
        gains=_figure(profile, "F7"),
        module=_figure(profile, "F9"),
        sections=[section for section in sections if section["parts"]],
        left_out=[name for section in sections for name in section["left_out"]],
        others=_others(profile),
        provenance=tables.provenance(profile).to_html(index=False, border=0, na_rep=""),
    )


def _four_numbers(profile: str) -> list[tuple[str, str]]:
    """(number, what it is): accuracy without and with FSR, and what FSR adds under attack and without."""
    numbers = reported(profile, "T1")
    gain = main_gain(numbers, profile)
    if gain is None:
        return []
    attack, metric = labels.metric(gain["metric"]), gain["metric"]
    shares = [
        (f"{number(cell(numbers, row, metric)['value'])} %", f"{row} under {attack}") for row in ("AT", "AT + FSR")
    ]
    clean = cell(numbers, gain["row"], "clean")
    about = f"{gain['n']:,.0f} images, {seeds([gain['seeds']])}"
    added = [(points(gain), f"FSR's gain under {attack} ({about})")]
    return shares + added + ([(points(clean), "FSR's gain without attack")] if clean else [])


def _section(profile: str, first: list[str], question: str, notebook: str, items: str) -> dict:
    """What a question shows beyond the first sentences; empty figures and tables mostly not run are in left_out."""
    names = [name for name in items.split() if name in plots.FIGURES or name in tables.of_profile(profile)]
    parts = {name: _figure(profile, name) if name in plots.FIGURES else _table(profile, name) for name in names}
    with_findings = [name for name in names if parts[name] and name in FINDERS]
    repeated = first if "T10" in names else (first[0], HYPOTHESIS)
    sentences = [sentence for name in with_findings for sentence in findings(profile, name) if sentence not in repeated]
    shown = [part for part in parts.values() if part]
    left_out = [name for name, part in parts.items() if part is None]
    return {"question": question, "notebook": notebook, "findings": sentences, "parts": shown, "left_out": left_out}


def _figure(profile: str, name: str) -> dict | None:
    try:
        png, pdf = plots.save(profile, name)
    except MissingRecord:
        return None
    title, source = plots.TITLES[name], base64.b64encode(png.read_bytes()).decode()
    return {"name": name, "title": title, "png": source, "file": f"../../figures/{pdf.parent.name}/{pdf.name}"}


def _table(profile: str, name: str) -> dict | None:
    """The rows of the weights that the profile reports; None without findings or where most was not run."""
    frame, info = tables.table(profile, name), tables.TABLES[name]
    shown = frame
    if "metric" in frame or "stream" in frame:
        shown = frame[frame["checkpoint"] == experiments.profile_of(profile).report_checkpoint]
    if "metric" in frame:
        kinds = ["ours"] if name in ("T5", "T6") else OURS  # F4 shows their differences
        shown = shown[shown["kind"].isin(kinds)].assign(planned=shown["seeds"])  # the sentences say how many
    value = next((column for column in ("value", "accuracy", "macs") if column in shown and name != "T9"), None)
    if shown.empty or not findings(profile, name) or (value and shown[value].isna().mean() > 0.5):
        return None
    html, notes = tables.show(shown).to_html(), tables.notes(profile, name, frame)
    return {"name": name, "title": info.title, "html": html, "notes": notes, "file": f"../tables/{profile}/{info.stem}"}


def _others(profile: str) -> str:
    """What others report on the same data, in one table."""
    frames = [tables.table(profile, name) for name in ("T1", "T2")]
    frame = pd.concat([frame[~frame["kind"].isin(OURS)] for frame in frames]).drop_duplicates()
    return tables.show(frame).to_html() if len(frame) else ""
