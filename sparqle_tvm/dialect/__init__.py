"""The ``R.sparqle`` dialect: Relax ops of the split-precision form.

``register()`` makes them known to TVM (once); the constructors build calls to them.
"""

# TVM first: at the end of its import it calls register(), which must not find `ops` half imported.
import tvm  # noqa: F401

from sparqle_tvm.dialect.ops import (
    PBM_FIELD,
    SCALE_FIELD,
    attributes,
    balance_rows,
    encode,
    is_op,
    quantize_encode,
    register,
    scaled_operands,
    split_dense,
    split_dense_encoded,
    split_dense_scaled,
    with_attributes,
)

__all__ = [
    "PBM_FIELD",
    "SCALE_FIELD",
    "attributes",
    "balance_rows",
    "encode",
    "is_op",
    "quantize_encode",
    "register",
    "scaled_operands",
    "split_dense",
    "split_dense_encoded",
    "split_dense_scaled",
    "with_attributes",
]
