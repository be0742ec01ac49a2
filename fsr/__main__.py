"""The command line: `python -m fsr --help`."""

import logging
import sys
from typing import Any

import typer

from fsr.cli.commands import app
from fsr.files import FSRError

# typer brings its own copy of click, or not, depending on its version; the class is the same one by descent
ClickException: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def main() -> None:
    """Run the command line; wrong use is one line and exit code 2."""
    log = logging.getLogger("fsr")
    log.handlers[:], log.propagate = [logging.StreamHandler(sys.stderr)], False  # what libraries log is their business
    try:
        code = app(standalone_mode=False, prog_name="fsr")
        sys.exit(code if isinstance(code, int) else 0)  # `raise typer.Exit(1)` comes back as a value
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    except ClickException as error:
        code, line = 2, f"{error.format_message()} (`python -m fsr --help` shows what there is)"
    except FSRError as error:
        code, line = error.exit_code, str(error)
    except OSError as error:  # a folder where a file belongs, no permission, no space, a name that is too long
        code, line = 1, f"{error.filename or 'a file'}: {error.strerror or error}"
    typer.echo(" ".join(line.splitlines()), err=True)  # a path may hold a line break
    sys.exit(code)


if __name__ == "__main__":
    main()
