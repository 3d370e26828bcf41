"""What the compiled executor works on: its memories, and the actions of its table."""

from __future__ import annotations

from typing import Any

from sparqle_tvm.target.simulator.spec import ValueSpec
from sparqle_tvm.tirscript import Array, parameter, size

# Values of `plane`: LSB digits, the same with the top bit flipped (window ``signed``), a dense
# plane of MSB digits, MSB digits behind a bitmap.
LSB_PLANE, FLIPPED_PLANE, MSB_PLANE, SPARSE_PLANE = range(4)

# Pools of decoded tiles, in the order of the entry sizes: activations, their span sums, weights,
# parameters.
_POOLS = ("act", "sums", "wgt", "grp")


class Memory:
    """Arguments of the executor, see `executor.executor`; the table has `columns` columns."""

    def __init__(self, spec: ValueSpec, columns: int) -> None:
        self.actions = size("actions")
        self.table = parameter("table", "int64", self.actions, columns)
        self.act = parameter("act", "uint8", size("act_bytes"))
        self.wgt = parameter("wgt", "uint8", size("wgt_bytes"))
        self.acc = parameter("acc", spec.accumulator, size("cells"))
        self.activations = parameter("activations", spec.dot.activation, size("act_room"))
        self.sums = parameter("sums", "int32", size("sums_room"))
        self.weights = parameter("weights", spec.dot.weight, size("wgt_room"))
        self.parameters = parameter("parameters", "float64", size("grp_room"))
        self.held = {
            pool: parameter(f"{pool}_held", "int64", size(f"{pool}_entries"))
            for pool in ("act", "wgt", "grp")
        }
        self.sizes = parameter("sizes", "int64", 4)
        self.offsets = parameter("offsets", "int64", size("rows"))
        self.scratch = parameter("scratch", "float64", size("scratch_room"))
        self.spec = spec

    @property
    def staging(self) -> Array:
        """The scratch memory as bytes."""
        return self.scratch.view("uint8", self.scratch.buffer.shape[0] * 8)

    @property
    def cells(self) -> Array:
        """Accumulators as int32: with groups a cell has two, and its output is the first."""
        return self.acc.view("int32", self.acc.buffer.shape[0] * self.cell_stride)

    @property
    def cell_stride(self) -> int:
        """int32 from one cell to the next."""
        return 2 if self.spec.grouped else 1


class Action:
    """An action of the table: its operands by name, and the memories.

    A row of the table has the number of the kind of action, an address in memory where there is
    one (`dram`), then its operands.

    Parameters
    ----------
    memory : Memory
        The executor's arguments.
    index : expression
        Its row.
    operands : tuple of str
        Names of its operands.
    """

    def __init__(self, memory: Memory, index: Any, operands: tuple[str, ...]) -> None:
        self.memory, self._index, self._operands = memory, index, ("dram", *operands)

    def __getitem__(self, operand: str) -> Any:
        """An operand (expression)."""
        return self.memory.table[self._index, 1 + self._operands.index(operand)]

    def entry(self, pool: str) -> Any:
        """Where its tile begins in a pool: ``act``, ``sums`` (beside act), ``wgt`` or ``grp``."""
        number = self["act_entry" if pool == "sums" else f"{pool}_entry"]
        return number * self.memory.sizes[_POOLS.index(pool)]
