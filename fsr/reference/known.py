"""What others report: the packaged files, and the paper's own cells that a person may add."""

import csv
import io
from pathlib import Path

import pandas as pd

from fsr import files
from fsr.config import DATASETS
from fsr.files import UsageError

DATA = Path(__file__).resolve().parent / "data"
COLUMNS = ("table", "dataset", "backbone", "row", "metric", "value", "unit", "note")
TABLES = ("T1", "T2", "T3", "T4", "T5", "T6", "T7", "T8", "T10")  # nobody has published T9's audit
# unit -> smallest and largest value that can be meant; an accuracy typed as a fraction stays visible as 0.5 %
UNITS = {"percent": (0.0, 100.0), "points": (-100.0, 100.0), "count": (0.0, 1e12)}
UNITS |= dict.fromkeys(("seconds", "milliseconds", "megabytes"), (0.0, 1e9))


def known_results() -> pd.DataFrame:
    """The packaged numbers of others: kind (paper, rerun, anchor, computed), source, setting, metric, value, unit.

    Percent stays percent here; only rows of kind `paper` may be called the paper's.
    """
    return pd.read_csv(DATA / "known_results.csv", keep_default_na=False)


def epoch_log() -> pd.DataFrame:
    """A full run of the authors' code (100 epochs): losses, training and PGD-10 and clean test accuracy in percent."""
    return pd.read_csv(DATA / "official_code_epoch_log.csv")


def paper_file() -> Path:
    """results/paper_values.csv of the root, else the repository's (a fresh --root has none)."""
    here = files.results() / "paper_values.csv"
    return here if here.exists() else files.repository() / "results" / "paper_values.csv"


def paper_values(path: Path | None = None) -> pd.DataFrame:
    """The paper's cells as a person typed them: table, dataset, backbone, row, metric, value, unit, note.

    row is a row's name as our table prints it, metric a column's (clean, pgd20, autoattack, gain ...). UsageError
    names file and line when a column is unknown, a value no number or out of its unit's range, or a cell is there
    twice. No file gives an empty frame.
    """
    try:
        path = path or paper_file()
        text = path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, UsageError):
        return pd.DataFrame(columns=[*COLUMNS, "line"])
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text; save it as CSV, UTF-8") from None
    reader = csv.reader(io.StringIO(text))
    header = [name.strip() for name in next(reader, [])]
    if sorted(header) != sorted(COLUMNS):
        raise UsageError(f"{path}, line 1: the columns must be {','.join(COLUMNS)}, not {','.join(header)}")
    rows: list[dict] = []
    seen: dict[tuple, int] = {}
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        row = _checked(header, cells, f"{path}, line {reader.line_num}")
        key = tuple(row[name] for name in COLUMNS[:5])
        if key in seen:
            raise UsageError(f"{path}, line {reader.line_num}: the same cell is already in line {seen[key]}")
        seen[key] = reader.line_num
        rows.append({**row, "line": reader.line_num})
    return pd.DataFrame(rows, columns=[*COLUMNS, "line"])


def _checked(header: list[str], cells: list[str], where: str) -> dict:
    if len(cells) != len(header):
        raise UsageError(f"{where}: {len(cells)} fields instead of {len(header)}; put quotes around text with commas")
    row: dict = {name: cell.strip() for name, cell in zip(header, cells)}
    for name, words, known in (("table", "table", TABLES), ("dataset", "data set", DATASETS), ("unit", "unit", UNITS)):
        if row[name] not in known and (name != "dataset" or row[name]):
            raise UsageError(f"{where}: unknown {words} {row[name]!r}; choose one of {', '.join(known)}")
    if not row["metric"]:
        raise UsageError(f"{where}: the metric is empty; name the column of the table, for instance pgd20")
    try:
        value = float(row["value"])
    except ValueError:
        raise UsageError(f"{where}: {row['value']!r} is not a number") from None
    low, high = UNITS[row["unit"]]
    if not low <= value <= high:  # also refuses nan
        raise UsageError(f"{where}: {value:g} {row['unit']} is not between {low:g} and {high:g}")
    return {**row, "value": value}
