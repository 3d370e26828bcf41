"""From an attention op to a program: what lies on chip, and the pipeline over blocks.

For every block of query rows the array makes scores (stage 1), the vector engine probabilities of
them, and the array multiplies these with values (stage 2). Engines work in program order, so stage
1 of a block stands before stage 2 of the block before it: while the vector engine has a block, the
array has the two beside it, and the keys of a block are loaded before the values of the one before,
which need not be loaded until it is known which are live.

Scores and probabilities never leave the chip. An op whose smallest block does not fit is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sparqle_tvm.errors import TargetError
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.attention_op import AttentionOp
from sparqle_tvm.target.cost.attention_plan import AttentionPlan
from sparqle_tvm.target.isa.attention import (
    DrnOut,
    LdKey,
    LdQry,
    LdScl,
    LdVal,
    MmaPvDns,
    MmaPvLsb,
    MmaPvMsb,
    MmaQkDns,
    MmaQkLsb,
    MmaQkMsb,
    StAtt,
)
from sparqle_tvm.target.isa.attention_header import SCALE_BYTES, AttentionHeader
from sparqle_tvm.target.isa.base import Presence
from sparqle_tvm.target.isa.header import Allocation, Queue
from sparqle_tvm.target.isa.operands import BLOCKS, KEYS, Address, Affine
from sparqle_tvm.target.isa.vector import VecSmx
from sparqle_tvm.target.program import Program, ProgramBuilder
from sparqle_tvm.target.verify.attention import verify_attention


def attention_program(
    op: AttentionOp, accelerator: Accelerator, plan: AttentionPlan, *, verify: bool = True
) -> Program[AttentionHeader]:
    """Generate the program of an attention op.

    Parameters
    ----------
    op : AttentionOp
        The op; without a label its sizes are its name in listings.
    accelerator : Accelerator
        The machine.
    plan : AttentionPlan
        What to do, `cost.attention_choice.choose_plan` chooses.
    verify : bool
        Whether to check the program; leave that out only if it is checked elsewhere.

    Raises
    ------
    TargetError
        If it does not fit the buffers.
    ProgramError
        If the program does not pass verification.
    """
    header = plan.header(op, accelerator)
    if not plan.fits(op, accelerator):
        needs = plan.needs(op, accelerator)
        taken = ", ".join(f"{nbytes} bytes of {buffer.name}" for buffer, nbytes in needs.items())
        raise TargetError(
            f"attention {op.label!r}: blocks of {plan.block_rows} rows and {op.keys} keys take "
            f"{taken}, more than accelerator {accelerator.name!r} has; scores of a block have to "
            "stay on chip"
        )
    program = _Generator(header, plan).run()
    if verify:
        verify_attention(program)
    return program


class _Generator:
    """Emits the program of a plan."""

    def __init__(self, header: AttentionHeader, plan: AttentionPlan) -> None:
        """Allocate everything."""
        self.header, self.plan = header, plan
        self.builder = b = ProgramBuilder(header)
        self.places: dict[str, Allocation] = {
            name: b.allocate(name, buffer, nbytes, slots)
            for name, buffer, nbytes, slots in plan.storages(header)
        }
        self.gathers = header.sparse and not plan.stays
        slots = {name: place.slots for name, place in self.places.items()}
        for queue, name in (
            (Queue.ACT_FREE, "queries"),
            (Queue.WGT_FREE, "keys"),
            (Queue.VAL_FREE, "values"),
            (Queue.SCL_FREE, "factors"),
            (Queue.SCR_FREE, "scores"),
            (Queue.PRB_FREE, "probs"),
            (Queue.OSC_FREE, "scales"),
            (Queue.ACC_FREE, "outputs"),
        ):
            b.tokens(queue, slots[name])
        if self.gathers:
            b.tokens(Queue.LIV_FREE, slots["probs"])

    def run(self) -> Program[AttentionHeader]:
        """Stage 1 of the first block; then for every block stage 1 of the next, and stage 2."""
        b = self.builder
        self._scores(Affine(), (), 0)
        with b.loop(BLOCKS) as i:
            following, here = Affine.loop(i) + 1, Affine.loop(i)
            with b.when(Presence.BLOCK, following):
                self._scores(following, (i,), 1)
            self._mix(here, i)
        return b.build()

    def _at(
        self, name: str, rotate: tuple[int, ...], ahead: int = 0, offset: int | Affine = 0
    ) -> Address:
        return self.places[name].at(rotate, offset, ahead)

    @contextmanager
    def _held(self, what: Presence, block: Affine) -> Iterator[None]:
        """Around what is done once for a key head if keys stay, and for every block if not."""
        if not self.plan.stays:
            yield
            return
        with self.builder.when(what, block):
            yield

    def _chunk_place(self, name: str, block: tuple[int, ...], ahead: int, chunk: int) -> Address:
        """Where a chunk of keys or values lies: among all of its head, or in the next slot."""
        if self.plan.stays:
            width = self.header.key_chunk * self.header.op.head_dim
            return self._at(name, (), offset=Affine.loop(chunk, width))
        return self._at(name, (*block, chunk), ahead)

    @contextmanager
    def _chunks(self) -> Iterator[tuple[int, Affine]]:
        with self.builder.loop(KEYS, self.header.key_chunk) as c:
            yield c, Affine.loop(c)

    def _scores(self, block: Affine, rotate: tuple[int, ...], ahead: int) -> None:
        """Stage 1: load queries and keys, make scores and probabilities."""
        b, header = self.builder, self.header
        queries = self._at("queries", rotate, ahead)
        b.wait(Queue.ACT_FREE)
        b.emit(LdQry(queries, block))
        b.signal(Queue.ACT_READY)
        if self.plan.stays:
            with b.when(Presence.FIRST, block):
                self._load_head(block)
        b.wait(Queue.ACT_READY, Queue.SCR_FREE)
        if self.plan.stays:
            with b.when(Presence.FIRST, block):
                b.wait(Queue.WGT_READY)
        else:
            b.wait(Queue.SCL_FREE)
        with self._chunks() as (c, chunk):
            factors = Affine.loop(c, header.key_chunk * SCALE_BYTES)
            keys = self._chunk_place("keys", rotate, ahead, c)
            if not self.plan.stays:
                b.wait(Queue.WGT_FREE)
                with b.when(Presence.CHUNK, block, chunk):
                    b.emit(
                        LdKey(keys, block, chunk),
                        LdScl(self._at("factors", rotate, ahead, factors), block, chunk),
                    )
                b.signal(Queue.WGT_READY)
                b.wait(Queue.WGT_READY)
            scores = self._at("scores", rotate, ahead, Affine.loop(c, header.scores_bytes))
            with b.when(Presence.CHUNK, block, chunk):
                b.emit(MmaQkLsb(scores, queries, keys, block, chunk))
                second = MmaQkMsb if header.sparse else MmaQkDns
                b.emit(second(scores, queries, keys, block, chunk))
            if not self.plan.stays:
                b.signal(Queue.WGT_FREE)
        with self._held(Presence.LAST, block):
            if self.plan.stays:
                b.signal(Queue.WGT_FREE)
            else:
                b.signal(Queue.SCL_READY)
        b.signal(Queue.SCR_READY)
        self._probabilities(block, rotate, ahead, queries)

    def _load_head(self, block: Affine) -> None:
        """Load all keys of a head, and all scales."""
        b, header = self.builder, self.header
        b.wait(Queue.WGT_FREE, Queue.SCL_FREE)
        with self._chunks() as (c, chunk):
            factors = Affine.loop(c, header.key_chunk * SCALE_BYTES)
            b.emit(
                LdKey(self._chunk_place("keys", (), 0, c), block, chunk),
                LdScl(self._at("factors", (), offset=factors), block, chunk),
            )
        b.signal(Queue.WGT_READY, Queue.SCL_READY)

    def _probabilities(
        self, block: Affine, rotate: tuple[int, ...], ahead: int, queries: Address
    ) -> None:
        b = self.builder
        with self._held(Presence.FIRST, block):
            b.wait(Queue.SCL_READY)
        live = (Queue.LIV_FREE,) if self.gathers else ()
        b.wait(Queue.SCR_READY, Queue.PRB_FREE, Queue.OSC_FREE, *live)
        b.emit(
            VecSmx(
                self._at("probs", rotate, ahead),
                self._at("scales", rotate, ahead),
                self._at("scores", rotate, ahead),
                queries,
                self._at("factors", rotate if not self.plan.stays else (), ahead),
                block,
            )
        )
        with self._held(Presence.LAST, block):
            b.signal(Queue.SCL_FREE)
        live = (Queue.LIV_READY,) if self.gathers else ()
        b.signal(Queue.SCR_FREE, Queue.PRB_READY, Queue.OSC_READY, *live)

    def _mix(self, block: Affine, i: int) -> None:
        """Stage 2: load values, multiply, store."""
        b, header, stays = self.builder, self.header, self.plan.stays
        if stays:
            with b.when(Presence.FIRST, block):
                b.wait(Queue.VAL_FREE)
                with self._chunks() as (c, chunk):
                    b.emit(LdVal(self._chunk_place("values", (i,), 0, c), block, chunk))
                b.signal(Queue.VAL_READY)
                b.wait(Queue.VAL_READY)
        # The vector engine has read the factors of the queries by now.
        b.wait(Queue.PRB_READY)
        b.signal(Queue.ACT_FREE)
        b.wait(Queue.ACC_FREE)
        if self.gathers:
            b.wait(Queue.LIV_READY)
        acc = self._at("outputs", (i,))
        with self._chunks() as (c, chunk):
            values = self._chunk_place("values", (i,), 0, c)
            probs = self._at("probs", (i,), offset=Affine.loop(c, header.probability_bytes))
            if not stays:
                b.wait(Queue.VAL_FREE)
                with b.when(Presence.CHUNK, block, chunk):
                    b.emit(LdVal(values, block, chunk, probs if self.gathers else None))
                b.signal(Queue.VAL_READY)
                b.wait(Queue.VAL_READY)
            with b.when(Presence.CHUNK, block, chunk):
                b.emit(MmaPvLsb(acc, probs, values, block, chunk))
                second = MmaPvMsb if header.sparse else MmaPvDns
                b.emit(second(acc, probs, values, block, chunk))
            if not stays:
                b.signal(Queue.VAL_FREE)
        if self.gathers:
            b.signal(Queue.LIV_FREE)
        if stays:
            with b.when(Presence.LAST, block):
                b.signal(Queue.VAL_FREE)
        b.signal(Queue.PRB_FREE, Queue.ACC_READY)
        b.wait(Queue.ACC_READY, Queue.OSC_READY)
        scales = self._at("scales", (i,))
        b.emit(DrnOut(acc, scales, block))
        b.signal(Queue.OSC_FREE)
        b.emit(StAtt(acc, block))
        b.signal(Queue.ACC_FREE)
