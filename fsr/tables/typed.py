"""The paper's own cells, as a person typed them, beside ours."""

from collections.abc import Collection, Iterator, Mapping

from fsr import reference
from fsr.config import Run
from fsr.files import UsageError
from fsr.tables.text import NOT_RUN, missing, number, quantity


def full_size(run: Run) -> bool:
    """Is this the setting of the paper: whole network, whole training set, 100 epochs?"""
    return run.width is None and run.blocks is None and run.train_size is None and run.epochs == 100


def cells(table: str, *, rows: Collection[str], units: Mapping[str, str]) -> Iterator:
    """The typed cells of one table; one that names no row or column of it, or another unit, names its line instead."""
    frame = reference.paper_values()
    for cell in frame[frame["table"] == table].itertuples():
        where = f"{reference.paper_file()}, line {cell.line}"
        if cell.row not in rows:
            raise UsageError(f"{where}: {table} has no row {cell.row!r}; choose one of {', '.join(rows)}")
        if units.get(cell.metric) != cell.unit:
            known = ", ".join(f"{name} ({unit})" for name, unit in units.items())
            raise UsageError(f"{where}: {table} has no column {cell.metric!r} in {cell.unit}; choose one of {known}")
        yield cell


def pair(ours: float | None, paper: float, *, full_size: bool, digits: int) -> tuple[str, str]:
    """(paper, ours minus paper) as text; a smaller network or a shorter training is not comparable."""
    if not full_size:
        return quantity(paper, digits=digits), "not comparable"
    if ours is None or missing(float(ours)):
        return quantity(paper, digits=digits), NOT_RUN
    difference = ours - paper
    text = (
        f"{difference:+,.0f}".replace("-", "\N{MINUS SIGN}")
        if digits == 0
        else number(difference, digits=digits, sign=True)
    )
    return quantity(paper, digits=digits), text
