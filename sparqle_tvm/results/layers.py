"""One flat row per dense layer of a pass: its shape, its sparsity, its cost under each scheme."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sparqle_tvm.target.cost.model import EncodedActivation, PassCost

Json = dict[str, Any]

_BLOCK = re.compile(r"^blk_(\d+)_")
_COST_FIELDS = ("mma_cycles", "dma_cycles", "total_cycles", "dram_bytes", "bound")


def layer_type(label: str) -> str:
    """``blk_3_attn_q`` -> ``attn_q``: the same for all blocks."""
    return _BLOCK.sub("", label)


def block_of(label: str) -> int | None:
    """``blk_3_attn_q`` -> 3; None for what lies in no block (the output layer)."""
    found = _BLOCK.match(label)
    return int(found[1]) if found else None


def layer_rows(
    encodings: Sequence[EncodedActivation], passes: Mapping[str, PassCost]
) -> list[Json]:
    """Describe every dense layer of a pass, in program order.

    Parameters
    ----------
    encodings : sequence of EncodedActivation
        What the layers read, as it was given to the passes.
    passes : mapping of str to PassCost
        The cost of the pass by scheme.

    Returns
    -------
    list of dict
        Keys ``label type block window msb_sparsity m n k weight_bits group_size has_min macs``,
        and for each scheme a dict of ``mma_cycles dma_cycles total_cycles dram_bytes bound``.
    """
    readers = [(encoding, shape) for encoding in encodings for shape in encoding.consumers]
    rows = []
    for i, (encoding, shape) in enumerate(readers):
        rows.append(
            {
                "label": shape.label,
                "type": layer_type(shape.label),
                "block": block_of(shape.label),
                "window": encoding.window,
                "msb_sparsity": encoding.nnz.msb_sparsity,
                "m": shape.m,
                "n": shape.n,
                "k": shape.k,
                "weight_bits": shape.weight_bits,
                "group_size": shape.group_size,
                "has_min": shape.has_min,
                "macs": shape.macs,
                **{scheme: _cost(cost.ops[i]) for scheme, cost in passes.items()},
            }
        )
    return rows


def other_rows(cost: PassCost) -> list[Json]:
    """Describe what is no dense layer: encodings as one, and each kind of vector-unit work.

    Returns
    -------
    list of dict
        Keys ``label part total_cycles dram_bytes``; `part` is ``encode`` or ``vector``.
    """
    encode = {
        "label": "quantize and encode",
        "part": "encode",
        "total_cycles": sum(e.total_cycles for e in cost.encodes),
        "dram_bytes": sum(e.dram_bytes for e in cost.encodes),
    }
    vector = [
        {
            "label": work.label,
            "part": "vector",
            "total_cycles": work.total_cycles,
            "dram_bytes": work.dram_bytes,
        }
        for work in cost.vector
    ]
    return [encode, *vector]


def _cost(op: Any) -> Json:
    return {field: getattr(op, field) for field in _COST_FIELDS}
