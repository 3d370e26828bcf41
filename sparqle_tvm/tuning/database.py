"""The tuning database: MetaSchedule's two JSON files, and a third that says what was tuned for.

``database_workload.json`` and ``database_tuning_record.json`` hold a JSON value per line, as
MetaSchedule writes them; the records' ``run_secs`` are the objective (cycles, picojoules, ...).
``tuning.json`` holds accelerator, objective, data and engine: one folder, one purpose. All lines
are checked, and what they say taken from them, without TVM, whose readers end the process at what
they cannot read; the last line of a killed run may lack its end and is dropped.
"""

from __future__ import annotations

import base64
import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from tvm import s_tir
from tvm.s_tir import meta_schedule as ms

from sparqle_tvm.errors import SparqleError, TuningError
from sparqle_tvm.files import (
    parse_json,
    plain,
    read_json,
    read_text,
    typed,
    typed_version,
    write_json,
    write_text,
)
from sparqle_tvm.target.accelerator import ENGINE_FEATURE, Accelerator
from sparqle_tvm.target.cost.schedule import Decisions, overflows
from sparqle_tvm.target.op import DenseOp
from sparqle_tvm.tuning.space import Trace, decisions_of, read_trace, reason_against
from sparqle_tvm.tuning.task import TuningTask, schedule_key, task_of

WORKLOADS, RECORDS = "database_workload.json", "database_tuning_record.json"
SETTINGS = "tuning.json"
VERSION = 1
FAILED = 1e10
"""What MetaSchedule writes as the figure of a candidate that failed."""

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
    tasks : tuple of TuningTask
        The ops of its workloads.
    entries : tuple of Entry
        All records that fit their array, in the order in which they were written.

    Raises
    ------
    TuningError
        If a file is missing or damaged; names file and line.
    """

    def __init__(self, folder: str | PathLike[str]) -> None:
        self.folder = Path(folder)
        if (self.folder / RECORDS).exists() and not (self.folder / SETTINGS).exists():
            self.settings = _settings_of_records(self.folder / RECORDS)
        else:
            self.settings = Settings.read(self.folder / SETTINGS)
        self.tasks = tuple(_read_workloads(self.folder / WORKLOADS))
        self.entries = tuple(
            _read_records(self.folder / RECORDS, self.tasks, self.settings.accelerator)
        )

    @classmethod
    def open(cls, database: str | PathLike[str] | TuningDatabase | Any) -> TuningDatabase:
        """The database of a folder, or of a ``ms.database.Database``; an open one stays as it is.

        Raises
        ------
        TuningError
            As the constructor; if records are not of dense ops, or of several accelerators.
        """
        if isinstance(database, ms.database.Database):
            return cls._of_records(database)
        return database if isinstance(database, TuningDatabase) else cls(database)

    @classmethod
    def _of_records(cls, database: Any) -> TuningDatabase:
        found = cls.__new__(cls)
        found.folder, entries, machines = Path("the database"), [], set()
        for record in database.get_all_tuning_records():
            sch = s_tir.Schedule(record.workload.mod)
            try:
                task = task_of(record.workload.mod)
                machines.add(Accelerator.from_target(record.target))
                record.trace.apply_to_schedule(sch, remove_postproc=True)
                decisions = decisions_of(sch.mod)
            except SparqleError as error:
                raise TuningError(f"the database has other records: {error}") from error
            figure = float(record.run_secs[0])
            if 0 < figure < math.inf and figure != FAILED:
                entries.append(Entry(task, decisions, figure))
        if len(machines) != 1:
            raise TuningError(f"the database has records of {len(machines)} accelerators, not one")
        found.settings = _settings_of(machines.pop())
        found.tasks = tuple(dict.fromkeys(entry.task for entry in entries))
        found.entries = tuple(entries)
        return found

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
    *whole, torn = read_text(path, TuningError).split("\n")
    if torn:
        LOG.warning("%s: the last line is cut off, as by a killed run; it is left out", path)
    return enumerate(whole, 1)


@contextmanager
def _reading(path: Path, number: int, what: str, remedy: str) -> Iterator[None]:
    """Name file and line of what cannot be read."""
    try:
        yield
    except (SparqleError, ValueError) as error:
        raise TuningError(f"{path}, line {number}: {what} ({_short(error)}); {remedy}") from error


def drop_torn_line(path: Path) -> None:
    """Cut what a killed run left behind the last whole line."""
    if path.is_file() and (data := path.read_bytes()) and not data.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)
        LOG.warning("%s: dropped the last line, which a killed run left unfinished", path)


def _read_workloads(path: Path) -> list[TuningTask]:
    found = []
    for number, line in _lines(path):
        with _reading(path, number, "no workload of a tuned op", "tune again"):
            data = parse_json(line, "it", TuningError, "")
            _, module = typed(data, tuple[str, str], "it", TuningError)
            found.append(_task_in(base64.b64decode(module, validate=True)))
    return found


def _task_in(module: bytes) -> TuningTask:
    """The task of a module in TVM's JSON form behind eight bytes of length, as our op carries it.

    TVM's own reader ends the process at some of what it cannot read.
    """
    graph = parse_json(module[8:], "its module", TuningError, "")
    nodes = typed(graph, _Graph, "its module", TuningError, partial=True).nodes
    texts = [node.data for node in nodes if isinstance(node.data, str)]
    for attribute in (text for text in texts if text.startswith('{"chunks"')):
        return TuningTask.from_json(parse_json(attribute, "its task", TuningError, ""))
    raise TuningError("its module has no task")


@dataclass(frozen=True)
class _Node:
    """What is read of an object in TVM's JSON form."""

    data: Any = None


