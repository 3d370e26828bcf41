"""Random attention ops, plans and operands, and what the definition makes of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sparqle_tvm.numerics import attention as numerics
from sparqle_tvm.target.accelerator import PRESETS, Accelerator
from sparqle_tvm.target.attention_op import AttentionOp
from sparqle_tvm.target.cost.attention_plan import AttentionPlan
from sparqle_tvm.target.isa.attention_header import AttentionHeader
from sparqle_tvm.target.simulator.attention import attention_tensors

SMALL = replace(
    PRESETS["sparqle/edge"],
    name="small",
    rows=4,
    cols=4,
    lanes=8,
    activation_buffer_bytes=1 << 16,
    weight_buffer_bytes=1 << 16,
    accumulator_buffer_bytes=1 << 16,
)


@dataclass(frozen=True, eq=False)
class Operands:
    """Quantized operands of one call."""

    q: Any
    factors: Any
    keys: Any
    values: Any

    @classmethod
    def random(cls, op: AttentionOp, rows: int, past: int, rng: np.random.Generator) -> Operands:
        """Peaked scores, so that many keys have no probability, and extreme integers."""
        width, count = op.head_dim, past + rows
        sharp = float(rng.choice([0.5, 2.0, 8.0]))
        q = sharp * rng.standard_normal((rows, op.heads, width)).astype(np.float32)
        k = rng.standard_normal((count, op.kv_heads, width)).astype(np.float32)
        v = rng.standard_normal((count, op.kv_heads, width)).astype(np.float32)
        v *= rng.uniform(0.01, 10, (count, 1, 1)).astype(np.float32)
        if rng.random() < 0.2:
            q[rng.random(q.shape) < 0.5] = 0
            v[rng.random(count) < 0.5] = 0
        queries = numerics.quantize_heads(q)
        factors = numerics.row_factors(queries.scale.reshape(-1), width**-0.5)
        return cls(
            queries.values,
            factors.reshape(queries.scale.shape),
            numerics.quantize_heads(k),
            numerics.quantize_heads(v),
        )

    def tensors(self, header: AttentionHeader) -> dict[Any, Any]:
        keys, values = (self.keys, self.values)
        return attention_tensors(
            *(header, self.q, self.factors),
            *((keys.values, keys.scale), (values.values, values.scale)),
        )

    def expected(self, op: AttentionOp) -> Any:
        """What `numerics.attention` makes of them: float32 (rows, heads, head_dim)."""
        rows, count = len(self.q), len(self.keys.values)
        seen = numerics.causal_mask(0, rows, count - rows, count) if op.causal else None
        out = np.empty((rows, op.heads, op.head_dim), np.float32)
        for head in range(op.heads):
            found = numerics.attend_rows(
                np.ascontiguousarray(self.q[:, head]),
                np.ascontiguousarray(self.factors[:, head]),
                *(self.keys, self.values, head // op.group, seen),
            )
            out[:, head] = found.out
        return out


@dataclass(frozen=True)
class Case:
    """An op, how it is cut up, and the sizes of a call."""

    op: AttentionOp
    plan: AttentionPlan
    rows: int
    past: int
    accelerator: Accelerator = SMALL

    @classmethod
    def random(cls, rng: np.random.Generator) -> Case:
        """Odd widths, one row, no past, groups of 1 to 8, all kinds of plans that fit."""
        while True:
            case = cls._drawn(rng)
            if case.plan.fits(case.op, case.accelerator):
                return case

    @classmethod
    def _drawn(cls, rng: np.random.Generator) -> Case:
        rows = int(rng.choice([1, 1, 2, 3, 5, 9, 17, 30]))
        past = int(rng.choice([0, 0, 1, 7, 31, 64, 100]))
        dense = bool(rng.random() < 0.25)
        op = AttentionOp(
            rows=rows + int(rng.integers(3)),
            keys=rows + past + 2 + int(rng.integers(20)),
            kv_heads=int(rng.integers(1, 4)),
            group=int(rng.integers(1, 9)),
            head_dim=int(rng.choice([1, 3, 5, 8, 13, 16, 24, 33])),
            label="case",
            causal=bool(rng.random() < 0.8),
            scheme="dense" if dense else "sparqle",
            window="unsigned" if dense or rng.random() < 0.3 else "signed",
        )
        if rng.random() < 0.5:
            letters = ("".join(rng.choice(["p", "-"], op.kv_heads)) for _ in range(2))
            op = replace(op, key_planes=next(letters), value_planes=next(letters))
        block = int(rng.choice([1, 3, 4, 7, 8, 16]))
        split = int(rng.integers(1, max(SMALL.rows // block, 1) + 1))
        chunk = int(rng.choice([8, 16, 40, 64, 128]))
        stays = bool(rng.random() < 0.4)
        slots = (int(rng.integers(1, 3)) for _ in range(4))
        return cls(op, AttentionPlan(block, chunk, stays, split, *slots), rows, past)
