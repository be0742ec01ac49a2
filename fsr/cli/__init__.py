"""The command line's commands; `fsr.__main__` runs them."""

from fsr.cli import computing, reading
from fsr.cli.app import app

__all__ = ["app", "computing", "reading"]
