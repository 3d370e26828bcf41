"""Turn attention in float32 into attention in integers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tvm
from tvm import relax
from tvm.relax import op as R
from tvm.relax.expr_functor import mutator

from sparqle_tvm import dialect
from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.numerics.kv_cache import PLAIN_INT8, KvStorage
from sparqle_tvm.passes._attention_form import AttentionForm, NotRecognisedError, Recogniser
from sparqle_tvm.passes._match import axes_of, dims_of, op_name, same_dims
from sparqle_tvm.passes._report import PassReport
from sparqle_tvm.passes._rewrite import RewritePass, Rewriter, has_mark

FLOAT_ATTENTION = "sparqle.float_attention"
"""Attribute of a function whose attention stays in float32."""

_FUSED = ("relax.nn.attention", "relax.nn.attention_bias")


@mutator
class _Quantize(Rewriter):
    def __init__(self, mod: tvm.IRModule, owner: Any) -> None:
        super().__init__(mod, owner)
        self.recogniser = Recogniser(self)
        self.left_alone = False
        # Results with heads first, and what they are permuted from.
        self.heads_first: dict[Any, relax.Var] = {}

    def begin(self, name: str, func: relax.Function) -> None:
        super().begin(name, func)
        self.left_alone = has_mark(func, FLOAT_ATTENTION)
        self.heads_first = {}

    def rewrite(self, call: relax.Call, original: relax.Call) -> relax.Expr | None:
        name = op_name(call)
        if self.left_alone:
            return None
        if name == "relax.permute_dims":
            return self._permuted_back(call)
        if name != "relax.matmul" and name not in _FUSED:
            return None
        label = self.label
        try:
            if name == "relax.matmul":
                form = self.recogniser.composed(call)
            else:
                form = self.recogniser.fused(call)
            if form is None:
                return None
            attended = self._attention(form, label)
        except (NotRecognisedError, InvalidArgumentError) as reason:
            self.skip(name.removeprefix("relax."), label, str(reason))
            return None
        self.count()
        return attended if name in _FUSED else self._arranged(attended, form)

    def _attention(self, form: AttentionForm, label: str) -> relax.Var:
        """The op, (.., T, H, Dv)."""
        storage: KvStorage = self.owner.storage.get(label, self.owner.default)
        call = dialect.attention(
            *(form.q, form.k, form.v, form.mask),
            causal=int(form.causal),
            scale=form.scale,
            key_levels=storage.keys.levels,
            value_levels=storage.values.levels,
            key_planes=storage.keys.planes,
            value_planes=storage.values.planes,
            label=label,
        )
        return self.emit(self.builder_.normalize(call), label)

    def _arranged(self, attended: relax.Var, form: AttentionForm) -> relax.Expr:
        """The result as the matmul had it: heads first, perhaps those of a group as rows."""
        axes = [0, 2, 1, 3] if len(dims_of(attended)) == 4 else [1, 0, 2]
        heads_first = self.emit(R.permute_dims(attended, axes), "heads_first")
        self.heads_first[heads_first] = attended
        return heads_first if form.grouped is None else R.reshape(heads_first, form.grouped)

    def _permuted_back(self, call: relax.Call) -> relax.Expr | None:
        """What was permuted to have heads first, if all that the module does is to undo that."""
        source, dims = call.args[0], dims_of(call.args[0])
        while source not in self.heads_first:
            value: Any = self.lookup_binding(source) if isinstance(source, relax.Var) else None
            if op_name(value) == "relax.reshape":
                source = value.args[0]
            elif isinstance(value, relax.Var):
                source = value
            else:
                return None
        axes = axes_of(call.attrs.axes)
        undone = axes == ([0, 2, 1, 3] if len(dims) == 4 else [1, 0, 2])
        if not undone or not same_dims(dims, dims_of(source)):
            return None
        return self.heads_first[source]


@tvm.transform.module_pass(opt_level=0)
class QuantizeAttention(RewritePass):
    """Replace attention in float32 by ``R.sparqle.attention`` (lossy: 8 bits, see its numerics).

    Known are ``R.nn.attention`` (causal or not, a bias that is a mask), and matmul, softmax and
    matmul: 3-D or 4-D, with factors, masks, repeated keys and values, or the heads of a group as
    rows. A mask that compares positions, or is a triangle, becomes the attribute `causal`.
    Functions with the attribute `FLOAT_ATTENTION` keep theirs.

    Precondition: float32; heads and channels are static.

    Parameters
    ----------
    storage : mapping of str to KvStorage
        How keys and values are stored, by the label of the attention (the name of the variable
        that its result is bound to).
    default : KvStorage
        The same for all others.

    Before::

        s = R.matmul(R.permute_dims(R.multiply(q, R.const(0.125)), [1, 0, 2]),
                     R.permute_dims(k, [1, 2, 0]))
        p = R.nn.softmax(R.where(mask, s, R.const(-3.4e38)), axis=-1)
        y = R.permute_dims(R.matmul(p, R.permute_dims(v, [1, 0, 2])), [1, 0, 2])

    After::

        y = R.sparqle.attention(q, k, v, mask, causal=0, scale=0.125, ...)
    """

    rewriter = _Quantize

    def __init__(
        self,
        storage: Mapping[str, KvStorage] | None = None,
        *,
        default: KvStorage = PLAIN_INT8,
        report: PassReport | None = None,
    ) -> None:
        super().__init__(report=report)
        self.storage, self.default = storage or {}, default
