"""Frontends: model files to IRModules with quantized dense ops."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparqle_tvm.frontend.gguf import ImportedModel, from_gguf

__all__ = ["ImportedModel", "from_gguf"]


def __getattr__(name: str) -> Any:
    """Load the frontends on first use: they import TVM, which takes seconds."""
    if name in __all__:
        from sparqle_tvm.frontend import gguf

        return getattr(gguf, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
