"""A table: a plain DataFrame of strings to look at, the numbers behind it, and where they come from."""

import html
import re
from dataclasses import dataclass, field

import pandas as pd

SENTENCE = 50  # characters; longer cells wrap


@dataclass(frozen=True, kw_only=True)
class About:
    """Beside a table's cells: its numbers as a tidy frame, bold cells (row, column), notes, run ids and commits."""

    id: str
    slug: str
    title: str
    profile: str
    numbers: pd.DataFrame
    bold: frozenset[tuple[int, str]] = frozenset()
    notes: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    commits: tuple[str, ...] = ()

    def footer(self) -> list[str]:
        """Notes, then the run ids and the records' own commits that the numbers come from."""
        commits = ", ".join(commit[:10] for commit in self.commits) or "none"
        runs = ", ".join(self.runs) or "none yet"
        return [*self.notes, f"Records made by commit: {commits}. Runs: {runs}."]


@dataclass(kw_only=True)
class Sources:
    """Collects the run ids and commits of the records that a table reads.

    float32: run ids with an attack that was crafted in it although the run asks for bf16 (no units for it there);
    weights: digests of the networks behind a run's checkpoint, more than one when it was trained again and differs;
    checkpoint: where only these weights are shown, others' evaluations are passed over.
    """

    checkpoint: str | None = None

    runs: set[str] = field(default_factory=set)
    float32: set[str] = field(default_factory=set)
    commits: set[str] = field(default_factory=set)
    weights: dict[tuple[str, str], set[str]] = field(default_factory=dict)

    def add(self, record: dict) -> None:
        """Note where this record comes from."""
        if self.checkpoint not in (None, record.get("evaluation", {}).get("checkpoint", self.checkpoint)):
            return
        if record.get("run_id"):
            self.runs.add(record["run_id"])
            own = not record.get("evaluation", {}).get("surrogate")  # another network's slopes: float32 everywhere
            if own and record.get("precision") == "bf16" and record.get("crafting", {}).get("dtype") == "float32":
                self.float32.add(record["run_id"])
            if record.get("weights") and record.get("evaluation"):
                place = (record["run_id"], record["evaluation"]["checkpoint"])
                self.weights.setdefault(place, set()).add(record["weights"])
        if record.get("commit"):
            self.commits.add(record["commit"])

    def mixed(self) -> list[str]:
        """Run ids with columns from trainings that ended in different weights."""
        return sorted({name for (name, _), digests in self.weights.items() if len(digests) > 1})


def _cell(text: str, bold: bool) -> str:
    """A value that stays on its line with its interval below it; a sentence wraps."""
    inner = re.sub(r" (\[[^\]]*\](?: n=\d+)?)", r"<br><small>\1</small>", html.escape(text))
    inner = f"<b>{inner}</b>" if bold else inner
    return f'<td style="white-space:nowrap">{inner}</td>' if len(text) <= SENTENCE else f"<td>{inner}</td>"


class Table(pd.DataFrame):
    """What a reader sees, every cell a string; `about` holds the rest.

    A notebook shows it whole, with bold cells and notes; anything derived from it is an ordinary DataFrame.
    """

    _metadata = ["about"]  # noqa: RUF012  (pandas' own way to let an attribute live on a subclass)
    about: About

    @property
    def _constructor(self):
        return pd.DataFrame

    @property
    def numbers(self) -> pd.DataFrame:
        """The values behind the strings, as fractions and counts."""
        return self.about.numbers

    def _repr_html_(self) -> str:
        rows = []
        for i, values in enumerate(self.to_numpy()):
            cells = [_cell(str(value), (i, name) in self.about.bold) for name, value in zip(self.columns, values)]
            rows.append("<tr>" + "".join(cells) + "</tr>")
        head = "".join(f"<th>{html.escape(column)}</th>" for column in self.columns)
        notes = "".join(f"<p><small>{html.escape(note)}</small></p>" for note in self.about.notes)
        body = "\n".join(rows)
        table = f'<table class="dataframe">\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>'
        return f'<div style="overflow-x:auto">{table}</div>{notes}'

    def __repr__(self) -> str:
        return pd.DataFrame(self).to_string(index=False) if len(self) else f"{self.about.id}: no rows"


def make(shown: pd.DataFrame, about: About) -> Table:
    """A Table of these strings."""
    table = Table(shown)
    table.about = about
    return table
