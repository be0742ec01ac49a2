"""One self-contained HTML file per profile: every table and figure, how to read them, and where they come from."""

import base64
import html
import io
from pathlib import Path

from PIL import Image

from fsr import experiments, files, plots, tables
from fsr.files import MissingRecord, write_bytes
from fsr.report import findings as prose
from fsr.report.markup import markdown
from fsr.report.sections import SECTIONS, Section
from fsr.report.style import STYLE
from fsr.tables import labels as words

__all__ = ["SECTIONS", "page", "write"]

TITLE = "Feature Separation and Recalibration: a replication"


def _table(profile: str, name: str) -> str:
    info, frame = tables.TABLES[name], tables.table(profile, name)
    tables.save(profile, name)
    base = f"../tables/{profile}/{info.stem}"
    links = ", ".join(f'<a href="{base}.{kind}">{kind}</a>' for kind in ("csv", "md", "tex"))
    heading = f'<h3 id="{name}">{name}. {html.escape(info.title)}</h3>'
    notes = "".join(f'<p class="notes">{html.escape(note)}</p>' for note in tables.notes(profile, name, frame))
    shown = f'<div class="scroll" tabindex="0">{tables.show(frame).to_html()}</div>'
    return f'{heading}\n{shown}{notes}\n<p class="files">{links}</p>'


def _webp(png: Path) -> str:
    """The same pixels in fewer bytes (lossless WebP, on white), as text for a page."""
    with Image.open(png) as image:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
    out = io.BytesIO()
    white.convert("RGB").save(out, "WEBP", lossless=True, quality=80, method=2)
    return base64.b64encode(out.getvalue()).decode()


def _figure(profile: str, name: str) -> str:
    try:
        png, pdf = plots.save(profile, name)
    except MissingRecord:
        return ""
    image = f'<img alt="{plots.TITLES[name]}" src="data:image/webp;base64,{_webp(png)}">'
    link = f'<a href="../../figures/{pdf.parent.name}/{pdf.name}">pdf</a>'
    return f'<h3 id="{name}">{name}. {plots.TITLES[name]}</h3>\n<figure>{image}<figcaption>{link}</figcaption></figure>'


def _notebooks(profile: str) -> str:
    """Where the report links to: executed notebooks; in the repository, which has only demo's, the sources."""
    in_repository = files.report(profile).parent.parent.parent == files.sources().parent
    return "../../notebooks" if in_repository and profile != "demo" else f"../notebooks/{profile}"


def _section(profile: str, section: Section) -> str:
    parts = [f'<h2 id="{section.notebook}">{section.heading}</h2>', f'<p class="question">{section.question}</p>']
    budget = prose.budget(profile)  # said once, at the top
    parts += [markdown(getattr(prose, name)(profile).replace(budget, "")) for name in section.prose]
    parts += [_figure(profile, name) for name in section.figures]
    parts += [_table(profile, name) for name in section.tables]
    path = f"{_notebooks(profile)}/{section.notebook}.ipynb"
    parts.append(f'<p class="files">Notebook: <a href="{path}">{section.notebook}</a></p>')
    return "<section>\n" + "\n".join(parts) + "\n</section>"


def _provenance(profile: str) -> str:
    text = (
        "<p>Every number above is read from records below <code>results/runs</code>; each record names the commit, "
        "the package versions and the hardware that made it, and the hash of its outcomes. Nothing is typed in by "
        "hand, and what was not run is called <em>not run</em>.</p>"
    )
    frame = tables.provenance(profile)
    listed = f"<details><summary>{len(frame)} runs</summary>{frame.to_html(index=False, na_rep='')}</details>"
    heading = '<h2 id="provenance">Where the numbers come from</h2>'
    return f"<section>{heading}{text}{listed}</section>"


def page(profile: str) -> str:
    """The whole report as HTML; the same records always give the same text."""
    experiments.profile_of(profile)
    body = [_section(profile, section) for section in SECTIONS]
    run, _ = experiments.main_pair(profile)
    about = f"Profile {profile}: {words.dataset(run.dataset)}, {words.network(run)}, {run.epochs} epochs."
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
{_provenance(profile)}
</main>
</body>
</html>
"""


def write(profile: str) -> Path:
    """Write results/report/<profile>.html, with the tables and figures in it; untouched when nothing changed."""
    path, data = files.report(profile), page(profile).encode()
    if not path.exists() or path.read_bytes() != data:
        write_bytes(path, data)
    return path
