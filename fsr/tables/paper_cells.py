"""The paper's own cells, as a person typed them into results/paper_values.csv."""

from collections.abc import Collection, Iterator, Mapping

from fsr import reference
from fsr.config import Run
from fsr.files import UsageError


def full_size(run: Run) -> bool:
    """Is this the setting of the paper: whole network, whole training set, 100 epochs?"""
    return run.width is None and run.blocks is None and run.train_size is None and run.epochs == 100


def cells(table: str, *, rows: Collection, units: Mapping[str, str]) -> Iterator:
    """The typed cells of one table; UsageError names the line of one that has no row, column or unit of it.

    rows: row names, or (data set, backbone, row) where a table has several networks; units: metric -> its unit.
    """
    frame = reference.paper_values()
    for cell in frame[frame["table"] == table].itertuples():
        where = f"{reference.paper_file()}, line {cell.line}: {table}"
        if cell.row not in rows and (cell.dataset, cell.backbone, cell.row) not in rows:
            raise UsageError(f"{where} has no row {cell.row!r} for {cell.dataset or 'any data'}, {cell.backbone}")
        if units.get(cell.metric) != cell.unit:
            known = ", ".join(f"{name} ({unit})" for name, unit in units.items())
            raise UsageError(f"{where} has no column {cell.metric!r} in {cell.unit}; choose one of {known}")
        yield cell
