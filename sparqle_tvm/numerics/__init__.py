"""The numbers, in plain NumPy: the definition that every other part is tested against."""

from sparqle_tvm.numerics.choice import (
    EncodingChoice,
    clip_to_bands,
    group_factors,
    quantize_with_choice,
    scale_weights,
    window_limits,
    windows_from,
)
from sparqle_tvm.numerics.dense import dense_reference, grouped_bias_term
from sparqle_tvm.numerics.integers import (
    bounds,
    int_matmul,
    pack_digits,
    plane_bytes,
    unpack_digits,
)
from sparqle_tvm.numerics.quantization import (
    QuantizedWeights,
    check_weight_range,
    pack_int4,
    quantize_per_tensor,
    quantize_per_token,
    quantize_weights,
    require_finite,
    unpack_int4,
)
from sparqle_tvm.numerics.requantize import Grid, requantize
from sparqle_tvm.numerics.row_order import is_row_order, sorted_rows
from sparqle_tvm.numerics.slicing import (
    SlicedTensor,
    bias_term,
    dot,
    encode,
    encode_digits,
)
from sparqle_tvm.numerics.window import WINDOWS, Digits, Window, default_window, window_of

__all__ = [
    "WINDOWS",
    "Digits",
    "EncodingChoice",
    "Grid",
    "QuantizedWeights",
    "SlicedTensor",
    "Window",
    "bias_term",
    "bounds",
    "check_weight_range",
    "clip_to_bands",
    "default_window",
    "dense_reference",
    "dot",
    "encode",
    "encode_digits",
    "group_factors",
    "grouped_bias_term",
    "int_matmul",
    "is_row_order",
    "pack_digits",
    "pack_int4",
    "plane_bytes",
    "quantize_per_tensor",
    "quantize_per_token",
    "quantize_weights",
    "quantize_with_choice",
    "requantize",
    "require_finite",
    "scale_weights",
    "sorted_rows",
    "unpack_digits",
    "unpack_int4",
    "window_limits",
    "window_of",
    "windows_from",
]
