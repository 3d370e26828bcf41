"""Frontends: model files to IRModules with quantized dense ops."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparqle_tvm.frontend.gguf import ImportedModel, from_gguf
    from sparqle_tvm.frontend.graph_model import GraphModel
    from sparqle_tvm.frontend.onnx import from_onnx
    from sparqle_tvm.frontend.torch import from_exported_program

__all__ = ["GraphModel", "ImportedModel", "from_exported_program", "from_gguf", "from_onnx"]

_HOMES = {
    "GraphModel": "graph_model",
    "ImportedModel": "gguf",
    "from_exported_program": "torch",
    "from_gguf": "gguf",
    "from_onnx": "onnx",
}


def __getattr__(name: str) -> Any:
    """Load a frontend on first use: they import TVM, which takes seconds."""
    if name in _HOMES:
        return getattr(import_module(f"sparqle_tvm.frontend.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
