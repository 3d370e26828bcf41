"""Exact kernels for a plain ``llvm`` target, and the legalizations that call them.

``legalize`` holds the entry points; this module imports nothing, because ``import tvm`` is slow.
"""

from __future__ import annotations

from typing import Any


def register() -> None:
    """Let ``relax.transform.LegalizeOps`` lower the dialect's ops by these kernels. Idempotent.

    The kernels are loaded at the first op that is lowered.
    """
    from sparqle_tvm.dialect.ops import OPS
    from sparqle_tvm.dialect.registration import register_legalization

    for name in OPS:
        register_legalization(name, lambda builder, call: _legalize(builder, call))


def _legalize(builder: Any, call: Any) -> Any:
    from sparqle_tvm.host.legalize import legalize

    return legalize(builder, call)
