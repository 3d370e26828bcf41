"""The ``R.sparqle`` dialect: Relax ops of the split-precision form.

``register()`` makes them known to TVM (once); the functions build calls, the classes read them.
"""

# TVM first: at the end of its import it calls register(), which must not find `ops` half imported.
import tvm  # noqa: F401

from sparqle_tvm.dialect.ops import (
    OPS,
    PLANES,
    Attention,
    BalanceRows,
    Dense,
    Encode,
    Encoder,
    Op,
    QuantizeEncode,
    QuantizeHeads,
    ScaledDense,
    SplitDense,
    SplitDenseEncoded,
    SplitDenseScaled,
    attention,
    balance_rows,
    encode,
    is_single,
    op_name,
    plane,
    quantize_encode,
    quantize_heads,
    split_dense,
    split_dense_encoded,
    split_dense_scaled,
)
from sparqle_tvm.dialect.registration import register, register_legalization

__all__ = [
    "OPS",
    "PLANES",
    "Attention",
    "BalanceRows",
    "Dense",
    "Encode",
    "Encoder",
    "Op",
    "QuantizeEncode",
    "QuantizeHeads",
    "ScaledDense",
    "SplitDense",
    "SplitDenseEncoded",
    "SplitDenseScaled",
    "attention",
    "balance_rows",
    "encode",
    "is_single",
    "op_name",
    "plane",
    "quantize_encode",
    "quantize_heads",
    "register",
    "register_legalization",
    "split_dense",
    "split_dense_encoded",
    "split_dense_scaled",
]
