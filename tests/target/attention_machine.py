"""A machine that executes attention programs step by step on bytes, in any timing.

As `reference_machine`, it knows nothing of tiles, and nothing of the simulator: digits are read one
by one, the exponential is computed in Python's integers, and the layouts are counted out anew.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sparqle_tvm.target.isa import INSTRUCTIONS
from sparqle_tvm.target.isa.base import TRACE_ENGINE, TRACE_OPCODE, TRACE_OPERANDS
from sparqle_tvm.target.isa.header import Engine, Queue
from sparqle_tvm.target.isa.operands import Buffer
from sparqle_tvm.target.program import Program

ONE = np.float32(1.0)


class AttentionMachine:
    """Buffers, queues, operands and outputs of one run."""

    def __init__(
        self, program: Program[Any], rows: int, past: int, operands: Any, seed: int
    ) -> None:
        self.header = program.header
        self.op = program.header.op
        self.rows, self.count = rows, rows + past
        self.operands = operands
        self.tensors = operands.tensors(program.header)
        self.rng = np.random.default_rng(seed)
        self.memory = {
            b: self.rng.integers(0, 256, self.header.buffer_bytes(b)).astype(np.uint8)
            for b in Buffer
        }
        self.out = np.full((rows, self.op.heads, self.op.head_dim), 7, np.float32)
        self.tokens = list(self.header.tokens)
        self.trace = program.bind(rows, past)

    def run(self, favourite: Engine | None) -> Any:
        """Execute; `favourite` goes on as long as it can, None: a random engine at every step."""
        lists = [list(np.flatnonzero(self.trace[:, TRACE_ENGINE] == e)[::-1]) for e in Engine]
        while any(lists):
            ready = [e for e in Engine if lists[e] and self._can(lists[e][-1])]
            assert ready, "deadlock"
            engine = favourite if favourite in ready else ready[self.rng.integers(len(ready))]
            self._step(lists[engine].pop())
        return self.out

    def _read(self, step: int) -> tuple[str, dict[str, int]]:
        cls = INSTRUCTIONS[int(self.trace[step, TRACE_OPCODE])]
        names = [name for name in cls.TRACE if name not in cls.DERIVED]
        values = self.trace[step, TRACE_OPERANDS : TRACE_OPERANDS + len(names)]
        return cls.MNEMONIC, dict(zip(names, map(int, values), strict=True))

    def _can(self, step: int) -> bool:
        name, o = self._read(step)
        return name != "WAIT" or self.tokens[Queue(o["queue"])] > 0

    def _step(self, step: int) -> None:
        name, o = self._read(step)
        if name in ("WAIT", "SIGNAL"):
            self.tokens[o["queue"]] += 1 if name == "SIGNAL" else -1
            return
        if not self._place(o):
            return
        getattr(self, "_" + name.lower().replace(".", "_"))(o)

    def _place(self, o: dict[str, int]) -> bool:
        """Heads, rows and keys of the block and chunk of a step."""
        group, rows, chunk = self.op.group, self.rows, self.header.key_chunk
        blocks = -(-group * rows // self.header.block_rows)
        self.head, index = divmod(o["block"], blocks)
        first = index * self.header.block_rows
        last = min(first + self.header.block_rows, group * rows)
        # A query row: its token, and which of the heads of the group.
        self.queries = [divmod(row, group) for row in range(first, last)]
        self.seen = self.count
        if self.op.causal:
            self.seen = self.count - rows + self.queries[-1][0] + 1
        self.begin = o.get("chunk", 0) * chunk
        self.keys = max(min(chunk, self.seen - self.begin), 0)
        known = self.count if self.header.stays else self.seen
        self.loaded = max(min(chunk, known - self.begin), 0)
        return self.head < self.op.kv_heads and o["block"] >= 0

    # Bytes.

    def _bytes(self, buffer: Buffer, at: int, nbytes: int) -> Any:
        return self.memory[buffer][at : at + nbytes]

    def _put(self, buffer: Buffer, at: int, values: Any) -> None:
        data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
        self.memory[buffer][at : at + len(data)] = data

    def _get(self, buffer: Buffer, at: int, dtype: Any, *shape: int) -> Any:
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self._bytes(buffer, at, nbytes).copy().view(dtype).reshape(shape)

    def _nibble(self, at: int, number: int) -> int:
        byte = int(self.memory[Buffer.ACT][at + number // 2])
        return byte >> 4 if number % 2 else byte & 15

    def _bit(self, at: int, number: int) -> bool:
        return bool(self.memory[Buffer.ACT][at + number // 8] >> (number % 8) & 1)

    def _plane(self, at: int, rows: int, columns: int) -> Any:
        pitch = -(-columns // 2)
        return np.array(
            [[self._nibble(at + r * pitch, c) for c in range(columns)] for r in range(rows)],
            dtype=np.int64,
        ).reshape(rows, columns)

    def _stream(self, bits_at: int, at: int, rows: int, columns: int) -> Any:
        """Stored digits 0 to 15 of rows; -1 where none is stored."""
        digits = np.full((rows, columns), -1, dtype=np.int64)
        for row in range(rows):
            number = 0
            for column in range(columns):
                if self._bit(bits_at + row * -(-columns // 8), column):
                    digits[row, column] = self._nibble(at, number)
                    number += 1
            at += -(-number // 2)
        return digits

    # Loads.

    def _ld_qry(self, o: dict[str, int]) -> None:
        """From the operands: what QUERIES should have there."""
        chosen = [(token, self.head * self.op.group + member) for token, member in self.queries]
        q = np.array([self.operands.q[at] for at in chosen]).reshape(len(chosen), -1)
        data = [np.array([self.operands.factors[at] for at in chosen], np.float32).tobytes()]
        if self.op.scheme == "dense":
            data.append(q.astype(np.int8).tobytes())
        else:
            shifted = q.astype(np.int64) + (8 if self.op.window == "signed" else 0)
            data.append(b"".join(_nibbles(row % 16) for row in shifted))
            high = shifted // 16
            packed = np.packbits(high != 0, axis=1, bitorder="little")
            data.append(packed.tobytes())
            # -8 to 8 in four bits: 8 has the code that a stored digit does not need, 0.
            codes = [[int(d) % 16 if d != 8 else 0 for d in row if d != 0] for row in high]
            data.append(b"".join(_nibbles(row) for row in codes))
        self._put(Buffer.ACT, o["dst"], np.frombuffer(b"".join(data), np.uint8))

    def _rows_of(self, array: Any) -> Any:
        return array[self.begin : self.begin + self.loaded, self.head]

    def _ld_key(self, o: dict[str, int]) -> None:
        self._put(Buffer.WGT, o["dst"], self._rows_of(self.operands.keys.values))

    def _ld_scl(self, o: dict[str, int]) -> None:
        both = (self.operands.keys.scale, self.operands.values.scale)
        self._put(Buffer.WGT, o["dst"], np.stack([self._rows_of(s) for s in both], axis=1))

    def _ld_val(self, o: dict[str, int]) -> None:
        values, width = self._rows_of(self.operands.values.values), self.op.head_dim
        for key, row in enumerate(values):
            if o["live_map"] < 0 or self._bit(o["live_map"], key):
                self._put(Buffer.WGT, o["dst"] + key * width, row)

    # The array.

    def _query_parts(self, at: int) -> tuple[int, int, int]:
        rows, width = len(self.queries), self.op.head_dim
        low = at + 4 * rows
        bits = low + rows * -(-width // 2)
        return low, bits, bits + rows * -(-width // 8)

    def _low_digits(self, o: dict[str, int]) -> Any:
        rows, width = len(self.queries), self.op.head_dim
        low = self._query_parts(o["queries"])[0]
        if self.op.scheme == "dense":
            return self._get(Buffer.ACT, low, np.int8, rows, width).astype(np.int64) % 16
        return self._plane(low, rows, width) - (8 if self.op.window == "signed" else 0)

    def _add_scores(self, o: dict[str, int], digits: Any, fresh: bool) -> None:
        keys = self._get(Buffer.WGT, o["k"], np.int8, self.keys, self.op.head_dim)
        product = digits @ keys.astype(np.int64).T
        if not fresh:
            product += self._get(Buffer.ACC, o["scores"], np.int32, *product.shape)
        self._put(Buffer.ACC, o["scores"], product.astype(np.int32))

    def _qk_lsb(self, o: dict[str, int]) -> None:
        self._add_scores(o, self._low_digits(o), True)

    def _qk_msb(self, o: dict[str, int]) -> None:
        _, bits, at = self._query_parts(o["queries"])
        stored = self._stream(bits, at, len(self.queries), self.op.head_dim)
        high = np.where(stored > 7, stored - 16, stored)
        high = np.where(stored == 0, 8, high)
        self._add_scores(o, 16 * np.where(stored < 0, 0, high), False)

    def _qk_dns(self, o: dict[str, int]) -> None:
        at = self._query_parts(o["queries"])[0]
        q = self._get(Buffer.ACT, at, np.int8, len(self.queries), self.op.head_dim)
        self._add_scores(o, q.astype(np.int64) - q.astype(np.int64) % 16, False)

    def _vec_smx(self, o: dict[str, int]) -> None:
        rows, chunk = len(self.queries), self.header.key_chunk
        size = self.header.block_rows * chunk
        acc = np.empty((rows, self.seen), np.int64)
        for number, begin in enumerate(range(0, self.seen, chunk)):
            count = min(chunk, self.seen - begin)
            at = o["scores"] + 4 * number * size
            acc[:, begin : begin + count] = self._get(Buffer.ACC, at, np.int32, rows, count)
        factors = self._get(Buffer.ACT, o["queries"], np.float32, rows)
        scales = self._get(Buffer.WGT, o["key_scales"], np.float32, self.seen, 2)
        p = np.zeros((rows, self.seen), np.int64)
        out_scales = np.empty(rows, np.float32)
        for row, (token, _) in enumerate(self.queries):
            last = self.count - self.rows + token + 1 if self.op.causal else self.count
            p[row], out_scales[row] = _softmax(acc[row], factors[row], scales, last)
        self._put(Buffer.ACT, o["scales"], out_scales)
        for number, begin in enumerate(range(0, self.seen, chunk)):
            self._put_probabilities(o["probs"], number, p[:, begin : begin + chunk])

    def _parts(self, at: int) -> tuple[int, int, int]:
        """LSB digits, bitmap and MSB digits of a chunk of probabilities."""
        chunk, rows = self.header.key_chunk, self.header.block_rows
        low = at + -(-chunk // 8)
        bits = low + rows * -(-chunk // 2)
        high = bits + rows * -(-chunk // 8) * (self.op.scheme == "sparqle")
        return low, bits, high

    def _chunk_bytes(self) -> int:
        low, bits, high = self._parts(0)
        return -(-(high + bits - low) // 4) * 4

    def _put_probabilities(self, at: int, number: int, p: Any) -> None:
        at += number * self._chunk_bytes()
        low, bits, high = self._parts(at)
        self._put(Buffer.ACT, at, np.packbits((p > 0).any(axis=0), bitorder="little"))
        put = b"".join(_nibbles(row % 16) for row in p)
        self._put(Buffer.ACT, low, np.frombuffer(put, np.uint8))
        put = b"".join(_nibbles(row // 16) for row in p)
        if self.op.scheme == "sparqle":
            packed = np.packbits(p > 15, axis=1, bitorder="little")
            self._put(Buffer.ACT, bits, packed)
            put = b"".join(_nibbles(row[row > 15] // 16) for row in p)
        self._put(Buffer.ACT, high, np.frombuffer(put, np.uint8))

    def _add_outputs(self, o: dict[str, int], digits: Any, fresh: bool) -> None:
        values = self._get(Buffer.WGT, o["v"], np.int8, self.keys, self.op.head_dim)
        product = digits @ values.astype(np.int64)
        if not fresh:
            product += self._get(Buffer.ACC, o["acc"], np.int32, *product.shape)
        self._put(Buffer.ACC, o["acc"], product.astype(np.int32))

    def _pv_lsb(self, o: dict[str, int]) -> None:
        low, _, _ = self._parts(o["probs"])
        digits = self._plane(low, len(self.queries), self.keys)
        self._add_outputs(o, digits, o["chunk"] == 0)

    def _pv_msb(self, o: dict[str, int]) -> None:
        _, bits, high = self._parts(o["probs"])
        stored = self._stream(bits, high, len(self.queries), self.keys)
        self._add_outputs(o, 16 * np.maximum(stored, 0), False)

    def _pv_dns(self, o: dict[str, int]) -> None:
        _, _, high = self._parts(o["probs"])
        self._add_outputs(o, 16 * self._plane(high, len(self.queries), self.keys), False)

    # STORE.

    def _drn_out(self, o: dict[str, int]) -> None:
        rows, width = len(self.queries), self.op.head_dim
        acc = self._get(Buffer.ACC, o["acc"], np.int32, rows, width)
        scales = self._get(Buffer.ACT, o["scales"], np.float32, rows, 1)
        self._put(Buffer.ACC, o["acc"], acc.astype(np.float32) * scales)

    def _st_att(self, o: dict[str, int]) -> None:
        found = self._get(Buffer.ACC, o["acc"], np.float32, len(self.queries), self.op.head_dim)
        for row, (token, member) in enumerate(self.queries):
            self.out[token, self.head * self.op.group + member] = found[row]


def _nibbles(digits: Any) -> bytes:
    """Digits two to a byte, the first in the low half."""
    even = [int(d) for d in digits] + [0] * (len(digits) % 2)
    return bytes(low + 16 * high for low, high in zip(even[::2], even[1::2], strict=True))


def _softmax(acc: Any, factor: Any, scales: Any, last: int) -> tuple[Any, Any]:
    """Probabilities of a row that sees its first `last` keys, and the scale of its outputs."""
    largest = np.float32(2.0**100)
    with np.errstate(over="ignore"):
        x = np.rint(acc[:last].astype(np.float32) * factor * scales[:last, 0])
    x = np.minimum(np.maximum(x, -largest), largest)
    t = np.minimum(x.max() - x, np.float32(25 * 32768))
    e = np.array([_power(int(number)) for number in t], dtype=np.int64)
    weight = e.astype(np.float32) * np.float32(2.0**-24) * scales[:last, 1]
    # Values that are all zero have that scale.
    top = max(weight.max(), np.float32(1e-30 / 127))
    p = np.zeros(len(acc), np.int64)
    p[:last] = np.rint(weight * (np.float32(255) / top))
    total = np.float32(int(e.sum())) * np.float32(2.0**-24)
    return p, np.float32(top / (total * np.float32(255)))


def _power(t: int) -> int:
    """2^(-t / 2^15) in units of 2^-24 (`//` rounds down)."""
    n, f = divmod(t, 32768)
    m = -2565 * f // 32768 + 15105
    m = m * f // 32768 - 45308
    m = m * f // 32768 + 65536
    return m * 256 // 2**n


def run_attention_everywhere(
    program: Program[Any], rows: int, past: int, operands: Any, expected: Any, seed: int = 0
) -> bool:
    """Whether the program computes its op in every timing that is tried."""
    timings = [*Engine, None, None]
    return all(
        np.array_equal(
            AttentionMachine(program, rows, past, operands, seed + i).run(engine), expected
        )
        for i, engine in enumerate(timings)
    )
