"""Pictures of results, with matplotlib (the extra ``plot``).

Every module draws one kind of picture and imports matplotlib at its top; call `require_matplotlib`
before importing one of them, or get it by `drawing`. With ``narrow`` a picture is laid out for a
phone.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from pathlib import Path
from typing import Any

from sparqle_tvm.errors import InvalidArgumentError, MissingExtraError


def require_matplotlib() -> None:
    """Refuse to draw without matplotlib.

    Raises
    ------
    MissingExtraError
        If it is not installed; says how to install it.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError(
            "pictures need matplotlib, which is not installed: pip install 'sparqle-tvm[plot]' "
            "(tables, Markdown, CSV and JSON work without it)"
        )


def require_picture_name(path: str | os.PathLike[str]) -> None:
    """Refuse a file that no picture is written to.

    Raises
    ------
    InvalidArgumentError
        If its ending is not known.
    """
    if Path(path).suffix not in (".png", ".svg", ".pdf"):
        raise InvalidArgumentError(f"{path}: a picture ends in .png, .svg or .pdf")


def drawing(name: str) -> Any:
    """One of the modules that draw, imported when the first picture is asked for."""
    require_matplotlib()
    return importlib.import_module(f"{__name__}.{name}")
