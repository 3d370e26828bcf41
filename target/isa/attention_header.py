"""What an attention program assumes: the op, its blocks of rows and chunks of keys, the layouts.

A program walks over blocks: `block_rows` query rows of one key head (its last block may have fewer)
with the keys that the last of them sees, in chunks of `key_chunk`. Blocks are numbered over all
key heads, head by head. Everything an instruction touches follows from a block and a chunk and the
sizes of the run; `AttentionHeader.place` says how.

On chip lie (`D` = head_dim, k = 4 bits of a digit, R = block_rows, C = key_chunk):

- queries of a block, as in DRAM: (rows,) float32 factors, then LSB digits and bitmap, each row by
  row and a row padded to a byte, then the stream of stored MSB digits, each row padded to a byte;
  of scheme ``dense`` (rows, D) int8 behind the factors;
- keys and values of a chunk: (keys, D) int8; their scales: (keys, 2) float32;
- scores of a block: chunk by chunk, a chunk every ``4 * R * C`` bytes, (rows, keys) int32;
- probabilities of a block: chunk by chunk, a chunk every `probability_bytes`. A chunk has the map
  of live keys (a bit for each, set where p is not 0 in some row of the block), LSB digits, bitmap
  and the stream of MSB digits, where `probability_parts` says; of scheme ``dense`` the map, LSB
  digits and MSB digits. Rows are padded to a byte;
- outputs of a block: (rows, D) int32, after DRN.OUT float32; (rows,) float32 scales of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from sparqle_tvm.errors import ProgramError
from sparqle_tvm.target.attention_op import DIGIT_BITS, AttentionOp
from sparqle_tvm.target.isa.base import Presence
from sparqle_tvm.target.isa.header import ProgramHeader, common_problem
from sparqle_tvm.target.isa.operands import BLOCKS, KEYS, M
from sparqle_tvm.target.op import is_whole

FACTOR_BYTES = 4
"""Bytes of the factor of a query row."""

SCALE_BYTES = 8
"""Bytes of the scales of a key and its value, float32 each."""


@dataclass(frozen=True, kw_only=True)
class AttentionHeader(ProgramHeader):
    """What an attention program assumes of its accelerator and its operands.

    Attributes
    ----------
    op : AttentionOp
        The op; its `rows` and `keys` are the most that the program can be bound to, its `label`
        the name in listings and reports.
    block_rows : int
        Query rows of a block.
    key_chunk : int
        Keys of a chunk; a multiple of 8, or at least `AttentionOp.keys`.
    stays : bool
        Keys and values of a head are loaded once and stay for all its blocks, every key of them.
        If not, each block loads the keys that it sees, and the values that are live in it.
    row_split : int
        PE rows that share a query row: columns of a product (channels in scores, live keys in
        mixing) are dealt to them in segments.

    Raises
    ------
    ProgramError
        If a field has the wrong type or value, or fields do not agree.
    """

    KIND: ClassVar[str] = "attention"

    op: AttentionOp
    block_rows: int
    key_chunk: int
    stays: bool = False
    row_split: int = 1

    def __post_init__(self) -> None:
        """Check every field."""
        problem = self._problem() or common_problem(self)
        if problem:
            raise ProgramError(f"header of program {self.op.label!r}: {problem}")

    def _problem(self) -> str | None:
        if self.accelerator.digit_bits != DIGIT_BITS:
            return (
                f"attention has digits of {DIGIT_BITS} bits, the machine of "
                f"{self.accelerator.digit_bits}"
            )
        for name in ("block_rows", "key_chunk", "row_split"):
            if not is_whole(getattr(self, name), 1, 2**24):
                return f"{name} = {getattr(self, name)!r} must be a positive whole number"
        if self.key_chunk % 8 and self.key_chunk < self.op.keys:
            return f"key_chunk = {self.key_chunk} must be a multiple of 8, or at least the keys"
        if self.row_split > max(self.accelerator.rows // self.block_rows, 1):
            return f"row_split = {self.row_split} needs more rows of PEs than there are"
        if self.row_split > 1 and not self.accelerator.rows_share_k:
            return "row_split needs rows of PEs that share K (rows_share_k)"
        stays: Any = self.stays
        return None if isinstance(stays, bool) else "stays must be true or false"

    @property
    def label(self) -> str:
        """Name of the op."""
        return self.op.label

    @property
    def sparse(self) -> bool:
        """Whether queries and probabilities have a bitmap."""
        return self.op.scheme == "sparqle"

    @property
    def chunks(self) -> int:
        """Chunks of all keys that there may be."""
        return -(-self.op.keys // self.key_chunk)

    @property
    def scores_bytes(self) -> int:
        """Bytes of the scores of a chunk."""
        return 4 * self.block_rows * self.key_chunk

    @property
    def query_row_bytes(self) -> int:
        """Bytes of a query row at most, with its factor."""
        if not self.sparse:
            return FACTOR_BYTES + self.op.head_dim
        digits, bits = plane_bytes(self.op.head_dim)
        return int(FACTOR_BYTES + 2 * digits + bits)

    @property
    def probability_parts(self) -> tuple[int, int, int, int]:
        """Where, in a chunk of probabilities, LSB digits, bitmap and MSB digits begin, and its end.

        The map of live keys is at 0; of scheme ``dense`` the bitmap is empty.
        """
        digits, bits = (size * self.block_rows for size in plane_bytes(self.key_chunk))
        first = -(-self.key_chunk // 8)
        bits *= self.sparse
        return first, first + digits, first + digits + bits, first + 2 * digits + bits

    @property
    def probability_bytes(self) -> int:
        """Bytes of the probabilities of a chunk at most, a multiple of 4."""
        return int(-(-self.probability_parts[-1] // 4) * 4)

    def limits(self, rows: int, past: int) -> Mapping[str, int]:
        """``M``: rows, ``B``: blocks of all key heads, ``T``: keys."""
        if not 1 <= rows <= self.op.rows or not 0 <= past <= self.op.keys - rows:
            raise ProgramError(
                f"program {self.label!r} takes 1 to {self.op.rows} rows and {self.op.keys} keys at "
                f"most, it was bound to {rows} rows after {past}"
            )
        blocks = self.op.kv_heads * self.head_blocks(rows)
        return {M: rows, BLOCKS: blocks, KEYS: past + rows}

    def summary(self) -> Iterator[str]:
        """Sizes, and how they are cut up."""
        op = self.op
        yield (
            f"M <= {op.rows}, T <= {op.keys}{', causal' * op.causal}: {op.kv_heads} key heads of "
            f"{op.group} query heads, D = {op.head_dim}"
        )
        kept = "stay for a head" if self.stays else "are loaded for every block"
        yield f"{op.scheme}, window {op.window}; keys {kept}, row split {self.row_split}"
        yield f"B blocks of {self.block_rows} query rows, chunks of {self.key_chunk} keys"

    def head_blocks(self, rows: int) -> int:
        """Blocks of a key head, for so many tokens."""
        return int(-(-self.op.group * rows // self.block_rows))

    def place(self, limits: Mapping[str, int], block: Any, chunk: Any) -> dict[str, Any]:
        """What a block and a chunk stand for, for numbers or arrays.

        Returns
        -------
        dict
            ``row``: first row of the block among those of all key heads; ``rows``: how many;
            ``total``: keys that the block sees; ``key``: first key of the chunk among those of all
            heads; ``keys``: how many of the chunk the block sees; ``loaded``: how many of it are
            loaded, more if they stay for other blocks.
        """
        tokens, count, group = limits[M], limits[KEYS], self.op.group
        per_head = self.head_blocks(tokens)
        head, index = np.floor_divide(block, per_head), np.mod(block, per_head)
        first = index * self.block_rows
        rows = np.minimum(self.block_rows, group * tokens - first)
        last = (first + rows - 1) // group
        total = count - tokens + last + 1 if self.op.causal else count + 0 * last
        begin = np.multiply(chunk, self.key_chunk)
        known = count + 0 * total if self.stays else total
        return {
            "row": head * (group * tokens) + first,
            "rows": rows,
            "total": total,
            "key": head * count + begin,
            "keys": np.clip(total - begin, 0, self.key_chunk),
            "loaded": np.clip(known - begin, 0, self.key_chunk),
        }

    def has(self, what: int, limits: Mapping[str, int], block: Any, chunk: Any) -> Any:
        """Whether a block exists, and is what `Presence` names."""
        exists = (np.asarray(block) >= 0) & (np.asarray(block) < limits[BLOCKS])
        index = np.mod(block, self.head_blocks(limits[M]))
        if what == Presence.FIRST:
            return exists & (index == 0)
        if what == Presence.LAST:
            return exists & (index == self.head_blocks(limits[M]) - 1)
        if what == Presence.CHUNK:
            return exists & (chunk >= 0) & (self.place(limits, block, chunk)["keys"] > 0)
        return exists


def plane_bytes(columns: Any) -> tuple[Any, Any]:
    """Bytes of a row of digits, and of one of bits."""
    return -(-columns * DIGIT_BITS // 8), -(-columns // 8)
