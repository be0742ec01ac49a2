"""The command line: `python -m fsr --help`."""

import os
import sys
from typing import Any

import typer

from fsr.cli.commands import app
from fsr.cli.options import log_to_stderr
from fsr.files import FSRError

# typer brings its own copy of click, or not, depending on its version; the class is the same one by descent
ClickException: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def main() -> None:
    """Run the command line; wrong use is one line and exit code 2."""
    log_to_stderr()
    try:
        # `python -m fsr` has no name that a shell could complete: completion is that of the `fsr` command
        completing = any(a in ("--install-completion", "--show-completion") for a in sys.argv)
        code = app(standalone_mode=False, prog_name="fsr" if completing else None)
        sys.exit(code if isinstance(code, int) else 0)  # `raise typer.Exit(1)` comes back as a value
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except typer.Abort:
        sys.exit(130)
    except ClickException as error:
        typer.echo(f"{error.format_message()} (`python -m fsr --help` shows what there is)", err=True)
        sys.exit(2)
    except FSRError as error:
        typer.echo(f"{error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # what reads our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a folder where a file belongs, no permission, no space, a name that is too long
        typer.echo(f"{error.filename or 'a file'}: {error.strerror or error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
