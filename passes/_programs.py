"""The function that returns the programs of a module."""

from __future__ import annotations

from collections.abc import Sequence

import tvm
from tvm import relax

from sparqle_tvm.passes._rewrite import relax_functions
from sparqle_tvm.target.program.bundle import PROGRAMS_FUNCTION


def programs_function(
    module: tvm.IRModule, bundles: Sequence[relax.Expr]
) -> list[tuple[relax.GlobalVar, tvm.ir.BaseFunc]]:
    """One that returns these bundles, and those that a module's had before.

    Constants of an executable cannot be reached otherwise.
    """
    known = dict(relax_functions(module))
    before = [(gv, f) for gv, f in known.items() if gv.name_hint == PROGRAMS_FUNCTION]
    fields = [field for _, function in before for field in function.body.body.fields]
    builder = relax.BlockBuilder()
    with builder.function(PROGRAMS_FUNCTION, []):
        builder.emit_func_output(relax.Tuple([*fields, *bundles]))
    ((made, function),) = builder.get().functions_items()
    return [(before[0][0] if before else made, function)]
