"""T1 to T10: from records to tables; what was not run says so and cannot vanish."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from fsr.tables import accuracy
from fsr.tables.cost import overhead
from fsr.tables.frame import Table
from fsr.tables.inside import audit, audit_lines, streams
from fsr.tables.output import save
from fsr.tables.verdict import verdict


def whitebox(profile: str) -> Table:
    """T1: the authors' columns and AutoAttack, method by method, with the gain of FSR."""
    return accuracy.table("T1", profile)


def deactivation(profile: str) -> Table:
    """T2: FSR beside the methods that switch activations off."""
    return accuracy.table("T2", profile)


def blackbox(profile: str) -> Table:
    """T3: attacks that never see the network's gradients."""
    return accuracy.table("T3", profile)


def components(profile: str) -> Table:
    """T4: what each part contributes, and controls that share FSR's size but not its idea."""
    return accuracy.table("T4", profile)


def settings(profile: str) -> Table:
    """T5: temperature, loss weights, kind and granularity of the mask."""
    return accuracy.table("T5", profile)


def placement(profile: str) -> Table:
    """T6: FSR after each stage, and after several."""
    return accuracy.table("T6", profile)


class TableInfo(NamedTuple):
    """A table: how it is made and the name of its files."""

    make: Callable[[str], Table]
    slug: str
    title: str


TABLES: dict[str, TableInfo] = {
    "T1": TableInfo(whitebox, "whitebox", "White-box robustness"),
    "T2": TableInfo(deactivation, "deactivation", "Against deactivation"),
    "T3": TableInfo(blackbox, "blackbox", "Black-box attacks"),
    "T4": TableInfo(components, "components", "Components and controls"),
    "T5": TableInfo(settings, "settings", "Settings of the module"),
    "T6": TableInfo(placement, "placement", "Where FSR sits"),
    "T7": TableInfo(streams, "streams", "What the streams know"),
    "T8": TableInfo(overhead, "overhead", "Overhead"),
    "T9": TableInfo(audit, "audit", "Adaptive audit"),
    "T10": TableInfo(verdict, "verdict", "Verdict"),
}


def table(profile: str, name: str) -> pd.DataFrame:
    """The numbers of a table, tidy: the columns of its csv."""
    return TABLES[name].make(profile).numbers


def save_all(profile: str) -> list[Path]:
    """Make and save every table of a profile."""
    return [path for name, info in TABLES.items() for path in save(info.make(profile), profile, name, info.slug)]


__all__ = [
    "TABLES",
    "Table",
    "TableInfo",
    "audit",
    "audit_lines",
    "blackbox",
    "components",
    "deactivation",
    "overhead",
    "placement",
    "save",
    "save_all",
    "settings",
    "streams",
    "table",
    "verdict",
    "whitebox",
]
