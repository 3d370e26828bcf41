"""Hand the split dense ops to the accelerator: generate programs, and call them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import mutator

from sparqle_tvm import dialect
from sparqle_tvm.errors import CompileError, InvalidArgumentError, TargetError
from sparqle_tvm.passes._report import PassReport
from sparqle_tvm.passes._rewrite import (
    Rewriter,
    apply_rewriter,
    int_shape,
    relax_functions,
)
from sparqle_tvm.passes._value_range import value_range
from sparqle_tvm.passes._weights import remaining_offset
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.compile.buckets import buckets
from sparqle_tvm.target.compile.library import ProgramLibrary, Schedules
from sparqle_tvm.target.compile.schedule import Decisions
from sparqle_tvm.target.op import DenseOp, Output
from sparqle_tvm.target.program.bundle import PROGRAMS_FUNCTION, pack_bundle
from sparqle_tvm.target.simulator.dram import pack_weights

LAUNCH = "sparqle.launch"
# What the drain of each op makes.
DENSE_OPS: Mapping[str, Output] = MappingProxyType(
    {"split_dense": "int32", "split_dense_scaled": "float32", "split_dense_encoded": "encoded"}
)
OUT_FORMAT = ("out_window", "out_zero", "out_low", "out_high")


# Programs of an op: a spec for each row count.
Specs = tuple[DenseOp, ...]


@dataclass(frozen=True)
class _Op:
    """What of a split dense op the accelerator has to know."""

    attrs: dict[str, Any]
    weight: Any
    offset: relax.Expr | None
    specs: Specs


@mutator
class _Offload(Rewriter):
    """Replaces the ops; while `planning`, only notes which ops read each encoding."""

    def __init__(
        self, mod: tvm.IRModule, report: PassReport, owner: OffloadDense, planning: bool
    ) -> None:
        super().__init__(mod, report)
        self.module = mod
        self.owner = owner
        self.planning = planning
        self.bundles: list[relax.Expr] = []

    def rewrite(self, call: relax.Call, original: relax.Call) -> relax.Expr | None:
        if not dialect.is_op(call, *DENSE_OPS):
            return None
        label = dialect.attributes(call)["label"]
        try:
            op = self._describe(call)
            if self.planning:
                self.owner.readers.setdefault(original.args[0], []).append(op.specs)
                return None
            drained = self.bound if dialect.is_op(call, "split_dense_encoded") else None
            bundle = self.owner.bundle(op.specs, original.args[0], drained)
        except (CompileError, InvalidArgumentError, TargetError) as error:
            if not self.planning:
                self.report.skip("OffloadDense", str(call.op.name), label, str(error))
            return None
        if not any(bundle.same_as(other) for other in self.bundles):
            self.bundles.append(bundle)
        self.report.rewrite("OffloadDense")
        return relax.op.call_dps_packed(
            LAUNCH,
            relax.Tuple([tvm.ir.StringImm(label), bundle, *self._arguments(call, op)]),
            out_ty=list(call.ty.fields) if isinstance(call.ty, relax.TupleType) else call.ty,
        )

    def added_functions(self) -> list[tuple[relax.GlobalVar, tvm.ir.BaseFunc]]:
        """One that returns all bundles: constants of an executable cannot be reached otherwise."""
        known = dict(relax_functions(self.module))
        before = [(gv, f) for gv, f in known.items() if gv.name_hint == PROGRAMS_FUNCTION]
        fields = [field for _, function in before for field in function.body.body.fields]
        builder = relax.BlockBuilder()
        with builder.function(PROGRAMS_FUNCTION, []):
            builder.emit_func_output(relax.Tuple([*fields, *self.bundles]))
        ((made, function),) = builder.get().functions_items()
        return [(before[0][0] if before else made, function)]

    def _describe(self, call: relax.Call) -> _Op:
        attrs = dialect.attributes(call)
        weight = call.args[1 if dialect.is_op(call, "split_dense") else 2]
        attrs["weight_bits"], signed = self._weight_format(weight, attrs["weight_bits"])
        offset = remaining_offset(self, call)
        return _Op(
            attrs, weight, offset, self._specs(call, attrs, weight, signed, offset is not None)
        )

    def _weight_format(self, weight: Any, bits: int) -> tuple[int, bool]:
        """Bits of a stored weight, and whether they are signed.

        An op of 4 bits means -8..7 or 0..15; where nothing tells which, the int8 are kept whole.
        """
        low, high = value_range(weight, self.value)
        half = 1 << (bits - 1)
        if -half <= low and high < half:
            return bits, True
        return (bits, False) if low >= 0 and high < 2 * half else (8, True)

    def _specs(
        self, call: relax.Call, attrs: dict[str, Any], weight: Any, signed: bool, has_offset: bool
    ) -> Specs:
        outputs, columns = int_shape(weight)
        output = DENSE_OPS[str(call.op.name).removeprefix("relax.sparqle.")]
        minimum, row_order = None, None
        if output == "float32":
            minimum, row_order = dialect.scaled_operands(call)
        outs = {name: attrs[name] for name in OUT_FORMAT if output == "encoded"}
        return tuple(
            DenseOp(
                m=rows,
                n=outputs,
                k=columns,
                label=attrs["label"],
                digit_bits=attrs["k"],
                window=attrs["window"],
                weight_bits=attrs["weight_bits"],
                weight_signed=signed,
                group_size=attrs.get("group_size", 0),
                has_min=minimum is not None or (output == "encoded" and len(call.args) > 6),
                has_offset=has_offset,
                output=output,
                block_rows=self._block_rows(row_order, rows),
                # The chunk of encoded outputs is chosen with the tiles.
                out_chunk=outputs if output == "encoded" else 0,
                **outs,
            )
            for rows in self._row_counts(call)
        )

    def _block_rows(self, row_order: relax.Expr | None, rows: int) -> int:
        """Rows that the encoding of an op of (at most) so many rows sorted together."""
        sorting = self.value(row_order)
        if row_order is None or not dialect.is_op(sorting, "balance_rows"):
            return 0
        attrs = dialect.attributes(sorting)
        return attrs["block_rows"] if rows >= attrs["min_rows"] else 0

    def _row_counts(self, call: relax.Call) -> list[int]:
        """The number of rows if it is static, else every bucket: the smallest that fits runs."""
        lead = list(call.args[0].ty.fields[0].shape.values)[:-1]
        if all(hasattr(d, "value") for d in lead):
            return [max(1, int(np.prod([int(d) for d in lead])))]
        return buckets(self.owner.accelerator.rows)

    def _packed(self, weight: Any, bits: int) -> relax.Expr:
        """A constant weight as it lies in DRAM; any other is packed when the op is launched."""
        values = self.constants.value(weight)
        if values is None:
            return weight
        key = (self.constants.source(weight), "packed", bits)
        return self.constants.once(key, lambda: pack_weights(values, bits))

    def _arguments(self, call: relax.Call, op: _Op) -> list[relax.Expr]:
        """Planes, weight, offset, scales, minima, group sums, row order, scale of the outputs."""
        encoding = call.args[0]
        planes = [self.emit(relax.TupleGetItem(encoding, i)) for i in range(4)]
        offsets = [] if op.offset is None else [op.offset]
        operands = [*planes, self._packed(op.weight, op.attrs["weight_bits"]), *offsets]
        if dialect.is_op(call, "split_dense"):
            return operands
        others = list(call.args[5:])
        if dialect.is_op(call, "split_dense_encoded"):
            others.append(others.pop(0))
        return [*operands, call.args[1], call.args[3], *others]


@tvm.transform.module_pass(opt_level=0, name="OffloadDense")
class OffloadDense:
    """Replace split dense ops by calls of accelerator programs.

    Every op is scheduled and compiled to a program for its row count (for some row counts, if
    that is symbolic); equal ops share them. The accelerator undoes the bias of a window's digits
    itself: of the offset only what is left besides that (a bias) is handed over, if anything is.
    What the code generator does not take stays on the host, correct, and is reported. Ops with a
    row order work on sorted rows. A function ``sparqle_programs`` that returns all programs is
    added.

    Precondition: the module is in split-precision form.

    Before::

        y = R.sparqle.split_dense_scaled(enc, s, w, d, offset, k=4, label="up", ...)

    After::

        y = R.call_dps_packed("sparqle.launch", (R.str("up"), programs, enc[0], enc[1], enc[2],
                              enc[3], w, s, d), out_ty=R.Tensor((1, n, N), "float32"))

    Parameters
    ----------
    accelerator : Accelerator
        The machine.
    tuned : Schedules, optional
        Schedules to prefer to the default ones; the report names the ops that have some.
    report : PassReport, optional
        Takes the number of ops offloaded and what was left on the host.

    Attributes
    ----------
    library : ProgramLibrary
        After the pass: every program that was generated.
    readers : dict of relax.Var to list of tuple of DenseOp
        The ops that read each encoding, each with a spec for every row count. They share the K
        chunk, because the MSB digits lie in DRAM chunk by chunk.
    chunks : dict of relax.Var to tuple of int
        K chunk, for every row count, of the encodings that a program makes.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        *,
        tuned: Schedules | None = None,
        report: PassReport | None = None,
    ) -> None:
        self.accelerator = accelerator
        self.report = report if report is not None else PassReport()
        self.library = ProgramLibrary(accelerator, tuned)
        self.readers: dict[Any, list[Specs]] = {}
        self.chunks: dict[Any, tuple[int, ...]] = {}
        self._bundles: dict[tuple[tuple[DenseOp, Decisions], ...], relax.Expr] = {}

    def transform_module(self, mod: tvm.IRModule, _ctx: Any) -> tvm.IRModule:
        """Apply the pass to every Relax function of a copy of ``mod``."""
        self.readers, self.chunks = {}, {}
        apply_rewriter(mod, self.report, lambda m: _Offload(m, self.report, self, True))
        return apply_rewriter(mod, self.report, lambda m: _Offload(m, self.report, self, False))

    def bundle(self, specs: Specs, encoding: Any, drained: Any) -> relax.Expr:
        """The programs of ``specs`` as a (bytes,) uint8 constant, made once.

        ``encoding`` is the variable they read, ``drained`` that of the encoding they make or None.
        """
        groups = list(zip(*self.readers[encoding], strict=True))
        chunks = self.chunks.get(encoding)
        if chunks is not None or any(reader.output == "encoded" for reader in groups[0]):
            # The chunk between two programs is chosen with the tiles of both, not by tuning.
            after = list(zip(*self.readers.get(drained, []), strict=True)) or [()] * len(specs)
            key = tuple(
                self.library.chained(spec, group, chunk, readers)
                for spec, group, chunk, readers in zip(
                    specs, groups, chunks or [None] * len(specs), after, strict=True
                )
            )
        else:
            together = list(zip(specs, groups, strict=True))
            if any(self.library.from_database(spec, group) is not None for spec, group in together):
                self.report.note_tuned(specs[0].label)
            key = tuple((spec, self.library.decisions(spec, group)) for spec, group in together)
        if key not in self._bundles:
            data = pack_bundle([self.library.program(*chosen) for chosen in key])
            self._bundles[key] = relax.const(np.frombuffer(data, np.uint8), "uint8")
        if drained is not None:
            self.chunks[drained] = tuple(spec.out_chunk for spec, _ in key)
        return self._bundles[key]
