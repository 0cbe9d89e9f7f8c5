"""What the command lines of all commands share. Standard library only: it comes before the guard."""

from __future__ import annotations

import argparse
import os
import sys
from typing import NoReturn

from .errors import UsageError


class Parser(argparse.ArgumentParser):
    """A wrong command line is a UsageError that names the help; descriptions are printed as they are written."""

    def __init__(self, prog: str, description: str, epilog: str, usage: str | None = None) -> None:
        super().__init__(
            prog=prog,
            usage=usage,
            description=description,
            epilog=epilog,
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=26, width=118),
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def say(text: str = "") -> bool:
    """Prints what a command answers, or only flushes what was printed. Nobody who reads it any more is no error; False,
    after a line on standard error, where it cannot be written."""
    try:
        if text:
            print(text)
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # so that what is left in the buffer goes somewhere at the exit
        if not isinstance(error, BrokenPipeError):
            print(f"http-capture: cannot write to standard output: {error.strerror}", file=sys.stderr)
            return False
    return True
