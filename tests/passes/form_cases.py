"""Integer forms of dense ops and of what follows them, as Relax writes them, for docs/forms.md.

``python tests/passes/form_cases.py`` writes the document anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax import op

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "forms.md"
ROWS, COLUMNS, CHANNELS = 5, 64, 32

rng = np.random.default_rng(11)
WEIGHT = rng.integers(-8, 8, (CHANNELS, COLUMNS), np.int8)
BIAS = rng.integers(-500, 500, CHANNELS).astype(np.int32)
MULTIPLIERS = rng.integers(1 << 28, 1 << 30, CHANNELS).astype(np.int64)
# Powers of two: no rounding of floats depends on the order in which they are multiplied.
SCALES = np.exp2(rng.integers(-9, -6, CHANNELS)).astype(np.float32)

Body = Callable[[Any], Any]


def const(value: Any, dtype: str) -> relax.Constant:
    return relax.const(np.asarray(value, dtype), dtype)


def transposed(weight: Any = None) -> Any:
    return op.permute_dims(relax.const(WEIGHT) if weight is None else weight)


def product(q: Any, dtype: str = "int32") -> Any:
    return op.matmul(q, transposed(), out_dtype=dtype)


def scaled(x: Any, by: Any = SCALES) -> Any:
    return op.multiply(op.astype(x, "float32"), const(by, "float32"))


def narrowed(x: Any, dtype: str = "int8") -> Any:
    return op.astype(op.clip(x, -128, 127), dtype)


def shifted(acc: Any, shift: int = 38) -> Any:
    """Fixed point of gemmlowp and TFLite: multiply by int64, add half, shift right."""
    wide = op.multiply(op.astype(acc, "int64"), const(MULTIPLIERS, "int64"))
    return op.right_shift(op.add(wide, const(1 << (shift - 1), "int64")), const(shift, "int64"))


FORMS: dict[str, Body] = {
    "int8 operands, int32 sums": product,
    "operands cast to int32": lambda q: op.matmul(
        op.astype(q, "int32"), op.astype(transposed(), "int32")
    ),
    "operands cast in several steps": lambda q: op.matmul(
        op.astype(op.astype(q, "int16"), "int32"),
        op.astype(op.astype(transposed(), "int16"), "int32"),
    ),
    "weights cast before they are transposed": lambda q: op.matmul(
        op.astype(q, "int32"), transposed(op.astype(relax.const(WEIGHT), "int32"))
    ),
    "int64 sums": lambda q: product(q, "int64"),
    "operands cast to int64": lambda q: op.matmul(
        op.astype(q, "int64"), op.astype(transposed(), "int64")
    ),
    "less a zero point": lambda q: op.matmul(
        op.subtract(op.astype(q, "int32"), const(3, "int32")), op.astype(transposed(), "int32")
    ),
    "sums requantized by an integer and a shift": lambda q: narrowed(
        op.right_shift(op.multiply(product(q), const(77, "int32")), const(13, "int32"))
    ),
    "sums requantized in int64 for each channel": lambda q: narrowed(shifted(product(q))),
    "sums requantized by a float": lambda q: narrowed(op.round(scaled(product(q), 1 / 128))),
    "sums requantized by a float for each channel": lambda q: narrowed(
        op.round(scaled(product(q)))
    ),
    "sums requantized by the op": lambda q: op.quantize(
        op.astype(product(q), "float32"), const(64, "float32"), const(0, "int8"), out_dtype="int8"
    ),
    "bias before the scale": lambda q: scaled(op.add(product(q), const(BIAS, "int32"))),
    "bias after the scale": lambda q: op.add(scaled(product(q)), const(BIAS * SCALES, "float32")),
    "bias before an integer and a shift": lambda q: narrowed(
        shifted(op.add(product(q), const(BIAS, "int32")))
    ),
    "clipped, and cast down and up again": lambda q: op.astype(
        op.astype(narrowed(op.right_shift(product(q), const(6, "int32"))), "int16"), "int32"
    ),
}


def module(name: str) -> tvm.IRModule:
    """The form as a function of q, (5, 64) int8."""
    builder = relax.BlockBuilder()
    q = relax.Var("q", relax.TensorType((ROWS, COLUMNS), "int8"))
    with builder.function("main", [q]):
        with builder.dataflow():
            y = builder.emit_output(builder.normalize(FORMS[name](q)), "y")
        builder.emit_func_output(y)
    return relax.transform.CanonicalizeBindings()(relax.transform.Normalize()(builder.finalize()))


def relax_text(name: str) -> str:
    """The bindings, without types and shapes."""
    lines = module(name)["main"].script(show_meta=False).splitlines()
    begin = next(i for i, line in enumerate(lines) if "with R.dataflow()" in line) + 1
    end = next(i for i, line in enumerate(lines) if "R.output(" in line)
    bindings = [re.sub(r"^(\w+): .*?\) = ", r"\1 = ", line.strip()) for line in lines[begin:end]]
    return "\n".join(bindings)


def document() -> str:
    text = [
        "# Integer forms",
        "",
        "Products that are split whatever wrote them, and what may follow them; `metadata[..]` are "
        "constants. Each is a test (`tests/passes/test_forms.py`): it is rewritten, and the host "
        "kernels and the simulator give the bits of plain integers. What follows the product "
        "stays as it is, behind the accelerator, unless a scale and a zero point that are known "
        "can go into its drain (`passes/drain_encoded.py`). `python tests/passes/form_cases.py` "
        "writes this document. What is left alone has an entry in the pass report, with its "
        "reason: `print(report)`.",
        "",
    ]
    for name in FORMS:
        text += [f"## {name[0].upper()}{name[1:]}", "", "```python", relax_text(name), "```", ""]
    return "\n".join(text[:-1]) + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
