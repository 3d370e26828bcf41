"""The command ``sparqle``. What is heavy is imported after the arguments are read."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from sparqle_tvm._versions import VERSION
from sparqle_tvm.commands import add_all, execute
from sparqle_tvm.errors import SparqleError

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code: 0, or 2 after an error of the user."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    logging.basicConfig(
        level=logging.INFO if arguments.verbose else logging.WARNING,
        format="%(name)s: %(message)s",
    )
    try:
        execute(arguments)
        sys.stdout.flush()
    except SparqleError as error:
        if arguments.verbose:
            raise
        print(f"sparqle: error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_ERROR
    except BrokenPipeError:
        # Who reads standard output has enough. Python would flush it once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("sparqle: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sparqle",
        description="Split precision (sub-precision sparsity) for quantized language models.",
    )
    parser.add_argument("--version", action="version", version=f"sparqle {VERSION}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_all(commands)
    return parser