@dataclass(frozen=True)
class _Graph:
    nodes: list[_Node]


def _read_records(
    path: Path, tasks: Sequence[TuningTask], accelerator: Accelerator
) -> Iterator[Entry]:
    remedy = "remove the line, or tune again"
    features = _features(accelerator.to_target_config())
    for number, line in _lines(path):
        with _reading(path, number, "no record of a tuned op", remedy):
            data = parse_json(line, "it", TuningError, "")
            index, (trace, (figure,), target, _) = typed(data, _Record, "it", TuningError)
            if not 0 <= index < len(tasks):
                raise ValueError(f"there is no workload {index!r}")
            if not 0 < figure < math.inf:
                raise ValueError(f"the figure {figure!r} is not a positive number")
            if _features(target) != features:
                raise ValueError("it is of another target")
            decisions = read_trace(trace)
            if misfit := reason_against(tasks[index], accelerator, decisions):
                raise ValueError(misfit)
        if figure != FAILED:
            yield Entry(tasks[index], decisions, figure)


def _settings_of(accelerator: Accelerator) -> Settings:
    """What is known of a database that MetaSchedule's own calls filled."""
    return Settings(accelerator, "unknown", "unknown", "unknown", {})


def _settings_of_records(path: Path) -> Settings:
    """The accelerator of the first record of a database without settings."""
    for number, line in _lines(path):
        with _reading(path, number, "no record of a tuned op", "tune again"):
            data = parse_json(line, "it", TuningError, "")
            _, (_, _, target, _) = typed(data, _Record, "it", TuningError)
            return _settings_of(Accelerator.from_features(target))
    raise TuningError(f"{path} has no records; tune again")


def _features(target: Mapping[str, Any]) -> dict[str, Any]:
    """What a target says of the accelerator: not kind, tag and processor."""
    return {
        key: value
        for key, value in target.items()
        if key.startswith("feature.") and key != ENGINE_FEATURE
    }


_Record: Any = tuple[
    int, tuple[Trace, tuple[float], dict[str, str | int | float | bool | list[str]], list[Any]]
]


def _short(error: Exception) -> str:
    if isinstance(error, SparqleError):
        return str(error).strip(" ;")
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
        before, now = vars(database.settings), vars(settings)
        different = []
        for key in sorted(key for key in now if now[key] != before[key]):
            old, new = (getattr(which[key], "name", which[key]) for which in (before, now))
            names = isinstance(old, str) and old != new
            different.append(f"{key} ({old!r}, now {new!r})" if names else key)
        raise TuningError(
            f"{folder} was tuned with another {' and '.join(different)}; use another folder"
        )
    # TVM reads the workloads, too: those that it writes itself for these tasks.
    workloads = [ms.database.Workload(task.workload()).as_json() for task in database.tasks]
    lines = "".join(
        json.dumps([str(part) for part in parts], separators=(",", ":")) + "\n"
        for parts in workloads
    )
    if (folder / WORKLOADS).read_text(encoding="utf-8") != lines:
        write_text(folder / WORKLOADS, lines)
    return database
