"""Set the window of each encoding: given by name, or from calibration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import mutator

from sparqle_tvm import dialect
from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.passes._constants import make_const
from sparqle_tvm.passes._report import PassReport
from sparqle_tvm.passes._rewrite import (
    Rewriter,
    apply_rewriter,
    const_value,
    count_field_readers,
)
from sparqle_tvm.passes._value_range import value_range
from sparqle_tvm.passes._weights import bias_constant, offset_constant
from sparqle_tvm.passes.split_precision import exact_window

WINDOWS = ("signed", "unsigned")


@mutator
class _Choose(Rewriter):
    def __init__(
        self,
        mod: tvm.IRModule,
        report: PassReport,
        windows: Mapping[str, str],
        default: str | None,
        allow_saturation: bool,
    ) -> None:
        super().__init__(mod, report)
        self.followers: Counter[Any] = Counter()
        self.seen: set[str] = set()
        self.windows = windows
        self.default = default
        self.allow_saturation = allow_saturation

    def visit_function_(self, func: relax.Function) -> relax.Expr:
        # Scale and group sums are the same in both windows.
        self.followers = count_field_readers(func, dialect.SCALE_FIELD)
        return super().visit_function_(func)

    def rewrite(self, call: relax.Call, original: relax.Call) -> relax.Expr | None:
        if dialect.is_op(call, "encode", "quantize_encode"):
            return self._choose(call)
        if dialect.is_op(call, "split_dense", "split_dense_scaled"):
            return self._follow(call)
        return None

    def _choose(self, call: relax.Call) -> relax.Expr | None:
        attrs = dialect.attributes(call)
        self.seen.add(attrs["label"])
        wanted = self.windows.get(attrs["label"], self.default)
        if wanted is None or wanted == attrs["window"]:
            return None
        if "qmax" in attrs:
            bounds = (-float(attrs["qmax"]), float(attrs["qmax"]))
        else:
            bounds = value_range(call.args[0], self.value)
        exact = wanted == "unsigned" or exact_window(bounds, attrs["k"]) == "signed"
        if not exact and not self.allow_saturation:
            reason = f"values up to {bounds[1]:g} would saturate in the signed window"
            self._skip(attrs["label"], reason)
            return None
        if self.uses[self.bound] != self.followers[self.bound]:
            self._skip(attrs["label"], "its planes are returned or passed on")
            return None
        if len(call.args) > 2:
            self._skip(attrs["label"], "its bands are made for the window it has")
            return None
        self.report.rewrite("ChooseWindow")
        return dialect.with_attributes(call, window=wanted)

    def _skip(self, label: str, reason: str) -> None:
        self.report.skip("ChooseWindow", "encode", label, reason)

    def report_unknown_labels(self) -> None:
        """Note the labels that were given a window and that no encoding bears."""
        for label in sorted(set(self.windows) - self.seen):
            self._skip(label, "no encoding has this label")

    def _follow(self, call: relax.Call) -> relax.Expr | None:
        """Give a dense the window of its encoding, and the bias that goes with it."""
        encoding, attrs = self.value(call.args[0]), dialect.attributes(call)
        if not dialect.is_op(encoding, "encode", "quantize_encode"):
            return None
        window = dialect.attributes(encoding)["window"]
        if window == attrs["window"]:
            return None
        args = list(call.args)
        scaled = dialect.is_op(call, "split_dense_scaled")
        place = 4 if scaled else 2
        grouped = scaled and attrs["group_size"] > 0
        if grouped:
            term = offset_constant(self, args[2], args[3], attrs["k"], "signed")
        else:
            term = bias_constant(self, args[2 if scaled else 1], attrs["k"], "signed")
        args[place] = self._add(args[place], term, 1 if window == "signed" else -1)
        return dialect.with_attributes(call, args, window=window)

    def _add(self, base: Any, term: Any, sign: int) -> relax.Expr:
        old, delta = const_value(base), const_value(term)
        if old is not None and delta is not None:
            return make_const(np.asarray(old + sign * delta, dtype=old.dtype))
        combine = relax.op.add if sign > 0 else relax.op.subtract
        return self.emit(combine(base, term), "bias")


@tvm.transform.module_pass(opt_level=0, name="ChooseWindow")
class ChooseWindow:
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
    report : PassReport, optional
        Takes the number of changes and what was skipped.

    Raises
    ------
    InvalidArgumentError
        For a window that is neither ``"signed"`` nor ``"unsigned"``.
    """

    def __init__(
        self,
        windows: Mapping[str, str] | None = None,
        *,
        default: str | None = None,
        allow_saturation: bool = False,
        report: PassReport | None = None,
    ) -> None:
        for label, window in {**(windows or {}), "(default)": default or "signed"}.items():
            if window not in WINDOWS:
                raise InvalidArgumentError(
                    f'window "{window}" of {label} is neither "signed" nor "unsigned"'
                )
        self.windows = dict(windows or {})
        self.default = default
        self.allow_saturation = allow_saturation
        self.report = report if report is not None else PassReport()

    def transform_module(self, mod: tvm.IRModule, _ctx: Any) -> tvm.IRModule:
        """Apply the pass to every Relax function of a copy of ``mod``."""
        chooser = _Choose(mod, self.report, self.windows, self.default, self.allow_saturation)
        after = apply_rewriter(mod, self.report, lambda _: chooser)
        chooser.report_unknown_labels()
        return after
