"""What others report, the paper's own cells that a person may add, and the verdict's claims."""

import csv
import io
import tomllib
from collections import namedtuple
from pathlib import Path
from typing import Any

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
MIN_SEEDS = 3  # fewer only point somewhere


def known_results() -> pd.DataFrame:
    """The packaged numbers of others, percent as percent; only rows of kind `paper` may be called the paper's."""
    return pd.read_csv(DATA / "known_results.csv", keep_default_na=False)


def epoch_log() -> pd.DataFrame:
    """A full run of the authors' code (100 epochs): losses, training and PGD-10 and clean test accuracy in percent."""
    return pd.read_csv(DATA / "official_code_epoch_log.csv")


def paper_file() -> Path:
    """results/paper_values.csv of the root, else the repository's (a fresh --root has none)."""
    here = files.results() / "paper_values.csv"
    return here if here.exists() else files.repository() / "results" / "paper_values.csv"


def paper_values(path: Path | None = None) -> pd.DataFrame:
    """The paper's cells as a person typed them, with their lines; empty without a file; UsageError names a bad line."""
    try:
        path = path or paper_file()
        text = path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, UsageError):
        return pd.DataFrame(columns=[*COLUMNS, "line"])
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text; save it as CSV, UTF-8") from None
    reader, rows = csv.reader(io.StringIO(text)), dict[tuple, dict]()
    header = [name.strip() for name in next(reader, [])]
    if sorted(header) != sorted(COLUMNS):
        raise UsageError(f"{path}, line 1: the columns must be {','.join(COLUMNS)}, not {','.join(header)}")
    for cells in (line for line in reader if any(map(str.strip, line))):
        where, row = f"{path}, line {reader.line_num}", dict[str, Any](zip(header, map(str.strip, cells)))
        if len(cells) != len(COLUMNS):
            raise UsageError(f"{where}: {len(cells)} fields instead of {len(COLUMNS)}; put quotes around commas")
        for name, known in (("table", TABLES), ("dataset", ("", *DATASETS)), ("unit", UNITS)):
            if row[name] not in known:
                raise UsageError(f"{where}: unknown {name} {row[name]!r}; choose one of {' '.join(known).strip()}")
        (low, high), value = UNITS[row["unit"]], pd.to_numeric(row["value"], errors="coerce")
        if not (row["metric"] and low <= value <= high):  # also refuses nan
            what = f"{row['value']!r} of {row['metric']!r} is no number of a column (as pgd20)"
            raise UsageError(f"{where}: {what} between {low:g} and {high:g} {row['unit']}")
        row |= {"value": float(value), "line": reader.line_num}
        first = rows.setdefault(tuple(row[name] for name in COLUMNS[:5]), row)
        if first is not row:
            raise UsageError(f"{where}: the same cell is already in line {first['line']}")
    return pd.DataFrame(rows.values(), columns=[*COLUMNS, "line"])


# One claim of claims.toml, which says what its fields are; those from `leads` on have usual values.
Claim = namedtuple(
    "Claim",
    "id text kind source rule test "
    "leads rows below stated unit tolerance metric checkpoint earlier profiles needs min_seeds",
    defaults=((), "whitebox", False, None, "points", 0.0, "", None, "", ("headline", "paper"), "", MIN_SEEDS),
)


def _claims() -> tuple[Claim, ...]:
    values = known_results().groupby(["kind", "metric"])["value"].first()
    claims = tomllib.loads((DATA / "claims.toml").read_text(encoding="utf-8"))["claim"]
    for claim in claims:
        claim |= {name: tuple(value) for name, value in claim.items() if isinstance(value, list)}
        if "stated" in claim:  # numbers of others stand in known_results.csv alone
            claim["stated"] = float(values[claim["kind"], claim["stated"]])
    return tuple(Claim(**claim) for claim in claims)


CLAIMS = _claims()
