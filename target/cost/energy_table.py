"""Energy of single operations and accesses: cited constants, and parameters that have no source.

An `EnergyTable` is a technology node and a memory type. Its constants are read from TOML files in
``target/cost/data``, where each has value, unit, source and year. What has no citable value is a
parameter with low, mid and high (``parameters.toml``): a `Band` here.

Between cited sizes of on-chip memory, energy per access is a power of the size (a straight line
in both logarithms); the line of the last two sizes goes on beyond them, as that of the first two
below. Adders cost a straight line in their width through the cited 8 and 32 bits.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.target.accelerator import Accelerator

DEFAULT_NODE = "7nm"
DEFAULT_MEMORY = "lpddr4"
_MEMORY_OF_PRESET = {"sparqle/mobile": "lpddr5", "sparqle/server": "hbm2"}
_DATA = Path(__file__).parent / "data"
_BITS = {"pJ per bit": 1, "pJ per 64 bits": 64}


@dataclass(frozen=True)
class Band:
    """A figure with the range it may lie in; low, mid and high are equal if it is certain."""

    low: float
    mid: float
    high: float

    def __add__(self, other: Band) -> Band:
        """Sum, as if both were low (or high) together."""
        return Band(self.low + other.low, self.mid + other.mid, self.high + other.high)

    def __mul__(self, factor: float) -> Band:
        """Scaled by a factor that is certain."""
        return Band(self.low * factor, self.mid * factor, self.high * factor)

    @classmethod
    def exact(cls, value: float) -> Band:
        """A figure that is certain."""
        return cls(value, value, value)

    def to_json(self) -> dict[str, float]:
        """Keys ``low``, ``mid``, ``high``."""
        return asdict(self)


@dataclass(frozen=True)
class Constant:
    """A published figure.

    Attributes
    ----------
    value : float
        The figure; `low` and `high` if the source gives a range.
    unit, source : str
        Unit, and where it was published.
    year : int
        When.
    low, high : float or None
        Range; None without one.
    """

    value: float
    unit: str
    source: str
    year: int
    low: float | None = None
    high: float | None = None

    @property
    def band(self) -> Band:
        """Value and range."""
        low = self.value if self.low is None else self.low
        return Band(low, self.value, self.value if self.high is None else self.high)


@dataclass(frozen=True)
class Parameter:
    """A figure without a source: what it may be, its unit, and why this range."""

    low: float
    mid: float
    high: float
    unit: str
    why: str

    @property
    def band(self) -> Band:
        """The range."""
        return Band(self.low, self.mid, self.high)


@dataclass(frozen=True, eq=False)
class EnergyTable:
    """Constants of a technology node and a memory type.

    Attributes
    ----------
    node, memory : str
        Keys: ``7nm``, ``lpddr4``.
    memory_name : str
        ``LPDDR4``.
    estimate : bool
        The memory's figure has no source.
    operations : mapping of str to Constant
        Energy of operations in pJ: ``int8_add``, ``fp32_multiply``, ...
    sram : mapping of int to Constant
        Energy per access by size of the memory in bytes.
    dram : Constant
        Energy of a DRAM access, interface included.
    parameters : mapping of str to Parameter
        What has no source.
    """

    node: str
    memory: str
    memory_name: str
    estimate: bool
    operations: Mapping[str, Constant]
    sram: Mapping[int, Constant]
    dram: Constant
    parameters: Mapping[str, Parameter]

    @property
    def name(self) -> str:
        """Name for reports: ``7nm + LPDDR4``."""
        return f"{self.node} + {self.memory_name}" + (" (estimate)" if self.estimate else "")

    def operation_pj(self, name: str) -> float:
        """Energy of an operation in pJ."""
        return self.operations[name].value

    def add_pj(self, bits: float) -> float:
        """Energy of an integer addition of that width in pJ."""
        narrow, wide = self.operation_pj("int8_add"), self.operation_pj("int32_add")
        return narrow + (wide - narrow) * (bits - 8) / 24

    def sram_pj_per_byte(self, size_bytes: int) -> float:
        """Energy of a byte read from or written to an on-chip memory of that size, in pJ."""
        sizes = sorted(self.sram)
        after = min(max(sum(size < size_bytes for size in sizes), 1), len(sizes) - 1)
        (x0, y0), (x1, y1) = (
            (math.log(size), math.log(_pj_per_byte(self.sram[size]).mid))
            for size in sizes[after - 1 : after + 1]
        )
        return math.exp(y0 + (y1 - y0) * (math.log(size_bytes) - x0) / (x1 - x0))

    @property
    def dram_pj_per_byte(self) -> Band:
        """Energy of a byte read from or written to DRAM, in pJ."""
        return _pj_per_byte(self.dram)

    def to_json(self) -> dict[str, Any]:
        """Everything with its source, as plain data."""
        return {
            "name": self.name,
            "node": self.node,
            "memory": self.memory,
            "estimate": self.estimate,
            "operations": {name: asdict(value) for name, value in self.operations.items()},
            "sram": {str(size): asdict(value) for size, value in self.sram.items()},
            "dram": asdict(self.dram),
            "parameters": {name: asdict(value) for name, value in self.parameters.items()},
        }


def nodes() -> tuple[str, ...]:
    """Technology nodes that there are tables for."""
    return _keys("node_")


def memories() -> tuple[str, ...]:
    """Memory types that there are tables for."""
    return _keys("memory_")


def energy_table(node: str = DEFAULT_NODE, memory: str = DEFAULT_MEMORY) -> EnergyTable:
    """Read the table of a node and a memory type.

    Parameters
    ----------
    node : str
        ``45nm`` or ``7nm``.
    memory : str
        ``lpddr4``, ``ddr4``, ``hbm2`` or ``lpddr5`` (an estimate).

    Raises
    ------
    InvalidArgumentError
        If there is no such node or memory.

    Examples
    --------
    >>> energy_table("45nm", "ddr4").operation_pj("int8_multiply")
    0.2
    """
    for kind, key, known in (("node", node, nodes()), ("memory", memory, memories())):
        if key not in known:
            raise InvalidArgumentError(f"unknown {kind} {key!r}; known: {', '.join(known)}")
    return _table(node, memory)


def default_table(accelerator: Accelerator, node: str = DEFAULT_NODE) -> EnergyTable:
    """The table with the memory that a preset stands for; LPDDR4 for an accelerator of one's own.

    ``sparqle/edge`` has LPDDR4, ``sparqle/mobile`` LPDDR5, ``sparqle/server`` HBM2.
    """
    return energy_table(node, _MEMORY_OF_PRESET.get(accelerator.name, DEFAULT_MEMORY))


@lru_cache
def _table(node: str, memory: str) -> EnergyTable:
    logic, dram = _read(f"node_{node}"), _read(f"memory_{memory}")
    return EnergyTable(
        node=node,
        memory=memory,
        memory_name=dram["name"],
        estimate=dram["estimate"],
        operations=_constants(logic["operations"]),
        sram=MappingProxyType({int(size): Constant(**c) for size, c in logic["sram"].items()}),
        dram=Constant(**dram["access"]),
        parameters=MappingProxyType(
            {name: Parameter(**values) for name, values in _read("parameters").items()}
        ),
    )


def _constants(values: dict[str, Any]) -> Mapping[str, Constant]:
    return MappingProxyType({name: Constant(**fields) for name, fields in values.items()})


def _pj_per_byte(access: Constant) -> Band:
    return access.band * (8 / _BITS[access.unit])


def _keys(prefix: str) -> tuple[str, ...]:
    return tuple(sorted(f.stem.removeprefix(prefix) for f in _DATA.glob(f"{prefix}*.toml")))


def _read(stem: str) -> dict[str, Any]:
    return tomllib.loads((_DATA / f"{stem}.toml").read_text(encoding="utf-8"))
