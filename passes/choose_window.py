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
from sparqle_tvm.passes._value_range import value_range
from sparqle_tvm.passes._weights import window_constant


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
        self.seen.add(encoder.label)
        wanted = self.owner.windows.get(encoder.label, self.owner.default)
        if wanted is None or wanted == encoder.window:
            return None
        bounds = (-float(encoder.qmax), float(encoder.qmax))
        if not encoder.qmax:
            bounds = value_range(encoder.x, self.value)
        reason = ""
        if not WINDOWS[wanted].holds(bounds, encoder.k) and not self.owner.allow_saturation:
            reason = f"values up to {bounds[1]:g} would saturate in the {wanted} window"
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
        offset = dense.offset
        for window, sign in ((dense.window, -1), (encoder.window, 1)):
            if WINDOWS[window].bias(dense.k):
                term = window_constant(self, dense, window)
                offset = self._add(offset, term, sign)
        return dense.changed(window=encoder.window, offset=offset)

    def _add(self, base: Any, term: Any, sign: int) -> relax.Expr:
        old, delta = const_value(base), const_value(term)
        if old is not None and delta is not None:
            return make_const(np.asarray(old + sign * delta, dtype=old.dtype))
        combine = relax.op.add if sign > 0 else relax.op.subtract
        return self.emit(combine(base, term), "bias")


@tvm.transform.module_pass(opt_level=0)
class ChooseWindow(RewritePass):
    """Change the window of encodings, and the bias of the dense ops that read them.

    Going to ``unsigned`` is always exact. Going to ``signed`` is done where the values provably
    fit (119 at most for k = 4), or if saturation is allowed.

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
    allow_saturation : bool
        Whether ``signed`` may be set where values could saturate (lossy).

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
        allow_saturation: bool = False,
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
        self.allow_saturation = allow_saturation
