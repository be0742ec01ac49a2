"""What notebooks show of records and networks: plain functions first, widgets on top."""

from fsr.explore.inspection import Inspection, app, draw, inspect
from fsr.explore.records import (
    complete,
    curves,
    data_summary,
    differences,
    example,
    networks,
    plan,
    sample_grid,
    trained,
    versions,
)

__all__ = [
    "Inspection",
    "app",
    "complete",
    "curves",
    "data_summary",
    "differences",
    "draw",
    "example",
    "inspect",
    "networks",
    "plan",
    "sample_grid",
    "trained",
    "versions",
]
