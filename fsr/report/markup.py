"""Markdown and tables as HTML."""

import html
import re

from fsr.tables import Table

KEYS = ("method", "claim", "stream", "attack group")  # the column that stays in sight while the others scroll
ONCE = ("data", "network")  # said above the table when every row has the same


def inline(text: str) -> str:
    """Markdown's **bold**, *emphasis* and `code` as HTML, everything else escaped."""
    parts = html.escape(text, quote=False).split("`")
    for i, part in enumerate(parts):
        if i % 2:  # between two backticks
            parts[i] = f"<code>{part}</code>"
        else:
            part = re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", part)
            parts[i] = re.sub(r"\*([^*\s][^*]*)\*", r"<em>\1</em>", part)
    return "".join(parts)


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


def _kind(name: str, text: str) -> str:
    kinds = ["key", "name"] if name in KEYS else []
    if text.startswith(("not run", "not applicable")):
        kinds.append("missing")
    elif "[" in text or name in ONCE:
        kinds.append("value")
    elif len(text) > 60:
        kinds.append("long")
    return " ".join(kinds)


def _cell(name: str, text: str, bold: bool) -> str:
    """A value, with its interval on a line of its own."""
    inner = re.sub(r"(\[[^\]]*\](?: n=\d+)?)", r'<span class="ci">\1</span>', html.escape(text))
    inner = f"<b>{inner}</b>" if bold else inner
    kind = _kind(name, text)
    return f'<td class="{kind}">{inner}</td>' if kind else f"<td>{inner}</td>"


def table_html(table: Table) -> str:
    """A table that scrolls inside its own box; above it what all rows share, below it its notes."""
    shared = {name: table[name].iloc[0] for name in ONCE if name in table and table[name].nunique() == 1}
    columns = [name for name in table.columns if name not in shared]
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in columns)
    rows = []
    for i, values in enumerate(table[columns].to_numpy()):
        cells = [_cell(name, str(v), (i, name) in table.about.bold) for name, v in zip(columns, values, strict=True)]
        rows.append("<tr>" + "".join(cells) + "</tr>")
    above = f'<p class="notes">{html.escape(", ".join(shared.values()))}</p>' if shared else ""
    notes = "".join(f'<p class="notes">{html.escape(note)}</p>' for note in table.about.notes)
    body = "\n".join(rows)
    whole = f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"
    return f'{above}<div class="scroll" tabindex="0">{whole}</div>{notes}'
