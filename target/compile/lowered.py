"""A scheduled PrimFunc as a tree of loops and intrinsic calls, ready for code generation.

TVM's passes place the allocations at the loops that need them and compact them to tiles. What is
left are loops, allocations, and blocks that hold one call of an intrinsic each, with the regions
that it works on (``match_buffer``). There is no visitor for TIR statements in Python; the dozen
node classes that can occur are told apart with `functools.singledispatch`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import singledispatch
from typing import Any

import tvm
from tvm import s_tir, tirx

from sparqle_tvm.errors import CompileError
from sparqle_tvm.target.compile.intrinsics import PREFIX
from sparqle_tvm.target.compile.tir import EXTENT_ATTR
from sparqle_tvm.target.isa.operands import Affine

_DRAM_SCOPE = "global"


@dataclass(frozen=True)
class TileRef:
    """The part of an array that a call works on.

    Attributes
    ----------
    buffer : int
        Number of the array, the same in all references to it.
    name : str
        Its name, for messages.
    dram : bool
        Whether it lies in DRAM.
    shape : tuple of int
        Extents of the array.
    starts : tuple of Affine
        First index per dimension, over the loop numbers of `LoopNode`.
    extents : tuple of int
        Extents of the part.
    """

    buffer: int
    name: str
    dram: bool
    shape: tuple[int, ...]
    starts: tuple[Affine, ...]
    extents: tuple[int, ...]


@dataclass(frozen=True)
class CallNode:
    """A call of an intrinsic.

    Attributes
    ----------
    name : str
        Of the intrinsic, without prefix.
    tiles : tuple of TileRef
        Its operands in order.
    annotations : dict of int
        Of its block: slots, row split.
    """

    name: str
    tiles: tuple[TileRef, ...]
    annotations: dict[str, int]

    def in_loop(self, loop: int, instead_of: int) -> CallNode:
        """The same call in another loop of as many iterations."""

        def moved(start: Affine) -> Affine:
            terms = ((loop if of == instead_of else of, c) for of, c in start.terms)
            return Affine(start.const, tuple(terms))

        tiles = (replace(tile, starts=tuple(map(moved, tile.starts))) for tile in self.tiles)
        return replace(self, tiles=tuple(tiles))


@dataclass
class Body:
    """Statements in order, and the arrays (`TileRef.buffer`) that live just for them."""

    children: list[CallNode | LoopNode] = field(default_factory=list)
    allocations: list[int] = field(default_factory=list)

    def calls(self) -> Iterator[CallNode]:
        """All calls in it, however deep."""
        for child in self.children:
            yield from calls_of(child)


@dataclass
class LoopNode:
    """A loop of more than one iteration, numbered in the order of appearance."""

    loop: int
    extent: int
    body: Body


def calls_of(child: CallNode | LoopNode) -> Iterator[CallNode]:
    """The call itself, or all calls in a loop."""
    if isinstance(child, CallNode):
        yield child
    else:
        yield from child.body.calls()


def lower(scheduled: s_tir.Schedule | tirx.PrimFunc | tvm.IRModule) -> tuple[Body, tuple[int, ...]]:
    """Lower a scheduled function to a tree.

    Parameters
    ----------
    scheduled : s_tir.Schedule, PrimFunc or IRModule of one function
        What `schedule.schedule_with` made, or the like.

    Returns
    -------
    Body
        The statements of the function.
    tuple of int
        The real extents (M, N, K), attribute ``sparqle.extent``.

    Raises
    ------
    CompileError
        If something in it is not an intrinsic of the accelerator.
    """
    if isinstance(scheduled, s_tir.Schedule):
        scheduled = scheduled.mod
    if isinstance(scheduled, tirx.PrimFunc):
        scheduled = tvm.IRModule({"main": scheduled})
    functions = list(_passes()(scheduled).functions.values())
    if len(functions) != 1:
        raise CompileError(f"a program is made of one function, the module has {len(functions)}")
    function = functions[0]
    if function.attrs is None or EXTENT_ATTR not in function.attrs:
        raise CompileError(
            f"the function has no attribute {EXTENT_ATTR!r}; build it with tir.split_dense_primfunc"
        )
    context = _Context()
    _statement(function.body, context)
    return context.body, tuple(int(extent) for extent in function.attrs[EXTENT_ATTR])


def _passes() -> tvm.ir.transform.Sequential:
    """The part of TVM's default pipeline up to compact allocations, blocks still in place."""
    transform = s_tir.transform
    return tvm.ir.transform.Sequential(
        [
            transform.CanonicalizeLoop(),
            transform.LowerInitBlock(),
            transform.PlanAndUpdateBufferAllocationLocation(),
            transform.ConvertBlocksToOpaque(),
            transform.CompactBufferAllocation(),
            tirx.transform.StmtSimplify(),
        ]
    )


