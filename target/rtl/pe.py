"""A PE and a PE row, in the split form and in those of the baselines.

A step goes through three stages:

1. *locate*: the next `lanes` set bits of the row's bitmap become column numbers;
2. *multiply*: lanes take their weights from the window of columns that stands beside the array
   (dense pass: from the weights that arrive), multiply, and the products of each weight group are
   added up;
3. *accumulate*: sums are shifted to their digit's place and added.

So the sums of a tile are whole `DRAIN_CYCLES` cycles after its last step was issued, while the
steps of the next tile are on their way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

from amaranth.hdl import Cat, Const, Elaboratable, Instance, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from sparqle_tvm.target.rtl.shape import ACCUMULATOR_BITS, ArrayShape

DRAIN_CYCLES = 3
"""From the issue of a step to the clock edge after which accumulators have it."""

Kind = Literal["split", "dense", "native", "a4"]
"""What a row is built for: ``split`` walks a bitmap; ``dense`` multiplies digits in two passes;
``native`` whole 2k-bit activations; ``a4`` activations of one digit."""

KINDS: tuple[Kind, ...] = ("split", "dense", "native", "a4")


class Block(wiring.Component):
    """A component that can be part of another, in place or as an instance of a Verilog module.

    Instances keep a module once in the output however often it is used; Amaranth's own simulator
    needs blocks in place.
    """

    NAME = ""
    # An instance of a Verilog module uses a block's ports, not the block: no warning about that.
    _MustUse__silence = True

    def __init__(self, ports: dict[str, Any], flat: bool) -> None:
        self.flat = flat
        super().__init__(ports)

    def children(self) -> tuple[Block, ...]:
        """Blocks that this one has instances of, one of each module."""
        return ()

    def ports(self) -> list[Value]:
        """All ports, for Verilog."""
        return [cast(Value, getattr(self, name)) for name in self.signature.members]

    def include(self, m: Module, name: str, block: Block) -> None:
        """Make a block a part of this one."""
        if self.flat:
            m.submodules[name] = block
            return
        wires = {
            ("i_" if member.flow == In else "o_") + port: getattr(block, port)
            for port, member in block.signature.members.items()
        }
        clock = {"i_clk": _clock(), "i_rst": _reset()}
        m.submodules[name] = cast(Elaboratable, Instance(block.NAME, **wires, **clock))


def _clock() -> Value:
    from amaranth.hdl import ClockSignal

    return cast(Value, ClockSignal())


def _reset() -> Value:
    from amaranth.hdl import ResetSignal

    return cast(Value, ResetSignal())


def add_up(terms: Sequence[Value]) -> Value:
    """A balanced tree of adders."""
    level = list(terms)
    while len(level) > 1:
        pairs = [cast(Value, a + b) for a, b in zip(level[::2], level[1::2], strict=False)]
        level = pairs + ([level[-1]] if len(level) % 2 else [])
    return level[0]


def prefix_sums(terms: Sequence[Value]) -> list[Value]:
    """Sums of the first 1, 2, ... terms, by Sklansky's network: logarithmic depth."""
    if len(terms) == 1:
        return list(terms)
    half = (len(terms) + 1) // 2
    low, high = prefix_sums(terms[:half]), prefix_sums(terms[half:])
    return low + [cast(Value, low[-1] + each) for each in high]


def decoded(code: Value, turn: Value) -> Value:
    """The signed digit, k + 1 bits, of a stored code; see `numerics.window`."""
    k = len(code)
    zero = code == 0
    return Cat(Mux(zero, turn[:k], code), ~zero & (code >= turn)).as_signed()


