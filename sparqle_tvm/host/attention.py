"""Kernels of attention in integers; ``numerics.attention`` is what they match bit for bit.

Keys and values are converted to float32 once per call, keys transposed into panels. Then a task is
a few query rows of one key head: their scores, exponentials and probabilities stay in one scratch
buffer, and values are read for the keys only whose probability is not 0 in all of the rows.

The code generator fuses a product with the sum that it goes into. Here no float product goes into
a sum, but for the sums of integers, which are exact either way (see `register_tile`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from sparqle_tvm.host.encode import NAN_BITS, EncodeSpec, quantize_row
from sparqle_tvm.host.matmul_tile import MatmulSpec, MatmulTile
from sparqle_tvm.host.planes import SplitForm
from sparqle_tvm.host.register_tile import SERIAL_ROWS, HostTile
from sparqle_tvm.numerics import attention as defined
from sparqle_tvm.numerics.window import PLAIN
from sparqle_tvm.tirscript import (
    Array,
    Scalar,
    build,
    cast,
    ceil_div,
    either,
    fixed,
    for_rows,
    int64,
    lead_dims,
    loop,
    parallel,
    scratch,
    vector,
    when,
)

# A hidden key's score: so far below all others that its exponential is 0.
_HIDDEN = -3e38
# Beyond a row's end in scratch, so that rows do not begin in the same set of the cache.
_STAGGER = 16
_NO_KEY = 1 << 60


@cache
def quantize_heads_kernel(lead: int, channels: int, levels: int) -> tirx.PrimFunc:
    """Build the kernel of ``quantize_heads``: x (.., D) float32 to out (.., D + 4) int8."""
    dims, rows = lead_dims(lead)
    # The plain window stores int8 as it is.
    spec = EncodeSpec(1, channels, SplitForm(PLAIN, 4), group_size=0, qmax=levels)
    width = channels + defined.SCALE_BYTES

    def body(x: Array, out: Array) -> None:
        x, out = x.reshape(rows, channels), out.reshape(rows, width)
        scales = scratch("float32", T.max(rows, int64(1)))

        def quantize(row: Any) -> None:
            integers = scratch(spec.stored, channels)
            quantize_row(spec, row, x, integers, scales)
            with loop(channels) as i:
                out[row, i] = cast("int8", integers[i])
            bits = T.reinterpret("int32", scales[row])
            for byte in range(defined.SCALE_BYTES):
                out[row, channels + byte] = cast("int8", T.shift_right(bits, 8 * byte))

        for_rows(rows, SERIAL_ROWS, quantize)

    parameters = {"x": ("float32", *dims, channels), "out": ("int8", *dims, width)}
    return build("quantize_heads", parameters, body)


@dataclass(frozen=True)
class AttentionSpec:
    """What distinguishes one attention kernel from another.

    Attributes
    ----------
    batch : bool
        Whether there is a leading dimension of independent sequences.
    heads, kv_heads, channels, value_channels : int
        H, kv_heads, D and Dv.
    scale : float
        Of the scores.
    causal, masked : bool
        Whether query i sees keys up to N - T + i only; whether there is a mask.
    tile : HostTile
    """

    batch: bool
    heads: int
    kv_heads: int
    channels: int
    value_channels: int
    scale: float
    causal: bool
    masked: bool
    tile: HostTile

    @property
    def group(self) -> int:
        """Query heads of a key head."""
        return self.heads // self.kv_heads

    @property
    def lanes(self) -> int:
        """Elements of a vector."""
        return self.tile.lanes

    @property
    def padded_channels(self) -> int:
        """Dv as a multiple of the tile's columns."""
        return -(-self.value_channels // self.tile.cols) * self.tile.cols

    def product(self, a_dtype: str, columns: int | None) -> MatmulSpec:
        """The product of queries and keys, or of probabilities and values."""
        return MatmulSpec((), (), columns, None, a_dtype, "int8", "int32", self.tile)


@cache
def attention_kernel(spec: AttentionSpec) -> tirx.PrimFunc:
    """Build the kernel of ``attention``.

    Parameters of the PrimFunc, in order: q (.., T, H, D + 4), k (.., N, kv_heads, D + 4) and
    v (.., N, kv_heads, Dv + 4), int8, as `quantize_heads_kernel` makes them; mask (T, N) bool if
    the spec has one; out (.., T, H, Dv) float32.
    """
    lead = [tirx.Var("sequences", "int64")] if spec.batch else []
    sequences = lead[0] if lead else int64(1)
    tokens, keys = tirx.Var("tokens", "int64"), tirx.Var("keys", "int64")
    q_width = spec.channels + defined.SCALE_BYTES
    v_width = spec.value_channels + defined.SCALE_BYTES

    def body(q: Array, k: Array, v: Array, mask: Array | None, out: Array) -> None:
        problem = _Problem(
            spec,
            q.reshape(sequences, tokens, spec.heads, q_width),
            k.reshape(sequences, keys, spec.kv_heads, q_width),
            v.reshape(sequences, keys, spec.kv_heads, v_width),
            mask,
            out.reshape(sequences, tokens, spec.heads, spec.value_channels),
        )
        problem.convert()
        problem.attend()

    parameters = {
        "q": ("int8", *lead, tokens, spec.heads, q_width),
        "k": ("int8", *lead, keys, spec.kv_heads, q_width),
        "v": ("int8", *lead, keys, spec.kv_heads, v_width),
        "mask": ("bool", tokens, keys) if spec.masked else None,
        "out": ("float32", *lead, tokens, spec.heads, spec.value_channels),
    }
    return build("attention", parameters, body)


class _Problem:
    """Operands with a sequence dimension, and the two stages of the kernel."""

    def __init__(
        self, spec: AttentionSpec, q: Array, k: Array, v: Array, mask: Array | None, out: Array
    ) -> None:
        self.spec, self.q, self.k, self.v, self.mask, self.out = spec, q, k, v, mask, out
        sequences, self.tokens = q.buffer.shape[0], q.buffer.shape[1]
        self.keys = k.buffer.shape[1]
        cols = spec.tile.cols
        self.panels = fixed(ceil_div(self.keys, cols))
        # Sizes of scratch cannot read variables; this holds all panels, and is never 0.
        self.padded = self.keys + cols
        streams = sequences * spec.kv_heads
        self.streams = fixed(streams)
        self.key_panels = scratch("float32", streams, self.padded * spec.channels)
        self.values = scratch("float32", streams, self.padded, spec.padded_channels)
        self.key_scale = scratch("float32", streams, self.padded)
        self.value_scale = scratch("float32", streams, self.padded)
        # The first key of a panel, then of a stream, that holds NaN or Inf.
        self.first_bad = scratch("int64", streams, self.padded)
        # Which keys do: a mask may hide some of them.
        self.is_bad = scratch("int32", streams, self.padded) if spec.masked else None

    def key_at(self, panel: Any, channel: Any, column: int | Any = 0) -> Any:
        """Index of a key's channel in the stream's panels."""
        cols = self.spec.tile.cols
        return (panel * self.spec.channels + channel) * cols + column

    def convert(self) -> None:
        """Fill panels, values and scales; scales that are NaN become 0, and are remembered."""
        spec, cols = self.spec, self.spec.tile.cols

        def copy(stream: Any, panel: Any, column: Any) -> None:
            sequence, head = fixed(stream // spec.kv_heads), fixed(stream % spec.kv_heads)
            key = fixed(panel * cols + column)
            with loop(spec.channels) as i:
                value = cast("float32", self.k[sequence, key, head, i])
                self.key_panels[stream, self.key_at(panel, i, column)] = value
            with loop(spec.value_channels) as i:
                self.values[stream, key, i] = cast("float32", self.v[sequence, key, head, i])
            with loop(spec.padded_channels - spec.value_channels) as i:
                self.values[stream, key, spec.value_channels + i] = 0.0
            if self.is_bad is not None:
                self.is_bad[stream, key] = T.int32(0)
            scales = (
                (self.k, spec.channels, self.key_scale),
                (self.v, spec.value_channels, self.value_scale),
            )
            for source, channels, target in scales:
                bits = Scalar("int32", _scale_bits(source, sequence, key, head, channels))
                good = bits.value != NAN_BITS
                zero = T.float32(0)
                target[stream, key] = T.Select(good, T.reinterpret("float32", bits.value), zero)
                with when(bits.value == NAN_BITS):
                    known = self.first_bad[stream, panel]
                    self.first_bad[stream, panel] = T.min(known, key)
                    if self.is_bad is not None:
                        self.is_bad[stream, key] = T.int32(1)

        def pad(stream: Any, panel: Any, column: Any) -> None:
            with loop(spec.channels) as i:
                self.key_panels[stream, self.key_at(panel, i, column)] = 0.0
            self.key_scale[stream, panel * cols + column] = 0.0
            self.value_scale[stream, panel * cols + column] = 0.0

        with loop(self.streams) as stream:
            self.first_bad[stream, 0] = int64(_NO_KEY)
        with parallel(self.streams * self.panels) as index:
            stream, panel = fixed(index // self.panels), fixed(index % self.panels)
            self.first_bad[stream, panel] = int64(_NO_KEY)
            with loop(cols) as column:
                either(
                    panel * cols + column < self.keys,
                    lambda: copy(stream, panel, column),
                    lambda: pad(stream, panel, column),
                )
        with loop(self.streams) as stream, loop(self.panels) as panel:
            first = T.min(self.first_bad[stream, 0], self.first_bad[stream, panel])
            self.first_bad[stream, 0] = first

    def attend(self) -> None:
        """All query rows, a register tile's worth of rows of one key head at a time."""
        spec, rows = self.spec, self.spec.tile.rows
        all_rows = fixed(self.tokens * spec.group)
        tiles = fixed(ceil_div(all_rows, rows))
        with parallel(self.streams * tiles) as index:
            stream, first = fixed(index // tiles), fixed(index % tiles * rows)
            sequence, head = fixed(stream // spec.kv_heads), fixed(stream % spec.kv_heads)
            _Tile(self, stream, sequence, head, first, all_rows).run()


class _Tile:
    """A few query rows of one key head; rows that do not exist repeat the last one."""

    def __init__(
        self, problem: _Problem, stream: Any, sequence: Any, head: Any, first: Any, all_rows: Any
    ) -> None:
        self.problem, self.spec, self.stream = problem, problem.spec, stream
        self.sequence, self.first, self.all_rows = sequence, first, all_rows
        spec, count = self.spec, self.spec.tile.rows
        self.token, self.head = scratch("int64", count), scratch("int64", count)
        self.limit = scratch("int64", count)
        past = problem.keys - problem.tokens
        with loop(count) as r:
            source = fixed(T.min(first + r, all_rows - 1))
            self.token[r] = source // spec.group
            self.head[r] = head * spec.group + source % spec.group
            limit = past + self.token[r] + 1 if spec.causal else problem.keys
            self.limit[r] = T.max(limit, int64(0))
        # The last row sees most.
        self.panels = fixed(ceil_div(self.limit[count - 1], spec.tile.cols))
        self.vectors = fixed(self.panels * (spec.tile.cols // spec.lanes))
        self.buffer = scratch("float32", count, problem.padded + _STAGGER)
        self.row_scale = scratch("float32", count)

    def run(self) -> None:
        """Scores, probabilities, and the values mixed by them."""
        self._scores()
        with loop(self.spec.tile.rows) as r:
            self._probabilities(r)
        self._mix()

    def _scores(self) -> None:
        spec, problem, count = self.spec, self.problem, self.spec.tile.rows
        queries, factor = scratch("float32", count, spec.channels), scratch("float32", count)
        bad = scratch("int32", count)
        unit = T.float32(float(defined.score_unit(spec.scale)))
        with loop(count) as r:
            where = (self.sequence, fixed(self.token[r]), fixed(self.head[r]))
            bits = Scalar("int32", _scale_bits(problem.q, *where, spec.channels))
            scale = T.reinterpret("float32", bits.value)
            largest = T.float32(float(np.finfo(np.float32).max))
            is_bad = bits.value == NAN_BITS
            factor[r] = T.Select(is_bad, T.float32(0), T.min(scale * unit, largest))
            bad[r] = cast("int32", tirx.any(is_bad, self._sees_bad(r) != 0))
            self.row_scale[r] = cast("float32", bad[r])
            with loop(spec.channels) as i:
                queries[r, i] = cast("float32", problem.q[(*where, i)])
        product = spec.product("int8", spec.channels)
        with loop(self.panels) as panel:
            tile = MatmulTile(product, count, 2, spec.lanes)
            tile.multiply(
                int64(spec.channels),
                lambda r, i: queries[r, i],
                lambda i, start: problem.key_panels[
                    self.stream, vector(problem.key_at(panel, i, start), spec.lanes)
                ],
            )
            for start in tile.starts:
                at = vector(panel * spec.tile.cols + start, spec.lanes)
                key_scale = problem.key_scale[self.stream, at]
                for r in range(count):
                    acc = cast("float32", tile.result[r, tile.at(start)], spec.lanes)
                    x = acc * self._spread(factor[r]) * key_scale
                    x = T.min(T.nearbyint(x), self._spread(T.float32(defined.SCORE_LIMIT)))
                    x = T.max(x, self._spread(T.float32(-defined.SCORE_LIMIT)))
                    self.buffer[r, at] = x

    def _sees_bad(self, r: Any) -> Any:
        """Whether a row sees a key that holds NaN or Inf."""
        problem = self.problem
        sees = Scalar("int32", cast("int32", problem.first_bad[self.stream, 0] < self.limit[r]))
        mask, is_bad = problem.mask, problem.is_bad
        if mask is not None and is_bad is not None:
            limit, token = fixed(self.limit[r]), fixed(self.token[r])
            with when(sees.value != 0):
                sees.set(T.int32(0))
                with loop(limit) as key, when(mask[token, key]):
                    sees.set(T.max(sees.value, is_bad[self.stream, key]))
        return sees.value

    def _probabilities(self, r: Any) -> None:
        """Turn the scores of a row into p, as float32, and find the row's scale."""
        lanes, bad = self.spec.lanes, Scalar("int32", cast("int32", self.row_scale[r]))
        top = Scalar("float32", self._largest_score(r))
        total, largest = scratch("int64", lanes), scratch("float32", lanes)
        every = vector(0, lanes)
        total[every] = T.broadcast(T.int64(0), lanes)
        largest[every] = self._spread(T.float32(0))
        with loop(self.vectors) as j:
            at = vector(j * lanes, lanes)
            e = scratch("int32", lanes)
            distance = self._spread(top.value) - self.buffer[r, at]
            self._power_of_half(distance, e)
            total[every] = total[every] + cast("int64", e[every], lanes)
            w = cast("float32", e[every], lanes) * self._spread(T.float32(2.0**-defined.UNIT_BITS))
            self.buffer[r, at] = w * self.problem.value_scale[self.stream, at]
            largest[every] = T.max(largest[every], self.buffer[r, at])
        smallest = T.float32(float(defined.SMALLEST_TOP))
        w_top, sum_e = Scalar("float32", smallest), Scalar("int64", T.int64(0))
        with loop(lanes) as lane:
            w_top.set(T.max(w_top.value, largest[lane]))
            sum_e.add(total[lane])
        levels = T.float32(defined.PROBABILITY_LEVELS)
        inverse = Scalar("float32", levels / w_top.value)
        with loop(self.vectors) as j:
            at = vector(j * lanes, lanes)
            self.buffer[r, at] = T.nearbyint(self.buffer[r, at] * self._spread(inverse.value))
        sum_f = cast("float32", T.max(sum_e.value, T.int64(1)))
        scale = w_top.value / (sum_f * T.float32(2.0**-defined.UNIT_BITS) * levels)
        not_a_number = T.reinterpret("float32", T.int32(NAN_BITS))
        self.row_scale[r] = T.Select(bad.value != 0, not_a_number, scale)

    def _largest_score(self, r: Any) -> Any:
        """Hide what the row may not see; the largest of the others."""
        lanes, mask = self.spec.lanes, self.problem.mask
        largest, every = scratch("float32", lanes), vector(0, lanes)
        lowest = T.float32(-defined.SCORE_LIMIT)
        largest[every] = self._spread(lowest)
        limit, token = fixed(self.limit[r]), fixed(self.token[r])
        if mask is not None:
            with loop(limit) as key, when(tirx.Not(mask[token, key])):
                self.buffer[r, key] = T.float32(_HIDDEN)
        with loop(self.vectors) as j:
            at = vector(j * lanes, lanes)
            seen = at < T.broadcast(limit, lanes)
            x = T.Select(seen, self.buffer[r, at], self._spread(T.float32(_HIDDEN)))
            self.buffer[r, at] = x
            largest[every] = T.max(largest[every], self.buffer[r, at])
        found = Scalar("float32", lowest)
        with loop(lanes) as lane:
            found.set(T.max(found.value, largest[lane]))
        return found.value

    def _power_of_half(self, distance: Any, e: Array) -> None:
        """Write ``2^(-distance / 2^15)`` in units of 2^-24."""
        lanes, bits = self.spec.lanes, defined.FRACTION_BITS
        every = vector(0, lanes)

        def integer(value: int) -> Any:
            return T.broadcast(T.int32(value), lanes)

        t, m = scratch("int32", lanes), scratch("int32", lanes)
        end = float((defined.UNIT_BITS + 1) << bits)
        t[every] = cast("int32", T.min(distance, self._spread(T.float32(end))), lanes)
        f = T.bitwise_and(t[every], integer((1 << bits) - 1))
        *lower, highest = (1 << 16, *defined.EXPONENT_COEFFICIENTS)
        m[every] = integer(highest)
        for coefficient in reversed(lower):
            m[every] = integer(coefficient) + T.shift_right(m[every] * f, integer(bits))
        shift = T.shift_right(t[every], integer(bits))
        unit = T.shift_left(m[every], integer(defined.UNIT_BITS - 16))
        e[every] = T.shift_right(unit, shift)

    def _mix(self) -> None:
        """Sum the values of the keys that any row needs; write the results."""
        spec, problem, count = self.spec, self.problem, self.spec.tile.rows
        live = scratch("int32", problem.padded)
        packed = scratch("float32", problem.padded, count)
        found = Scalar("int32", T.int32(0))
        with loop(self.panels * spec.tile.cols) as key:
            largest = self.buffer[0, key]
            for r in range(1, count):
                largest = T.max(largest, self.buffer[r, key])
            live[found.value] = cast("int32", key)
            found.add(cast("int32", largest > T.float32(0)))
        needed = fixed(cast("int64", found.value))
        with loop(needed) as i:
            for r in range(count):
                packed[i, r] = self.buffer[r, live[i]]
        product = spec.product("uint8", None)
        with loop(spec.padded_channels // spec.tile.cols) as panel:
            first = fixed(panel * spec.tile.cols)
            tile = MatmulTile(product, count, 2, spec.lanes)
            tile.multiply(
                needed,
                lambda r, i: packed[i, r],
                lambda i, start: problem.values[
                    self.stream, live[i], vector(first + start, spec.lanes)
                ],
            )
            self._write(tile, first)

    def _write(self, tile: MatmulTile, first: Any) -> None:
        spec, cols = self.spec, self.spec.tile.cols
        mixed = scratch("float32", cols)
        for r in range(spec.tile.rows):
            for start in tile.starts:
                acc = cast("float32", tile.result[r, tile.at(start)], spec.lanes)
                mixed[tile.at(start)] = acc * self._spread(self.row_scale[r])
            with when(self.first + r < self.all_rows):
                where = (self.sequence, fixed(self.token[r]), fixed(self.head[r]))
                with loop(T.min(int64(cols), spec.value_channels - first)) as c:
                    self.problem.out[(*where, first + c)] = mixed[c]

    def _spread(self, value: Any) -> Any:
        return T.broadcast(value, self.spec.lanes)


def _scale_bits(source: Array, sequence: Any, token: Any, head: Any, channels: int) -> Any:
    """The scale behind the integers of a head, as the bits of a float32 in an int32."""
    bits: Any = T.int32(0)
    for byte in range(defined.SCALE_BYTES):
        part = cast("int32", source[sequence, token, head, channels + byte])
        bits = bits + T.shift_left(T.bitwise_and(part, 255), 8 * byte)
    return bits
