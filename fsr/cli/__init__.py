"""The command line's commands; `fsr.__main__` runs them."""

from fsr.cli import commands
from fsr.cli.options import app

__all__ = ["app", "commands"]
