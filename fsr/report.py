"""One self-contained HTML file per profile: every table and figure, how to read them, and where they come from."""

import base64
import html
import re
from pathlib import Path
from typing import NamedTuple

from fsr import experiments, paths, plots, prose, tables
from fsr.files import write_bytes
from fsr.plots import words

TITLE = "Feature Separation and Recalibration: a replication"


class Section(NamedTuple):
    """A part of the report: its heading, the question it answers, tables, figures, sentences, and its notebook."""

    heading: str
    question: str
    tables: tuple[str, ...]
    figures: tuple[str, ...]
    prose: tuple[str, ...]
    notebook: str


SECTIONS = (
    Section("The verdict", "Which claims does this replication reproduce?", ("T10",), (), ("verdict",), "15-verdict"),
    Section("The method", "What is added to the network?", (), ("F9",), (), "01-method"),
    Section("White-box robustness", "Does FSR make adversarially trained networks more robust, and by how much?",
            ("T1",), ("F7",), ("whitebox",), "05-whitebox"),
    Section("Against deactivation", "Is repairing non-robust features better than switching them off?",
            ("T2",), (), ("deactivation",), "06-deactivation"),
    Section("Black-box attacks", "Does the robustness hold without access to gradients?",
            ("T3",), (), ("blackbox",), "07-blackbox"),
    Section("Components and controls", "Which part matters, and would something simpler do the same?",
            ("T4",), (), ("components",), "08-components"),
    Section("Settings, place and cost", "How much do the settings matter, and what does the module cost?",
            ("T5", "T6", "T8"), ("F4",), ("settings", "overhead"), "09-settings"),
    Section("What the streams know", "Do recalibrated features regain the cues that the attack destroyed?",
            ("T7",), ("F3", "F2", "F8"), ("streams", "masks"), "10-streams"),
    Section("Attention maps", "Where on the image does each stream look?", (), ("F1",), (), "11-attention-maps"),
    Section("Training curves", "How do the twins learn, and what is the choice of the epoch worth?",
            (), ("F5",), ("training",), "12-training-curves"),
    Section("Attack strength", "Do the attacks work at all?", (), ("F6",), ("attack_strength",), "13-attack-strength"),
    Section("The adaptive audit", "Is the robustness real?", ("T9",), (), ("audit",), "14-audit"),
)  # fmt: skip

STYLE = """
:root { color-scheme: light; --ink: #1c1c1c; --soft: #5a5a5a; --line: #d9d9d9; --accent: #0b5c93; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1.2rem 1rem 4rem; color: var(--ink); background: #fff;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .2rem; padding-top: .6rem; border-top: 2px solid var(--line); }
h3 { font-size: 1.02rem; margin: 1.4rem 0 .4rem; }
p, li { max-width: 46rem; } .question { color: var(--soft); font-style: italic; margin-top: 0; }
a { color: var(--accent); } nav ol { columns: 18rem; padding-left: 1.3rem; } code { font-size: .9em; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 4px; max-height: 85vh; overflow-y: auto; }
table { border-collapse: collapse; font-size: .8rem; line-height: 1.35; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .32rem .55rem; min-width: 5.2rem;
  border-bottom: 1px solid var(--line); }
th { position: sticky; top: 0; background: #f3f5f7; } tbody tr:nth-child(even) { background: #fafbfc; }
td.long { min-width: 17rem; } td.missing { color: #8a8a8a; font-style: italic; }
figure { margin: 1rem 0; } figure img { width: 100%; max-width: 60rem; height: auto; border: 1px solid var(--line); }
figcaption, .notes, .files { color: var(--soft); font-size: .85rem; max-width: 46rem; }
.lead { border-left: 4px solid var(--accent); padding: .1rem 0 .1rem .9rem; }
details { font-size: .85rem; } details ul { padding-left: 1.2rem; }
details li { max-width: none; font-family: monospace; }
@media print { .scroll { overflow: visible; max-height: none; } h2 { break-after: avoid; }
  figure { break-inside: avoid; } }
"""


def inline(text: str) -> str:
    """Markdown's **bold**, *emphasis* and `code` as HTML, everything else escaped."""
    text = html.escape(text, quote=False)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    text = re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", text)
    return re.sub(r"\*([^*\s][^*]*)\*", r"<em>\1</em>", text)


def markdown(text: str) -> str:
    """Paragraphs and dash lists as HTML: all that `fsr.prose` writes."""
    out = []
    for block in text.split("\n\n"):
        lines = block.splitlines()
        if lines and all(line.startswith("- ") for line in lines):
            out.append("<ul>" + "".join(f"<li>{inline(line[2:])}</li>" for line in lines) + "</ul>")
        elif lines:
            out.append(f"<p>{inline(' '.join(lines))}</p>")
    return "\n".join(out)


def _cell(text: str, bold: bool) -> str:
    kind = ' class="missing"' if text.startswith("not run") else ' class="long"' if len(text) > 60 else ""
    inner = html.escape(text)
    return f"<td{kind}>{f'<b>{inner}</b>' if bold else inner}</td>"


