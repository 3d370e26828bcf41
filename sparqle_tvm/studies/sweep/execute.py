"""Runs a sweep: on processes of this machine, or on a Dask cluster; goes on after a kill."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from sparqle_tvm.errors import InvalidArgumentError, SparqleError
from sparqle_tvm.files import Share, typed
from sparqle_tvm.processes import on_workers, require_workers
from sparqle_tvm.progress import progress_bar
from sparqle_tvm.studies.sweep.checkpoint import REMEDY, Checkpoint, kept_beside, remove_checkpoint
from sparqle_tvm.studies.sweep.figures import COLUMNS, SWEEP_SCHEMES, figures
from sparqle_tvm.studies.sweep.points import ACCELERATOR_NAMES, DEFAULTS, Point, Sweep
from sparqle_tvm.studies.sweep.table import SweepResult
from sparqle_tvm.target.accelerator import Accelerator

BATCH_POINTS = 8
"""Points that a worker takes at a time, and that are kept together."""

Batch = Sequence[tuple[int, Point]]
Results = dict[int, dict[str, Any]]


def evaluate_point(point: Point) -> dict[str, Any]:
    """Estimate one point of `sparqle_tvm.studies.sweep.points`.

    Returns
    -------
    dict
        ``energy_table``, ``msb_sparsity_source``, ``msb_sparsity_mean``, ``beyond_positions``
        (sequences are longer than the model was made for), and for every scheme and part of the
        model figures as ``split_dense_layers_cycles``. Or ``error``, the message,
        if there is no such accelerator, model or number: one bad point does not end a sweep.
    """
    from sparqle_tvm.studies.estimate import estimate
    from sparqle_tvm.target.cost.energy_table import DEFAULT_NODE, default_table

    try:
        accelerator, given = _split(point)
        table = default_table(accelerator, given.pop("node", DEFAULT_NODE))
        found = estimate(
            target=accelerator, table=table, schemes=SWEEP_SCHEMES, same_tiles=False, **given
        )
    except SparqleError as error:
        return {"error": " ".join(str(error).split())}
    return {
        "energy_table": table.name,
        "msb_sparsity_source": found.digits.source,
        "beyond_positions": bool(found.positions_note),
        **figures(found),
    }


def choose_schedules_of(points: Iterable[Point]) -> None:
    """Choose the schedules of many points together, before they are evaluated one by one."""
    from sparqle_tvm.studies.estimate import choose_ahead

    possible = []
    for point in points:
        with suppress(SparqleError):
            possible.append(_split(point))
    choose_ahead(possible, schemes=SWEEP_SCHEMES)


def _split(point: Point) -> tuple[Accelerator, dict[str, Any]]:
    """The accelerator of a point, and the rest of it.

    Raises
    ------
    TargetError
        If there is no such accelerator.
    """
    given: dict[str, Any] = {**DEFAULTS, **point}
    changes = {name: given.pop(name) for name in ACCELERATOR_NAMES if name in given}
    return replace(Accelerator.from_target(str(given.pop("target"))), **changes), given


@dataclass(frozen=True)
class _Failure:
    """What is kept of a point that has no estimate."""

    error: str


_Figures: Any = msgspec.defstruct(
    "_Figures",
    [
        ("energy_table", str),
        ("msb_sparsity_source", str),
        ("beyond_positions", bool),
        *((name, Share if name == "msb_sparsity_mean" else float) for name in COLUMNS),
    ],
)


def require_results(row: Any, where: str, error: type[SparqleError]) -> None:
    """Raise `error` unless a row is what `evaluate_point` gives."""
    kind: Any = _Failure if isinstance(row, dict) and "error" in row else _Figures
    typed(row, kind, where, error)


def nothing_estimated(reason: str) -> InvalidArgumentError:
    """The error that no point has an estimate; of some that have none, results say why."""
    return InvalidArgumentError(f"no point of the sweep has an estimate; the first: {reason}")


def run_sweep(
    sweep: Sweep,
    out: str | os.PathLike[str],
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    restart: bool = False,
    progress: bool = True,
) -> SweepResult:
    """Estimate every point, and write the table, if there is a file for it.

    What is done is kept beside `out` in a file that ends in ``.progress`` until all is.
    A sweep that was killed finds it and goes on; its table is the same, bit for bit.

    Parameters
    ----------
    sweep : Sweep
        The points.
    out : path
        The table: ``.csv`` or ``.json``; empty: none, and what is done is kept in this folder.
    workers : int, optional
        Processes; by default one for each core.
    scheduler : str, optional
        Address of a Dask scheduler (``tcp://host:8786``) whose workers do it instead.
    restart : bool
        Forget what was done before.
    progress : bool
        Show progress on standard error.

    Raises
    ------
    InvalidArgumentError
        If `out` cannot be written, or what was kept is damaged or of another sweep; if Dask is not
        installed or does not answer; if no point has an estimate.
    """
    if out:
        SweepResult.check_name(out)
    require_workers(workers)
    kept = kept_beside(out)
    if restart:
        remove_checkpoint(kept)
    with ExitStack() as stack:
        checkpoint = Checkpoint(kept, sweep.digest)
        stack.callback(_close, checkpoint)
        done = checkpoint.read()
        for number, row in done.items():
            if number not in range(len(sweep.points)):
                raise checkpoint.damaged(f"there is no point {number}")
            where = f"{kept}, record {number} is damaged, {REMEDY}"
            require_results(row, where, InvalidArgumentError)
        left = [(i, point) for i, point in enumerate(sweep.points) if i not in done]
        bar = stack.enter_context(
            progress_bar(
                progress=progress,
                total=len(sweep.points),
                initial=len(done),
                unit="point",
                desc="sweep",
            )
        )
        batches = [left[i : i + BATCH_POINTS] for i in range(0, len(left), BATCH_POINTS)]
        for results in _evaluated(stack, batches, workers, scheduler):
            checkpoint.add(results)
            done.update(results)
            bar.update(len(results))
    result = SweepResult(sweep, tuple(done[i] for i in range(len(sweep.points))))
    if result.failed == len(sweep.points):
        remove_checkpoint(kept)
        raise nothing_estimated(done[0]["error"])
    if out:
        result.write(out)
    remove_checkpoint(kept)
    return result


def _close(checkpoint: Checkpoint) -> None:
    """Close it, and leave nothing behind if nothing was done."""
    empty = checkpoint.is_empty()
    checkpoint.close()
    if empty:
        remove_checkpoint(checkpoint.path)


def _evaluate_batch(batch: Batch) -> Results:
    choose_schedules_of(point for _, point in batch)
    return {number: evaluate_point(point) for number, point in batch}


def _evaluated(
    stack: ExitStack, batches: Sequence[Batch], workers: int | None, scheduler: str | None
) -> Iterator[Mapping[int, dict[str, Any]]]:
    """Results in the order in which they are ready."""
    if not batches:
        return
    submit, completed = on_workers(stack, workers, scheduler)
    for future in completed([submit(_evaluate_batch, batch) for batch in batches]):
        yield future.result()
