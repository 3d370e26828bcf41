"""Set the window of each encoding: given by name, or from calibration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import mutator

from sparqle_tvm import dialect
from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.numerics.window import WINDOWS
from sparqle_tvm.passes._constants import make_const
from sparqle_tvm.passes._match import const_value
from sparqle_tvm.passes._report import PassReport
from sparqle_tvm.passes._rewrite import RewritePass, Rewriter
from sparqle_tvm.passes._weights import group_scale, weight_sums


@mutator
class _Choose(Rewriter):
    def __init__(self, mod: tvm.IRModule, owner: ChooseWindow) -> None:
        super().__init__(mod, owner)
        self.seen: set[str] = set()

    def rewrite(self, call: relax.Call, original: relax.Call) -> relax.Expr | None:
        op = dialect.Op.of(call)
        if isinstance(op, dialect.Encoder):
            return self._choose(op)
        if isinstance(op, dialect.SplitDense | dialect.SplitDenseScaled):
            return self._follow(op)
        return None

    def _choose(self, encoder: dialect.Encoder) -> relax.Expr | None:
        self.seen.update(self.labels(encoder.label))
        wanted = self.owner.windows.get(encoder.label, self.owner.default)
        if wanted is None or wanted == encoder.window:
            return None
        reason = ""
        if encoder.zero_points is not None:
            reason = "its zero point comes at run time, and the window is part of its correction"
        # Scale and group sums are the same in both windows.
        elif self.passed_on(self.bound, len(dialect.PLANES)):
            reason = "its planes are returned or passed on"
        elif encoder.bands is not None:
            reason = "its bands are made for the window it has"
        if reason:
            self.skip("encode", encoder.label, reason)
            return None
        self.count()
        return encoder.changed(window=wanted)

    def finish(self) -> None:
        """Note the labels that were given a window and that no encoding bears."""
        for label in sorted(set(self.owner.windows) - self.seen):
            self.skip("encode", label, "no encoding has this label")

    def _follow(self, dense: dialect.SplitDense | dialect.SplitDenseScaled) -> relax.Expr | None:
        """Give a dense the window of its encoding, and the bias that goes with it."""
        encoder = dialect.Encoder.of(self.value(dense.encoding))
        if encoder is None or encoder.window == dense.window:
            return None
        more = encoder.digits.offset - dense.digits.offset
        if not more:
            return dense.changed(window=encoder.window)
        term = weight_sums(self, dense.weight, group_scale(dense), more)
        return dense.changed(window=encoder.window, offset=self._add(dense.offset, term))

    def _add(self, base: Any, term: Any) -> relax.Expr:
        old, more = const_value(base), const_value(term)
        if old is not None and more is not None:
            return make_const(np.asarray(old + more, dtype=old.dtype))
        return self.emit(relax.op.add(base, term), "bias")


@tvm.transform.module_pass(opt_level=0)
class ChooseWindow(RewritePass):
    """Change the window of encodings, and the bias of the dense ops that read them.

    Both windows hold every integer. Precondition: the zero point is a constant.

    Before::

        enc = R.sparqle.encode(q, k=4, window="unsigned", label="up")
        acc = R.sparqle.split_dense(enc, w, zeros, k=4, window="unsigned", ...)

    After ``ChooseWindow({"up": "signed"})``::

        enc = R.sparqle.encode(q, k=4, window="signed", label="up")
        acc = R.sparqle.split_dense(enc, w, bias, k=4, window="signed", ...)

    Parameters
    ----------
    windows : mapping of label to window, optional
        ``"signed"`` or ``"unsigned"`` for the encodings of these labels.
    default : str, optional
        Window of all other encodings; by default they keep theirs.

    Raises
    ------
    InvalidArgumentError
        For a window that is neither ``"signed"`` nor ``"unsigned"``.
    """

    rewriter = _Choose

    def __init__(
        self,
        windows: Mapping[str, str] | None = None,
        *,
        default: str | None = None,
        report: PassReport | None = None,
    ) -> None:
        given = {**(windows or {}), **({"(default)": default} if default is not None else {})}
        for label, window in given.items():
            if window not in WINDOWS:
                known = " nor ".join(f'"{name}"' for name in WINDOWS)
                raise InvalidArgumentError(f'window "{window}" of {label} is neither {known}')
        super().__init__(report=report)
        self.windows = dict(windows or {})
        self.default = default
