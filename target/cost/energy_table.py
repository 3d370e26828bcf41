"""Energy of single operations and accesses: cited constants, and parameters that have no source.

An `EnergyTable` is a technology node and a memory type. Its constants are read from TOML files in
``target/cost/data``, where each has value, unit, source, year, and what it was checked against.
What has no citable value is a parameter with low, mid and high (``parameters.toml``): a `Band`,
assumed or a ratio of synthesised areas (``area.toml``).

Between cited sizes of on-chip memory, energy per access is a power of the size (a straight line
in both logarithms); the line of the last two sizes goes on beyond them, as that of the first two
below. Adders cost a straight line in their width through the cited 8 and 32 bits.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.files import MAX_AMOUNT
from sparqle_tvm.target.accelerator import MEMORIES, Accelerator

DEFAULT_NODE = "7nm"
NOT_CHECKED = "not checked"
"""What reports say of a constant that was compared with nothing."""
_Key = TypeVar("_Key", str, int)
_DATA = Path(__file__).parent / "data"
_BITS = {"pJ per bit": 1, "pJ per 64 bits": 64}


Picojoules = Annotated[float, msgspec.Meta(ge=1e-6, le=1e9)]
"""What one operation or access costs."""
Measure = Annotated[float, msgspec.Meta(ge=-MAX_AMOUNT, le=MAX_AMOUNT)]


@dataclass(frozen=True)
class Band:
    """A figure with the range it may lie in; low, mid and high are equal if it is certain."""

    low: Measure
    mid: Measure
    high: Measure

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
    checked : str
        What the figure was compared with, besides our memory of the source; empty: with nothing.
    low, high : float or None
        Range; None without one.
    note : str
        What else has to be said of it.
    """

    value: Picojoules
    unit: str
    source: str
    year: int
    checked: str
    low: Picojoules | None = None
    high: Picojoules | None = None
    note: str = ""

    @property
    def band(self) -> Band:
        """Value and range."""
        low = self.value if self.low is None else self.low
        return Band(low, self.value, self.value if self.high is None else self.high)


@dataclass(frozen=True)
class Parameter(Band):
    """A figure without a source: what it may be, its unit, and why this range.

    `basis` is ``synthesised`` where it is a ratio of areas (docs/area.md), else ``assumed``.
    """

    unit: str
    why: str
    basis: Literal["synthesised", "assumed"] = "assumed"


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
        Energy of a DRAM access.
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

    @property
    def constants(self) -> dict[str, Constant]:
        """All constants by what reports call them: ``int8 add``, ``on-chip memory, 8 KiB``."""
        return {
            **{name.replace("_", " "): constant for name, constant in self.operations.items()},
            **{f"on-chip memory, {size // 1024} KiB": c for size, c in self.sram.items()},
            self.memory_name: self.dram,
        }

    @property
    def unchecked_note(self) -> str:
        """Which constants were not compared with a copy of their source; empty if all were."""
        names = [name for name, constant in self.constants.items() if not constant.checked]
        if not names:
            return ""
        return f"Not checked against a copy of their source: {'; '.join(names)}."

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


def nodes() -> tuple[str, ...]:
    """Technology nodes that there are tables for."""
    return tuple(sorted(f.stem.removeprefix("node_") for f in _DATA.glob("node_*.toml")))


def memories() -> tuple[str, ...]:
    """Memory types that there are tables for: the names of `Accelerator.memory` in lower case."""
    return tuple(sorted(name.lower() for name in MEMORIES))


def energy_table(node: str = DEFAULT_NODE, memory: str = MEMORIES[0]) -> EnergyTable:
    """Read the table of a node and a memory type.

    Parameters
    ----------
    node : str
        ``45nm`` or ``7nm``.
    memory : str
        ``lpddr4``, ``ddr4``, ``hbm2`` or ``lpddr5`` (an estimate), in any case.

    Raises
    ------
    InvalidArgumentError
        If there is no such node or memory.

    Examples
    --------
    >>> energy_table("45nm", "ddr4").operation_pj("int8_multiply")
    0.2
    """
    for kind, key, known in (("node", node, nodes()), ("memory", memory.lower(), memories())):
        if key not in known:
            raise InvalidArgumentError(f"unknown {kind} {key!r}; known: {', '.join(known)}")
    return _table(node, memory.lower())


def default_table(accelerator: Accelerator, node: str = DEFAULT_NODE) -> EnergyTable:
    """The table with the accelerator's memory."""
    return energy_table(node, accelerator.memory)


@lru_cache
def _table(node: str, memory: str) -> EnergyTable:
    logic, dram = read_data(f"node_{node}"), read_data(f"memory_{memory}")
    return EnergyTable(
        node=node,
        memory=memory,
        memory_name=dram["name"],
        estimate=dram["estimate"],
        operations=_constants(logic, "operations", str),
        sram=_constants(logic, "sram", int),
        dram=Constant(**dram["access"]),
        parameters=MappingProxyType(
            {name: _parameter(name, values) for name, values in read_data("parameters").items()}
        ),
    )


def _parameter(name: str, values: dict[str, Any]) -> Parameter:
    """What synthesis says stands in one place, with the areas."""
    if values["basis"] == "synthesised":
        ends = dict(zip(("low", "mid", "high"), read_data("area")["factors"][name], strict=True))
        values = {**ends, **values}
    return Parameter(**values)


def _constants(
    logic: dict[str, Any], section: str, key: Callable[[str], _Key]
) -> Mapping[_Key, Constant]:
    """The constants of a section; what all of a node have in common is said once."""
    return MappingProxyType(
        {key(name): Constant(**logic["shared"], **c) for name, c in logic[section].items()}
    )


def _pj_per_byte(access: Constant) -> Band:
    return access.band * (8 / _BITS[access.unit])


@lru_cache
def read_data(stem: str) -> dict[str, Any]:
    """Read a file of ``target/cost/data``."""
    return tomllib.loads((_DATA / f"{stem}.toml").read_text(encoding="utf-8"))
