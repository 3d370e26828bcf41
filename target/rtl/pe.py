"""A PE and a PE row, in the split form and in those of the baselines.

A step goes through three stages:

1. *locate*: the row's bitmap says to which lanes the weights of a dense step go that the sparse
   pass will need, and in a sparse step which lanes have a digit;
2. *multiply*: weights arrive (dense pass; those with a stored digit are kept, lane by lane) or are
   taken from those kept (sparse pass), are multiplied, and the products of each weight group are
   added up;
3. *accumulate*: sums are shifted to their digit's place and added.

So the sums of a tile are whole `accelerator.PIPELINE_CYCLES` after the cycle of its last step,
while the steps of the next tile are on their way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

from amaranth.hdl import Cat, Const, Elaboratable, Instance, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from sparqle_tvm.target.rtl.shape import ACCUMULATOR_BITS, ArrayShape

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
    CLOCKED = True
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
        clock = {"i_clk": _clock(), "i_rst": _reset()} if block.CLOCKED else {}
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
    """Where the stored digits of a row go: to lane ``r % lanes``, r counting them in a tile.

    ``load`` takes the bits of a tile. Each ``dense`` step comes with the next `lanes` columns: the
    switches of a `Gather` take those with a digit to their lanes, and ``write`` says which word of
    each lane takes one (word by word, a bit for each lane). Each ``sparse`` step takes the digits
    of one word off; ``read`` is that word, ``found`` the lanes that have a digit (the first ones),
    ``ends`` for each weight group how many lanes have a column of it or of one before.
    ``lane_ends`` is the same of the columns of a dense step. ``more``: digits are left for a sparse
    step, after this step if it is dense; ``after``: digits are left behind those of a sparse step.

    Ranks of the digits of a step follow each other, so no two of them want the same output of a
    switch: columns of a pair differ in the last bit of their rank, those of two pairs that meet in
    the last two, and so on.
    """

    NAME = "sparqle_locate"

    def __init__(self, shape: ArrayShape, flat: bool = True) -> None:
        self.shape = shape
        super().__init__(
            {
                "load": In(1),
                "bits": In(shape.columns),
                "dense": In(1),
                "sparse": In(1),
                "lane_ends": In(shape.groups * shape.lane_count_bits),
                "switches": Out(shape.switches),
                "write": Out(shape.columns),
                "read": Out(shape.steps),
                "found": Out(shape.lanes),
                "ends": Out(shape.groups * shape.lane_count_bits),
                "more": Out(1),
                "after": Out(1),
            },
            flat,
        )

    def elaborate(self, platform: Any) -> Module:
        """Count digits before each column, and set switches by the counts."""
        m, shape, lanes = Module(), self.shape, self.shape.lanes
        bits, left = Signal(shape.columns), Signal(range(shape.columns + 1))
        read = Signal(shape.steps)
        mine = bits[:lanes]
        before = [Const(0, 1), *prefix_sums(list(mine))]
        total = Signal(range(shape.columns + 1))
        rest = Signal.like(left)
        m.d.comb += [
            total.eq(left + before[-1]),
            self.after.eq(left > lanes),
            rest.eq(Mux(self.after, left - lanes, 0)),
            self.more.eq(Mux(self.dense, total != 0, left != 0)),
            self.found.eq(Cat(lane < left for lane in range(lanes))),
            self.read.eq(read),
        ]
        self._route(
            m, [(bit, (left + n)[: shape.lane_bits]) for bit, n in zip(mine, before, strict=False)]
        )
        # Lanes from the first free one take this word, lanes that come round again the next one.
        first, word = left[: shape.lane_bits], left[shape.lane_bits :]
        starts = Signal(shape.steps)
        m.d.comb += starts.eq(Cat(word == w for w in range(shape.steps)))
        new = Signal(range(2 * lanes))
        m.d.comb += new.eq(first + before[-1])
        this = [(lane >= first) & (lane < new) for lane in range(lanes)]
        following = [lane + lanes < new for lane in range(lanes)]
        for w in range(shape.steps):
            last = starts[w - 1] if w else Const(0, 1)
            m.d.comb += self.write[w * lanes : (w + 1) * lanes].eq(
                Cat((starts[w] & a) | (last & b) for a, b in zip(this, following, strict=True))
            )
        self._ends(m, before)
        with m.If(self.load):
            m.d.sync += [bits.eq(self.bits), left.eq(0), read.eq(1)]
        with m.Elif(self.dense):
            m.d.sync += [bits.eq(bits >> lanes), left.eq(total)]
        with m.Elif(self.sparse):
            m.d.sync += [left.eq(rest), read.eq(read << 1)]
        return m

    def _route(self, m: Module, at: Sequence[tuple[Value, Value]]) -> None:
        """Set the switches of every stage: items are (there is one, its lane)."""
        at, number = list(at), 0
        for stage in range(self.shape.lane_bits):
            for low, high in switch_pairs(self.shape.lanes, stage):
                (a, to_a), (b, to_b) = at[low], at[high]
                swap = Signal(name=f"swap_{number}")
                m.d.comb += [
                    swap.eq((a & to_a[0]) | (b & ~to_b[0])),
                    self.switches[number].eq(swap),
                ]
                pair = Cat(a, to_a[1:]), Cat(b, to_b[1:])
                for place, item in ((low, Mux(swap, *pair[::-1])), (high, Mux(swap, *pair))):
                    held = Signal(len(pair[0]), name=f"item_{stage}_{place}")
                    m.d.comb += held.eq(item)
                    at[place] = held[0], held[1:]
                number += 1

    def _ends(self, m: Module, before: Sequence[Value]) -> None:
        shape, width = self.shape, self.shape.lane_count_bits
        if shape.groups == 1:
            m.d.comb += self.ends.eq(0)  # A tree without groups does not ask.
            return
        count = Signal(width)
        m.d.comb += count.eq(before[-1])
        table = Cat(*(Cat(n, Const(0, width))[:width] for n in before))
        for group in range(shape.groups):
            until = Signal(range(shape.columns + 1), name=f"until_{group}")
            here = Signal(width, name=f"here_{group}")
            over = until > shape.lanes
            m.d.comb += [
                here.eq(table.word_select(self.lane_ends.word_select(group, width), width)),
                self.ends.word_select(group, width).eq(Mux(over, shape.lanes, until)[:width]),
            ]
            with m.If(self.load):
                m.d.sync += until.eq(0)
            with m.Elif(self.dense):
                m.d.sync += until.eq(until + here)
            with m.Elif(self.sparse):
                m.d.sync += until.eq(Mux(over, until - shape.lanes, 0))


def switch_pairs(lanes: int, stage: int) -> list[tuple[int, int]]:
    """The places that the switches of a stage join, of `lanes` places."""
    return [(low, low | 1 << stage) for low in range(lanes) if not low >> stage & 1]


class Gather(Block):
    """Weights of the columns with stored digits, brought together for the sparse pass.

    In a dense step the weights of `lanes` columns go through stages of switches (two inputs, two
    outputs) to the lanes of their digits, see `Locate`, and into a word of a memory for the digits
    of a tile; ``chosen`` are the weights as they came. In a sparse step ``chosen`` is the word that
    ``read`` has a bit for. So no lane ever selects among columns: what split precision costs a
    PE are ``lanes / 2 * log2(lanes)`` switches, and memory for the weights of a K chunk.
    """

    NAME = "sparqle_gather"

    def __init__(self, shape: ArrayShape, flat: bool = True) -> None:
        self.shape = shape
        width = shape.lanes * shape.digit_bits
        ports: dict[str, Any] = {
            "weights": In(width),
            "switches": In(shape.switches),
            "write": In(shape.columns),
            "read": In(shape.steps),
            "sparse": In(1),
            "chosen": Out(width),
        }
        super().__init__(ports, flat)

    def elaborate(self, platform: Any) -> Module:
        """Switches, words, and an AND-OR to read one."""
        m, shape, k = Module(), self.shape, self.shape.digit_bits
        at: list[Value] = [self.weights.word_select(lane, k) for lane in range(shape.lanes)]
        number = 0
        for stage in range(shape.lane_bits):
            for low, high in switch_pairs(shape.lanes, stage):
                swap, pair = self.switches[number], (at[low], at[high])
                for place, item in ((low, Mux(swap, *pair[::-1])), (high, Mux(swap, *pair))):
                    at[place] = Signal(k, name=f"weight_{stage}_{place}")
                    m.d.comb += cast(Signal, at[place]).eq(item)
                number += 1
        routed, width = Cat(*at), shape.lanes * k
        chosen: Value = self.weights & (~self.sparse).replicate(width)
        for w in range(shape.steps):
            word = Signal(width, name=f"word_{w}")
            for lane in range(shape.lanes):
                with m.If(self.write[w * shape.lanes + lane]):
                    m.d.sync += word.word_select(lane, k).eq(routed.word_select(lane, k))
            chosen = chosen | (word & (self.sparse & self.read[w]).replicate(width))
        m.d.comb += self.chosen.eq(chosen)
        return m


class Multiply(Block):
    """A signed digit times a weight slice, which is signed if ``weight_signed``."""

    NAME = "sparqle_multiply"
    CLOCKED = False

    def __init__(self, digit_width: int, weight_bits: int, flat: bool = True) -> None:
        ports: dict[str, Any] = {
            "digit": In(signed(digit_width)),
            "weight": In(weight_bits),
            "weight_signed": In(1),
            "product": Out(signed(digit_width + weight_bits + 1)),
        }
        super().__init__(ports, flat)

    def elaborate(self, platform: Any) -> Module:
        """One multiplier."""
        m = Module()
        extended = Cat(self.weight, self.weight[-1] & self.weight_signed).as_signed()
        m.d.comb += self.product.eq(self.digit * extended)
        return m


class Tree(Block):
    """Adds up the products of `lanes` lanes, apart for each of `groups` weight groups.

    Columns come in order, so a group has lanes beside each other, and its sum is the difference
    of two sums of first lanes. ``ends`` says for every group how many lanes have a column of it or
    of one before.
    """

    NAME = "sparqle_tree"
    CLOCKED = False

    def __init__(self, lanes: int, width: int, groups: int, flat: bool = True) -> None:
        self.lanes, self.width, self.groups = lanes, width, groups
        self.sum_width = width + (lanes - 1).bit_length()
        ports: dict[str, Any] = {
            "products": In(lanes * width),
            "ends": In(groups * lanes.bit_length()),
            "sums": Out(groups * self.sum_width),
        }
        super().__init__(ports, flat)

    def elaborate(self, platform: Any) -> Module:
        """One tree of adders, or a prefix network with a multiplexer for every group."""
        m, width = Module(), self.sum_width
        terms = [
            cast(Value, self.products.word_select(lane, self.width).as_signed())
            for lane in range(self.lanes)
        ]
        if self.groups == 1:
            m.d.comb += self.sums.eq(add_up(terms))
            return m
        wires = []
        for i, first in enumerate((Const(0, signed(width)), *prefix_sums(terms))):
            wire = Signal(signed(width), name=f"first_{i}")
            m.d.comb += wire.eq(first)
            wires.append(wire)
        table, last = Cat(*wires), None
        for group in range(self.groups):
            until = Signal(signed(width), name=f"until_{group}")
            end = self.ends.word_select(group, self.lanes.bit_length())
            m.d.comb += until.eq(table.word_select(end, width))
            mine = until if last is None else until - last
            m.d.comb += self.sums.word_select(group, width).eq(mine)
            last = until
        return m


class Accumulate(Block):
    """Accumulators of a PE, one for each weight group, behind a register for the sums.

    A sum is shifted left by ``place`` digits. ``clear``: it takes the place of what was there.
    """

    NAME = "sparqle_accumulate"

    def __init__(self, shape: ArrayShape, sum_width: int, places: int, flat: bool = True) -> None:
        self.shape, self.sum_width, self.places = shape, sum_width, places
        ports: dict[str, Any] = {
            "sums": In(shape.groups * sum_width),
            "valid": In(1),
            "clear": In(1),
            "place": In(range(places)),
            "group": In(shape.group_bits),
            "acc": Out(signed(ACCUMULATOR_BITS)),
        }
        super().__init__(ports, flat)

    def elaborate(self, platform: Any) -> Module:
        """Registers, shifters, adders."""
        m, k = Module(), self.shape.digit_bits
        valid, clear, place = Signal(), Signal(), Signal.like(self.place)
        m.d.sync += [valid.eq(self.valid), clear.eq(self.clear), place.eq(self.place)]
        accumulators = []
        for group in range(self.shape.groups):
            held = Signal(signed(self.sum_width), name=f"sum_{group}")
            acc = Signal(signed(ACCUMULATOR_BITS), name=f"acc_{group}")
            moved = Signal(signed(ACCUMULATOR_BITS), name=f"moved_{group}")
            m.d.sync += held.eq(self.sums.word_select(group, self.sum_width))
            with m.Switch(place):
                for at in range(self.places):
                    with m.Case(at):
                        m.d.comb += moved.eq(held << at * k)
            with m.If(valid):
                m.d.sync += acc.eq(Mux(clear, 0, acc) + moved)
            accumulators.append(acc)
        with m.Switch(self.group):
            for group, acc in enumerate(accumulators):
                with m.Case(group):
                    m.d.comb += self.acc.eq(acc)
        return m


class Pe(Block):
    """One PE: `lanes` multipliers, adder tree, int32 accumulators of its weight groups.

    ``digits`` are signed, k + 1 bits each (``native``: 2k + 1), zero where a lane has none;
    ``weights`` are those of `lanes` columns that arrive in a dense pass; ``switches``, ``write``,
    ``read`` and ``sparse`` as of `Gather`, ``ends`` as of `Tree`, the rest as of `Accumulate`.
    """

    NAME = "sparqle_pe"

    def __init__(self, shape: ArrayShape, kind: Kind = "split", flat: bool = True) -> None:
        self.shape, self.kind = shape, kind
        k = shape.digit_bits
        self.digit_width = (2 * k if kind == "native" else k) + 1
        # Slices of weights, and a second digit.
        self.places = shape.weight_slices + (kind in ("split", "dense"))
        ports: dict[str, Any] = {
            "digits": In(shape.lanes * self.digit_width),
            "weights": In(shape.lanes * k),
            "weights_signed": In(1),
            "valid": In(1),
            "clear": In(1),
            "place": In(range(self.places)),
            "ends": In(shape.groups * shape.lane_count_bits),
            "group": In(shape.group_bits),
            "acc": Out(signed(ACCUMULATOR_BITS)),
        }
        if kind == "split":
            ports |= {
                "switches": In(shape.switches),
                "write": In(shape.columns),
                "read": In(shape.steps),
                "sparse": In(1),
            }
        super().__init__(ports, flat)

    def children(self) -> tuple[Block, ...]:
        """Its parts."""
        tree = self._tree(False)
        parts = (self._multiply(False), tree, self._accumulate(tree, False))
        return (*((Gather(self.shape, False),) if self.kind == "split" else ()), *parts)

    def _multiply(self, flat: bool) -> Multiply:
        return Multiply(self.digit_width, self.shape.digit_bits, flat)

    def _tree(self, flat: bool) -> Tree:
        width = self.digit_width + self.shape.digit_bits + 1
        return Tree(self.shape.lanes, width, self.shape.groups, flat)

    def _accumulate(self, tree: Tree, flat: bool) -> Accumulate:
        return Accumulate(self.shape, tree.sum_width, self.places, flat)

    def elaborate(self, platform: Any) -> Module:
        """Gather, multiply, add up, accumulate."""
        m, shape, k = Module(), self.shape, self.shape.digit_bits
        tree = self._tree(self.flat)
        self.include(m, "tree", tree)
        weights: Value = self.weights
        if self.kind == "split":
            gather = Gather(shape, self.flat)
            self.include(m, "gather", gather)
            m.d.comb += [
                gather.weights.eq(weights),
                gather.switches.eq(self.switches),
                gather.write.eq(self.write),
                gather.read.eq(self.read),
                gather.sparse.eq(self.sparse),
            ]
            weights = gather.chosen
        for lane in range(shape.lanes):
            multiply = self._multiply(self.flat)
            self.include(m, f"multiply_{lane}", multiply)
            m.d.comb += [
                multiply.digit.eq(self.digits.word_select(lane, self.digit_width)),
                multiply.weight.eq(weights.word_select(lane, k)),
                multiply.weight_signed.eq(self.weights_signed),
                tree.products.word_select(lane, tree.width).eq(multiply.product),
            ]
        accumulate = self._accumulate(tree, self.flat)
        self.include(m, "accumulate", accumulate)
        m.d.comb += [
            tree.ends.eq(self.ends),
            accumulate.sums.eq(tree.sums),
            accumulate.valid.eq(self.valid),
            accumulate.clear.eq(self.clear),
            accumulate.place.eq(self.place),
            accumulate.group.eq(self.group),
            self.acc.eq(accumulate.acc),
        ]
        return m


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
        m.d.sync += [
            clear.eq(self.clear),
            weights_signed.eq(self.weights_signed),
            flip.eq(self.lsb_signed),
        ]
        if self.kind == "split":
            locate = Locate(shape, self.flat)
            self.include(m, "locate", locate)
            switches, write = Signal(shape.switches), Signal(shape.columns)
            read = Signal(shape.steps)
            m.d.comb += [
                locate.load.eq(self.load),
                locate.bits.eq(self.bits),
                locate.dense.eq(self.dense),
                locate.sparse.eq(self.sparse),
                locate.lane_ends.eq(self.lane_ends),
                self.more.eq(locate.more),
                self.after.eq(locate.after),
            ]
            m.d.sync += [
                valid.eq(self.dense | (self.sparse & locate.more)),
                place.eq(self.place + self.sparse),
                sparse.eq(self.sparse),
                used.eq(Mux(self.sparse, locate.found, self.lanes_used)),
                ends.eq(Mux(self.sparse, locate.ends, self.lane_ends)),
                switches.eq(locate.switches),
                write.eq(locate.write & self.dense.replicate(shape.columns)),
                read.eq(locate.read),
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
                    pe.switches.eq(switches),
                    pe.write.eq(write),
                    pe.read.eq(read),
                    pe.sparse.eq(sparse),
                ]
        return m