class _Context:
    """What is known while walking: open body and block, loop variables, array numbers."""

    def __init__(self) -> None:
        self.body = Body()
        self.block = "root"
        self.loops = 0
        self.variables: dict[Any, Affine] = {}
        self.buffers: dict[Any, int] = {}

    def number(self, buffer: Any) -> int:
        """The number of an array."""
        return self.buffers.setdefault(buffer, len(self.buffers))


@singledispatch
def _statement(stmt: Any, context: _Context) -> None:
    raise CompileError(
        f"block {context.block!r} is not an intrinsic of the accelerator, it has a "
        f"{type(stmt).__name__}; tensorize it with one of sparqle_tvm.target.compile.intrinsics"
    )


@_statement.register
def _(stmt: tirx.SeqStmt, context: _Context) -> None:
    for child in stmt.seq:
        _statement(child, context)


@_statement.register
def _(stmt: tirx.For, context: _Context) -> None:
    extent, start = _constant(stmt.extent), _constant(stmt.min)
    if stmt.kind != tirx.ForKind.SERIAL:
        raise CompileError(
            f"loop {stmt.loop_var.name} is not serial; engines run the loops of a program in order"
        )
    if extent == 1:
        context.variables[stmt.loop_var] = Affine(start)
        _statement(stmt.body, context)
        return
    outside, context.body = context.body, Body()
    context.variables[stmt.loop_var] = Affine.loop(context.loops) + start
    node = LoopNode(context.loops, extent, context.body)
    context.loops += 1
    _statement(stmt.body, context)
    outside.children.append(node)
    context.body = outside


@_statement.register
def _(stmt: s_tir.SBlockRealize, context: _Context) -> None:
    block = stmt.block
    if not isinstance(stmt.predicate, tirx.IntImm) or not stmt.predicate.value:
        raise CompileError(
            f"block {block.name_hint!r} has a condition; pad the function to whole tiles"
        )
    context.block = str(block.name_hint)
    context.body.allocations.extend(context.number(buffer) for buffer in block.alloc_buffers)
    if isinstance(block.body, tirx.Evaluate):
        context.body.children.append(_call(block, context))
    else:
        _statement(block.body, context)


def _call(block: s_tir.SBlock, context: _Context) -> CallNode:
    call = block.body.value
    if not isinstance(call, tvm.ir.Call) or not call.op.same_as(_CALL_EXTERN):
        raise CompileError(f"block {block.name_hint!r} does not call an intrinsic: {call}")
    name = str(call.args[0].value)
    if not name.startswith(PREFIX):
        raise CompileError(f"block {block.name_hint!r} calls {name!r}, not an intrinsic")
    regions = {match.buffer: match.source for match in block.match_buffers}
    # Operands are tvm_access_ptr(type, buffer_data(matched buffer), ...), then come tile extents.
    pointers = [a for a in call.args[1:] if isinstance(a, tvm.ir.Call)]
    tiles = tuple(_tile(regions[pointer.args[1].args[0]], context) for pointer in pointers)
    annotations = {str(key): int(value) for key, value in block.annotations.items()}
    return CallNode(name.removeprefix(PREFIX), tiles, annotations)


_CALL_EXTERN = tvm.ir.Op.get("tirx.call_extern")


def _tile(region: Any, context: _Context) -> TileRef:
    buffer = region.source
    return TileRef(
        buffer=context.number(buffer),
        name=str(buffer.name),
        dram=str(buffer.scope()) == _DRAM_SCOPE,
        shape=tuple(_constant(extent) for extent in buffer.shape),
        starts=tuple(_affine(r.min, context.variables) for r in region.region),
        extents=tuple(_constant(r.extent) for r in region.region),
    )


def _constant(expr: Any) -> int:
    if not isinstance(expr, tirx.IntImm):
        raise CompileError(f"extent {expr} is not known at compile time")
    return int(expr.value)


@singledispatch
def _affine(expr: Any, variables: dict[Any, Affine]) -> Affine:
    raise CompileError(f"index {expr} is not affine in the loop variables")


@_affine.register
def _(expr: tirx.IntImm, variables: dict[Any, Affine]) -> Affine:
    return Affine(int(expr.value))


@_affine.register
def _(expr: tirx.Var, variables: dict[Any, Affine]) -> Affine:
    if expr not in variables:
        raise CompileError(f"index {expr} is not a loop variable")
    return variables[expr]


@_affine.register
def _(expr: tirx.Add, variables: dict[Any, Affine]) -> Affine:
    return _affine(expr.a, variables) + _affine(expr.b, variables)


@_affine.register
def _(expr: tirx.Sub, variables: dict[Any, Affine]) -> Affine:
    return _affine(expr.a, variables) + _affine(expr.b, variables) * -1


@_affine.register
def _(expr: tirx.Mul, variables: dict[Any, Affine]) -> Affine:
    a, b = _affine(expr.a, variables), _affine(expr.b, variables)
    if a.terms and b.terms:
        raise CompileError(f"index {expr} is not affine in the loop variables")
    return a * b.const if a.terms else b * a.const
