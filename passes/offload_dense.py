"""Hand the split dense ops to the accelerator: generate programs, and call them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import mutator

from sparqle_tvm import dialect
from sparqle_tvm.dialect.weights import PACK_WEIGHTS
from sparqle_tvm.errors import CompileError, InvalidArgumentError, TargetError
from sparqle_tvm.passes._dense_specs import Specs, describe
from sparqle_tvm.passes._match import int_shape
from sparqle_tvm.passes._programs import programs_function
from sparqle_tvm.passes._report import PassReport
from sparqle_tvm.passes._rewrite import RewritePass, Rewriter, apply_rewriter
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.compile.library import ProgramLibrary, Schedules
from sparqle_tvm.target.cost.expected import TYPICAL_DENSITY
from sparqle_tvm.target.cost.factors import NO_FACTORS, EncodeFactors
from sparqle_tvm.target.cost.schedule import Decisions
from sparqle_tvm.target.cost.scheme_choice import Planes, left_dense, scheme_questions
from sparqle_tvm.target.cost.tiling import choose_together
from sparqle_tvm.target.op import DenseOp
from sparqle_tvm.target.program.bundle import pack_bundle
from sparqle_tvm.target.simulator.dram import pack_weights

LAUNCH = "sparqle.launch"


@mutator
class _Plan(Rewriter):
    """Only notes which ops read each encoding."""

    def rewrite(self, call: relax.Call, original: relax.Call) -> relax.Expr | None:
        op, before = dialect.Dense.of(call), dialect.Dense.of(original)
        if op is not None and before is not None:
            try:
                specs, _ = describe(self, op, self.owner.accelerator)
            except (CompileError, InvalidArgumentError, TargetError):
                return None
            self.owner.readers.setdefault(before.encoding, []).append(specs)
            made = dialect.Encoder.of(self.value(op.encoding))
            self.owner.expected[before.encoding] = self.owner.density(made)
        return None


@mutator
class _Offload(Rewriter):
    def __init__(self, mod: tvm.IRModule, owner: OffloadDense) -> None:
        super().__init__(mod, owner)
        self.module = mod
        self.bundles: list[relax.Expr] = []

    def rewrite(self, call: relax.Call, original: relax.Call) -> relax.Expr | None:
        op, before = dialect.Dense.of(call), dialect.Dense.of(original)
        if op is None or before is None:
            return None
        drained = self.bound if isinstance(op, dialect.SplitDenseEncoded) else None
        made = dialect.Encoder.of(self.value(op.encoding))
        try:
            specs, offset = describe(self, op, self.owner.accelerator)
            bundle, left, ordered = self.owner.bundle(specs, before.encoding, drained, made)
        except (CompileError, InvalidArgumentError, TargetError) as error:
            self.skip(str(call.op.name), op.label, str(error))
            return None
        if not any(bundle.same_as(other) for other in self.bundles):
            self.bundles.append(bundle)
        self.count()
        if op.label in self.owner.report.tuned:
            for label in self.labels(op.label):
                self.owner.report.note_tuned(label)
        operands = self._operands(op, specs[0], offset, op.row_order if ordered else None)
        if left:
            self.skip(str(call.op.name), op.label, f"left dense {left}")
            # What the planes stand for does not stand in a program that multiplies integers.
            operands = [tvm.ir.StringImm(op.window), *operands]
        return relax.op.call_dps_packed(
            LAUNCH,
            relax.Tuple([tvm.ir.StringImm(op.label), bundle, *operands]),
            out_ty=list(call.ty.fields) if isinstance(call.ty, relax.TupleType) else call.ty,
        )

    def added_functions(self) -> list[tuple[relax.GlobalVar, tvm.ir.BaseFunc]]:
        """One that returns all bundles."""
        return programs_function(self.module, self.bundles)

    def _packed(self, weight: Any, bits: int) -> relax.Expr:
        """A weight as it lies in DRAM; one that is computed is packed when the op is launched."""
        values = self.constants.value(weight)
        if values is None and self.declared(weight):
            rows, columns = int_shape(weight)
            packed = relax.TensorType((rows, -(-columns * bits // 8)), "uint8")
            given = relax.Tuple([weight, relax.prim_value(bits)])
            return self.emit(relax.op.call_dps_packed(PACK_WEIGHTS, given, out_ty=packed), "packed")
        if values is None:
            return weight
        key = (self.constants.source(weight), "packed", bits)
        return self.constants.once(key, lambda: pack_weights(values, bits))

    def _operands(
        self,
        op: dialect.Dense,
        spec: DenseOp,
        offset: relax.Expr | None,
        order: relax.Expr | None,
    ) -> list[relax.Expr]:
        """Planes, weight, offset, scales, minima, group sums, zero points, order, the drain's."""
        planes = [self.emit(dialect.plane(op.encoding, name)) for name in dialect.PLANES]
        scales = [op.act_scale, op.w_scale] if isinstance(op, dialect.ScaledDense) else []
        drain: tuple[relax.Expr | None, ...] = ()
        if isinstance(op, dialect.SplitDenseEncoded):
            step = relax.const(op.mid_scale, "float32") if op.mid_scale else None
            drain = (op.bias, step, op.out_scale)
        zeros = None
        if spec.row_zeros and op.zero_points is not None:
            zeros = self.emit(op.zero_points, "zero_points")
        others = (offset, *scales, op.w_min, op.group_sums, zeros, order, *drain)
        weight = self._packed(op.weight, spec.weight_bits)
        return [*planes, weight, *(operand for operand in others if operand is not None)]


