"""What an imported graph is, of whichever framework: a module, and how it is called."""

from __future__ import annotations

from dataclasses import dataclass, field

import tvm
from tvm import relax


@dataclass(frozen=True)
class GraphInput:
    """An input of a model.

    Attributes
    ----------
    name : str
        As the model has it.
    shape : tuple of str
        Its axes: a number, or the name (or expression of names) of a dynamic one; of a tensor of
        unknown rank nothing.
    dtype : str
        Of its elements.
    """

    name: str
    shape: tuple[str, ...]
    dtype: str


@dataclass(frozen=True)
class GraphModel:
    """A model of another framework as an IRModule, and how it is called.

    Attributes
    ----------
    mod : tvm.IRModule
        With the function ``main``, whose arguments are the inputs in their order; it returns the
        output, or a tuple of outputs. Products are named after the layers they come from.
    name : str
        Of the graph.
    inputs : tuple of GraphInput
    outputs : tuple of str
    """

    mod: tvm.IRModule = field(repr=False)
    name: str
    inputs: tuple[GraphInput, ...]
    outputs: tuple[str, ...]


def graph_input(name: str, param: relax.Var) -> GraphInput:
    """An input as the function has it."""
    shape = param.ty.shape
    dims = shape.values if isinstance(shape, relax.ShapeExpr) else []
    texts = (str(d.value if isinstance(d, tvm.tirx.IntImm) else d) for d in dims)
    return GraphInput(name, tuple(texts), str(param.ty.dtype))


def reason_of(error: BaseException) -> str:
    """The last line of a message: TVM puts a stack above it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
