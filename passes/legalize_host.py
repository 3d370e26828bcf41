"""Lower matmuls and the ``R.sparqle`` ops to the kernels of ``sparqle_tvm.host``."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax
from tvm.relax.expr_functor import mutator

from sparqle_tvm import dialect
from sparqle_tvm.host import legalize
from sparqle_tvm.passes._match import dtype_of, op_name
from sparqle_tvm.passes._rewrite import RewritePass, Rewriter


class _Kernels:
    """The builder that legalizations see: it adds each kernel to the module once.

    A ``BlockBuilder`` would hash a kernel, thousands of statements, at each of its calls to find
    out that it has it; but equal kernels are one object here.
    """

    def __init__(self, rewriter: Rewriter, taken: set[str]) -> None:
        self._rewriter = rewriter
        self._taken = taken
        self._builder = relax.BlockBuilder()
        self._added: dict[Any, relax.GlobalVar] = {}

    def emit(self, expr: relax.Expr, name_hint: str = "") -> relax.Var:
        return self._rewriter.emit(expr, name_hint)

    def normalize(self, expr: relax.Expr) -> relax.Expr:
        return self._rewriter.builder_.normalize(expr)

    def add_func(self, kernel: tvm.tirx.PrimFunc, name: str) -> relax.GlobalVar:
        if kernel not in self._added:
            # Not left to the builder: it knows nothing of the functions that the module has.
            unique, count = name, 0
            while unique in self._taken:
                count += 1
                unique = f"{name}{count}"
            self._taken.add(unique)
            self._added[kernel] = self._builder.add_func(kernel, unique)
        return self._added[kernel]

    def functions(self) -> list[tuple[relax.GlobalVar, tvm.ir.BaseFunc]]:
        """All kernels, by name."""
        return list(self._builder.get().functions_items())


_BETWEEN = frozenset(f"relax.{name}" for name in ("astype", "reshape", "multiply", "sum", "add"))
"""Ops between the sums of an integer dense and its scales."""


def scales_of_dense(func: relax.Function) -> set[relax.Var]:
    """Results of the multiplications with scales that follow integer dense ops, float32."""
    sums, scaled = set(), set()
    for binding in (each for block in func.body.blocks for each in block.bindings):
        value: Any = getattr(binding, "value", None)
        name = op_name(value)
        if name in _BETWEEN:
            behind = any(each in sums for each in value.args if isinstance(each, relax.Var))
            # What is added in float32 is a bias or a residual, with which scales are over.
            if not behind or (name == "relax.add" and dtype_of(value) == "float32"):
                continue
            if name == "relax.multiply" and dtype_of(value) == "float32":
                scaled.add(binding.var)
        elif dialect.Dense.of(value) is None and not (
            name == "relax.matmul" and dtype_of(value) == "int32"
        ):
            continue
        sums.add(binding.var)
    return scaled


def summands_from_integers(func: relax.Function) -> set[relax.Var]:
    """Results of dequantizations, by one scale and zero point, that something is added to."""
    made: set[relax.Var] = set()
    added: set[relax.Var] = set()
    for binding in (each for block in func.body.blocks for each in block.bindings):
        value: Any = getattr(binding, "value", None)
        if op_name(value) == "relax.dequantize" and dtype_of(value) == "float32":
            if all(map(dialect.is_single, (arg.ty for arg in value.args[1:]))):
                made.add(binding.var)
        elif op_name(value) in ("relax.add", "relax.subtract"):
            added.update(arg for arg in value.args if isinstance(arg, relax.Var))
    return made & added


@mutator
class _Legalize(Rewriter):
    roots = (
        "relax.dequantize",
        "relax.matmul",
        "relax.multiply",
        "relax.sparqle.",
    )

    def __init__(self, mod: tvm.IRModule, owner: Any) -> None:
        super().__init__(mod, owner)
        self.kernels = _Kernels(self, {str(gv.name_hint) for gv in mod.get_global_vars()})

    def begin(self, name: str, func: relax.Function) -> None:
        super().begin(name, func)
        self.scaled = scales_of_dense(func)
        self.summands = summands_from_integers(func)

    def rewrite(self, call: relax.Call, original: relax.Call) -> relax.Expr | None:
        if dialect.op_name(call):
            lower = legalize.legalize
        elif self.bound in self.scaled:
            lower = legalize.legalize_scale
        elif self.bound in self.summands:
            lower = legalize.legalize_dequantize
        elif op_name(call) == "relax.matmul" and legalize.has_matmul_kernel(call):
            lower = legalize.legalize_matmul
        else:
            return None
        lowered: relax.Expr = lower(self.kernels, call)
        self.count()
        return lowered

    def added_functions(self) -> list[tuple[relax.GlobalVar, tvm.ir.BaseFunc]]:
        return self.kernels.functions()


@tvm.transform.module_pass(opt_level=0)
class LegalizeHost(RewritePass):
    """Replace matmuls and the ops of the dialect by ``call_tir`` of kernels for a host CPU.

    Does for these ops what LegalizeOps does for all others, and in a fraction of the time on a
    module with hundreds of equal layers. Equal ops share one PrimFunc. Multiplications with the
    scales of an integer dense are kernels of their own, too, and so are those of dequantizations
    that something is added to: see `host.legalize.legalize_scale`.

    Precondition: the shape of weights is static.

    Before::

        enc = R.sparqle.quantize_encode(x, k=4, window="signed", ...)

    After::

        enc = R.call_tir(cls.quantize_encode, (x,), out_ty=[...])
    """

    rewriter = _Legalize
