"""Bytes of what lies in DRAM: encoded activations, weights and their metadata.

Layout of encoded activations on the accelerator (``sparqle``): LSB plane and bitmap row by row;
MSB digits in tile order, that is row group by row group (`rows` rows of the array) and K chunk by
K chunk, each row of a tile padded to a byte, with one pointer per tile. Rows within a tile are
found by counting the bits of the bitmap, which is loaded anyway. ``dense`` and ``native`` store
2k bits per activation, ``a4`` k. All carry a scale per row and, where weights have minima, a sum
per group: int16, in which 128 values less their zero point fit, else int32 (`op.group_sum_bytes`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.cost.baselines import Scheme, stored_bits
from sparqle_tvm.target.isa.compute import burst_bytes
from sparqle_tvm.target.isa.header import row_number_bytes
from sparqle_tvm.target.op import DenseOp, group_sum_bytes

POINTER_BYTES = 4
# A load of an MSB tile fetches where it begins and where it ends.
TILE_POINTER_BYTES = 2 * POINTER_BYTES
ACTIVATION_SCALE_BYTES = 4


def lsb_bytes(rows: int, k: int, digit_bits: int) -> int:
    """Bytes of the LSB plane of (rows, k) activations."""
    return rows * math.ceil(k * digit_bits / 8)


def pbm_bytes(rows: int, k: int) -> int:
    """Bytes of the precision bitmap of (rows, k) activations."""
    return rows * math.ceil(k / 8)


def msb_bytes(nnz: RowNnz, chunk: int, digit_bits: int) -> int:
    """Bytes of the MSB digits: each row of each K chunk is padded to a byte."""
    return int(-(-nnz.per_chunk(chunk) * digit_bits // 8).sum())


def pointer_bytes(rows: int, k: int, chunk: int, array_rows: int) -> int:
    """Bytes of the tile pointers: one per row group and K chunk, and one for the end."""
    return POINTER_BYTES * (math.ceil(rows / array_rows) * math.ceil(k / chunk) + 1)


def sum_bytes(rows: int, k: int, sum_group_size: int, digit_bits: int) -> int:
    """Bytes of the group sums of `rows` rows; 0 if `sum_group_size` is 0."""
    if not sum_group_size:
        return 0
    return rows * math.ceil(k / sum_group_size) * group_sum_bytes(sum_group_size, digit_bits)


def row_metadata_bytes(rows: int, k: int, sum_group_size: int, digit_bits: int) -> int:
    """Bytes of the activation scales and, if `sum_group_size` > 0, of the group sums."""
    return rows * ACTIVATION_SCALE_BYTES + sum_bytes(rows, k, sum_group_size, digit_bits)


def sum_group_size(readers: Sequence[DenseOp]) -> int:
    """Weights per group of the sums that the readers of an encoding need; 0: they need none."""
    return min((op.group_size for op in readers if op.has_min), default=0)


def plane_bytes(
    nnz: RowNnz, chunk: int, accelerator: Accelerator, scheme: Scheme
) -> tuple[int, int]:
    """Bytes of one copy of the activations: (digits, bitmap).

    Digits are the LSB and MSB planes (or the values of a baseline, which has no bitmap).
    Tile pointers (`pointer_bytes`), scales and group sums (`row_metadata_bytes`) come on top.
    """
    rows, k, bits = nnz.rows, nnz.in_features, accelerator.digit_bits
    if scheme != "sparqle":
        return rows * math.ceil(k * stored_bits(accelerator, scheme) / 8), 0
    return lsb_bytes(rows, k, bits) + msb_bytes(nnz, chunk, bits), pbm_bytes(rows, k)


def weight_bytes(op: DenseOp, k: int) -> int:
    """Bytes of one output channel's weights over `k` columns, with group scales and minima."""
    groups = math.ceil(k / op.group_size) if op.group_size else 0
    return math.ceil(k * op.weight_bits / 8) + groups * op.group_parameter_bytes


def channel_bytes(op: DenseOp, k: int) -> int:
    """Bytes of all that belongs to one output channel over `k` columns."""
    return weight_bytes(op, k) + op.channel_parameter_bytes


def row_parameter_bytes(op: DenseOp, block_rows: int) -> int:
    """Bytes that drain and store need of each row: scale, number if sorted, zero point if any."""
    number = row_number_bytes(op.m) if block_rows else 0
    return ACTIVATION_SCALE_BYTES + number + op.shift_bytes


def centre_bytes(op: DenseOp, scheme: Scheme) -> int:
    """Bytes of the zero point of a row that come with every tile of digits centred on it."""
    return op.zero_bytes if scheme == "sparqle" and op.row_centres else 0


def output_row_bytes(n: Any, accelerator: Accelerator, block_rows: int) -> Any:
    """Bytes that a row of `n` outputs moves: a burst of its own if rows are sorted."""
    nbytes = n * accelerator.float_bytes
    return burst_bytes(nbytes) if block_rows else nbytes


def output_bytes(n: int, tile_n: int, accelerator: Accelerator, block_rows: int) -> int:
    """Bytes that one row of `n` outputs moves in all, in tiles of `tile_n`."""
    whole, rest = divmod(n, tile_n)
    row_bytes = whole * output_row_bytes(tile_n, accelerator, block_rows)
    return int(row_bytes + output_row_bytes(rest, accelerator, block_rows))


def encoded_output_bytes(
    m: int, n: int, chunk: int, accelerator: Accelerator, nnz: RowNnz | None = None
) -> int:
    """Bytes of (m, n) outputs that leave encoded, in chunks of `chunk` columns.

    `nnz` are their stored MSB digits; without it, all of them. The first pointer, 0, is not
    written.
    """
    bits = accelerator.digit_bits
    if nnz is not None:
        stored = msb_bytes(nnz, chunk, bits)
    else:
        stored = sum(lsb_bytes(m, min(chunk, n - begin), bits) for begin in range(0, n, chunk))
    pointers = pointer_bytes(m, n, chunk, accelerator.rows) - POINTER_BYTES
    return lsb_bytes(m, n, bits) + pbm_bytes(m, n) + stored + pointers


def worst_plane_bytes(k: int, accelerator: Accelerator, scheme: Scheme) -> int:
    """Bytes of digits and bitmap of a row of `k` activations with every MSB present."""
    if scheme != "sparqle":
        return math.ceil(k * stored_bits(accelerator, scheme) / 8)
    return math.ceil(k * accelerator.activation_bits / 8) + math.ceil(k / 8)
