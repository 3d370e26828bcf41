"""Encoder and decoder of stored planes, `lanes` elements a cycle."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib.wiring import In, Out

from sparqle_tvm.target.rtl.pe import Block, decoded, prefix_sums

COUNT_BITS = 32
"""Bits of pointers and counts."""


class Encoder(Block):
    """Quantized values in; LSB digits, bitmap, MSB codes, pointers and counts of digits out.

    While ``valid`` it takes `lanes` values of 2k bits each cycle, of which the first ``used`` are
    of the row; ``last`` marks the last ones of a row. ``offset`` is ``(bias - centre) mod 2^2k``,
    ``ambiguous`` and ``threshold`` are those of `numerics.window.Digits`. One cycle later
    ``plane_valid``, with the low digits and bits of these values, ``msb_valid`` if a word of codes
    is full, and, at the end of a row, ``row_valid`` with its ``row_end`` (byte of the stream that
    the next row begins at) and ``row_count``. Rows follow each other in the stream at whole bytes,
    so none waits for another; ``flush`` in a cycle of its own brings out what is left of the last
    word, ``msb_bytes`` bytes. Nothing moves in a cycle without ``ready``.
    """

    NAME = "sparqle_encoder"

    def __init__(self, lanes: int, digit_bits: int, flat: bool = True) -> None:
        self.lanes, self.digit_bits = lanes, digit_bits
        k, counter = digit_bits, COUNT_BITS
        super().__init__(
            {
                "ready": In(1),
                "valid": In(1),
                "values": In(lanes * 2 * k),
                "used": In(range(lanes + 1)),
                "last": In(1),
                "flush": In(1),
                "offset": In(2 * k),
                "ambiguous": In(k),
                "threshold": In(k),
                "plane_valid": Out(1),
                "lsb": Out(lanes * k),
                "bits": Out(lanes),
                "msb_valid": Out(1),
                "msb": Out(lanes * k),
                "msb_bytes": Out(range(lanes * k // 8 + 1)),
                "row_valid": Out(1),
                "row_end": Out(counter),
                "row_count": Out(counter),
            },
            flat,
        )

    def elaborate(self, platform: Any) -> Module:
        """Cut into digits, compact, and pack words."""
        m, k, lanes = Module(), self.digit_bits, self.lanes
        lows: list[Value] = []
        bits: list[Value] = []
        codes: list[Value] = []
        for lane in range(lanes):
            stored, bit, code = Signal(2 * k), Signal(), Signal(k)
            low, nibble = stored[:k], stored[k:]
            shared = (nibble == self.ambiguous) & (low < self.threshold)
            mine = lane < self.used
            m.d.comb += [
                stored.eq(self.values.word_select(lane, 2 * k) + self.offset),
                bit.eq((nibble != 0) & mine),
                code.eq(Mux(shared, 0, nibble)),
            ]
            lows.append(Mux(mine, low, 0))
            bits.append(bit)
            codes.append(code)
        counts = prefix_sums(bits)
        before: list[Value] = [Const(0, 1), *counts[:-1]]
        slots = []
        for slot in range(lanes):
            word: Value = Const(0, k)
            for lane in range(slot, lanes):
                chosen = bits[lane] & (before[lane] == slot)
                word = word | (codes[lane] & chosen.replicate(k))
            slots.append(word)
        per_byte, word_bytes = 8 // k, lanes * k // 8
        fill = Signal(range(lanes + 1))
        total, padded = Signal(range(2 * lanes + 1)), Signal(range(2 * lanes + 1))
        held, joined = Signal(lanes * k), Signal(2 * lanes * k)
        end, count = Signal(COUNT_BITS), Signal(COUNT_BITS)
        full = Signal()
        new = Mux(self.valid, counts[-1], 0)
        aligned = ((total + (per_byte - 1)) >> (per_byte - 1).bit_length()) << (
            per_byte - 1
        ).bit_length()
        m.d.comb += [
            total.eq(fill + new),
            padded.eq(Mux(self.last & self.valid, aligned, total)),
            joined.eq(held | (Mux(self.valid, Cat(*slots), 0) << _times(fill, k))),
            full.eq(padded >= lanes),
        ]
        row_digits = count + new
        row_bytes = (row_digits + (per_byte - 1)) >> (per_byte - 1).bit_length()
        with m.If(self.ready):
            m.d.sync += [
                self.plane_valid.eq(self.valid),
                self.lsb.eq(Cat(*lows)),
                self.bits.eq(Cat(*bits)),
                self.msb_valid.eq(full | (self.flush & (padded != 0))),
                self.msb.eq(joined[: lanes * k]),
                self.msb_bytes.eq(Mux(full, word_bytes, padded >> (per_byte - 1).bit_length())),
                held.eq(Mux(full, joined[lanes * k :], Mux(self.flush, 0, joined))),
                fill.eq(Mux(full, padded - lanes, Mux(self.flush, 0, padded))),
                self.row_valid.eq(self.last & self.valid),
            ]
            with m.If(self.valid):
                m.d.sync += count.eq(Mux(self.last, 0, row_digits))
            with m.If(self.valid & self.last):
                m.d.sync += [
                    self.row_count.eq(row_digits),
                    self.row_end.eq(end + row_bytes),
                    end.eq(end + row_bytes),
                ]
            with m.If(self.flush):
                m.d.sync += end.eq(0)
        return m


class Decoder(Block):
    """The load path: MSB codes of a tile in, the signed digits of every step of a row out.

    ``row_valid`` and ``row_ready`` hand over the number of stored digits of the next row, ``valid``
    and ``ready`` words of the stream. Each cycle with ``step_valid`` and ``step_ready`` has the
    digits of one step, k + 1 bits each, zero behind the row's last; ``last`` marks the last step of
    a row. A row without digits has one step without any.
    """

    NAME = "sparqle_decoder"

    def __init__(self, lanes: int, digit_bits: int, flat: bool = True) -> None:
        self.lanes, self.digit_bits = lanes, digit_bits
        super().__init__(
            {
                "row_valid": In(1),
                "row_ready": Out(1),
                "row_count": In(16),
                "turn": In(digit_bits + 1),
                "valid": In(1),
                "ready": Out(1),
                "word": In(lanes * digit_bits),
                "step_valid": Out(1),
                "step_ready": In(1),
                "digits": Out(lanes * (digit_bits + 1)),
                "last": Out(1),
            },
            flat,
        )

    def elaborate(self, platform: Any) -> Module:
        """A buffer of two words from which each step takes whole bytes."""
        m, k, lanes = Module(), self.digit_bits, self.lanes
        word = lanes * k // 8
        held, fill = Signal(2 * word * 8), Signal(range(2 * word + 1))
        left, turn, busy = Signal(16), Signal(k + 1), Signal()
        take, needed = Signal(range(word + 1)), Signal(range(word + 1))
        step, accept = Signal(), Signal()
        per_byte = (8 // k - 1).bit_length()
        rest = Signal(2 * word * 8)
        kept = Signal(range(2 * word + 1))
        m.d.comb += [
            self.last.eq(left <= lanes),
            needed.eq(Mux(self.last, (left + (8 // k - 1)) >> per_byte, word)),
            self.step_valid.eq(busy & (fill >= needed)),
            step.eq(self.step_valid & self.step_ready),
            self.row_ready.eq(~busy | (step & self.last)),
            take.eq(Mux(step, needed, 0)),
            rest.eq(held >> (take << 3)),
            kept.eq(fill - take),
            self.ready.eq(kept <= word),
            accept.eq(self.valid & self.ready),
        ]
        m.d.sync += [
            held.eq(Mux(accept, rest | (self.word << (kept << 3)), rest)),
            fill.eq(kept + Mux(accept, word, 0)),
        ]
        with m.If(step):
            m.d.sync += left.eq(left - lanes)
        with m.If(step & self.last):
            m.d.sync += busy.eq(0)
        with m.If(self.row_valid & self.row_ready):
            m.d.sync += [busy.eq(1), left.eq(self.row_count), turn.eq(self.turn)]
        for lane in range(lanes):
            digit = decoded(held.word_select(lane, k), turn)
            m.d.comb += self.digits.word_select(lane, k + 1).eq(
                Mux(lane < left, digit.as_unsigned(), 0)
            )
        return m


def _times(value: Value, k: int) -> Value:
    """`value` times 2, 4 or 8, as a shift."""
    return value << (k.bit_length() - 1)
