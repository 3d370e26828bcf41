"""What the accelerator did during one call of a compiled function."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sparqle_tvm.launch import LaunchRecord
from sparqle_tvm.target.header import Engine


class Profile:
    """Cycles, bytes and MACs of every dense op of a call, in the order they ran.

    Parameters
    ----------
    records : sequence of LaunchRecord
        What ``sparqle.launch`` noted.
    """

    def __init__(self, records: Sequence[LaunchRecord]) -> None:
        self.records = list(records)

    def __len__(self) -> int:
        """Number of ops that ran."""
        return len(self.records)

    def __iter__(self) -> Iterator[LaunchRecord]:
        """The records."""
        return iter(self.records)

    @property
    def total_cycles(self) -> int:
        """Cycles of all ops, one after the other."""
        return sum(record.result.total_cycles for record in self.records)

    @property
    def dram_bytes(self) -> int:
        """Bytes that all ops moved from and to DRAM."""
        return sum(record.result.counts.dram_bytes for record in self.records)

    def rows(self) -> list[dict[str, Any]]:
        """One row per op: label, shape, cycles, bytes, busy share of each engine."""
        table = []
        for record in self.records:
            header, result = record.program.header, record.result
            total = max(result.total_cycles, 1)
            table.append(
                {
                    "label": record.label,
                    "m": record.rows,
                    "n": header.out_features,
                    "k": header.in_features,
                    "cycles": result.total_cycles,
                    "dram_bytes": result.counts.dram_bytes,
                    "lsb_macs": result.counts.lsb.macs,
                    "msb_macs": result.counts.msb.macs,
                    **{
                        f"{engine.name.lower()}_busy": result.engines[engine].busy / total
                        for engine in Engine
                    },
                }
            )
        return table

    def to_json(self) -> dict[str, Any]:
        """The profile as plain JSON data."""
        return {
            "total_cycles": self.total_cycles,
            "dram_bytes": self.dram_bytes,
            "ops": self.rows(),
        }
