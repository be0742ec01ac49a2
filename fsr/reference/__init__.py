"""What others report, the paper's own cells that a person may add, and the verdict's claims."""

import csv
import tomllib
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from fsr import files
from fsr.config import BACKBONES, DATASETS
from fsr.files import UsageError

DATA = Path(__file__).resolve().parent / "data"
COLUMNS = ("table", "dataset", "backbone", "row", "metric", "value", "unit", "note")
KNOWN = {"table": ("T1", "T2", "T3", "T4", "T5", "T6", "T10"), "unit": ("percent", "points")}  # T10: the abstract's
KNOWN |= {"dataset": ("", *DATASETS), "backbone": ("", *BACKBONES)}
LOG = {"train_adv_loss": "train_cls", "train_sep_loss": "train_sep", "train_rec_loss": "train_rec"}
LOG |= {"test_pgd10_acc": "held_robust_acc"}  # a column of the authors' log -> of our histories
MIN_SEEDS = 3  # fewer only point somewhere


def known_results() -> pd.DataFrame:
    """The packaged numbers of others, percent as percent; only rows of kind `paper` may be called the paper's."""
    return pd.read_csv(DATA / "known_results.csv", keep_default_na=False)


def epoch_log() -> pd.DataFrame:
    """A run of the authors' code (100 epochs), in our histories' columns where we have them; `test_...` in percent."""
    log = pd.read_csv(DATA / "official_code_epoch_log.csv").rename(columns=LOG)
    log[["train_adv_acc", "held_robust_acc"]] /= 100
    return log


def paper_file() -> Path:
    """results/paper_values.csv of the root, else the repository's (a fresh --root has none)."""
    here = files.results() / "paper_values.csv"
    return here if here.exists() else files.repository() / "results" / "paper_values.csv"


def paper_values(path: Path | None = None) -> pd.DataFrame:
    """The paper's cells as a person typed them, with their lines; empty without a file; UsageError names a bad line."""
    try:
        path = path or paper_file()
        texts = path.read_text("utf-8-sig", "replace").splitlines()
    except (FileNotFoundError, UsageError):
        return pd.DataFrame(columns=[*COLUMNS, "line"])
    reader = csv.DictReader(texts, restval="", skipinitialspace=True)
    if sorted(reader.fieldnames or []) != sorted(COLUMNS):
        raise UsageError(f"{path}, line 1: the columns must be {','.join(COLUMNS)}")
    for line in (number for number, text in enumerate(texts, 1) if text.count('"') % 2):
        raise UsageError(f"{path}, line {line}: a quote is not closed")
    rows, lines = list[dict](), dict[tuple, int]()
    for row in reader:
        line, key = reader.line_num, tuple(map(row.get, COLUMNS[:5]))
        value = pd.to_numeric(row["value"], errors="coerce")
        checks = {f"unknown {name} {row[name]!r}, not in {these}": row[name] in these for name, these in KNOWN.items()}
        filled = "" not in key and row["unit"] == "percent"
        checks["cells of T1 to T6 need five filled fields, in percent"] = row["table"] == "T10" or filled
        checks["more fields than columns; put quotes around commas"] = None not in row
        checks[f"{row['value']!r} is no number in 0..100"] = 0 <= value <= 100
        checks[f"{row['value']!r} is a fraction; type it in percent"] = row["metric"] != "clean" or not 0 < value < 1
        checks[f"the same cell is already in line {lines.get(key)}"] = lines.setdefault(key, line) == line
        for fault in (message for message, fine in checks.items() if not fine):
            raise UsageError(f"{path}, line {line}: {fault}")
        rows.append(row | {"value": float(value), "line": line})
    return pd.DataFrame(rows, columns=[*COLUMNS, "line"])


# One claim of claims.toml, which says what its fields are; those from `leads` on have usual values.
Claim = namedtuple(
    "Claim",
    "id text kind source rule test "
    "leads rows below stated unit tolerance metric checkpoint earlier profiles needs min_seeds",
    defaults=((), "whitebox", False, None, "points", 0.0, "", None, "", ("headline", "paper"), "", MIN_SEEDS),
)


def _claims() -> Iterator[Claim]:
    values = known_results().groupby(["kind", "metric"])["value"].first()
    for claim in tomllib.loads((DATA / "claims.toml").read_text(encoding="utf-8"))["claim"]:
        claim |= {name: tuple(value) for name, value in claim.items() if isinstance(value, list)}
        if "stated" in claim:  # numbers of others stand in known_results.csv alone
            claim["stated"] = float(values[claim["kind"], claim["stated"]])
        yield Claim(**claim)


CLAIMS = tuple(_claims())
