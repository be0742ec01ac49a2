"""Markdown as HTML."""

import html
import re


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
