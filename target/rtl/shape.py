"""Sizes that the hardware is built for: those of an accelerator, and what a tile needs at most."""

from __future__ import annotations

from dataclasses import dataclass

from sparqle_tvm.errors import TargetError
from sparqle_tvm.numerics.integers import require_digit_bits
from sparqle_tvm.target.accelerator import Accelerator

MAX_COLUMNS = 1 << 14
ACCUMULATOR_BITS = 32


@dataclass(frozen=True)
class ArrayShape:
    """Sizes of an array in hardware.

    Attributes
    ----------
    rows, cols, lanes : int
        As of `Accelerator`.
    digit_bits : {2, 4, 8}
        Bits k of a digit and of a weight slice.
    columns : int
        The largest K chunk: columns whose weights a PE can keep for the sparse pass. A multiple of
        `lanes`.
    group_size : int
        Columns that share a partial sum; 0: all. It divides `columns`.
    weight_slices : int
        Slices of a weight, at most 4.

    Raises
    ------
    TargetError
        If sizes do not fit each other.
    """

    rows: int
    cols: int
    lanes: int
    digit_bits: int = 4
    columns: int = 64
    group_size: int = 0
    weight_slices: int = 2

    def __post_init__(self) -> None:
        """Check the sizes."""
        require_digit_bits(self.digit_bits)
        low = min(self.rows, self.cols, self.lanes, self.columns)
        if low < 1 or self.columns > MAX_COLUMNS or not 1 <= self.weight_slices <= 4:
            raise TargetError(
                f"hardware needs positive sizes, at most {MAX_COLUMNS} columns and 4 slices of a "
                f"weight, got {self}"
            )
        if self.columns % self.lanes:
            raise TargetError(
                f"columns = {self.columns} is not a multiple of the {self.lanes} lanes; the next "
                f"is {self.steps * self.lanes}"
            )
        if self.group_size and self.columns % self.group_size:
            raise TargetError(
                f"columns = {self.columns} is not a multiple of group_size = {self.group_size}"
            )
        if self.lanes & (self.lanes - 1) or self.lanes < 2:
            raise TargetError(
                f"lanes = {self.lanes}: hardware needs a power of two of them, at least 2, because "
                "stages of switches take weights to their lanes"
            )
        if self.lanes * self.digit_bits % 8:
            raise TargetError(
                f"{self.lanes} lanes of {self.digit_bits} bits are no whole bytes, in which "
                "stored digits come"
            )

    @classmethod
    def of(cls, accelerator: Accelerator, columns: int, group_size: int = 0) -> ArrayShape:
        """The array of an accelerator, for K chunks of up to `columns` columns.

        Raises
        ------
        TargetError
            If the hardware cannot be built: the accelerator begins a step for every weight group
            (`msb_across_groups` is false), or sizes do not fit.
        """
        if not accelerator.msb_across_groups:
            raise TargetError(
                f"accelerator {accelerator.name!r}: msb_across_groups = false has no hardware "
                "description yet; set it to true"
            )
        return cls(
            accelerator.rows,
            accelerator.cols,
            accelerator.lanes,
            accelerator.digit_bits,
            -(-columns // accelerator.lanes) * accelerator.lanes,
            group_size,
        )

    @property
    def steps(self) -> int:
        """Steps of the dense pass over all columns."""
        return -(-self.columns // self.lanes)

    @property
    def groups(self) -> int:
        """Partial sums of a PE."""
        return self.columns // self.group_size if self.group_size else 1

    @property
    def lane_bits(self) -> int:
        """Bits of a lane's number: stages of switches that weights go through."""
        return (self.lanes - 1).bit_length()

    @property
    def switches(self) -> int:
        """Switches of a PE."""
        return self.lanes // 2 * self.lane_bits

    @property
    def step_bits(self) -> int:
        """Bits of a step's number."""
        return max((self.steps - 1).bit_length(), 1)

    @property
    def lane_count_bits(self) -> int:
        """Bits of a number of lanes, 0 to `lanes`."""
        return self.lanes.bit_length()

    @property
    def group_bits(self) -> int:
        """Bits of a group's number."""
        return max((self.groups - 1).bit_length(), 1)

    @property
    def row_bits(self) -> int:
        """Bits of a row's number."""
        return max((self.rows - 1).bit_length(), 1)
