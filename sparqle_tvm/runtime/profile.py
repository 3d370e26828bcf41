"""What the accelerator did during one call of a compiled function: figures, trace, picture."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.files import write_json
from sparqle_tvm.runtime.launch import LaunchRecord
from sparqle_tvm.showing import html_table
from sparqle_tvm.target.cost.energy import EnergyBreakdown, energy
from sparqle_tvm.target.cost.energy_table import EnergyTable, default_table
from sparqle_tvm.target.cost.events import Events, simulated_events
from sparqle_tvm.target.isa.attention_header import AttentionHeader
from sparqle_tvm.target.isa.header import Engine
from sparqle_tvm.target.joint_op import part_labels
from sparqle_tvm.target.simulator import SimResult
from sparqle_tvm.target.simulator.attention import AttentionResult
from sparqle_tvm.target.simulator.attention_work import AttentionCache
from sparqle_tvm.target.simulator.counts import PlaneCounts
from sparqle_tvm.target.simulator.timeline import MAX_EVENTS, stretches, timeline, track

if TYPE_CHECKING:
    from matplotlib.figure import Figure

JSON_VERSION = 1

Json = dict[str, Any]


class Profile:
    """Cycles, bytes and MACs of every dense op of a call, in the order they ran.

    Parameters
    ----------
    records : sequence of LaunchRecord
        What ``sparqle.launch`` noted.
    reason : str
        Why there are none.
    """

    def __init__(self, records: Sequence[LaunchRecord], *, reason: str = "") -> None:
        self.records = list(records)
        self.reason = reason

    def __repr__(self) -> str:
        """Totals, or why there are none."""
        if not self.records:
            return f"<Profile: empty, {self.reason or 'no op ran on the accelerator'}>"
        cycles, moved = self.total_cycles, self.dram_bytes
        return f"<Profile: {len(self)} ops, {cycles:,} cycles, {moved:,} bytes from and to DRAM>"

    def _repr_html_(self) -> str:
        rows = self.rows()
        head = list(rows[0]) if rows else []
        values = [
            [round(value, 3) if isinstance(value, float) else value for value in row.values()]
            for row in rows
        ]
        return html_table(repr(self)[1:-1], head, values)

    def __len__(self) -> int:
        """Number of ops that ran."""
        return len(self.records)

    def __iter__(self) -> Iterator[LaunchRecord]:
        """The records."""
        return iter(self.records)

    def __getitem__(self, label: str) -> LaunchRecord:
        """The first record of the op ``label``, or of the joint op that it is a part of.

        Raises
        ------
        InvalidArgumentError
            If no op of that name ran.
        """
        for record in self.records:
            if label in (record.label, *part_labels(record.label)):
                return record
        labels = ", ".join(dict.fromkeys(record.label for record in self.records)) or "none"
        raise InvalidArgumentError(f"the profile has no op {label!r}; ops that ran: {labels}")

    @property
    def total_cycles(self) -> int:
        """Cycles of all ops, one after the other."""
        return sum(record.result.total_cycles for record in self.records)

    @property
    def dram_bytes(self) -> int:
        """Bytes that all ops moved from and to DRAM."""
        return sum(record.result.counts.dram_bytes for record in self.records)

    @property
    def events(self) -> Events:
        """What costs energy, of all ops; the encodings of their inputs are not among them."""
        return sum((simulated_events(record.result) for record in self.records), Events())

    def energy(
        self, table: EnergyTable | None = None, *, static_watts: float | None = None
    ) -> EnergyBreakdown:
        """Energy of all ops.

        Parameters
        ----------
        table : EnergyTable, optional
            What a single operation costs; by default 7 nm and the accelerator's memory.
        static_watts : float, optional
            Leakage and idle power, if not that of the table.

        Raises
        ------
        InvalidArgumentError
            If no op ran: there is no accelerator to count for.
        """
        if not self.records:
            raise InvalidArgumentError(
                "the profile is empty: "
                + (self.reason or 'compile with engine="simulator" and call a function first')
            )
        machine = self.records[0].program.header.accelerator
        chosen = default_table(machine) if table is None else table
        return energy(self.events, machine, chosen, static_watts=static_watts)

    def rows(self) -> list[Json]:
        """One flat row per op: label, shape, cycles, bytes, busy share of each engine.

        ``live_keys`` is the share of keys whose values an attention needed; None of other ops.
        """
        table = []
        for record in self.records:
            result, cache = record.result, _cache(record)
            total = max(result.total_cycles, 1)
            table.append(
                {
                    **_shape(record),
                    "cycles": result.total_cycles,
                    "dram_bytes": result.counts.dram_bytes,
                    "lsb_macs": result.counts.lsb.macs,
                    "msb_macs": result.counts.msb.macs,
                    **{
                        f"{engine.name.lower()}_busy": result.engines[engine].busy / total
                        for engine in Engine
                    },
                    "live_keys": cache.live_keys if cache else None,
                }
            )
        return table

    def totals(self) -> Json:
        """All ops together, one after the other; every figure is the sum of the ops' figures.

        Returns
        -------
        dict
            ``cycles``; ``engines``: per engine ``busy_cycles`` (by mnemonic) and
            ``stalled_cycles`` (by reason, see ``simulator.EngineTime``), which add up to
            ``cycles``; ``dram_read_bytes`` and ``dram_write_bytes`` by tensor, ``dram_bytes``,
            ``descriptors``; ``onchip_read_bytes`` and ``onchip_write_bytes`` by buffer;
            ``planes``: MACs and lane-cycles, used and idle, of ``lsb`` and ``msb`` (see
            ``simulator.PlaneCounts``); ``drained_elements``.
        """
        total: Json = {
            **dict.fromkeys(("cycles", "dram_bytes", "descriptors", "drained_elements"), 0),
            "engines": {e.name: {"busy_cycles": {}, "stalled_cycles": {}} for e in Engine},
            "dram_read_bytes": {},
            "dram_write_bytes": {},
            "onchip_read_bytes": {},
            "onchip_write_bytes": {},
            "planes": {plane: {f.name: 0 for f in fields(PlaneCounts)} for plane in ("lsb", "msb")},
        }
        for record in self.records:
            total = _added(total, _measures(record.result))
        return total

    def to_json(self) -> Json:
        """The profile as plain JSON data: ``totals``, and the same figures for each of ``ops``.

        Those of attention have a ``cache``, see `simulator.attention_work.AttentionCache`.
        """
        machine = self.records[0].program.header.accelerator if self.records else None
        return {
            "version": JSON_VERSION,
            "accelerator": machine.name if machine else None,
            "clock_ghz": machine.clock_ghz if machine else None,
            "totals": self.totals(),
            "ops": [
                {**_shape(record), **_measures(record.result), **_reads(record)}
                for record in self.records
            ],
        }

    def trace(self, *, max_events: int = MAX_EVENTS) -> Json:
        """The call in the Trace Event Format: one track per engine, and the ops above them.

        The ops run one after the other on one clock. Each may have an equal share of
        ``max_events``; what does not fit is replaced by one event per engine that lasts to the
        end of the op and says how many were left out.

        Parameters
        ----------
        max_events : int
            Events of instructions and stalls at most, over all ops.

        Returns
        -------
        dict
            For ``json.dump``. ``ts`` and ``dur`` are microseconds, and rise along each track;
            ``otherData`` has ``total_cycles``, ``ops`` and ``events_left_out``.
        """
        share = max(max_events // max(len(self.records), 1), 1)
        begin, left_out = 0, 0
        events: list[Json] = []
        for record in self.records:
            found, missing = _op_events(record, begin, share)
            events += found
            left_out += missing
            begin += record.result.total_cycles
        events.sort(key=lambda event: (event["ts"], event["tid"]))
        tracks = [*timeline([])["traceEvents"], track(_OPS, "ops")]
        other = {"total_cycles": begin, "ops": len(self), "events_left_out": left_out}
        return {"traceEvents": tracks + events, "displayTimeUnit": "ns", "otherData": other}

    def export_trace(self, path: str | os.PathLike[str], *, max_events: int = MAX_EVENTS) -> None:
        """Write :meth:`trace` as JSON, to be opened in ui.perfetto.dev or chrome://tracing.

        The file is written under a temporary name and renamed: it is whole or not there.

        Raises
        ------
        InvalidArgumentError
            If it cannot be written.
        """
        write_json(path, self.trace(max_events=max_events), indent=None)

    def timeline(self, label: str, *, cycles: tuple[int, int] | None = None) -> Figure:
        """Draw the engines of an op over time; needs matplotlib.

        Parameters
        ----------
        label : str
            The op, or a part of a joint op; if it ran several times, its first run.
        cycles : tuple of int, optional
            Begin and end of the part to draw; by default all of it.

        Raises
        ------
        InvalidArgumentError
            If no op of that name ran, or `cycles` is no part of it.
        """
        from sparqle_tvm.runtime.timeline_picture import draw_timeline

        record = self[label]
        title = " x ".join(map(str, (f"{record.label}: {record.rows}", *_sizes(record))))
        return draw_timeline(record.result, title=title, cycles=cycles)


_OPS = len(Engine)  # Track of the ops, next to those of the engines.


def _shape(record: LaunchRecord) -> Json:
    n, k = _sizes(record)
    return {"label": record.label, "m": record.rows, "n": n, "k": k}


def _sizes(record: LaunchRecord) -> tuple[int, int]:
    """N and K; of attention channels of all heads, and keys."""
    header = record.program.header
    if isinstance(header, AttentionHeader):
        return header.op.heads * header.op.head_dim, record.rows + record.result.bound.past
    return header.op.n, header.op.k


def _cache(record: LaunchRecord) -> AttentionCache | None:
    """What an attention read; None of another op."""
    result = record.result
    return result.cache if isinstance(result, AttentionResult) else None


def _reads(record: LaunchRecord) -> Json:
    cache = _cache(record)
    return {} if cache is None else {"cache": asdict(cache)}


def _measures(result: SimResult) -> Json:
    counts = result.counts
    return {
        "cycles": result.total_cycles,
        "engines": {engine.name: asdict(time) for engine, time in result.engines.items()},
        "dram_bytes": counts.dram_bytes,
        "dram_read_bytes": {tensor.name: n for tensor, n in counts.dram_read_bytes.items()},
        "dram_write_bytes": {tensor.name: n for tensor, n in counts.dram_write_bytes.items()},
        "descriptors": counts.descriptors,
        "onchip_read_bytes": {buffer.name: n for buffer, n in counts.onchip_read_bytes.items()},
        "onchip_write_bytes": {buffer.name: n for buffer, n in counts.onchip_write_bytes.items()},
        "planes": {"lsb": asdict(counts.lsb), "msb": asdict(counts.msb)},
        "drained_elements": counts.drained_elements,
    }


def _added(a: Json, b: Json) -> Json:
    """Sum of nested dicts of numbers; a key that one has not counts as nothing."""
    total = dict(a)
    for key, value in b.items():
        if isinstance(value, dict):
            total[key] = _added(a.get(key, {}), value)
        else:
            total[key] = a.get(key, 0) + value
    return total


def _op_events(record: LaunchRecord, begin: int, limit: int) -> tuple[list[Json], int]:
    """Events of an op that begins at cycle `begin`, and how many of them were left out."""
    result = record.result
    cycles_per_us = record.program.header.accelerator.clock_ghz * 1e3
    shown = [e for e in timeline([result], max_events=limit)["traceEvents"] if e["ph"] == "X"]
    for event in shown:
        event["ts"] += begin / cycles_per_us
        event["args"]["end_cycle"] += begin
        event["args"]["op"] = record.label  # The program may be named after an equal op.
    ends = {engine: begin for engine in Engine}
    for event in shown:
        ends[Engine(event["tid"])] = event["args"]["end_cycle"]
    missing = Counter(stretches(result).engine.tolist())
    missing -= Counter(event["tid"] for event in shown)
    end = begin + result.total_cycles

    def until_end(name: str, tid: int, start: int, args: Json) -> Json:
        times = {"ts": start / cycles_per_us, "dur": (end - start) / cycles_per_us}
        return {"ph": "X", "name": name, "cat": "op", "pid": 0, "tid": tid, **times, "args": args}

    for tid, count in missing.items():
        args = {"op": record.label, "events_left_out": count, "end_cycle": end}
        shown.append(until_end(f"{count} events left out", tid, ends[Engine(tid)], args))
    args = {**_shape(record), "cycles": result.total_cycles, "end_cycle": end}
    args["dram_bytes"] = result.counts.dram_bytes
    return [until_end(record.label, _OPS, begin, args), *shown], missing.total()
