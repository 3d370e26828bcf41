"""Hand attention in integers to the accelerator: generate programs, and call them."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax, tirx
from tvm.relax.expr_functor import mutator

from sparqle_tvm import dialect
from sparqle_tvm.errors import InvalidArgumentError, TargetError
from sparqle_tvm.numerics.attention import HEAD_LEVELS
from sparqle_tvm.numerics.kv_cache import HeadStorage
from sparqle_tvm.passes._match import dims_of
from sparqle_tvm.passes._programs import programs_function
from sparqle_tvm.passes._report import PassReport
from sparqle_tvm.passes._rewrite import RewritePass, Rewriter
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.attention_op import AttentionOp
from sparqle_tvm.target.compile.attention import attention_program
from sparqle_tvm.target.cost.attention_choice import choose_plan, choose_scheme
from sparqle_tvm.target.cost.scheme_choice import Planes
from sparqle_tvm.target.isa.attention_header import AttentionHeader
from sparqle_tvm.target.program import Program
from sparqle_tvm.target.program.bundle import pack_bundle

LAUNCH = "sparqle.launch_attention"

ROW_BUCKETS = (1, 64, 512, 4096)
KEY_BUCKETS = tuple(2**i for i in range(9, 16))
"""Sizes that programs are made for where rows and keys are symbolic: up to 32,768 keys, by the
factor two because scores of all keys of a block lie on chip."""


@mutator
class _Offload(Rewriter):
    def __init__(self, mod: tvm.IRModule, owner: OffloadAttention) -> None:
        super().__init__(mod, owner)
        self.module = mod
        self.bundles: list[relax.Expr] = []

    def rewrite(self, call: relax.Call, original: relax.Call) -> relax.Expr | None:
        op = dialect.Attention.of(call)
        if op is None:
            return None
        try:
            ops = self._ops_of(op, call)
            bundle = self.owner.bundle(*ops)
        except (InvalidArgumentError, TargetError) as error:
            self.skip(str(call.op.name), op.label, str(error))
            return None
        if not any(bundle.same_as(other) for other in self.bundles):
            self.bundles.append(bundle)
        dense = self.owner.left_dense(*ops)
        if dense:
            self.skip(str(call.op.name), op.label, f"left dense {dense}")
        self.count()
        levels = (HEAD_LEVELS, op.key_levels, op.value_levels)
        operands = [
            self._stored(x, most, op.label)
            for x, most in zip((op.q, op.k, op.v), levels, strict=True)
        ]
        scale = relax.prim_value(tirx.FloatImm("float64", op.scale))
        label = tvm.ir.StringImm(op.label)
        return relax.op.call_dps_packed(
            LAUNCH, relax.Tuple([label, bundle, scale, *operands]), out_ty=call.ty
        )

    def added_functions(self) -> list[tuple[relax.GlobalVar, tvm.ir.BaseFunc]]:
        """One that returns all bundles."""
        return programs_function(self.module, self.bundles)

    def _ops_of(self, op: dialect.Attention, call: relax.Call) -> list[AttentionOp]:
        """Sizes of an attention; of what is symbolic those that there are programs for.

        Raises InvalidArgumentError if there are no programs for such attention.
        """
        if op.mask is not None:
            raise InvalidArgumentError("programs know no mask but the causal one")
        *lead, tokens, heads, channels = dims_of(op.q)
        keys, kv_heads = dims_of(op.k)[-3:-1]
        if [int(dim) for dim in lead if isinstance(dim, int | tirx.IntImm)] != [1] * len(lead):
            raise InvalidArgumentError("programs take one sequence at a time")
        if int(dims_of(call)[-1]) != int(channels):
            raise InvalidArgumentError("values have other channels than keys")
        row_counts, key_counts = (
            [int(dim)] if isinstance(dim, int | tirx.IntImm) else buckets
            for dim, buckets in ((tokens, ROW_BUCKETS), (keys, KEY_BUCKETS))
        )
        sizes = (int(kv_heads), int(heads) // int(kv_heads), int(channels))
        cache: dict[str, Any] = {
            "key_bits": HeadStorage(op.key_levels).plain_bits,
            "value_bits": HeadStorage(op.value_levels).plain_bits,
            "key_planes": op.key_planes,
            "value_planes": op.value_planes,
        }
        return [
            AttentionOp(rows, count, *sizes, label=op.label, causal=bool(op.causal), **cache)
            for count in key_counts
            for rows in row_counts
            if rows <= count
        ]

    def _stored(self, x: relax.Expr, levels: int, label: str) -> relax.Expr:
        """Integers and scales side by side, as a cache stores them."""
        if str(x.ty.dtype) == "int8":
            return x
        call = dialect.quantize_heads(x, levels=levels, label=label)
        return self.emit(self.builder_.normalize(call), label)


@tvm.transform.module_pass(opt_level=0)
class OffloadAttention(RewritePass):
    """Replace attention in integers by calls of accelerator programs.

    Programs are made for some numbers of rows and keys each, as far as scores of a block stay on
    chip; equal ops share them. Those that take less time in dense passes have these, with the same
    results, and are reported. Attention with a mask of its own, of several sequences, or of more
    keys than fit stays on the host, correct, and is reported. A function ``sparqle_programs`` that
    returns all programs is added.

    Precondition: after `QuantizeAttention`.

    Before::

        y = R.sparqle.attention(q, k, v, causal=1, scale=0.125, label="attn", ..)

    After::

        q1 = R.sparqle.quantize_heads(q, levels=127, ..)
        y = R.call_dps_packed("sparqle.launch_attention", (R.str("attn"), programs,
                              R.prim_value(0.125), q1, k, v), out_ty=R.Tensor((n, H, D), ..))

    Parameters
    ----------
    accelerator : Accelerator
        The machine.
    planes : {"cost", "always"}
        Whether attention is left dense by cost, or never.
    """

    rewriter = _Offload

    def __init__(
        self,
        accelerator: Accelerator,
        *,
        planes: Planes = "cost",
        report: PassReport | None = None,
    ) -> None:
        super().__init__(report=report)
        self.accelerator, self.planes = accelerator, planes
        self._bundles: dict[tuple[AttentionOp, ...], relax.Expr] = {}
        self._dense: dict[tuple[AttentionOp, ...], list[str]] = {}

    def bundle(self, *ops: AttentionOp) -> relax.Expr:
        """The programs of an op for these sizes, a (bytes,) uint8 constant, made once.

        Raises
        ------
        TargetError
            If the smallest one does not fit the buffers, or digits have another width.
        """
        if ops not in self._bundles:
            data = np.frombuffer(pack_bundle(self._programs(ops)), dtype=np.uint8)
            self._bundles[ops] = relax.const(data)
        return self._bundles[ops]

    def left_dense(self, *ops: AttentionOp) -> str:
        """Which of the programs of `bundle` take dense passes, and why; empty: none."""
        return ", ".join(self._dense.get(ops, ()))

    def _programs(self, ops: tuple[AttentionOp, ...]) -> list[Program[AttentionHeader]]:
        programs: list[Program[Any]] = []
        reason: TargetError | None = None
        for some in ops:
            try:
                chosen, left = some, None
                if self.planes == "cost":
                    chosen, left = choose_scheme(some, self.accelerator)
                plan = choose_plan(chosen, self.accelerator)
            except TargetError as error:
                reason = error
                continue
            if left is not None:
                self._dense.setdefault(ops, []).append(
                    f"at {some.rows} rows and {some.keys} keys ({left.reason})"
                )
            # Verified for the sizes of a call when they come.
            programs.append(attention_program(chosen, self.accelerator, plan, verify=False))
        if not programs:
            raise reason or InvalidArgumentError("there are more rows than keys")
        return programs
