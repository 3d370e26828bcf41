"""What every command has: where its result goes as JSON."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.files import write_json

STANDARD_OUTPUT = "-"


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--json`` and ``--verbose``."""
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="write the result as JSON; - writes only it to standard output",
    )
    parser.add_argument(
        "--verbose", action="store_true", help="show what passes skip, and tracebacks"
    )


def check_writable(path: str | None) -> None:
    """Refuse a file that cannot be written before minutes are spent on its content.

    Raises
    ------
    InvalidArgumentError
        If the folder is missing or not writable, or the path is a folder.
    """
    if path is None or path == STANDARD_OUTPUT:
        return
    folder = Path(path).absolute().parent
    if not os.access(folder, os.W_OK) or Path(path).is_dir():
        raise InvalidArgumentError(f"{path} cannot be written: no such folder, or no permission")


def emit_json(path: str, data: Any) -> None:
    """Write `data` as JSON to a file, or to standard output if `path` is ``-``."""
    if path == STANDARD_OUTPUT:
        print(json.dumps(data, indent=2, allow_nan=False))
    else:
        write_json(path, data)
