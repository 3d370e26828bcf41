"""A model of equal layers, and the functions that are made of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax, tirx
from tvm.relax import op as R

from sparqle_tvm.passes._rewrite import has_mark, relax_functions
from sparqle_tvm.passes.outline_repeats import REPEAT

WIDTH = 8


def repeated_layer(emit: Any, x: Any, weight: Any, steps: int, *, odd: bool) -> Any:
    """A norm, a product with weights that are arranged first, and ``steps`` elementwise ops."""
    ones = relax.const(np.linspace(1, 2, WIDTH * 4, dtype=np.float32))
    y = emit(R.nn.rms_norm(x, ones, axes=[-1]))
    y = emit(R.matmul(y, emit(R.permute_dims(weight))))
    for i in range(steps):
        y = emit(R.add(y, relax.const(float(i) / 8, "float32")))
    return emit(R.subtract(y, x) if odd else R.add(x, y))


def repeated_model(
    layers: int, steps: int = 9, odd: frozenset[int] = frozenset(), seed: int = 0
) -> tvm.IRModule:
    """Rows (n, 32) through so many layers; those in ``odd`` end in another op."""
    rng = np.random.default_rng(seed)
    x = relax.Var("x", relax.TensorType((tirx.Var("n", "int64"), WIDTH * 4), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit(R.multiply(x, relax.const(2.0, "float32")))
            for i in range(layers):
                values = rng.normal(size=(WIDTH * 4, WIDTH * 4)).astype(np.float32) / 8
                y = repeated_layer(builder.emit, y, relax.const(values), steps, odd=i in odd)
            y = builder.emit_output(R.negative(y))
        builder.emit_func_output(y)
    return builder.get()


def repeated_parts(mod: tvm.IRModule) -> dict[str, relax.Function]:
    """The functions that were made of repeats."""
    return {str(gv.name_hint): f for gv, f in relax_functions(mod) if has_mark(f, REPEAT)}
