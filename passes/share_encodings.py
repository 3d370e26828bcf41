"""Encode each tensor once, for all that read it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import tvm
from tvm import relax
from tvm.relax.expr_functor import mutator

from sparqle_tvm import dialect
from sparqle_tvm.passes._rewrite import RewritePass, Rewriter


def _key(op: dialect.Encoder) -> tuple[Any, ...]:
    """What two encodings have to agree in to be one; the group size may differ from none."""
    split = op.k, op.window, op.zero_point, op.zero_points
    return op.NAME, op.x, op.factors, op.bands, op.qmax, *split


@mutator
class _Share(Rewriter):
    roots = ("relax.sparqle.",)

    def __init__(self, mod: tvm.IRModule, owner: Any) -> None:
        super().__init__(mod, owner)
        self.made: dict[tuple[Any, ...], dict[int, relax.Var]] = {}
        self.group_sizes: dict[tuple[Any, ...], set[int]] = {}

    def in_block(self, block: relax.BindingBlock, visit: Callable[..., Any]) -> relax.BindingBlock:
        # A block reads what the blocks around it made, but not what the other branch made.
        outer = self.made, self.group_sizes
        self.made = {key: dict(made) for key, made in self.made.items()}
        self.group_sizes = defaultdict(set)
        for binding in block.bindings:
            encoder = dialect.Encoder.of(binding.value)
            if encoder is not None:
                self.group_sizes[_key(encoder)].add(encoder.group_size)
        rebuilt = visit(block)
        self.made, self.group_sizes = outer
        return rebuilt

    def rewrite(self, call: relax.Call, original: relax.Call) -> relax.Expr | None:
        encoder, before = dialect.Encoder.of(call), dialect.Encoder.of(original)
        if encoder is None or before is None:
            return None
        made = self.made.setdefault(_key(encoder), {})
        group_size = encoder.group_size
        if group_size == 0 and not self.passed_on(self.bound):
            # Nobody minds group sums behind the fields that are read.
            wanted = self.group_sizes[_key(before)] | set(made)
            group_size = min(wanted - {0}, default=0)
        if group_size in made:
            self.count()
        else:
            made[group_size] = self.emit(encoder.changed(group_size=group_size), "encoding")
        return made[group_size]


@tvm.transform.module_pass(opt_level=0)
class ShareEncodings(RewritePass):
    """Let all readers of a tensor (q/k/v, gate/up) share one encoding of it.

    Encodings of the same tensor with the same digits, window, zero point and limits become one;
    one that needs group sums serves those that do not. Encodings that nobody reads are removed.

    Before::

        a = R.sparqle.quantize_encode(x, group_size=32, label="q", ...)
        b = R.sparqle.quantize_encode(x, group_size=32, label="k", ...)
        q, k = dense(a, ..), dense(b, ..)

    After::

        a = R.sparqle.quantize_encode(x, group_size=32, label="q", ...)
        q, k = dense(a, ..), dense(a, ..)
    """

    rewriter = _Share
