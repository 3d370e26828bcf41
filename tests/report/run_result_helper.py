"""A small RunResult with real counts, for the tests of results, tables and the command line."""

import numpy as np

from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.results.counted import CountedAttention
from sparqle_tvm.results.passes import PassResult
from sparqle_tvm.results.run import (
    LayerSparsity,
    ModelFile,
    MsbSparsity,
    RunResult,
    Text,
    by_kind,
)
from sparqle_tvm.studies.attention import counted_attention
from sparqle_tvm.studies.count import count_phases
from sparqle_tvm.target.accelerator import PRESETS
from sparqle_tvm.target.cost.energy_table import default_table
from sparqle_tvm.target.cost.model import EncodedActivation
from sparqle_tvm.target.cost.vector import TransformerShape
from sparqle_tvm.target.op import DenseOp

EDGE = PRESETS["sparqle/edge"]
SHAPE = TransformerShape(layers=2, embed=64, ffn=96, heads=4, kv_heads=2, head_dim=16, vocab=50)


def encoding(label: str, readers: dict[str, int], tokens: int, density: float) -> EncodedActivation:
    mask = np.random.default_rng(0).random((tokens, 64)) < density
    nnz = RowNnz.from_pbm(np.packbits(mask, axis=1, bitorder="little"), 64)
    shapes = tuple(DenseOp(tokens, n, 64, 4, 32, True, name) for name, n in readers.items())
    return EncodedActivation(label, nnz, "signed", shapes)


def encodings(tokens: int) -> list[EncodedActivation]:
    return [
        encoding("blk_0_attn_q", {"blk_0_attn_q": 64, "blk_0_attn_k": 32}, tokens, 0.1),
        encoding("blk_0_ffn_up", {"blk_0_ffn_up": 96}, tokens, 0.4),
        encoding("blk_1_attn_q", {"blk_1_attn_q": 64, "blk_1_attn_k": 32}, tokens, 0.2),
        encoding("blk_1_ffn_up", {"blk_1_ffn_up": 96}, tokens, 0.5),
    ]


def passes(tokens: int = 24) -> tuple[PassResult, PassResult]:
    return count_phases(encodings(tokens), SHAPE, EDGE, balance="none", attention=attention)


def attention(tokens: int, past: int) -> list[CountedAttention]:
    return counted_attention(SHAPE, tokens, past, 1, EDGE, ("dense", "sparqle"), 0, "planes")


def run_result(**change: object) -> RunResult:
    layers = tuple(
        LayerSparsity(
            label=e.label,
            kind="attn_q attn_k" if "attn" in e.label else "ffn_up",
            consumers=tuple(shape.label for shape in e.consumers),
            window=e.window,
            window_reason="centred on the zero point 0",
            msb_sparsity=e.nnz.msb_sparsity,
            macs=e.macs,
        )
        for e in encodings(24)
    )
    prefill, decode = passes()
    fields = {
        "model": ModelFile("tiny", "0123456789abcdef" * 4),
        "text": Text("prose.txt", 24),
        "transformer": SHAPE,
        "accelerator": EDGE,
        "table": default_table(EDGE),
        "engine": "analytical",
        "exact": True,
        "perplexity": {"float": 20.0, "int8": 20.5, "sparqle": 20.5},
        "msb_sparsity": MsbSparsity(0.7, by_kind(layers), layers),
        "prefill": prefill,
        "decode": decode,
        "seconds": {"count": 0.1},
    }
    return RunResult(**{**fields, **change})
