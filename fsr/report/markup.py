"""Markdown and tables as HTML."""

import html
import re
from itertools import groupby

from fsr.tables import Table

KEYS = ("method", "claim", "stream", "attack group")  # the column that stays in sight while the others scroll
SHARED = ("data", "network", "weights")  # left of that column: said in a line above the rows that have the same
GAIN = ": gain over "  # a row made of two others


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
    """Paragraphs and dash lists as HTML: all that `fsr.report.findings` writes."""
    out = []
    for block in text.split("\n\n"):
        lines = block.splitlines()
        if lines and all(line.startswith("- ") for line in lines):
            out.append("<ul>" + "".join(f"<li>{inline(line[2:])}</li>" for line in lines) + "</ul>")
        elif lines:
            out.append(f"<p>{inline(' '.join(lines))}</p>")
    return "\n".join(out)


def _kind(name: str, text: str) -> str:
    kinds = ["key", "name"] if name in KEYS else ["count"] if name == "n" else []
    if text.startswith(("not run", "not applicable")):
        kinds.append("missing")
    elif "[" in text:
        kinds.append("value")
    elif len(text) > 60:
        kinds.append("long")
    return " ".join(kinds)


def _cell(name: str, text: str, bold: bool) -> str:
    """A value, with its interval on a line of its own."""
    inner = re.sub(r"(\[[^\]]*\](?: n=\d+)?|\(\d+ of \d+ seeds\))", r'<span class="ci">\1</span>', html.escape(text))
    inner = f"<b>{inner}</b>" if bold else inner
    kind = _kind(name, text)
    return f'<td class="{kind}">{inner}</td>' if kind else f"<td>{inner}</td>"


def _words(values: dict[str, str]) -> str:
    """What rows share, in words: CIFAR-10, ResNet-18 (width 16), last weights."""
    weights = {"ema": "EMA weights", "unknown": "weights not stated"}
    told = {name: weights.get(v, f"{v} weights") if name == "weights" else v for name, v in values.items() if v}
    return ", ".join(told.values())


def _heading(text: str, width: int) -> str:
    return f'<tr class="group"><th scope="rowgroup" colspan="{width}"><span>{html.escape(text)}</span></th></tr>'


def _not_run(names: list[str], width: int, heading: str) -> str:
    """One line for consecutive rows without any value; a gain's is implied by its method's."""
    told = [name for name in names if GAIN not in name or name.partition(GAIN)[0] not in names]
    said = f"not run: {heading}{'; '.join(told)}"
    return f'<tr><td class="missing" colspan="{width}"><span>{html.escape(said)}</span></td></tr>'


def _rows(table: Table, columns: list[str], headings: list[str], key: str | None) -> list[str]:
    """The table's body: a line per heading where there are several, and under each its rows."""
    cells = table[columns].astype(str).to_numpy()
    values = [[v for name, v in zip(columns, row, strict=True) if name != key] for row in cells]
    empty = [key is not None and "not run" in row and set(row) <= {"not run", "not applicable", ""} for row in values]
    out, width = [], len(columns)
    for heading, members in groupby(range(len(cells)), lambda i: headings[i]):
        here, told = list(members), ""
        if len(set(headings)) > 1:  # a group without any value is one line, its heading with it
            told = f"{heading}: " if all(empty[i] for i in here) else ""
            out += [] if told else [_heading(heading, width)]
        for nothing, part in groupby(here, lambda i: empty[i]):
            if nothing:
                out.append(_not_run([str(table[key].iloc[i]) for i in part], width, told))
                continue
            for i in part:
                row = zip(columns, cells[i], strict=True)
                out.append("<tr>" + "".join(_cell(n, v, (i, n) in table.about.bold) for n, v in row) + "</tr>")
    return out


def table_html(table: Table) -> str:
    """A table that scrolls inside its own box; what all rows share above it, its notes below it.

    Rows that were not run are named in one line; the csv, md and tex files have them one by one.
    """
    names = list(table.columns)
    key = next((name for name in names if name in KEYS), None)
    shared = [name for name in names[: names.index(key) if key else 0] if name in SHARED]
    columns = [name for name in names if name not in shared]
    headings = [_words(dict(zip(shared, map(str, row), strict=True))) for row in table[shared].to_numpy()]
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in columns)
    above = f'<p class="notes">{html.escape(headings[0])}</p>' if shared and len(set(headings)) == 1 else ""
    notes = "".join(f'<p class="notes">{html.escape(note)}</p>' for note in table.about.notes)
    body = "\n".join(_rows(table, columns, headings, key))
    whole = f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"
    return f'{above}<div class="scroll" tabindex="0">{whole}</div>{notes}'
