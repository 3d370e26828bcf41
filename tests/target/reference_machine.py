"""A machine that executes programs step by step on bytes, in any timing that tokens leave open.

It is slow and knows nothing of tiles: what it reads is what lies at the address. So it shows what a
program computes, however wrong the program is, and whether that depends on timing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from sparqle_tvm.numerics.integers import pack_digits, sign_extend, unpack_digits
from sparqle_tvm.target.isa import INSTRUCTIONS
from sparqle_tvm.target.isa.base import TRACE_ENGINE, TRACE_OPCODE, TRACE_OPERANDS, Signal, Wait
from sparqle_tvm.target.isa.compute import Drain, MmaDns, MmaLsb, MmaMin, StEnc, StOut
from sparqle_tvm.target.isa.header import Engine, Header, Queue
from sparqle_tvm.target.isa.load import (
    LdAct,
    LdChn,
    LdGrp,
    LdLsb,
    LdMsb,
    LdPbm,
    LdRow,
    LdSum,
    LdWgt,
    LdZro,
)
from sparqle_tvm.target.isa.operands import Buffer
from sparqle_tvm.target.program import Program


@dataclass
class Tensors:
    """Random operands of an op: digits, weights and parameters are independent of each other.

    `q` are the activations, of all values of their type alike; `zero` is what they are counted
    from, row by row, (rows, 1). Of `low` and `high` each is what a digit adds to a product, stored
    in k bits as `lsb` and `msb`. `w_sums` are the sums of a channel's weights. Of encoded outputs
    `step` is the scale, and 1.3 of it that of the grid before: `bias` and outputs are a few dozen
    steps large.
    """

    q: Any
    zero: Any
    low: Any
    high: Any
    lsb: Any
    msb: Any
    marked: Any
    sums: Any
    row: Any
    weights: Any
    scales: Any
    minima: Any
    offset: Any
    order: Any
    w_sums: Any
    bias: Any = None
    step: Any = None

    @classmethod
    def random(cls, header: Header, rows: int, rng: np.random.Generator) -> Tensors:
        k, n, columns = header.op.digit_bits, header.op.n, header.op.k
        groups = -(-columns // header.op.group_size) if header.op.group_size else 1
        smallest = lowest_activation(header)
        q = rng.integers(smallest, smallest + 4**k, (rows, columns))
        zero = np.full((rows, 1), header.op.centre)
        if header.op.row_zeros:
            # Half of them near or at an end.
            ends = smallest + rng.choice([0, 1, 4**k - 2, 4**k - 1], zero.shape)
            anywhere = rng.integers(smallest, smallest + 4**k, zero.shape)
            zero = np.where(rng.random(zero.shape) < 0.5, ends, anywhere)
        near = zero + rng.integers(-(2 ** (k - 1)), 2 ** (k - 1), q.shape)
        common = (rng.random(q.shape) < 0.7) & (near >= smallest) & (near < smallest + 4**k)
        q = np.where(common, near, q)
        low, high = split(header, q, zero)
        bits = header.op.weight_bits
        least = -(2 ** (bits - 1)) if header.op.weight_signed else 0
        weights = rng.integers(least, least + 2**bits, (n, columns))
        scales = rng.integers(1, 99, (n, groups))
        by_group = np.repeat(scales, max(header.op.group_size, columns // groups), axis=1)
        w_sums = (weights * (by_group if header.op.group_size else 1)).sum(axis=1)
        tensors = cls(
            q=q,
            zero=zero,
            low=low,
            high=high,
            # A two's complement digit is stored with its top bit flipped.
            lsb=(low + (2 ** (k - 1) if header.op.window == "signed" else 0)).astype(np.uint8),
            msb=stored_codes(header, high, zero),
            marked=high != 0,
            sums=rng.integers(-99, 99, (rows, groups)).astype(f"i{header.sum_bytes}"),
            row=rng.integers(1, 99, rows).astype(np.float32),
            weights=weights,
            scales=scales.astype(factor_type(header) if header.op.group_size else np.float32),
            w_sums=w_sums.astype(np.float64 if header.op.group_size else np.int32),
            minima=rng.integers(1, 99, (n, groups)).astype(factor_type(header)),
            offset=rng.integers(-999, 999, n).astype(
                np.float64 if header.op.group_size else np.int32
            ),
            order=_random_order(header, rows, rng),
        )
        if header.op.output == "encoded":
            largest = np.abs(tensors._outputs_in_order(header)).max()
            tensors.step = np.float32(max(largest, 1) / 99)
            tensors.bias = (rng.normal(0, 30, n) * tensors.step).astype(np.float32)
        return tensors

    def outputs(self, header: Header) -> Any:
        """What the op is: (rows, out_features) int32 or float32, rows in their own order.

        Of encoded outputs the integers that are cut into digits.
        """
        outputs = self._outputs_in_order(header)
        if header.op.output == "encoded":
            return integers(header, outputs, self.bias, self.step)
        if header.op.block_rows:
            outputs[self.order] = outputs.copy()
        return outputs

    def _outputs_in_order(self, header: Header) -> Any:
        counted_from = self.zero
        if header.op.row_zeros and not header.op.adds_shift:
            counted_from = centre_of(header, self.zero)
        digits = self.q - counted_from
        offset = self.offset.astype(np.float64) * header.op.has_offset
        if not header.op.group_size:
            acc = digits @ self.weights.T + offset.astype(np.int64)
            if header.op.output == "int32":
                return acc.astype(np.int32)
            return acc.astype(np.float32) * self.row[:, None] * self.scales[:, 0]
        acc = np.zeros((len(self.lsb), header.op.n)) + offset
        for group in range(self.scales.shape[1]):
            part = slice(group * header.op.group_size, (group + 1) * header.op.group_size)
            sums = (digits[:, part] @ self.weights[:, part].T).astype(np.float64)
            acc += sums * self.scales[:, group].astype(np.float64)
            if header.op.has_min:
                minima = self.minima[:, group].astype(np.float64)
                acc += np.outer(self.sums[:, group].astype(np.float64), minima)
        return acc.astype(np.float32) * self.row[:, None]


def integers(header: Header, y: Any, bias: Any, step: Any) -> Any:
    """What the drain makes of scaled sums, number by number: Python rounds ties to even, too."""
    op = header.op

    def level(x: Any, of: Any, zero: int, low: int, high: int) -> int:
        return sorted((low, round(float(np.float32(x) / np.float32(of))) + zero, high))[1]

    found = np.empty(y.shape, dtype=np.int32)
    for (row, channel), x in np.ndenumerate(y):
        if op.mid_high > op.mid_low:
            of = step * np.float32(1.3)
            steps = level(x, of, op.mid_zero, op.mid_low, op.mid_high) - op.mid_zero
            x = np.float32(steps) * of
        x = x + bias[channel] if op.has_bias else x
        found[row, channel] = level(x, step, op.out_zero, op.out_low, op.out_high)
    return found


def factor_type(header: Header) -> type:
    """What the scale and the minimum of a group are stored as."""
    return {2: np.float16, 4: np.float32}[header.op.scale_bytes]


def lowest_activation(header: Header) -> int:
    """The smallest number of the type of the activations."""
    return -(2 ** (2 * header.op.digit_bits - 1)) if header.op.act_signed else 0


def centre_of(header: Header, zero: Any) -> Any:
    """What the digits of rows count from: 0, or the zero point if it lies well within the type.

    Nearest to it, at least half a digit from the smallest and from beyond the largest number.
    """
    if header.op.window == "unsigned":
        return 0 * zero
    half, smallest = 2 ** (header.op.digit_bits - 1), lowest_activation(header)
    centres = np.arange(smallest + half, smallest + 4**header.op.digit_bits - half + 1)
    return centres[np.abs(zero[..., None] - centres).argmin(axis=-1)]


def split(header: Header, q: Any, zero: Any) -> tuple[Any, Any]:
    """What the two digits of q add to a product: q less its centre, in a low and a high part.

    The low part is what is left of the nearest multiple of 2^k (ties up), in the window
    ``unsigned`` of the multiple below; the high part is that multiple.
    """
    base, distance = 2**header.op.digit_bits, q - centre_of(header, zero)
    if header.op.window == "signed":
        high = np.floor(distance / base + 0.5).astype(np.int64) * base
    else:
        high = np.floor(distance / base).astype(np.int64) * base
    return distance - high, high


@cache
def code_table(header: Header, centre: int) -> Any:
    """What every code of a high digit adds to a product, if digits count from `centre`.

    Found by splitting all numbers of the type: a digit's code is the digit modulo 2^k. Where two
    that are not 0 have the same, the larger has code 0.
    """
    k, smallest = header.op.digit_bits, lowest_activation(header)
    every = np.arange(smallest, smallest + 4**k)
    _, high = split(header, every, np.array(centre))
    table = np.zeros(2**k, dtype=np.int64)
    for value in np.unique(high[high != 0])[::-1]:
        code = value // 2**k % 2**k
        table[0] = table[code] or table[0]
        table[code] = value
    return table


def stored_codes(header: Header, high: Any, zero: Any) -> Any:
    """The codes of what high digits add to a product, 0 for those that are 0 as well."""
    codes = np.zeros(high.shape, dtype=np.uint8)
    for row, centre in enumerate(centre_of(header, zero)[:, 0].tolist()):
        table = code_table(header, centre)
        for code, value in enumerate(table):
            codes[row, (high[row] == value) & (high[row] != 0)] = code
    return codes


def _random_order(header: Header, rows: int, rng: np.random.Generator) -> Any:
    """Rows in any order within blocks."""
    size = header.op.block_rows or max(rows, 1)
    blocks = [np.arange(at, min(at + size, rows)) for at in range(0, rows, size)]
    order = np.concatenate([rng.permutation(block) for block in blocks])
    return order.astype("u2" if header.order_bytes == 2 else "i4")


def as_bytes(array: Any) -> Any:
    return np.frombuffer(np.ascontiguousarray(array).tobytes(), dtype=np.uint8)


class Machine:
    """Buffers, queues, operands and outputs of one run."""

    def __init__(self, program: Program, rows: int, tensors: Tensors, seed: int) -> None:
        self.header = program.header
        self.tensors = tensors
        rng = np.random.default_rng(seed)
        # Garbage, so that nothing works by accident.
        self.memory = {
            b: rng.integers(0, 256, self.header.buffer_bytes(b)).astype(np.uint8) for b in Buffer
        }
        dtype = np.float32 if self.header.op.output == "float32" else np.int32
        self.out = np.full((rows, self.header.op.n), 7, dtype=dtype)
        self.tokens = list(self.header.tokens)
        self.trace = program.bind(rows)
        self.rng = rng

    def run(self, favourite: Engine | None) -> Any:
        """Execute; `favourite` goes on as long as it can, None: a random engine at every step."""
        lists = [list(np.flatnonzero(self.trace[:, TRACE_ENGINE] == e)[::-1]) for e in Engine]
        while any(lists):
            ready = [e for e in Engine if lists[e] and self._can(lists[e][-1])]
            assert ready, "deadlock"
            engine = favourite if favourite in ready else ready[self.rng.integers(len(ready))]
            self._step(lists[engine].pop())
        return self.out

    def _operands(self, step: int) -> tuple[type, dict[str, int]]:
        cls = INSTRUCTIONS[int(self.trace[step, TRACE_OPCODE])]
        values = self.trace[step, TRACE_OPERANDS : TRACE_OPERANDS + len(cls.TRACE)]
        return cls, dict(zip(cls.TRACE, map(int, values), strict=True))

    def _can(self, step: int) -> bool:
        cls, operands = self._operands(step)
        return cls is not Wait or self.tokens[Queue(operands["queue"])] > 0

    def _step(self, step: int) -> None:
        cls, o = self._operands(step)
        if cls in (Wait, Signal):
            self.tokens[o["queue"]] += 1 if cls is Signal else -1
        elif cls is LdAct:
            self._put(Buffer.ACT, o["lsb"], self._tile(LdLsb, o))
            # Whole digits, two's complement if the activations are.
            k = self.header.op.digit_bits
            digits = self._cut(self.tensors.high, o) // 2**k % 2**k
            packed = pack_digits(digits.astype(np.uint8), k)
            self._put(Buffer.ACT, o["msb"], packed)
        elif "dst" in o:
            buffer = Buffer.WGT if cls in (LdWgt, LdGrp, LdChn) else Buffer.ACT
            self._put(buffer, o["dst"], self._tile(cls, o))
        elif cls is Drain:
            self._drain(o)
        elif cls in (StOut, StEnc):
            # Of encoded outputs the integers, not how they are cut and packed.
            cells = self._cells(o["acc"], o["rows"], o["cols"])
            values = np.ascontiguousarray(cells[:, :, :4]).view(self.out.dtype)[:, :, 0]
            rows = np.arange(o["row"], o["row"] + o["rows"])
            if self.header.op.block_rows:
                at, width = o["order"] + 4 * o["rows"], self.header.order_bytes
                numbers = self._get(Buffer.ACT, at, o["rows"] * width).copy()
                # A wrong program may read any bytes: what leaves OUT gets lost in its row 0.
                rows = numbers.view(self.tensors.order.dtype)
                rows = np.where(rows < len(self.out), rows, 0)
            self.out[rows, o["col"] : o["col"] + o["cols"]] = values
        else:
            self._mma(cls, o)

    def _put(self, buffer: Buffer, address: int, data: Any) -> None:
        data = as_bytes(data)
        self.memory[buffer][address : address + len(data)] = data

    def _get(self, buffer: Buffer, address: int, nbytes: int) -> Any:
        return self.memory[buffer][address : address + nbytes]

    @staticmethod
    def _cut(array: Any, o: dict[str, int]) -> Any:
        return array[o["row"] : o["row"] + o["rows"], o["col"] : o["col"] + o["cols"]]

    def _tile(self, cls: type, o: dict[str, int]) -> Any:
        t, h, k = self.tensors, self.header, self.header.op.digit_bits
        rows = slice(o["row"], o["row"] + o["rows"])
        if cls is LdLsb:
            return pack_digits(self._cut(t.lsb, o), k)
        if cls is LdPbm:
            return np.packbits(self._cut(t.marked, o), axis=1, bitorder="little")
        if cls is LdMsb:
            pairs = zip(self._cut(t.msb, o), self._cut(t.marked, o), strict=True)
            digits = [row[marked] for row, marked in pairs]
            stream = [as_bytes(pack_digits(row[None], k)) for row in digits if len(row)]
            return np.concatenate(stream) if stream else np.zeros(0, dtype=np.uint8)
        if cls is LdWgt:
            weights = self._cut(t.weights, o) & (2**h.op.weight_bits - 1)
            return pack_digits(weights.astype(np.uint8), h.op.weight_bits)
        if cls is LdRow:
            parts = [t.row[rows]] if h.op.output != "int32" else []
            parts += [t.order[rows]] if h.op.block_rows else []
            parts += [self._zeros(rows)] if h.op.adds_shift else []
            return np.concatenate([as_bytes(part) for part in parts])
        if cls is LdZro:
            return self._zeros(rows)
        if cls is LdChn:
            scaled = h.op.output != "int32" and not h.op.group_size
            parts = [t.scales[rows, 0]] if scaled else []
            parts += [t.offset[rows]] if h.op.has_offset else []
            parts += [t.w_sums[rows]] if h.op.adds_shift else []
            parts += [t.bias[rows]] if h.op.has_bias else []
            return np.concatenate([as_bytes(part) for part in parts])
        groups = slice(o["col"] // h.op.group_size, -(-(o["col"] + o["cols"]) // h.op.group_size))
        if cls is LdSum:
            return t.sums[rows, groups]
        assert cls is LdGrp
        minima = as_bytes(t.minima[rows, groups]) if h.op.has_min else np.zeros(0, dtype=np.uint8)
        return np.concatenate([as_bytes(t.scales[rows, groups]), minima])

    def _cells(self, address: int, m: int, n: int) -> Any:
        size = self.header.accumulator_bytes
        return self._get(Buffer.ACC, address, m * n * size).reshape(m, n, size)

    def _digits(self, cls: type, o: dict[str, int]) -> Any:
        k, m, columns = self.header.op.digit_bits, o["m"], o["k"]
        pitch = -(-columns * k // 8)
        if cls is MmaLsb:
            return self._low(o["lsb"], m, columns)
        if cls is MmaDns:
            packed = self._get(Buffer.ACT, o["msb"], m * pitch).reshape(m, pitch)
            plane = unpack_digits(packed, k, columns)
            plane = sign_extend(plane, k) if self.header.op.act_signed else plane
            return 2**k * plane.astype(np.int64)
        bitmap_pitch = -(-columns // 8)
        bitmap = self._get(Buffer.ACT, o["pbm"], m * bitmap_pitch).reshape(m, bitmap_pitch)
        bits = np.unpackbits(bitmap, axis=1, bitorder="little")[:, :columns] != 0
        digits, at = np.zeros((m, columns), dtype=np.int64), o["msb"]
        centres = self._centres(o["zro"] if o["zro"] >= 0 else None, m)
        for row in range(m):
            count = int(bits[row].sum())
            nbytes = -(-count * k // 8)
            packed = self._get(Buffer.ACT, at, nbytes)[None]
            if count:
                codes = unpack_digits(packed, k, count)[0]
                digits[row, bits[row]] = code_table(self.header, int(centres[row]))[codes]
            at += nbytes
        return digits

    def _low(self, address: int, m: int, columns: int) -> Any:
        """What stored low digits add to a product."""
        k = self.header.op.digit_bits
        pitch = -(-columns * k // 8)
        packed = self._get(Buffer.ACT, address, m * pitch).reshape(m, pitch)
        stored = unpack_digits(packed, k, columns).astype(np.int64)
        return stored - (2 ** (k - 1) if self.header.op.window == "signed" else 0)

    def _zeros(self, rows: slice) -> Any:
        """Zero points as they lie in memory."""
        width = 2 if self.header.op.digit_bits == 8 else 1
        kind = "i" if self.header.op.act_signed else "u"
        return self.tensors.zero[rows, 0].astype(f"{kind}{width}")

    def _read_zeros(self, address: int, m: int) -> Any:
        like = self._zeros(slice(0, 0))
        found = self._get(Buffer.ACT, address, m * like.itemsize).copy()
        return found.view(like.dtype).astype(np.int64)

    def _centres(self, address: int | None, m: int) -> Any:
        """What the digits of `m` rows count from."""
        if address is None:
            return np.full(m, self.header.op.centre)
        return centre_of(self.header, self._read_zeros(address, m))

    def _mma(self, cls: type, o: dict[str, int]) -> None:
        h, (m, n, columns) = self.header, (o["m"], o["n"], o["k"])
        kind = np.float64 if h.op.group_size else np.int32
        acc = self._cells(o["acc"], m, n).view(kind)[:, :, 0]
        if o["zero"]:
            acc[...] = 0
        groups = -(-columns // h.op.group_size) if h.op.group_size else 1
        factors = self._get(Buffer.WGT, o["grp"], n * groups * 2 * h.op.scale_bytes).copy()
        parameters = factors.view(factor_type(h))
        if cls is MmaMin:
            sums = self._get(Buffer.ACT, o["sum"], m * groups * h.sum_bytes).copy()
            sums = sums.view(f"i{h.sum_bytes}").reshape(m, groups).astype(np.float64)
            acc += sums @ parameters[n * groups :].reshape(n, groups).astype(np.float64).T
            return
        pitch = -(-columns * h.op.weight_bits // 8)
        packed = self._get(Buffer.WGT, o["wgt"], n * pitch).reshape(n, pitch)
        weights = unpack_digits(packed, h.op.weight_bits, columns)
        if h.op.weight_signed:
            weights = sign_extend(weights, h.op.weight_bits)
        weights = weights.astype(np.int64)
        digits = self._digits(cls, o)
        if not h.op.group_size:
            acc += (digits @ weights.T).astype(np.int32)
            return
        scales = parameters[: n * groups].reshape(n, groups).astype(np.float64)
        for group in range(groups):
            part = slice(group * h.op.group_size, (group + 1) * h.op.group_size)
            acc += (digits[:, part] @ weights[:, part].T) * scales[:, group]

    def _drain(self, o: dict[str, int]) -> None:
        h, m, n = self.header, o["m"], o["n"]
        cells = self._cells(o["acc"], m, n)
        acc = cells.view(np.float64 if h.op.group_size else np.int32)[:, :, 0].copy()
        row = self._get(Buffer.ACT, max(o["row"], 0), 4 * m).copy().view(np.float32)[:, None]
        at = max(o["chn"], 0)

        def channels(kind: type) -> Any:
            nonlocal at
            nbytes = n * np.dtype(kind).itemsize
            found = self._get(Buffer.WGT, at, nbytes).copy().view(kind)
            at += nbytes
            return found

        scaled = h.op.output != "int32"
        scales = channels(np.float32) if scaled and not h.op.group_size else np.float32(1)
        if h.op.has_offset:
            acc += channels(acc.dtype.type)
        if h.op.adds_shift:
            # Digits count from the centre, the op from the zero point.
            zeros = self._read_zeros(o["row"] + (4 * scaled + h.order_bytes) * m, m)
            acc += np.outer(centre_of(h, zeros) - zeros, channels(acc.dtype.type))
        out = acc.astype(np.float32) * row * scales if scaled else acc
        if h.op.output == "encoded":
            bias = channels(np.float32) if h.op.has_bias else None
            out = integers(h, out, bias, self.tensors.step)
        cells[:, :, :4] = np.ascontiguousarray(out)[:, :, None].view(np.uint8)


def run_everywhere(program: Program, rows: int, seed: int = 0) -> bool:
    """Whether the program computes its op in every timing that is tried."""
    tensors = Tensors.random(program.header, rows, np.random.default_rng(seed))
    expected = tensors.outputs(program.header)
    timings = [*Engine, None, None]
    return all(
        np.array_equal(Machine(program, rows, tensors, seed + i).run(engine), expected)
        for i, engine in enumerate(timings)
    )
