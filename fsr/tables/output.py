"""Tables as files: csv of the numbers, Markdown and LaTeX as shown; written only when the content changes."""

from pathlib import Path

import pandas as pd

from fsr.files import write_bytes
from fsr.tables.display import LONG, texts
from fsr.tables.formatting import MINUS

LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "±": r"$\pm$", "×": r"$\times$", "≤": r"$\leq$", "≥": r"$\geq$", MINUS: "$-$", "⁺": r"$^{+}$", "⁻": r"$^{-}$",
    "f̃": r"$\tilde f$", "†": r"$\dagger$",
}  # fmt: skip


def csv_text(frame: pd.DataFrame) -> str:
    """Counts whole, other numbers with six significant digits; empty where nothing was run."""
    mixed = frame.select_dtypes(object).map(lambda value: _six_digits(value) if isinstance(value, float) else value)
    return frame.assign(**mixed).to_csv(index=False, lineterminator="\n", float_format=_six_digits)


def _six_digits(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.0f}" if float(value).is_integer() else f"{value:.6g}"


def markdown(frame: pd.DataFrame, title: str, notes: list[str]) -> str:
    """Title, table with best cells and headings in bold, notes."""
    text, classes = texts(frame)
    marked = text.map(lambda cell: cell.replace("|", "\\|"))
    marked = marked.where(~classes.isin(["best", "group"]) | (marked == ""), "**" + marked + "**")
    return "\n\n".join([f"# {title}", marked.to_markdown(index=False, disable_numparse=True), *notes]) + "\n"


def latex_text(text: str) -> str:
    """Text with every character that LaTeX would act on, or does not know, escaped."""
    text = text.replace("f̃", "\0")
    return "".join(LATEX["f̃"] if c == "\0" else LATEX.get(c, c) for c in text)


def latex(frame: pd.DataFrame, title: str, label: str, notes: list[str]) -> str:
    """A booktabs table, shrunk to the line; needs the packages booktabs and graphicx."""
    text, classes = texts(frame)
    wide = [len(text) > 0 and text[column].str.len().max() > LONG for column in text]
    escaped = text.map(latex_text).rename(columns=latex_text)
    bold = classes.isin(["best", "group"]).set_axis(escaped.columns, axis=1) & (escaped != "")
    styler = escaped.where(~bold, r"\textbf{" + escaped + "}").style.hide(axis="index")
    tabular = styler.to_latex(hrules=True, column_format="".join("p{5cm}" if w else "l" for w in wide))
    caption = [rf"\caption{{{latex_text(title)}.}}", rf"\label{{tab:{label}}}"]
    lines = ["% needs \\usepackage{booktabs,graphicx}", r"\begin{table}", r"\centering", *caption]
    lines += [r"\resizebox{\linewidth}{!}{%", tabular.rstrip() + "}", r"\end{table}"]
    return "\n".join([*lines, *(f"% {note}" for note in notes)]) + "\n"


def write(path: Path, text: str) -> Path:
    """Write a text; a file whose content is the same is left alone."""
    if not path.exists() or path.read_bytes() != text.encode():
        write_bytes(path, text.encode())
    return path
