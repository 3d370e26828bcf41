"""Relax passes that bring quantized dense ops into split-precision form."""

from sparqle_tvm.passes._encodings import DenseInfo, EncodingInfo
from sparqle_tvm.passes._lifted import LiftedEncoding, choice_arguments
from sparqle_tvm.passes._report import PassReport, Skipped
from sparqle_tvm.passes.balance_rows import BalanceRows
from sparqle_tvm.passes.choose_window import ChooseWindow
from sparqle_tvm.passes.collect_activations import (
    ActivationInfo,
    CollectActivations,
    ObservedDense,
)
from sparqle_tvm.passes.collect_attention import CollectAttention
from sparqle_tvm.passes.collect_encodings import CollectEncodings
from sparqle_tvm.passes.drain_encoded import DrainEncoded
from sparqle_tvm.passes.fold_constants import FoldConstants
from sparqle_tvm.passes.fold_scales import FoldScales
from sparqle_tvm.passes.fold_weights import FoldWeights, WeightSource
from sparqle_tvm.passes.fuse_quantize import FuseQuantize
from sparqle_tvm.passes.hoist_constants import HoistConstants
from sparqle_tvm.passes.join_dense import JoinDense
from sparqle_tvm.passes.legalize_host import LegalizeHost
from sparqle_tvm.passes.lift_choices import LiftChoices
from sparqle_tvm.passes.lower_qdq import LowerQDQ
from sparqle_tvm.passes.merge_precision import MergePrecision
from sparqle_tvm.passes.offload_attention import OffloadAttention
from sparqle_tvm.passes.offload_dense import OffloadDense
from sparqle_tvm.passes.outline_layers import InlineLayers, OutlineLayers
from sparqle_tvm.passes.outline_repeats import OutlineRepeats
from sparqle_tvm.passes.quantize_attention import FLOAT_ATTENTION, QuantizeAttention
from sparqle_tvm.passes.quantize_cache import QuantizeCache
from sparqle_tvm.passes.raise_msb_sparsity import RaiseMsbSparsity
from sparqle_tvm.passes.report_left import ReportLeft
from sparqle_tvm.passes.share_encodings import ShareEncodings
from sparqle_tvm.passes.split_grouped_dense import SplitGroupedDense
from sparqle_tvm.passes.split_precision import SplitPrecision
from sparqle_tvm.passes.unfuse_tuples import UnfuseTuples

__all__ = [
    "FLOAT_ATTENTION",
    "ActivationInfo",
    "BalanceRows",
    "ChooseWindow",
    "CollectActivations",
    "CollectAttention",
    "CollectEncodings",
    "DenseInfo",
    "DrainEncoded",
    "EncodingInfo",
    "FoldConstants",
    "FoldScales",
    "FoldWeights",
    "FuseQuantize",
    "HoistConstants",
    "InlineLayers",
    "JoinDense",
    "LegalizeHost",
    "LiftChoices",
    "LiftedEncoding",
    "LowerQDQ",
    "MergePrecision",
    "ObservedDense",
    "OffloadAttention",
    "OffloadDense",
    "OutlineLayers",
    "OutlineRepeats",
    "PassReport",
    "QuantizeAttention",
    "QuantizeCache",
    "RaiseMsbSparsity",
    "ReportLeft",
    "ShareEncodings",
    "Skipped",
    "SplitGroupedDense",
    "SplitPrecision",
    "UnfuseTuples",
    "WeightSource",
    "choice_arguments",
]