class Locate(Block):
    """Find the first `lanes` set bits of what is left of a row's bitmap, every cycle.

    ``load`` takes the bits of a row; ``step`` takes off those that were found. ``index`` has the
    column of each lane, ``found`` the lanes that have one (the first ones), ``ends`` for each
    weight group how many lanes have a column of it or of one before; ``more``: bits are left,
    ``after``: bits are left behind those found.
    """

    NAME = "sparqle_locate"

    def __init__(self, shape: ArrayShape, flat: bool = True) -> None:
        self.shape = shape
        super().__init__(
            {
                "load": In(1),
                "bits": In(shape.columns),
                "step": In(1),
                "index": Out(shape.lanes * shape.index_bits),
                "found": Out(shape.lanes),
                "ends": Out(shape.groups * shape.lane_count_bits),
                "more": Out(1),
                "after": Out(1),
            },
            flat,
        )

    def elaborate(self, platform: Any) -> Module:
        """Lane after lane isolates the lowest bit of what the lanes before it leave.

        ``x - 1`` flips the lowest set bit of x and the zeros below it, so ``x & (x - 1)`` is x
        without it. The carries of a lane follow those of the lane before by a few gates.
        """
        m, shape = Module(), self.shape
        left = Signal(shape.columns)
        remaining: Value = left
        below: list[Value] = [Const(0)] * shape.groups
        bounds = [(g + 1) * shape.columns // shape.groups for g in range(shape.groups)]
        for lane in range(shape.lanes):
            after = Signal(shape.columns, name=f"after_{lane}")
            mine = Signal(shape.columns, name=f"lane_{lane}")
            m.d.comb += [after.eq(remaining & (remaining - 1)), mine.eq(remaining & ~after)]
            number = [
                (mine & sum(1 << c for c in range(shape.columns) if c >> bit & 1)).any()
                for bit in range(shape.index_bits)
            ]
            m.d.comb += [
                self.index.word_select(lane, shape.index_bits).eq(Cat(*number)),
                self.found[lane].eq(mine.any()),
            ]
            below = [n + mine[:bound].any() for n, bound in zip(below, bounds, strict=True)]
            remaining = after
        m.d.comb += [
            self.ends.eq(Cat(n[: shape.lane_count_bits] for n in below)),
            self.more.eq(left.any()),
            self.after.eq(remaining.any()),
        ]
        with m.If(self.load):
            m.d.sync += left.eq(self.bits)
        with m.Elif(self.step):
            m.d.sync += left.eq(remaining)
        return m


class Pe(Block):
    """One PE: `lanes` multipliers, adder tree, int32 accumulators of its weight groups.

    ``digits`` are signed, k + 1 bits each (``native``: 2k + 1), zero where a lane has none;
    ``weights`` are those of `lanes` columns that arrive in a dense pass, ``window`` those of all
    columns, which ``index`` selects from if ``sparse``. ``ends`` says for every group how many
    lanes have a column of it or of one before. ``place`` is the digit place of the sum: it is
    shifted left by ``place * k``.
    """

    NAME = "sparqle_pe"

    def __init__(self, shape: ArrayShape, kind: Kind = "split", flat: bool = True) -> None:
        self.shape, self.kind = shape, kind
        k = shape.digit_bits
        self.digit_width = (2 * k if kind == "native" else k) + 1
        ports: dict[str, Any] = {
            "digits": In(shape.lanes * self.digit_width),
            "weights": In(shape.lanes * k),
            "weights_signed": In(1),
            "valid": In(1),
            "clear": In(1),
            "place": In(range(shape.weight_slices + (kind in ("split", "dense")))),
            "ends": In(shape.groups * shape.lane_count_bits),
            "group": In(shape.group_bits),
            "acc": Out(signed(ACCUMULATOR_BITS)),
        }
        if kind == "split":
            ports |= {
                "window": In(shape.columns * k),
                "index": In(shape.lanes * shape.index_bits),
                "sparse": In(1),
            }
        super().__init__(ports, flat)

    def elaborate(self, platform: Any) -> Module:
        """Select and multiply and add up; then accumulate."""
        m, shape, k = Module(), self.shape, self.shape.digit_bits
        products = []
        for lane in range(shape.lanes):
            weight = Signal(k, name=f"weight_{lane}")
            arriving = self.weights.word_select(lane, k)
            if self.kind == "split":
                index = self.index.word_select(lane, shape.index_bits)
                selected = self.window.word_select(index, k)
                m.d.comb += weight.eq(Mux(self.sparse, selected, arriving))
            else:
                m.d.comb += weight.eq(arriving)
            digit = self.digits.word_select(lane, self.digit_width).as_signed()
            extended = Cat(weight, weight[-1] & self.weights_signed).as_signed()
            product = Signal(signed(self.digit_width + k + 1), name=f"product_{lane}")
            m.d.comb += product.eq(digit * extended)
            products.append(cast(Value, product))
        sums = self._group_sums(m, products)
        width = max(len(each) for each in sums)
        valid, place = Signal(), Signal.like(self.place)
        m.d.sync += [valid.eq(self.valid), place.eq(self.place)]
        accumulators = []
        for group, total in enumerate(sums):
            held = Signal(signed(width), name=f"sum_{group}")
            acc = Signal(signed(ACCUMULATOR_BITS), name=f"acc_{group}")
            moved = Signal(signed(ACCUMULATOR_BITS), name=f"moved_{group}")
            m.d.sync += held.eq(total)
            with m.Switch(place):
                for at in range(shape.weight_slices + 1):
                    with m.Case(at) if at < 2 ** len(place) else m.Default():
                        m.d.comb += moved.eq(held << at * k)
            with m.If(self.clear):
                m.d.sync += acc.eq(Mux(valid, moved, 0))
            with m.Elif(valid):
                m.d.sync += acc.eq(acc + moved)
            accumulators.append(acc)
        with m.Switch(self.group):
            for group, acc in enumerate(accumulators):
                with m.Case(group):
                    m.d.comb += self.acc.eq(acc)
        return m

    def _group_sums(self, m: Module, products: list[Value]) -> list[Value]:
        """Sums of the products of each group.

        Columns come in order, so a group has lanes beside each other, and its sum is the
        difference of two sums of first lanes.
        """
        if self.shape.groups == 1:
            return [add_up(products)]
        width = len(products[0]) + (len(products) - 1).bit_length()
        firsts = [Const(0, signed(width)), *prefix_sums(products)]
        wires = []
        for i, first in enumerate(firsts):
            wire = Signal(signed(width), name=f"first_{i}")
            m.d.comb += wire.eq(first)
            wires.append(wire)
        table, until = Cat(*wires), []
        for group in range(self.shape.groups):
            end = self.ends.word_select(group, self.shape.lane_count_bits)
            sums = Signal(signed(width), name=f"until_{group}")
            m.d.comb += sums.eq(table.word_select(end, width))
            until.append(cast(Value, sums))
        first, rest = until[0], zip(until[1:], until, strict=False)
        return [first, *(cast(Value, a - b) for a, b in rest)]


class PeRow(Block):
    """`cols` PEs that share an activation row: locating, digits, and what is the same in all.

    Stage 1 takes ``load`` with ``bits``, then ``dense`` for each step of the dense pass or
    ``sparse`` for each of the sparse pass, in which a row without bits left does nothing. One cycle
    later (stage 2) the digits of that step are at ``lsb`` or ``msb``, and weights at ``weights``.
    Of a dense step ``lanes_used`` are the lanes that have a column, ``lane_ends`` those of each
    group, as `Locate` has them for a sparse one. ``after``: the row has bits for a further step.

    What a ``dense`` row adds in its second pass comes at ``lsb``, too, with ``place`` one more.
    """

    NAME = "sparqle_pe_row"

    def __init__(self, shape: ArrayShape, kind: Kind = "split", flat: bool = True) -> None:
        self.shape, self.kind = shape, kind
        self.pe = Pe(shape, kind, flat)
        k, lanes = shape.digit_bits, shape.lanes
        ports: dict[str, Any] = {
            "dense": In(1),
            "clear": In(1),
            "place": In(len(self.pe.place)),
            "weights_signed": In(1),
            "lsb_signed": In(1),
            "lanes_used": In(lanes),
            "lane_ends": In(shape.groups * shape.lane_count_bits),
            "lsb": In(lanes * (self.pe.digit_width - 1)),
            "weights": In(shape.cols * lanes * k),
            "group": In(shape.group_bits),
            "acc": Out(shape.cols * ACCUMULATOR_BITS),
        }
        if kind == "split":
            ports |= {
                "load": In(1),
                "bits": In(shape.columns),
                "sparse": In(1),
                "turn": In(k + 1),
                "msb": In(lanes * k),
                "window": In(shape.cols * shape.columns * k),
                "more": Out(1),
                "after": Out(1),
            }
        super().__init__(ports, flat)

    def children(self) -> tuple[Block, ...]:
        """The PE, and what locates digits."""
        return (self.pe, *((Locate(self.shape, False),) if self.kind == "split" else ()))

    def elaborate(self, platform: Any) -> Module:
        """Stage 1 and its registers, digits of stage 2, and the PEs."""
        m, shape, k = Module(), self.shape, self.shape.digit_bits
        used, ends = Signal(shape.lanes), Signal.like(self.lane_ends)
        valid, clear, place = Signal(), Signal(), Signal.like(self.place)
        weights_signed, flip, sparse = Signal(), Signal(), Signal()
        index = Signal(shape.lanes * shape.index_bits)
        m.d.sync += [
            clear.eq(self.clear),
            weights_signed.eq(self.weights_signed),
            flip.eq(self.lsb_signed),
        ]
        if self.kind == "split":
            locate = Locate(shape, self.flat)
            self.include(m, "locate", locate)
            m.d.comb += [
                locate.load.eq(self.load),
                locate.bits.eq(self.bits),
                locate.step.eq(self.sparse),
                self.more.eq(locate.more),
                self.after.eq(locate.after),
            ]
            m.d.sync += [
                valid.eq(self.dense | (self.sparse & locate.more)),
                place.eq(self.place + self.sparse),
                sparse.eq(self.sparse),
                used.eq(Mux(self.sparse, locate.found, self.lanes_used)),
                ends.eq(Mux(self.sparse, locate.ends, self.lane_ends)),
                index.eq(locate.index),
            ]
        else:
            m.d.sync += [
                valid.eq(self.dense),
                place.eq(self.place),
                used.eq(self.lanes_used),
                ends.eq(self.lane_ends),
            ]
        digits = Signal(shape.lanes * self.pe.digit_width)
        for lane in range(shape.lanes):
            low = self.lsb.word_select(lane, self.pe.digit_width - 1)
            # A biased digit with its top bit flipped is two's complement.
            top = low[-1] ^ flip
            digit: Value = Cat(low[:-1], top, top & flip)
            if self.kind == "split":
                high = decoded(self.msb.word_select(lane, k), self.turn)
                digit = Mux(sparse, high.as_unsigned(), digit)
            m.d.comb += digits.word_select(lane, self.pe.digit_width).eq(
                digit & used[lane].replicate(self.pe.digit_width)
            )
        for column in range(shape.cols):
            pe = Pe(shape, self.kind, self.flat)
            self.include(m, f"pe_{column}", pe)
            m.d.comb += [
                pe.digits.eq(digits),
                pe.weights.eq(self.weights.word_select(column, shape.lanes * k)),
                pe.weights_signed.eq(weights_signed),
                pe.valid.eq(valid),
                pe.clear.eq(clear),
                pe.place.eq(place),
                pe.ends.eq(ends),
                pe.group.eq(self.group),
                self.acc.word_select(column, ACCUMULATOR_BITS).eq(pe.acc),
            ]
            if self.kind == "split":
                m.d.comb += [
                    pe.window.eq(self.window.word_select(column, shape.columns * k)),
                    pe.index.eq(index),
                    pe.sparse.eq(sparse),
                ]
        return m