def table_html(table: tables.Table) -> str:
    """A table that scrolls inside its own box, with its notes."""
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in table.columns)
    rows = []
    for i, row in enumerate(table.to_numpy()):
        cells = [_cell(str(v), (i, name) in table.about.bold) for name, v in zip(table.columns, row, strict=True)]
        rows.append("<tr>" + "".join(cells) + "</tr>")
    notes = "".join(f'<p class="notes">{html.escape(note)}</p>' for note in table.about.notes)
    body = "\n".join(rows)
    whole = f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"
    return f'<div class="scroll" tabindex="0">{whole}</div>{notes}'


def _table(profile: str, name: str, sources: dict[str, set[str]]) -> str:
    info = tables.TABLES[name]
    table = info.make(profile)
    tables.save(table, profile, name, info.slug)
    sources["runs"].update(table.about.runs)
    sources["commits"].update(table.about.commits)
    base = f"../tables/{profile}/{name}-{info.slug}"
    links = ", ".join(f'<a href="{base}.{kind}">{kind}</a>' for kind in ("csv", "md", "tex"))
    heading = f'<h3 id="{name}">{name}. {html.escape(table.about.title)}</h3>'
    return f'{heading}\n{table_html(table)}\n<p class="files">{links}</p>'


def _figure(profile: str, name: str) -> str:
    saved, info = plots.show(profile, name), plots.info(name)
    data = base64.b64encode(saved.png.read_bytes()).decode()
    reading = html.escape(info.reading)
    image = f'<img alt="{html.escape(info.title)}. {reading}" src="data:image/png;base64,{data}">'
    link = f'<a href="../../figures/{profile}/{saved.pdf.name}">pdf</a>'
    caption = f"<figcaption>How to read it: {reading} {link}</figcaption>"
    return f'<h3 id="{name}">{name}. {html.escape(info.title)}</h3>\n<figure>{image}{caption}</figure>'


def _section(profile: str, section: Section, sources: dict[str, set[str]]) -> str:
    parts = [f'<h2 id="{section.notebook}">{section.heading}</h2>', f'<p class="question">{section.question}</p>']
    parts += [markdown(getattr(prose, name)(profile)) for name in section.prose]
    parts += [_figure(profile, name) for name in section.figures]
    parts += [_table(profile, name, sources) for name in section.tables]
    path = f"../notebooks/{profile}/{section.notebook}.ipynb"
    parts.append(f'<p class="files">Notebook: <a href="{path}">{section.notebook}</a></p>')
    return "<section>\n" + "\n".join(parts) + "\n</section>"


def _provenance(sources: dict[str, set[str]]) -> str:
    commits = ", ".join(sorted(commit[:12] for commit in sources["commits"])) or "none"
    runs = "".join(f"<li>{html.escape(run)}</li>" for run in sorted(sources["runs"]))
    text = (
        "<p>Every number above is read from records below <code>results/runs</code>; each record names the commit, "
        "the package versions and the hardware that made it, and the hash of its outcomes. Nothing is typed in by "
        "hand, and what was not run is called <em>not run</em>.</p>"
    )
    count = len(sources["runs"])
    listed = f"<details><summary>{count} runs</summary><ul>{runs}</ul></details>"
    heading = '<h2 id="provenance">Where the numbers come from</h2>'
    return f"<section>{heading}{text}<p>Commits: {commits}.</p>{listed}</section>"


def page(profile: str) -> str:
    """The whole report as HTML; the same records always give the same text."""
    experiments.profile_of(profile)
    sources: dict[str, set[str]] = {"runs": set(), "commits": set()}
    body = [_section(profile, section, sources) for section in SECTIONS]
    run, _ = experiments.main_pair(profile)
    about = f"Profile {profile}: {words.dataset(run.dataset)}, {words.backbone(run)}, {run.epochs} epochs."
    entries = "".join(f'<li><a href="#{s.notebook}">{s.heading}</a></li>' for s in SECTIONS)
    lead = markdown(prose.budget(profile))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{TITLE} ({profile})</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>{TITLE}</h1>
<p>{html.escape(about)} The paper: Kim, Cho, Jung and Yoon, <em>Feature Separation and Recalibration for Adversarial
Robustness</em>, CVPR 2023 (arXiv 2303.13846). Intervals are 95 %; gains are paired on the same images.</p>
<div class="lead">{lead}</div>
</header>
<nav aria-label="Contents"><ol>{entries}<li><a href="#provenance">Where the numbers come from</a></li></ol></nav>
<main>
{chr(10).join(body)}
{_provenance(sources)}
</main>
</body>
</html>
"""


def write(profile: str) -> Path:
    """Write results/report/<profile>.html, with the tables and figures in it; untouched when nothing changed."""
    path, data = paths.report(profile), page(profile).encode()
    if not path.exists() or path.read_bytes() != data:
        write_bytes(path, data)
    return path
