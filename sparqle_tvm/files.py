"""Files that are whole or not there."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparqle_tvm.errors import InvalidArgumentError


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside ``path``; what is written there takes its place at the end.

    After an error in the ``with`` block nothing is left behind.

    Raises
    ------
    InvalidArgumentError
        If it cannot be written.
    """
    target = Path(path).absolute()
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
            temporary = Path(folder) / target.name
            yield temporary
            os.replace(temporary, target)
    except OSError as error:
        reason = error.strerror or error
        raise InvalidArgumentError(f"{path} cannot be written: {reason}") from error


def write_json(path: str | os.PathLike[str], data: Any, *, indent: int | None = 2) -> None:
    """Write JSON; NaN and Inf, which JSON has no words for, are refused.

    Raises
    ------
    InvalidArgumentError
        If it cannot be written.
    """
    separators = None if indent else (",", ":")
    text = json.dumps(data, indent=indent, separators=separators, allow_nan=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
