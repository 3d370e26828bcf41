"""Frontends: model files to IRModules with quantized dense ops."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparqle_tvm.frontend.gguf import ImportedModel, from_gguf
    from sparqle_tvm.frontend.onnx import OnnxModel, from_onnx

__all__ = ["ImportedModel", "OnnxModel", "from_gguf", "from_onnx"]


def __getattr__(name: str) -> Any:
    """Load a frontend on first use: they import TVM, which takes seconds."""
    if name in __all__:
        kind = "onnx" if "onnx" in name.lower() else "gguf"
        return getattr(import_module(f"sparqle_tvm.frontend.{kind}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
