"""A small RunResult with real counts, for the tests of results, tables and the command line."""

import numpy as np

from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.results.run import LayerSparsity, PhaseResult, RunResult
from sparqle_tvm.target.accelerator import PRESETS
from sparqle_tvm.target.cost.energy_table import default_table
from sparqle_tvm.target.cost.model import EncodedActivation, pass_cost
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


def phase(tokens: int, past: int) -> PhaseResult:
    parts = encodings(tokens)
    dense, sparqle = (
        pass_cost(parts, SHAPE, tokens=tokens, past=past, accelerator=EDGE, scheme=scheme)
        for scheme in ("dense", "sparqle")
    )
    return PhaseResult(tokens, past, 0.7, dense, sparqle, tuple(parts))


def run_result(**change: object) -> RunResult:
    layers = tuple(
        LayerSparsity(
            label=e.label,
            kind="attn_q attn_k" if "attn" in e.label else "ffn_up",
            consumers=tuple(shape.label for shape in e.consumers),
            window=e.window,
            msb_sparsity=e.nnz.msb_sparsity,
            macs=e.macs,
        )
        for e in encodings(24)
    )
    fields = {
        "model_name": "tiny",
        "model_sha256": "0123456789abcdef" * 4,
        "text_name": "prose.txt",
        "tokens": 24,
        "transformer": SHAPE,
        "accelerator": EDGE,
        "table": default_table(EDGE),
        "engine": "analytical",
        "exact": True,
        "perplexity": {"float": 20.0, "int8": 20.5, "sparqle": 20.5},
        "layers": layers,
        "prefill": phase(24, 0),
        "decode": phase(1, 23),
        "seconds": {"count": 0.1},
    }
    return RunResult(**{**fields, **change})
