"""Pictures of results, with matplotlib (the extra ``plot``).

Every module draws one kind of picture and imports matplotlib at its top; call `require_matplotlib`
before importing one of them.
"""

from __future__ import annotations

import importlib.util

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
