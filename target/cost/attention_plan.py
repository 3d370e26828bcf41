"""How an attention op is cut up, and what of it lies on chip."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.attention_op import AttentionOp
from sparqle_tvm.target.isa.attention_header import SCALE_BYTES, AttentionHeader
from sparqle_tvm.target.isa.operands import Buffer

_ALIGN = 8


@dataclass(frozen=True)
class AttentionPlan:
    """How an attention op is cut up, and how many slots there are.

    Attributes
    ----------
    block_rows, key_chunk, stays
        As in `AttentionHeader`.
    row_split : int
        As there.
    score_slots, probability_slots, scale_slots, chunk_slots : int
        Blocks of scores, of probabilities and of scales of keys on chip at a time; chunks of keys
        and of values that do not stay. Scales that stay have one slot.
    """

    block_rows: int
    key_chunk: int
    stays: bool = False
    row_split: int = 1
    score_slots: int = 2
    probability_slots: int = 2
    scale_slots: int = 2
    chunk_slots: int = 2

    def header(self, op: AttentionOp, accelerator: Accelerator) -> AttentionHeader:
        """The header of the op's program."""
        return AttentionHeader(
            accelerator=accelerator,
            op=op,
            block_rows=self.block_rows,
            key_chunk=self.key_chunk,
            stays=self.stays,
            row_split=self.row_split,
        )

    def needs(self, op: AttentionOp, accelerator: Accelerator) -> dict[Buffer, int]:
        """Bytes of each buffer that it takes."""
        needs = dict.fromkeys(Buffer, 0)
        for _, buffer, slot_bytes, slots in self.storages(self.header(op, accelerator)):
            needs[buffer] += -(-slot_bytes // _ALIGN) * _ALIGN * slots
        return needs

    def fits(self, op: AttentionOp, accelerator: Accelerator) -> bool:
        """Whether the buffers hold it."""
        needs = self.needs(op, accelerator)
        if accelerator.scratchpad and sum(needs.values()) > accelerator.memory_bytes("activation"):
            return False
        return all(n <= accelerator.memory_bytes(buffer.word) for buffer, n in needs.items())

    def storages(self, header: AttentionHeader) -> Iterator[tuple[str, Buffer, int, int]]:
        """What lies on chip: name, buffer, bytes of a slot, slots."""
        rows, width, chunks = header.block_rows, header.op.head_dim, header.chunks
        chunk_bytes = header.key_chunk * width
        held, slots = (chunks * chunk_bytes, 1) if self.stays else (chunk_bytes, self.chunk_slots)
        scales = 1 if self.stays else self.scale_slots
        yield "queries", Buffer.ACT, rows * header.query_row_bytes, 2
        yield "probs", Buffer.ACT, chunks * header.probability_bytes, self.probability_slots
        yield "scales", Buffer.ACT, 4 * rows, 2
        yield "keys", Buffer.WGT, held, slots
        yield "values", Buffer.WGT, held, slots
        yield "factors", Buffer.WGT, chunks * header.key_chunk * SCALE_BYTES, scales
        yield "scores", Buffer.ACC, chunks * header.scores_bytes, self.score_slots
        yield "outputs", Buffer.ACC, 4 * rows * width, 2
