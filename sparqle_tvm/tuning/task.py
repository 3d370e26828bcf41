"""What is tuned: one dense op at one row count, with the ops that read the same encoding.

A task's workload is the unscheduled PrimFunc of the op. Everything that the search needs to know
stands in one attribute of it, so that a record of MetaSchedule's database can be understood, and
applied, in another process.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx

from sparqle_tvm.errors import InvalidArgumentError, TuningError
from sparqle_tvm.files import typed
from sparqle_tvm.numerics.window import PLAIN
from sparqle_tvm.target.accelerator import TARGET_KEY
from sparqle_tvm.target.compile.tir import split_dense_primfunc
from sparqle_tvm.target.op import DenseOp

TASK_ATTR = "sparqle.task"
"""Attribute of the workload's PrimFunc: the task as JSON."""


@dataclass(frozen=True, kw_only=True)
class TuningTask:
    """A dense op to tune.

    Attributes
    ----------
    spec : DenseOp
        The op; its `m` is the row bucket that programs are made for.
    rows : int
        Tokens that it is measured with, at most `spec.m`.
    group : tuple of DenseOp
        All ops that read the same encoding, this one among them, equal ones as often as they
        occur. They share the K chunk, because the MSB digits lie in DRAM in chunk order.
    chunks : tuple of int
        K chunks that may be chosen, the same in all tasks of the group.
    weight : int
        How often the op occurs in the module.
    labels : tuple of str
        The ops that it stands for.
    """

    spec: DenseOp
    rows: int
    group: tuple[DenseOp, ...]
    chunks: tuple[int, ...]
    weight: int = field(default=1, compare=False)
    labels: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        if not 1 <= self.rows <= self.spec.m:
            raise InvalidArgumentError(
                f"{self.name}: {self.rows} rows; a program for up to {self.spec.m} runs 1 to that"
            )
        if self.spec not in self.group or not self.chunks:
            raise InvalidArgumentError(
                f"{self.name}: the op must be in its group, and there must be a K chunk to choose"
            )

    @property
    def name(self) -> str:
        """Rows, channels and columns, and the scheme if it is the baseline."""
        scheme = " (dense)" if self.spec.scheme == "dense" else ""
        return f"{self.rows} x {self.spec.n} x {self.spec.k}{scheme}"

    @property
    def shape(self) -> DenseOp:
        """The op with the rows that are measured, as the cost formulas take it."""
        return dataclasses.replace(self.spec, m=self.rows)

    def tile_counts(self, tile: tuple[int, int, int]) -> tuple[int, int, int]:
        """How many tiles of these extents there are along rows, channels and columns."""
        m, n, k = tile
        return math.ceil(self.rows / m), math.ceil(self.spec.n / n), math.ceil(self.spec.k / k)

    def to_json(self) -> dict[str, Any]:
        """What distinguishes it, as plain JSON data."""
        return {
            "spec": _op_json(self.spec),
            "rows": self.rows,
            "group": [_op_json(op) for op in self.group],
            "chunks": list(self.chunks),
        }

    @classmethod
    def from_json(cls, data: Any) -> TuningTask:
        """The task of `to_json`, without weight and labels; InvalidArgumentError if it is none."""
        return typed(data, cls, "this is no tuning task", InvalidArgumentError)

    def workload(self) -> tvm.IRModule:
        """The unscheduled op, as MetaSchedule's database keeps it."""
        return tvm.IRModule({"main": _unscheduled(self)})


@lru_cache(maxsize=128)  # every record of a search needs it again
def _unscheduled(task: TuningTask) -> Any:
    text = json.dumps(task.to_json(), sort_keys=True)
    function = split_dense_primfunc(task.spec).with_attr(TASK_ATTR, text)
    sch = s_tir.Schedule(function.with_attr("global_symbol", "main"))
    tvm_ffi.register_global_func(
        f"s_tir.meta_schedule.{TARGET_KEY}.{_RULE}", _refuse, override=True
    )
    sch.annotate(sch.get_sblock("drain"), "schedule_rule", _RULE)
    return sch.mod["main"]


_RULE = "dense_op"


def _refuse(*_: Any) -> None:
    """What MetaSchedule's default space, which is for CPUs, finds as the rule for these ops."""
    raise TuningError(
        "programs of an accelerator are no loops of a CPU: tune them with "
        "**sparqle_tvm.tuning.objects(target), which has space, builder, runner and the others"
    )


def outline(mod: tvm.IRModule) -> tvm.IRModule:
    """A workload without its loops, which no knob looks at: a trace is replayed on it in 0.06 ms.

    On the op itself it takes 0.4 ms, nearly all of it for the blocks of the loops.
    """
    function = mod["main"]
    block = s_tir.SBlock([], [], [], "root", tirx.Evaluate(0))
    bare = function.with_body(s_tir.SBlockRealize([], True, block))
    return tvm.IRModule({"main": bare})


def task_of(mod: tvm.IRModule) -> TuningTask:
    """The task of a workload, or of a schedule of it; InvalidArgumentError if it is none."""
    return read_task(task_text(mod))


def task_text(mod: tvm.IRModule) -> str:
    """What `task_of` reads, as JSON; InvalidArgumentError if there is nothing."""
    for function in mod.functions.values():
        if function.attrs is not None and TASK_ATTR in function.attrs:
            return str(function.attrs[TASK_ATTR])
    raise InvalidArgumentError(
        "this function is no dense op of an accelerator; tune_relax, tune_tir and extract_tasks "
        "take sparqle_tvm.tuning.dense_module(mod, target), made from the module before it is "
        "legalized"
    )


@lru_cache(maxsize=1024)  # every candidate of a search carries one of a few
def read_task(text: str) -> TuningTask:
    """The task of `task_text`; InvalidArgumentError if it is none."""
    return TuningTask.from_json(json.loads(text))


def _op_json(op: DenseOp) -> dict[str, Any]:
    """What distinguishes an op: all but its label."""
    return {key: value for key, value in dataclasses.asdict(op).items() if key != "label"}


def schedule_key(spec: DenseOp) -> DenseOp:
    """The op without what changes values, but neither tiles nor transfers to speak of.

    Schedules are looked up by it: without label, window, sign of the weights, bias, order of
    rows, type of the output.
    """
    return DenseOp(
        *(spec.m, spec.n, spec.k, spec.weight_bits, spec.group_size, spec.has_min),
        digit_bits=spec.digit_bits,
        scheme=spec.scheme,
        window=PLAIN,
        scale_bytes=spec.scale_bytes,
    )
