"""Functions that stand for several parts of others: which parts, and what these are called."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax, sym
from tvm.relax.expr import _update_type

from sparqle_tvm import dialect
from sparqle_tvm.passes._match import call_operands, op_name
from sparqle_tvm.passes._report import PassReport
from sparqle_tvm.target.joint_op import SEPARATOR

SEGMENTS = "sparqle_segments"
"""Attribute of a function that was made of repeated bindings: JSON, one entry per call."""


@dataclass(frozen=True)
class Segment:
    """What a call of such a function stands for.

    Attributes
    ----------
    caller : str
        Name of the function that calls.
    names : dict of str to str
        What variables of the function were called in the caller: labels are made of them.
    """

    caller: str
    names: dict[str, str]

    def name(self, label: str) -> str:
        """What an op of the function is called in the caller; joint ops have several names."""
        parts = label.split(SEPARATOR)
        return SEPARATOR.join(self.names.get(part, part) for part in parts)


def with_segments(func: relax.Function, segments: Sequence[Segment]) -> relax.Function:
    """The function, saying what it stands for."""
    entries = [
        (each.caller, {mine: own for mine, own in each.names.items() if mine != own})
        for each in segments
    ]
    return func.with_attr(SEGMENTS, json.dumps(entries))


def segments_of(func: relax.Function) -> list[Segment]:
    """What a function stands for, in the order of its calls; nothing if it is any other."""
    if func.attrs is None or SEGMENTS not in func.attrs:
        return []
    return [Segment(*entry) for entry in json.loads(str(func.attrs[SEGMENTS]))]


def layers_of(mod: tvm.IRModule) -> dict[tvm.ir.GlobalVar, relax.Function]:
    """The functions of a module that stand for parts of others."""
    functions = mod.functions_items()
    return {gv: f for gv, f in functions if isinstance(f, relax.Function) and segments_of(f)}


class Calls:
    """Meets the calls of such functions, each caller from its beginning on."""

    def __init__(self, layers: Mapping[Any, relax.Function]) -> None:
        self._left = {gv: iter(segments_of(func)) for gv, func in layers.items()}

    def segment(self, value: Any) -> Segment | None:
        """What a value stands for if it is the next call of one of the functions."""
        called = isinstance(value, relax.Call) and value.op in self._left
        return next(self._left[value.op]) if called else None


class Outside:
    """What the callers of a function that stands for parts of them hand to all of its calls.

    Parameters
    ----------
    mod : tvm.IRModule
    func : relax.Function
        Of any other, nothing is known.
    """

    def __init__(self, mod: tvm.IRModule, func: relax.Function) -> None:
        self._bound: dict[Any, Any] = {}
        self._symbols = sym.Analyzer()
        segments = segments_of(func)
        if not segments:
            return
        caller = mod[segments[0].caller]
        bindings = [each for block in caller.body.blocks for each in block.bindings]
        calls = [
            each.value.args
            for each in bindings
            if isinstance(each.value, relax.Call)
            and isinstance(each.value.op, tvm.ir.GlobalVar)
            and mod[each.value.op].same_as(func)
        ]
        for param, *given in zip(func.params, *calls, strict=True):
            if isinstance(param.ty, relax.ShapeType):
                for mine, own in zip(param.ty.values, given[0].values, strict=True):
                    self._symbols.bind(mine, own)
            elif all(each.same_as(given[0]) for each in given):
                self._bound[param] = given[0]
        if self._bound:
            self._bound |= {each.var: each.value for each in bindings}

    def value(self, expr: Any) -> Any:
        """What an expression is bound to, followed through variables of the callers."""
        while isinstance(expr, relax.Var) and expr in self._bound:
            expr = self._bound[expr]
        return expr

    def number(self, dim: Any) -> Any:
        """A size in the symbols of the callers."""
        return self._symbols.simplify(dim) if tvm.ir.is_prim_expr(dim) else dim


def function_variable(name: str, func: relax.Function) -> tvm.ir.GlobalVar:
    """A name for a function that has another type than before."""
    variable = tvm.ir.GlobalVar(name)
    _update_type(variable, relax.FuncType([p.ty for p in func.params], func.ret_ty, func.is_pure))
    return variable


def label_text(value: Any) -> tvm.ir.StringImm | None:
    """The label that a program is launched with, the first of its operands."""
    if op_name(value) != "relax.call_dps_packed":
        return None
    first = next(iter(call_operands(value)), None)
    return first if isinstance(first, tvm.ir.StringImm) else None


def _labels_of(value: Any) -> list[str]:
    """The labels of an op of the dialect, or of what a program is launched for."""
    op = dialect.Op.of(value) if dialect.op_name(value) else None
    text = label_text(value)
    label = op.label if op is not None else "" if text is None else str(text.value)
    return label.split(SEPARATOR)


def program_order(mod: tvm.IRModule) -> Callable[[str, str], tuple[float, ...]]:
    """Where an op stands in the program that a module stands for, by its function and label.

    The function is ``""`` if any will do.
    """
    layers = layers_of(mod)
    # The first of the calls has the names that the function has.
    inner = {
        gv: list(dict.fromkeys(mine for each in segments_of(func) for mine in each.names))
        for gv, func in layers.items()
    }
    places: dict[tuple[str, str], tuple[float, ...]] = {}
    functions: dict[str, int] = {}
    calls = Calls(layers)
    for gv, func in mod.functions_items():
        if gv in layers or not isinstance(func, relax.Function):
            continue
        name = str(gv.name_hint)
        number = functions[name] = len(functions)
        for at, binding in enumerate(b for block in func.body.blocks for b in block.bindings):
            segment = calls.segment(binding.value)
            if segment is not None:
                labels = [segment.name(each) for each in inner[binding.value.op]]
            else:
                labels = [str(binding.var.name), *_labels_of(binding.value)]
            for i, label in enumerate(labels):
                for key in ((name, label), ("", label)):
                    places.setdefault(key, (number, at, i))

    def place(function: str, label: str) -> tuple[float, ...]:
        first, *_ = label.split(SEPARATOR)
        unknown = (functions.get(function, math.inf), math.inf, 0)
        return places.get((function, label)) or places.get((function, first), unknown)

    return place


@contextmanager
def in_program_order(report: PassReport, mod: tvm.IRModule) -> Iterator[None]:
    """What is noted within is brought into the order of the program that a module stands for."""
    skipped, tuned, split = len(report.skipped), len(report.tuned), len(report.split)
    yield
    nothing = skipped == len(report.skipped) and tuned == len(report.tuned)
    if (nothing and split == len(report.split)) or not layers_of(mod):
        return
    place = program_order(mod)
    report.skipped[skipped:] = sorted(
        report.skipped[skipped:], key=lambda each: place(each.function, each.label)
    )
    report.tuned[tuned:] = sorted(report.tuned[tuned:], key=lambda label: place("", label))
    if split < len(report.split):
        report.split = dict(sorted(report.split.items(), key=lambda item: place(*item[0])))
