"""Candidates measured here, on processes of this machine, or on the workers of a Dask cluster.

What a candidate costs depends on nothing but the meter and the decisions, so the figures are the
same wherever they come from, and they are handed out in the order of the candidates.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import cached_property, lru_cache
from types import MappingProxyType, TracebackType
from typing import Any

from sparqle_tvm.errors import SparqleError
from sparqle_tvm.processes import WorkerLostError, allowed_cpus, on_workers, require_workers
from sparqle_tvm.target.cost.schedule import Decisions
from sparqle_tvm.tuning.measure import Measurement, Meter
from sparqle_tvm.tuning.task import TuningTask

# How often processes may end before their time before that is an error.
_LOSSES = 3

Candidate = tuple[TuningTask, Decisions]
Calls = tuple[Callable[..., Any], Callable[..., Any]]


class Workers:
    """Measures candidates; a context that ends its processes when it is left.

    Parameters
    ----------
    meter : Meter
        What measures.
    workers : int, optional
        Processes; 1 measures in this one, None takes one for each core.
    scheduler : str, optional
        Address of a Dask scheduler whose workers measure instead.

    Raises
    ------
    InvalidArgumentError
        If the number of processes cannot be; when measuring, if no scheduler answers.
    """

    def __init__(self, meter: Meter, workers: int | None = 1, scheduler: str | None = None) -> None:
        require_workers(workers)
        self.meter, self.workers, self.scheduler = meter, workers, scheduler
        self._stack = ExitStack()
        self._calls: Calls | None = None
        self._losses = 0
        self.labelled: dict[TuningTask, TuningTask] = {}

    def know(self, tasks: Iterable[TuningTask]) -> None:
        """Take labels of tasks, which those of candidates have not: a calibration goes by them."""
        self.labelled.update((task, task) for task in tasks)
        for task in self.labelled:
            self.meter.activations(task)

    def __enter__(self) -> Workers:
        """Nothing is started before there is something to measure."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the workers."""
        self._calls = None
        self._stack.__exit__(kind, error, trace)

    def start(self, candidates: Sequence[Candidate]) -> Callable[[], list[Measurement | str]]:
        """Begin to measure; what waits for the cost of each candidate, or why it has none.

        This process measures when it is asked for the costs.
        """
        candidates = [(self.labelled.get(task, task), chosen) for task, chosen in candidates]
        if self.workers == 1 and self.scheduler is None:
            return lambda: [_measured(self.meter, *candidate) for candidate in candidates]
        return _Batch(self, candidates).collect

    def measure(self, candidates: Sequence[Candidate]) -> list[Measurement | str]:
        """Cost of each candidate in their order, or why it has none."""
        return self.start(candidates)()

    @property
    def parts(self) -> int:
        """In how many pieces a batch is handed out: one for each process, of Dask each candidate.

        The process that searches is woken once for a piece.
        """
        if self.scheduler is not None:
            return sys.maxsize
        return self.workers or len(allowed_cpus())

    @cached_property
    def packed(self) -> bytes:
        """The meter as the processes take it: packed once, as with a calibration it is large."""
        return _packed(self.meter.bare())

    def calls(self) -> Calls:
        """What submits to the workers and waits for them, see `processes.on_workers`."""
        if self._calls is None:
            self._calls = on_workers(self._stack, self.workers, self.scheduler)
        return self._calls

    def lost(self, calls: Calls) -> bool:
        """End workers of which one was lost; whether it is worth to begin again."""
        if calls is self._calls:
            self._losses += 1
            self._calls = None
            self._stack.close()
        return self._losses <= _LOSSES


class _Batch:
    """Candidates that are measured at the same time."""

    def __init__(self, workers: Workers, candidates: Sequence[Candidate]) -> None:
        self.workers, self.candidates = workers, candidates
        self.found: dict[int, Measurement | str] = {}
        self._submit()

    def _submit(self) -> None:
        self.calls = self.workers.calls()
        submit, packed = self.calls[0], self.workers.packed
        left = [i for i in range(len(self.candidates)) if i not in self.found]
        parts = min(self.workers.parts, len(left))
        pieces = [left[number::parts] for number in range(parts)]
        self.numbers = {
            submit(_measured_there, packed, [self.candidates[i] for i in piece]): piece
            for piece in pieces
        }

    def collect(self) -> list[Measurement | str]:
        """Wait for all; what a lost worker was at is measured again, by new processes."""
        while True:
            try:
                for future in self.calls[1](list(self.numbers)):
                    self.found.update(zip(self.numbers[future], future.result(), strict=True))
                return [self.found[number] for number in range(len(self.candidates))]
            except WorkerLostError:
                if not self.workers.lost(self.calls):
                    raise
                self._submit()


def _packed(meter: Meter) -> bytes:
    """A meter for another process; of an energy table, read-only mappings too."""
    file = io.BytesIO()
    pickler = pickle.Pickler(file)
    pickler.dispatch_table = {
        **copyreg.dispatch_table,
        MappingProxyType: lambda view: (_read_only, (dict(view),)),
    }
    pickler.dump(meter)
    return file.getvalue()


def _read_only(mapping: dict[Any, Any]) -> MappingProxyType[Any, Any]:
    return MappingProxyType(mapping)


@lru_cache(maxsize=2)
def _meter(packed: bytes) -> Meter:
    """The meter of a worker, which keeps the activations that it has drawn."""
    meter: Meter = pickle.loads(packed)
    return meter


def _measured_there(packed: bytes, some: Sequence[Candidate]) -> list[Measurement | str]:
    return [_measured(_meter(packed), *candidate) for candidate in some]


def _measured(meter: Meter, task: TuningTask, decisions: Decisions) -> Measurement | str:
    try:
        return meter.measure(task, decisions)
    except SparqleError as error:
        return str(error)
