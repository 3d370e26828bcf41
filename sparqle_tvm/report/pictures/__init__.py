"""Pictures of results, with matplotlib (the extra ``plot``).

Every module draws one kind of picture and imports matplotlib at its top; call `require_matplotlib`
before importing one of them, or get it by `drawing`. With ``narrow`` a picture is laid out for a
phone.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from sparqle_tvm.errors import MissingExtraError


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


def drawing(name: str) -> Any:
    """One of the modules that draw, imported when the first picture is asked for."""
    require_matplotlib()
    return importlib.import_module(f"{__name__}.{name}")
