"""The tasks of a module: its different dense ops, and which of them read one encoding."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import tvm

from sparqle_tvm import dialect, passes
from sparqle_tvm.calibration.apply import CheckCalibration
from sparqle_tvm.compiler import split_passes
from sparqle_tvm.errors import InvalidArgumentError, TargetError, TuningError
from sparqle_tvm.models.shapes import LAYER_TYPES, ModelShape
from sparqle_tvm.numerics.integers import require_int8
from sparqle_tvm.numerics.window import PLAIN, window_of
from sparqle_tvm.passes import EncodingInfo
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.compile.buckets import bucket
from sparqle_tvm.target.cost.schedule import even_splits
from sparqle_tvm.target.cost.tiling import best_chunks
from sparqle_tvm.target.joint_op import joined
from sparqle_tvm.target.op import DenseOp, ProgramScheme
from sparqle_tvm.tuning.measure import ActivationData
from sparqle_tvm.tuning.space import chunk_unit, default_of
from sparqle_tvm.tuning.task import TuningTask

if TYPE_CHECKING:
    from sparqle_tvm.calibration import Calibration

# K chunks to choose from where different ops share them.
_SHARED_CHUNKS = 3


def extract_tasks(
    mod: tvm.IRModule,
    target: str | tvm.target.Target | Accelerator,
    *,
    rows: Sequence[int] = (512, 1),
    data: ActivationData | None = None,
    scheme: ProgramScheme = "sparqle",
    single: Collection[str] = (),
) -> tuple[TuningTask, ...]:
    """Find the different dense ops of a module.

    The module goes through the passes of `compiler.split_passes`. Ops that read one encoding are
    joint ops, as they run (`target.joint_op`). Attention is left alone: it has no schedule but a
    plan, and `cost.attention_choice` looks at all of them. Equal ops that share their
    encoding with equal ops are one task, weighted by how often they occur.

    Parameters
    ----------
    mod, target, single
        As for `tuning.tune`.
    rows : sequence of int
        Tokens to tune for where the module has a symbolic number of rows: each makes a task.
    data : ActivationData, optional
        What the choice of common K chunks looks at. Its calibration is held to the module.
    scheme : {"sparqle", "dense"}
        ``dense``: the baseline of the same ops.

    Raises
    ------
    CalibrationError
        If the calibration is one of another model.
    TuningError
        If the module has no dense op that the accelerator can run.
    InvalidArgumentError
        If there are no rows, or they are not positive.
    """
    accelerator = Accelerator.from_target(target)
    require_int8(accelerator.digit_bits, f"accelerator {accelerator.name!r}", TargetError)
    if not rows or min(rows) < 1:
        raise InvalidArgumentError(f"rows {list(rows)}: numbers of tokens must be positive")
    labels: dict[tuple[int, tuple[DenseOp, ...]], dict[DenseOp, list[str]]] = {}
    for info in _encodings(mod, data.calibration if data is not None else None):
        alone = any(consumer.label in single for consumer in info.consumers)
        counts = {info.rows} if info.rows else {1} if alone else set(rows)
        for count in sorted(counts, reverse=True):
            specs = _specs(info, count, accelerator, scheme)
            ops = labels.setdefault((count, tuple(sorted(specs, key=repr))), {})
            for spec in specs:
                ops.setdefault(spec, []).append(spec.label)
    tasks: list[TuningTask] = []
    for (count, group), ops in labels.items():
        tasks += tasks_of_group(group, count, accelerator, ops, data=data)
    if not tasks:
        raise TuningError(
            "the module has no quantized dense op that the accelerator can run, so there is "
            "nothing to tune"
        )
    return tuple(tasks)


def tasks_of_shape(
    shape: ModelShape,
    accelerator: Accelerator,
    *,
    rows: Sequence[int],
    data: ActivationData | None = None,
    scheme: ProgramScheme = "sparqle",
) -> tuple[TuningTask, ...]:
    """The tasks of a model that is known by its sizes; see `extract_tasks`.

    Windows are signed; the output layer works on one token.

    Raises
    ------
    TargetError
        If the accelerator is not one for int8.
    TuningError
        If no dense op fits the accelerator.
    """
    require_int8(accelerator.digit_bits, f"accelerator {accelerator.name!r}", TargetError)
    window = PLAIN if scheme == "dense" else "signed"
    tasks: list[TuningTask] = []
    for kind in LAYER_TYPES:
        for count in sorted({1} if kind == "output" else set(rows), reverse=True):
            ops = shape.readers(kind, bucket(count, accelerator.rows))
            group = joined(tuple(replace(op, window=window, scheme=scheme) for op in ops))
            times = shape.times(kind)
            labels = {op: [op.label] * (times * group.count(op)) for op in group}
            tasks += tasks_of_group(group, count, accelerator, labels, data=data)
    if not tasks:
        raise TuningError(f"{shape.name} has no dense op that {accelerator.name!r} can run")
    return tuple(tasks)


def tasks_of_group(
    group: Sequence[DenseOp],
    rows: int,
    accelerator: Accelerator,
    labels: dict[DenseOp, list[str]] | None = None,
    *,
    data: ActivationData | None = None,
) -> list[TuningTask]:
    """One task for each different op of those that read an encoding; none if one does not fit.

    Parameters
    ----------
    group : sequence of DenseOp
        The ops.
    rows : int
        Tokens that they are measured with.
    labels : dict of DenseOp to list of str, optional
        Labels of all ops that each stands for; without, each counts as often as it is in `group`.
    data : ActivationData, optional
        What the choice of common K chunks looks at.
    """
    group = tuple(group)
    names = labels or {spec: [""] * group.count(spec) for spec in group}
    chunks = tuple(even_splits(group[0].k, chunk_unit(group, accelerator)).tolist())

    tasks = [
        TuningTask(
            spec=spec,
            rows=rows,
            group=group,
            chunks=chunks,
            weight=len(names[spec]),
            labels=tuple(filter(None, names[spec])),
        )
        for spec in dict.fromkeys(group)
    ]
    try:
        defaults = [default_of(task, accelerator) for task in tasks]
    except TargetError:
        return []  # the op stays on the host, as the pipeline reports
    if len(tasks) > 1:
        chunks = best_chunks(group, accelerator, group[0].scheme, _SHARED_CHUNKS)
    chunks = tuple(sorted({*chunks, *(decisions.k for decisions in defaults)}))
    return [replace(task, chunks=chunks) for task in tasks]


def _encodings(mod: tvm.IRModule, calibration: Calibration | None) -> Iterator[EncodingInfo]:
    dialect.register()
    collect = passes.CollectEncodings()
    checks = [] if calibration is None else [CheckCalibration(calibration)]
    tvm.transform.Sequential(split_passes(checks=checks, collect=collect))(mod)
    for infos in collect.collected.values():
        yield from (info for info in infos if info.consumers)


def _specs(
    info: EncodingInfo, rows: int, accelerator: Accelerator, scheme: ProgramScheme
) -> tuple[DenseOp, ...]:
    """What runs for the readers of an encoding: joint ops."""
    ops = [
        DenseOp(
            m=info.rows or bucket(rows, accelerator.rows),
            n=consumer.n,
            k=consumer.k,
            digit_bits=info.digit_bits,
            window=window_of(info.window).name if scheme == "sparqle" else PLAIN,
            weight_bits=consumer.weight_bits,
            group_size=consumer.group_size,
            scale_bytes=consumer.scale_bytes,
            has_min=consumer.has_min,
            scheme=scheme,
            label=consumer.label,
        )
        for consumer in info.consumers
    ]
    return joined(ops)
