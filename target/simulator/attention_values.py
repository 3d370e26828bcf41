"""The values of an attention program: every step works on the bytes that lie on chip.

What the array adds up is exact, see `product`; what the vector engine does is
`sparqle_tvm.numerics.attention`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparqle_tvm.numerics import attention as numerics
from sparqle_tvm.numerics.integers import pack_digits, unpack_digits
from sparqle_tvm.numerics.kv_cache import CacheName, load_rows
from sparqle_tvm.numerics.slicing import stream_positions
from sparqle_tvm.numerics.window import window_of
from sparqle_tvm.target.attention_op import DIGIT_BITS
from sparqle_tvm.target.isa import INSTRUCTIONS
from sparqle_tvm.target.isa import attention as isa
from sparqle_tvm.target.isa.access import Tensor
from sparqle_tvm.target.isa.attention_header import AttentionHeader, plane_bytes
from sparqle_tvm.target.isa.base import TRACE_OPERANDS
from sparqle_tvm.target.isa.operands import KEYS, Buffer, M
from sparqle_tvm.target.isa.vector import VecSmx
from sparqle_tvm.target.program.bound import BoundProgram
from sparqle_tvm.target.simulator.attention_work import CacheRows, Work
from sparqle_tvm.target.simulator.native import aligned
from sparqle_tvm.target.simulator.product import multiply

Bytes = NDArray[np.uint8]
Step = Mapping[str, int]

_UNWRITTEN = 0x7F

_SPLIT_WINDOW = window_of("signed").digits(DIGIT_BITS)
"""In which a decode step takes queries in planes that a dense program had whole."""

CACHED: Mapping[CacheName, tuple[Tensor, Tensor]] = {
    "key": (Tensor.KEYS, Tensor.KEY_PTR),
    "value": (Tensor.VALUES, Tensor.VALUE_PTR),
}


def run_attention(
    bound: BoundProgram[AttentionHeader], order: NDArray[np.int64], tensors: dict[Tensor, Any]
) -> Work:
    """Execute the steps in an order that engines and tokens allow; OUT is written.

    Returns what the time depends on.
    """
    machine = _Machine(bound, tensors)
    steps = bound.once(_steps)
    for number in order.tolist():
        step = steps[number]
        if step is not None:
            action, operands = step
            action(machine, operands)
    return machine.work


def _steps(bound: BoundProgram[Any]) -> list[tuple[Action, Step] | None]:
    """What every step does, and its operands; None: nothing with values."""
    operands = bound.trace[:, TRACE_OPERANDS:].tolist()
    found: list[tuple[Action, Step] | None] = []
    for opcode, values in zip(bound.opcodes.tolist(), operands, strict=True):
        cls = INSTRUCTIONS[opcode]
        action = _ACTIONS.get(cls)
        found.append(action and (action, dict(zip(cls.TRACE, values, strict=False))))
    return found


class _Machine:
    """Memories of a run, and what its steps do with them."""

    def __init__(self, bound: BoundProgram[AttentionHeader], tensors: dict[Tensor, Any]) -> None:
        self.header, self.limits, self.tensors = bound.header, bound.limits, tensors
        self.memory = {
            buffer: aligned(bound.header.buffer_bytes(buffer), np.uint8, _UNWRITTEN)
            for buffer in Buffer
        }
        self.work = Work.empty(bound.header, bound.limits)
        op = bound.header.op
        cache = {
            what: CacheRows.read(op, what, tensors[tensor], tensors[pointers])
            for what, (tensor, pointers) in CACHED.items()
            if op.is_stored(what)
        }
        self.work.note_cache(bound.header, bound.limits, cache)
        self.dim = bound.header.op.head_dim
        self._bits_of_block: dict[int, NDArray[np.bool_]] = {}
        self._digits = window_of(bound.header.op.window).digits(DIGIT_BITS)

    def at(self, buffer: Buffer, address: int, nbytes: int) -> Bytes:
        """Bytes on chip, to be read or written."""
        return self.memory[buffer][address : address + nbytes]

    def table(self, buffer: Buffer, address: int, dtype: type, *shape: int) -> NDArray[Any]:
        """Elements on chip as an array of a shape."""
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        return self.at(buffer, address, nbytes).view(dtype).reshape(shape)

    def of_head(self, tensor: Tensor, o: Step) -> NDArray[Any]:
        """Rows of keys of a chunk, as they lie in DRAM."""
        head, key = divmod(o["key"], self.limits[KEYS])
        rows: NDArray[Any] = self.tensors[tensor][head, key : key + o["loaded"]]
        return rows

    def load_queries(self, o: Step) -> None:
        begin, end = self.tensors[Tensor.QUERY_PTR][o["block"] : o["block"] + 2].tolist()
        self.at(Buffer.ACT, o["dst"], end - begin)[...] = self.tensors[Tensor.QUERIES][begin:end]
        if not self.header.sparse:
            low, high = _SPLIT_WINDOW.zero_range
            q = self._query_integers(o["dst"], o)
            self._bits_of_block[o["block"]] = (q < low) | (q > high)
            return
        bits = self._query_bits(o["dst"], o)
        self.work.note_queries(self.header, o["block"], bits)
        self._bits_of_block[o["block"]] = bits

    def load_keys(self, o: Step) -> None:
        self.table(Buffer.WGT, o["dst"], np.int8, o["loaded"], self.dim)[...] = self._cached(
            "key", o
        )

    def _cached(self, what: CacheName, o: Step) -> NDArray[Any]:
        """Rows of keys, or values, of a chunk, int8 (loaded, D), expanded if need be."""
        op, (tensor, _) = self.header.op, CACHED[what]
        if not op.is_stored(what):
            return self.of_head(tensor, o)
        head, key = divmod(o["key"], self.limits[KEYS])
        begins = self.work.cache[what].begins[head, key : key + o["loaded"] + 1]
        bits = op.key_bits if what == "key" else op.value_bits
        return load_rows(self.tensors[tensor], begins, self.dim, bits, op.in_planes(what)[head])

    def load_scales(self, o: Step) -> None:
        scales = self.table(Buffer.WGT, o["dst"], np.float32, o["loaded"], 2)
        scales[...] = self.of_head(Tensor.KEY_SCALES, o)

    def load_values(self, o: Step) -> None:
        there = self.table(Buffer.WGT, o["dst"], np.int8, o["loaded"], self.dim)
        values = self._cached("value", o)
        if o["live_map"] < 0:
            there[...] = values
            return
        live = _bits(self.at(Buffer.ACT, o["live_map"], -(-o["keys"] // 8))[None], o["keys"])[0]
        there[live] = values[live]

    def _query_bits(self, address: int, o: Step) -> NDArray[np.bool_]:
        factors, digits, bits = isa.query_sizes(self.header, o["rows"])
        packed = self.at(Buffer.ACT, address + factors + digits, bits)
        return _bits(packed.reshape(o["rows"], -1), self.dim)

    def _query_low(self, o: Step) -> NDArray[Any]:
        """LSB digits of queries as they are stored, uint8 (rows, D)."""
        factors, digits, _ = isa.query_sizes(self.header, o["rows"])
        packed = self.at(Buffer.ACT, o["queries"] + factors, digits).reshape(o["rows"], -1)
        if not self.header.sparse:
            return packed & np.uint8(2**DIGIT_BITS - 1)
        return unpack_digits(packed, DIGIT_BITS, self.dim)

    def scores_of_low(self, o: Step) -> None:
        low = self._query_low(o).astype(np.int16) - self._digits.bias
        self._scores(o)[...] = self._times_keys(low, o)

    def scores_of_stored(self, o: Step) -> None:
        factors, digits, bits = isa.query_sizes(self.header, o["rows"])
        stored = self._query_bits(o["queries"], o)
        stream = self.memory[Buffer.ACT][o["queries"] + factors + digits + bits :]
        digits = self._digits.decode(_from_stream(stream, stored))
        high = np.where(stored, digits, 0).astype(np.int16)
        self._scores(o)[...] += self._times_keys(high, o) << DIGIT_BITS

    def scores_of_high(self, o: Step) -> None:
        q = self._query_integers(o["queries"], o)
        self._scores(o)[...] += (
            self._times_keys((q >> DIGIT_BITS).astype(np.int16), o) << DIGIT_BITS
        )

    def _query_integers(self, address: int, o: Step) -> NDArray[np.int8]:
        """Queries of a dense program."""
        factors, nbytes, _ = isa.query_sizes(self.header, o["rows"])
        return self.at(Buffer.ACT, address + factors, nbytes).view(np.int8).reshape(-1, self.dim)

    def _scores(self, o: Step) -> NDArray[np.int32]:
        return self.table(Buffer.ACC, o["scores"], np.int32, o["rows"], o["keys"])

    def _times_keys(self, digits: NDArray[Any], o: Step) -> NDArray[np.int32]:
        keys = self.table(Buffer.WGT, o["k"], np.int8, o["keys"], self.dim)
        return multiply(digits, keys.T)

    def probabilities(self, o: Step) -> None:
        header, rows, total = self.header, o["rows"], o["total"]
        chunk = header.key_chunk
        parts = []
        for number, begin in enumerate(range(0, total, chunk)):
            address = o["scores"] + number * header.scores_bytes
            count = min(chunk, total - begin)
            parts.append(self.table(Buffer.ACC, address, np.int32, rows, count))
        acc = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        factors = self.table(Buffer.ACT, o["queries"], np.float32, rows)
        scales = self.table(Buffer.WGT, o["key_scales"], np.float32, total, 2)
        x = numerics.scores(acc, factors, np.ascontiguousarray(scales[:, 0]))
        e = numerics.exponentials(x, self._visible(o))
        p, row_scale = numerics.probabilities(e, np.ascontiguousarray(scales[:, 1]))
        self.table(Buffer.ACT, o["scales"], np.float32, rows)[...] = row_scale
        if o["total"] == self.limits[KEYS]:
            self._note_last_token(o, p)
        for number, begin in enumerate(range(0, total, chunk)):
            address = o["probs"] + number * header.probability_bytes
            part = p[:, begin : begin + chunk]
            self._write_probabilities(address, part)
            head_keys = self.limits[KEYS] if header.stays else total
            loaded = min(chunk, head_keys - begin)
            head, key = divmod(o["key"], self.limits[KEYS])
            self.work.note_chunk(header, o["block"], number, part, loaded, (head, key + begin))

    def _note_last_token(self, o: Step, p: Bytes) -> None:
        """Keep the rows of the last token, numbered as those of a run of that token alone."""
        bits = self._bits_of_block[o["block"]]
        group, tokens = self.header.op.group, self.limits[M]
        for number in range(o["rows"]):
            head, row = divmod(o["row"] + number, group * tokens)
            if row // group == tokens - 1:
                self.work.last[head * group + row % group] = bits[number], p[number].copy()

    def _visible(self, o: Step) -> NDArray[np.bool_] | None:
        """Which keys each row sees; None: all of the block's."""
        op, tokens = self.header.op, self.limits[M]
        if not op.causal:
            return None
        row = np.arange(o["row"], o["row"] + o["rows"]) % (op.group * tokens)
        last = self.limits[KEYS] - tokens + row // op.group
        if last[0] == o["total"] - 1:
            return None
        return np.asarray(np.arange(o["total"]) <= last[:, None])

    def _write_probabilities(self, address: int, p: Bytes) -> None:
        header = self.header
        low_at, bits_at, high_at, _ = (address + part for part in header.probability_parts)

        def put(where: int, data: Bytes) -> None:
            self.at(Buffer.ACT, where, data.size)[...] = data.reshape(-1)

        put(address, np.packbits(p.any(axis=0), bitorder="little"))
        put(low_at, pack_digits(p & np.uint8(2**DIGIT_BITS - 1), DIGIT_BITS))
        high = p >> np.uint8(DIGIT_BITS)
        if not header.sparse:
            put(high_at, pack_digits(high, DIGIT_BITS))
            return
        stored = high != 0
        put(bits_at, np.packbits(stored, axis=1, bitorder="little"))
        put(high_at, _to_stream(high, stored))

    def _probability_plane(self, o: Step, part: int) -> Bytes:
        digits, _ = plane_bytes(o["keys"])
        address = o["probs"] + self.header.probability_parts[part]
        packed = self.at(Buffer.ACT, address, o["rows"] * digits).reshape(o["rows"], digits)
        return unpack_digits(packed, DIGIT_BITS, o["keys"])

    def mix_low(self, o: Step) -> None:
        mixed = self._times_values(self._probability_plane(o, 0), o)
        acc = self._outputs(o)
        if o["chunk"] == 0:
            acc[...] = mixed
        else:
            acc[...] += mixed

    def mix_stored(self, o: Step) -> None:
        _, bits_at, high_at, _ = (o["probs"] + part for part in self.header.probability_parts)
        _, bits = plane_bytes(o["keys"])
        packed = self.at(Buffer.ACT, bits_at, o["rows"] * bits).reshape(o["rows"], bits)
        stored = _bits(packed, o["keys"])
        if stored.any():
            high = _from_stream(self.memory[Buffer.ACT][high_at:], stored)
            self._outputs(o)[...] += self._times_values(high, o) << DIGIT_BITS

    def mix_high(self, o: Step) -> None:
        high = self._probability_plane(o, 2)
        self._outputs(o)[...] += self._times_values(high, o) << DIGIT_BITS

    def _times_values(self, digits: Bytes, o: Step) -> NDArray[np.int32]:
        values = self.table(Buffer.WGT, o["v"], np.int8, o["keys"], self.dim)
        return multiply(digits, values)

    def _outputs(self, o: Step) -> NDArray[np.int32]:
        return self.table(Buffer.ACC, o["acc"], np.int32, o["rows"], self.dim)

    def drain(self, o: Step) -> None:
        scales = self.table(Buffer.ACT, o["scales"], np.float32, o["rows"], 1)
        acc = self._outputs(o)
        acc.view(np.float32)[...] = acc.astype(np.float32) * scales

    def store(self, o: Step) -> None:
        op, tokens = self.header.op, self.limits[M]
        head, first = divmod(o["row"], op.group * tokens)
        row = np.arange(first, first + o["rows"])
        heads = head * op.group + row % op.group
        self.tensors[Tensor.OUT][row // op.group, heads] = self._outputs(o).view(np.float32)


def _bits(packed: Bytes, columns: int) -> NDArray[np.bool_]:
    return np.unpackbits(packed, axis=1, count=columns, bitorder="little").view(np.bool_)


def _row_begins(stored: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Digits of each row, and the byte of the stream where it begins (and its end)."""
    counts = np.count_nonzero(stored, axis=1)
    begins = np.concatenate([[0], np.cumsum(-(-counts * DIGIT_BITS // 8))])
    return counts, begins


def _to_stream(digits: Bytes, stored: NDArray[np.bool_]) -> Bytes:
    """Stored digits row by row, each row padded to a byte."""
    counts, begins = _row_begins(stored)
    stream = np.zeros(int(begins[-1]) * 8 // DIGIT_BITS, dtype=np.uint8)
    stream[stream_positions(counts, begins[:-1], DIGIT_BITS)] = digits[stored]
    return pack_digits(stream, DIGIT_BITS)


def _from_stream(memory: Bytes, stored: NDArray[np.bool_]) -> Bytes:
    """Digits (rows, columns) of a stream that begins in `memory`, zero where none is stored."""
    counts, begins = _row_begins(stored)
    packed = memory[: int(begins[-1])]
    stream = unpack_digits(packed, DIGIT_BITS, packed.size * 8 // DIGIT_BITS)
    digits = np.zeros(stored.shape, dtype=np.uint8)
    digits[stored] = stream[stream_positions(counts, begins[:-1], DIGIT_BITS)]
    return digits


Action = Callable[[_Machine, Step], None]

_ACTIONS: Mapping[type, Action] = {
    isa.LdQry: _Machine.load_queries,
    isa.LdKey: _Machine.load_keys,
    isa.LdScl: _Machine.load_scales,
    isa.LdVal: _Machine.load_values,
    isa.MmaQkLsb: _Machine.scores_of_low,
    isa.MmaQkMsb: _Machine.scores_of_stored,
    isa.MmaQkDns: _Machine.scores_of_high,
    VecSmx: _Machine.probabilities,
    isa.MmaPvLsb: _Machine.mix_low,
    isa.MmaPvMsb: _Machine.mix_stored,
    isa.MmaPvDns: _Machine.mix_high,
    isa.DrnOut: _Machine.drain,
    isa.StAtt: _Machine.store,
}
"""What the instructions do; WAIT and SIGNAL do nothing to values."""
