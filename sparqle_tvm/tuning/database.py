"""The tuning database: MetaSchedule's two JSON files, and a third that says what was tuned for.

``database_workload.json`` and ``database_tuning_record.json`` hold a JSON value per line, as
MetaSchedule writes them; the records' ``run_secs`` are the objective (cycles, picojoules, ...).
``tuning.json`` holds accelerator, objective, data and engine: one folder, one purpose. All lines
are checked before they are used; the last line of a killed run may lack its end and is dropped.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from tvm import s_tir
from tvm.s_tir import meta_schedule as ms

from sparqle_tvm.errors import SparqleError, TuningError
from sparqle_tvm.files import plain, read_json, typed_version, write_json
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.cost.schedule import Decisions, overflows
from sparqle_tvm.target.op import DenseOp
from sparqle_tvm.tuning.space import decisions_of, reason_against
from sparqle_tvm.tuning.task import TuningTask, schedule_key, task_of

WORKLOADS, RECORDS = "database_workload.json", "database_tuning_record.json"
SETTINGS = "tuning.json"
VERSION = 1

LOG = logging.getLogger("sparqle_tvm.tuning")


@dataclass(frozen=True)
class Settings:
    """What a database was tuned for.

    Attributes
    ----------
    accelerator : Accelerator
        The machine.
    objective : str
        As `Objective.parse` takes it.
    engine : str
        What measured.
    table : str
        Name of the energy table.
    data : dict
        `ActivationData.to_json`.
    """

    accelerator: Accelerator
    objective: str
    engine: str
    table: str
    data: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Everything, with the version of the format."""
        return {"version": VERSION, **plain(self)}

    @classmethod
    def read(cls, path: Path) -> Settings:
        """Read a settings file; TuningError if it is missing, damaged or of another version."""
        if not path.exists():
            raise TuningError(
                f"{path.parent} holds no tuning database ({path.name} is missing); make one with "
                "sparqle tune"
            )
        data = read_json(path, TuningError, "what sparqle tune wrote; tune again")
        return typed_version(data, cls, VERSION, path, TuningError, "tune again")


@dataclass(frozen=True)
class Entry:
    """A record that was understood: decisions of a task and their objective."""

    task: TuningTask
    decisions: Decisions
    value: float


class TuningDatabase:
    """What a folder of a tuning run holds.

    Parameters
    ----------
    folder : path
        As `tune` filled it.

    Attributes
    ----------
    settings : Settings
        What was tuned for.
    entries : tuple of Entry
        All records that fit their array, in the order in which they were written.

    Raises
    ------
    TuningError
        If a file is missing or damaged; names file and line.
    """

    def __init__(self, folder: str | PathLike[str]) -> None:
        self.folder = Path(folder)
        self.settings = Settings.read(self.folder / SETTINGS)
        workloads = _read_workloads(self.folder / WORKLOADS)
        self.entries = tuple(
            _read_records(self.folder / RECORDS, workloads, self.settings.accelerator)
        )

    @classmethod
    def open(cls, database: str | PathLike[str] | TuningDatabase) -> TuningDatabase:
        """The database of a folder; one that is open is returned as it is."""
        return database if isinstance(database, TuningDatabase) else cls(database)

    def check_accelerator(self, accelerator: Accelerator) -> None:
        """Refuse to use schedules of another machine: TuningError."""
        if self.settings.accelerator != accelerator:
            raise TuningError(
                f"{self.folder} was tuned for accelerator {self.settings.accelerator.name!r}, this "
                f"is {accelerator.name!r} (or differs in a figure); tune for it, or leave the "
                "database out"
            )

    def schedules(
        self, group: Sequence[DenseOp], rows: int | None = None
    ) -> tuple[Decisions, ...] | None:
        """The best schedules of all ops that read one encoding, with one K chunk.

        Parameters
        ----------
        group : sequence of DenseOp
            The ops, equal ones as often as they occur; all of one row bucket.
        rows : int, optional
            Tokens; without, or if nobody measured with so many, what most tokens were measured
            with counts.

        Returns
        -------
        tuple of Decisions, or None
            In the order of `group`. None if the group was not tuned.
        """
        wanted = _group_key(group)
        found = [e for e in self.entries if _group_key(e.task.group) == wanted]
        measured = {entry.task.rows for entry in found}
        if not measured:
            return None
        count = rows if rows in measured else max(measured)
        chosen = best_of_group(group, [e for e in found if e.task.rows == count])
        # They were made for a like op; a bias or sorted rows may be what is too much for a buffer.
        accelerator = self.settings.accelerator
        if chosen is None or any(
            overflows(spec, accelerator, decisions)
            for spec, decisions in zip(group, chosen, strict=True)
        ):
            return None
        return chosen


