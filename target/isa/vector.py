"""The instruction of the vector engine: scores become probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from sparqle_tvm.target.isa.access import Access, Mode, Values, ceil_div
from sparqle_tvm.target.isa.attention import (
    OUT_SCALES,
    PROBABILITIES,
    QUERIES,
    SCALES,
    SCORES,
    AttentionInstruction,
    Region,
    chunks_bytes,
)
from sparqle_tvm.target.isa.attention_header import (
    FACTOR_BYTES,
    SCALE_BYTES,
    AttentionHeader,
    plane_bytes,
)
from sparqle_tvm.target.isa.base import Kind
from sparqle_tvm.target.isa.header import Engine
from sparqle_tvm.target.isa.operands import Address, Affine

SCORE_OPERATIONS = 11
"""Operations of the vector unit on a score: two factors, round and limit, maximum; subtract,
exponential, sum; factor of the value, maximum; factor of the levels, round to 8 bits."""

ENCODE_OPERATIONS = 1
"""Operations on a probability of a live key that is split and compressed, as on an activation."""


def _planes(header: AttentionHeader, values: Values) -> Any:
    """Bytes of the probabilities of a block that are written, digits as they are stored."""
    whole, rest = values["total"] // header.key_chunk, values["total"] % header.key_chunk
    digits, bits = (
        whole * full + last
        for full, last in zip(plane_bytes(header.key_chunk), plane_bytes(rest), strict=True)
    )
    rows = values["rows"]
    if not header.sparse:
        return bits + 2 * rows * digits
    return bits + rows * (digits + bits) + values["p_bytes"]


@dataclass(frozen=True)
class VecSmx(AttentionInstruction):
    """Make probabilities of all scores of a block: softmax, times the values' scales, 8 bits.

    Steps 2 to 5 of `sparqle_tvm.numerics.attention`, a key that a row does not see has 0, and the
    scale of step 6. What has a digit in some row is marked in the map of live keys.

    Cycles: ``ceil((SCORE_OPERATIONS * rows * total + ENCODE_OPERATIONS * rows * live) /
    vector_lanes)``; hidden keys take as long. Of scheme ``dense`` nothing is encoded.

    Attributes
    ----------
    probs, scales : Address
        Probabilities of the block and scales of its outputs in ACT, which it makes.
    scores : Address
        Scores of the block in ACC, all chunks.
    queries : Address
        Queries of the block in ACT, for the factors of the rows.
    key_scales : Address
        Scales of keys and values in WGT, all chunks.
    block : Affine
        Which.
    """

    OPCODE: ClassVar[int] = 45
    MNEMONIC: ClassVar[str] = "VEC.SMX"
    ENGINE: ClassVar[Engine] = Engine.VECTOR
    KIND: ClassVar[Kind] = Kind.PLAIN
    ROLE: ClassVar[str] = "vector"
    MEASURED: ClassVar[bool] = True
    ACCESSES: ClassVar[tuple[Access, ...]] = (
        Region(
            *("scores", SCORES, Mode.READ, "rows", "", "row"),
            # Read for the maximum and for exponentials, which are written there and read again.
            read=lambda h, values, nbytes: 12 * values["rows"] * values["total"],
            written=lambda h, values, nbytes: 4 * values["rows"] * values["total"],
            size=chunks_bytes(
                lambda h: h.scores_bytes, lambda h, values, rest: 4 * values["rows"] * rest
            ),
        ),
        Access(
            *("queries", QUERIES, Mode.READ, "rows", "", "row"),
            read=lambda h, values, nbytes: FACTOR_BYTES * values["rows"],
        ),
        Region(
            *("key_scales", SCALES, Mode.READ, "rows", "", "row"),
            read=lambda h, values, nbytes: SCALE_BYTES * values["total"] * values["rows"],
            size=chunks_bytes(
                lambda h: SCALE_BYTES * h.key_chunk, lambda h, values, rest: SCALE_BYTES * rest
            ),
        ),
        Region(
            *("probs", PROBABILITIES, Mode.WRITE, "rows", "", "row"),
            written=lambda h, values, nbytes: _planes(h, values),
            size=lambda h, values: ceil_div(values["total"], h.key_chunk) * h.probability_bytes,
        ),
        Access("scales", OUT_SCALES, Mode.WRITE, "rows", "", "row"),
    )

    probs: Address
    scales: Address
    scores: Address
    queries: Address
    key_scales: Address
    block: Affine

    @classmethod
    def cycles(cls, header: AttentionHeader, values: Values) -> Any:
        """Cycles, see the class."""
        return ceil_div(cls._operations(header, values), header.accelerator.vector_lanes)

    @classmethod
    def _operations(cls, header: AttentionHeader, values: Values) -> Any:
        encoded = ENCODE_OPERATIONS * header.sparse * values["live"]
        return values["rows"] * (SCORE_OPERATIONS * values["total"] + encoded)

    @classmethod
    def events(cls, header: AttentionHeader, values: Values) -> Mapping[str, Any]:
        """All operations, and probabilities that are cut into digits."""
        encoded = values["rows"] * values["live"] * header.sparse
        operations = cls._operations(header, values)
        return {"vector_operations": operations, "encoded_elements": encoded}