@tvm.transform.module_pass(opt_level=0)
class OffloadDense(RewritePass):
    """Replace split dense ops by calls of accelerator programs.

    Every op is scheduled and compiled to a program for its row count (for some row counts, if
    that is symbolic); equal ops share them. The accelerator undoes the bias of a window's digits
    itself: of the offset only what is left besides that (a bias) is handed over, if anything is.
    What the code generator does not take stays on the host, correct, and is reported. Ops with a
    row order work on sorted rows. Zero points that are known at run time only come along with the
    encoding; digits centred on them are multiplied as they are. Where planes would take more time
    than integers of 2k bits (`target.cost.scheme_choice`), the program of a row count takes two
    dense passes, and the report says so. A function ``sparqle_programs`` that returns all programs
    is added.

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
    densities : mapping of str to float, optional
        Share of stored MSB digits to expect of encodings, by label; by default a typical one.
    planes : {"cost", "always"}
        ``always``: no program takes dense passes, whatever it costs.

    Attributes
    ----------
    library : ProgramLibrary
        After the pass: every program that was generated.
    readers : dict of relax.Var to list of tuple of DenseOp
        The ops that read each encoding, each with a spec for every row count. They share the K
        chunk, because the MSB digits lie in DRAM chunk by chunk.
    expected : dict of relax.Var to float
        Share of stored digits that is expected of each encoding.
    chunks : dict of relax.Var to tuple of int
        K chunk, for every row count, of the encodings that a program makes.
    """

    rewriter = _Offload

    def __init__(
        self,
        accelerator: Accelerator,
        *,
        tuned: Schedules | None = None,
        densities: Mapping[str, float] | None = None,
        planes: Planes = "cost",
        report: PassReport | None = None,
    ) -> None:
        super().__init__(report=report)
        self.accelerator = accelerator
        self.densities, self.planes = dict(densities or {}), planes
        self.library = ProgramLibrary(accelerator, tuned)
        self.readers: dict[Any, list[Specs]] = {}
        self.expected: dict[Any, float] = {}
        self.chunks: dict[Any, tuple[int, ...]] = {}
        self._bundles: dict[tuple[tuple[DenseOp, Decisions], ...], relax.Expr] = {}
        self._cheapest: dict[Any, tuple[list[tuple[DenseOp, Specs]], str]] = {}

    def transform_module(self, mod: tvm.IRModule, _ctx: Any) -> tvm.IRModule:
        """Apply the pass to every Relax function of a copy of ``mod``."""
        self.readers, self.expected, self.chunks = {}, {}, {}
        apply_rewriter(mod, _Plan(mod, self))
        if self.planes == "cost":
            # All schedules at once takes hardly longer than those of one encoding.
            choose_together(
                question
                for encoding, readers in self.readers.items()
                for group in zip(*readers, strict=True)
                if all(reader.output != "encoded" for reader in group)
                for question in scheme_questions(group, self.accelerator, self.expected[encoding])
            )
        return super().transform_module(mod, _ctx)

    def bundle(
        self, specs: Specs, encoding: Any, drained: Any, made: dialect.Encoder | None = None
    ) -> tuple[relax.Expr, str, bool]:
        """The programs of ``specs`` as a (bytes,) uint8 constant, made once; what is dense.

        ``encoding`` is the variable they read, ``drained`` that of the encoding they make or None,
        ``made`` the op that encodes. The text tells for which row counts programs take dense
        passes, and why; it is empty if none do. The flag tells whether any sorts its rows.
        """
        groups, left = list(zip(*self.readers[encoding], strict=True)), ""
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
            density = self.density(made)
            together = list(zip(specs, groups, strict=True))
            if self.planes == "cost":
                together, left = self._cheaper(together, made, density)
            if any(self.library.from_database(spec, group) is not None for spec, group in together):
                self.report.note_tuned(specs[0].label)
            key = tuple(
                (spec, self.library.decisions(spec, group, density=density))
                for spec, group in together
            )
        if key not in self._bundles:
            data = pack_bundle([self.library.program(*chosen) for chosen in key])
            self._bundles[key] = relax.const(np.frombuffer(data, np.uint8), "uint8")
        if drained is not None:
            self.chunks[drained] = tuple(spec.out_chunk for spec, _ in key)
        # Programs that are left dense have no rows to sort: perhaps nobody asks for an order.
        return self._bundles[key], left, any(spec.block_rows for spec, _ in key)

    def density(self, made: dialect.Encoder | None) -> float:
        """Share of stored digits to expect of an encoding."""
        return self.densities.get(made.label, TYPICAL_DENSITY) if made else TYPICAL_DENSITY

    def _cheaper(
        self, together: list[tuple[DenseOp, Specs]], made: dialect.Encoder | None, density: float
    ) -> tuple[list[tuple[DenseOp, Specs]], str]:
        """Ops with the readers of their encoding as the scheme that is cheaper; what is dense."""
        factors = NO_FACTORS
        if made is not None:
            factors = EncodeFactors(made.factors is not None, made.bands is not None)
        key = (tuple(together), factors, density)
        if key in self._cheapest:
            return self._cheapest[key]
        chosen, texts = [], []
        for spec, group in together:
            try:
                left = left_dense(group, self.accelerator, factors, density)
            except TargetError:
                # Some reader has no tile: it stays on the host, and the rest is split.
                left = None
            if left is not None:
                texts.append(f"at {spec.m} row{'s' * (spec.m > 1)} ({left.reason})")
                spec, group = _dense(spec), tuple(map(_dense, group))
            chosen.append((spec, group))
        self._cheapest[key] = chosen, ", ".join(texts)
        return self._cheapest[key]


def _dense(spec: DenseOp) -> DenseOp:
    """The op on whole integers; it has no rows to sort."""
    return replace(spec, block_rows=0).in_scheme("dense")