def best_of_group(
    group: Sequence[DenseOp], entries: Iterable[Entry]
) -> tuple[Decisions, ...] | None:
    """The best decisions for all ops of a group with one K chunk, None if no chunk has all.

    The chunk is that with the smallest sum of the ops' best figures.
    """
    best: dict[int, dict[DenseOp, Entry]] = {}
    for entry in entries:
        ops = best.setdefault(_chunk(entry), {})
        key = schedule_key(entry.task.spec)
        if key not in ops or entry.value < ops[key].value:
            ops[key] = entry
    keys = [schedule_key(spec) for spec in group]
    whole = {k: ops for k, ops in best.items() if all(key in ops for key in keys)}
    if not whole:
        return None
    chosen = min(whole, key=lambda k: (sum(whole[k][key].value for key in keys), -k))
    return tuple(whole[chosen][key].decisions for key in keys)


def _group_key(group: Sequence[DenseOp]) -> list[str]:
    return sorted(repr(schedule_key(spec)) for spec in group)


def _chunk(entry: Entry) -> int:
    """Columns of a K chunk; all of K is one, however far the tile is rounded up."""
    return min(entry.decisions.k, entry.task.spec.k)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a file; one without its end is left out."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TuningError(f"{path} cannot be read: {error}; tune again") from error
    *whole, torn = text.split("\n")
    if torn:
        LOG.warning("%s: the last line is cut off, as by a killed run; it is left out", path)
    return enumerate(whole, 1)


@contextmanager
def _reading(path: Path, number: int, what: str, remedy: str) -> Iterator[None]:
    """Name file and line of what cannot be read."""
    try:
        yield
    except json.JSONDecodeError as error:
        raise TuningError(
            f"{path}, line {number}: not JSON ({error}); remove the line, or tune again"
        ) from error
    except Exception as error:  # TVM raises errors of many classes for what it cannot read
        raise TuningError(f"{path}, line {number}: {what} ({_short(error)}); {remedy}") from error


def drop_torn_line(path: Path) -> None:
    """Cut what a killed run left behind the last whole line."""
    if path.is_file() and (data := path.read_bytes()) and not data.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)
        LOG.warning("%s: dropped the last line, which a killed run left unfinished", path)


def _read_workloads(path: Path) -> list[tuple[Any, TuningTask]]:
    found = []
    for number, line in _lines(path):
        with _reading(path, number, "no workload of a tuned op", "tune again"):
            workload = ms.database.Workload.from_json(json.loads(line))
            found.append((workload, task_of(workload.mod)))
    return found


def _read_records(
    path: Path, workloads: list[tuple[Any, TuningTask]], accelerator: Accelerator
) -> Iterator[Entry]:
    remedy = "remove the line, or tune again"
    for number, line in _lines(path):
        with _reading(path, number, "no record of a tuned op", remedy):
            index, (trace, (figure,), *_) = json.loads(line)
            if not isinstance(index, int) or not 0 <= index < len(workloads):
                raise ValueError(f"there is no workload {index!r}")
            workload, task = workloads[index]
            decisions = _replay(workload, trace)
            if not (isinstance(figure, int | float) and 0 < figure < math.inf):
                raise ValueError(f"the figure {figure!r} is not a positive number")
            if misfit := reason_against(task, accelerator, decisions):
                raise ValueError(misfit)
        yield Entry(task, decisions, float(figure))


def _replay(workload: Any, trace: Any) -> Decisions:
    """Apply the trace of a record to its workload, as any process can."""
    sch = s_tir.Schedule(workload.mod, debug_mask="none")
    s_tir.schedule.Trace.apply_json_to_schedule(trace, sch)
    return decisions_of(sch.mod)


def _short(error: Exception) -> str:
    if isinstance(error, SparqleError):
        return str(error)
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1][:200]


def open_for_tuning(folder: Path, settings: Settings) -> TuningDatabase:
    """Open the database of a run that goes on, or begin one.

    Raises TuningError if the folder cannot be made, is of another purpose, or is damaged.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TuningError(f"{folder} cannot be made: {error.strerror}") from error
    if not (folder / SETTINGS).exists():
        if (folder / RECORDS).exists() or (folder / WORKLOADS).exists():
            raise TuningError(f"{folder} holds a database without {SETTINGS}; use another folder")
        write_json(folder / SETTINGS, settings.to_json())
    for name in (WORKLOADS, RECORDS):
        (folder / name).touch()
        drop_torn_line(folder / name)
    database = TuningDatabase(folder)
    if database.settings != settings:
        theirs, ours = database.settings.to_json(), settings.to_json()
        different = sorted(key for key in ours if ours[key] != theirs[key])
        raise TuningError(
            f"{folder} was tuned with another {' and '.join(different)}; use another folder"
        )
    return database
