"""Tables to files: CSV of the numbers, Markdown and LaTeX as shown; written only when the content changes."""

import csv
import io
from pathlib import Path

import pandas as pd

from fsr import files
from fsr.files import write_bytes
from fsr.tables.frame import SENTENCE, Table
from fsr.tables.text import MINUS, missing

LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "±": r"$\pm$", "×": r"$\times$", "≤": r"$\leq$", "≥": r"$\geq$", MINUS: "$-$", "⁺": r"$^{+}$", "⁻": r"$^{-}$",
    "f̃": r"$\tilde f$",
}  # fmt: skip


def csv_text(numbers: pd.DataFrame) -> str:
    """Counts whole, other numbers with six significant digits; empty where nothing was run."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(numbers.columns)
    for row in numbers.itertuples(index=False):
        writer.writerow([_csv_cell(v) for v in row])
    return out.getvalue()


def _csv_cell(value):
    if missing(value):
        return ""
    if not isinstance(value, float):
        return value
    return f"{value:.0f}" if value.is_integer() else f"{value:.6g}"  # a count is exact


def markdown(table: Table) -> str:
    """A Markdown table with title and footer."""
    about = table.about
    lines = [f"# {about.id}. {about.title} ({about.profile})", ""]
    lines += ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    for i, row in enumerate(table.to_numpy()):
        texts = [str(value).replace("|", "\\|") for value in row]
        marked = [f"**{text}**" if (i, c) in about.bold else text for c, text in zip(table.columns, texts)]
        lines.append("| " + " | ".join(marked) + " |")
    return "\n".join([*lines, *(line for note in about.footer() for line in ("", note))]) + "\n"


def latex_text(text: str) -> str:
    """Text with every character that LaTeX would act on escaped."""
    text = text.replace("f̃", "\0")
    return "".join(LATEX["f̃"] if c == "\0" else LATEX.get(c, c) for c in text)


def _columns(table: Table) -> str:
    """LaTeX's column types: sentences wrap, everything else stays on its line."""
    longest = [max((len(str(value)) for value in table[column]), default=0) for column in table.columns]
    return "".join("p{5cm}" if length > SENTENCE else "l" for length in longest)


def latex(table: Table) -> str:
    """A booktabs table, shrunk to the line; needs the packages booktabs and graphicx."""
    about = table.about
    lines = ["% needs \\usepackage{booktabs,graphicx}", r"\begin{table}", r"\centering"]
    lines += [rf"\caption{{{latex_text(f'{about.title} ({about.profile})')}.}}", rf"\label{{tab:{about.slug}}}"]
    lines += [r"\resizebox{\linewidth}{!}{%", rf"\begin{{tabular}}{{{_columns(table)}}}", r"\toprule"]
    lines += [" & ".join(map(latex_text, table.columns)) + r" \\", r"\midrule"]
    for i, row in enumerate(table.to_numpy()):
        texts = [latex_text(str(value)) for value in row]
        marked = [rf"\textbf{{{text}}}" if (i, c) in about.bold else text for c, text in zip(table.columns, texts)]
        lines.append(" & ".join(marked) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}}", r"\end{table}"]
    return "\n".join([*lines, *(f"% {note}" for note in about.footer())]) + "\n"


class Saved(list[Path]):
    """The files written; shown without the folders above the root, so that a notebook names no machine's paths."""

    def __repr__(self) -> str:
        return ", ".join(path.relative_to(files.root()).as_posix() for path in self)


def save(table: Table, profile: str, table_id: str, slug: str) -> Saved:
    """Write <T id>-<slug>.csv (numbers), .md and .tex (as shown); a file whose content is the same is left alone."""
    texts = {"csv": csv_text(table.numbers), "md": markdown(table), "tex": latex(table)}
    written = Saved()
    for suffix, text in texts.items():
        path = files.tables(profile) / f"{table_id}-{slug}.{suffix}"
        if not path.exists() or path.read_bytes() != text.encode():
            write_bytes(path, text.encode())
        written.append(path)
    return written
