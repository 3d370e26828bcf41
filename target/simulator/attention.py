"""Simulating an attention program: its tensors, its values, its time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.numerics.kv_cache import CacheName, dense_bytes, store_rows
from sparqle_tvm.numerics.slicing import encode
from sparqle_tvm.target.attention_op import AttentionOp
from sparqle_tvm.target.isa.access import Tensor
from sparqle_tvm.target.isa.attention_header import AttentionHeader, plane_bytes
from sparqle_tvm.target.isa.operands import BLOCKS
from sparqle_tvm.target.program import Program
from sparqle_tvm.target.program.bound import BoundProgram
from sparqle_tvm.target.simulator.attention_values import CACHED, run_attention
from sparqle_tvm.target.simulator.attention_work import AttentionCache, Work
from sparqle_tvm.target.simulator.counts import count, engine_times
from sparqle_tvm.target.simulator.machine import SimResult
from sparqle_tvm.target.simulator.ranges import bind
from sparqle_tvm.target.simulator.timing import find_times
from sparqle_tvm.target.verify.attention import verify_attention

Tensors = Mapping[Tensor, NDArray[Any]]


def attention_tensors(
    header: AttentionHeader,
    q: NDArray[np.int8],
    factors: NDArray[np.float32],
    keys: tuple[NDArray[np.int8], NDArray[np.float32]],
    values: tuple[NDArray[np.int8], NDArray[np.float32]],
) -> dict[Tensor, NDArray[Any]]:
    """Lay quantized operands out as they lie in DRAM.

    Parameters
    ----------
    header : AttentionHeader
        The program.
    q : int8 (M, heads, D)
        Queries.
    factors : float32 (M, heads)
        Their factors, see `numerics.attention.row_factors`.
    keys, values : int8 (T, kv_heads, D) and float32 (T, kv_heads)
        Integers and scales.
    """
    op = header.op
    count, tokens = len(keys[0]), len(q)
    by_head = (tokens, op.kv_heads, op.group)
    rows = q.reshape(*by_head, op.head_dim).transpose(1, 0, 2, 3).reshape(-1, op.head_dim)
    scales = factors.reshape(by_head).transpose(1, 0, 2).reshape(-1)
    stream, pointers = _query_blocks(header, np.ascontiguousarray(rows), scales, tokens, count)
    both = np.stack([keys[1], values[1]], axis=-1).transpose(1, 0, 2)
    found: dict[Tensor, NDArray[Any]] = {
        Tensor.QUERIES: stream,
        Tensor.QUERY_PTR: pointers,
        Tensor.KEY_SCALES: np.ascontiguousarray(both, np.float32),
    }
    for what, tensors in CACHED.items():
        found |= _stored(op, what, keys[0] if what == "key" else values[0], *tensors)
    return found


def _stored(
    op: AttentionOp, what: CacheName, values: NDArray[np.int8], tensor: Tensor, pointers: Tensor
) -> dict[Tensor, NDArray[Any]]:
    """Keys, or values, int8 (T, H, D), as the cache holds them."""
    by_head = np.ascontiguousarray(values.transpose(1, 0, 2))
    if not op.is_stored(what):
        return {tensor: by_head}
    bits = op.key_bits if what == "key" else op.value_bits
    limit = 2 ** (bits - 1)
    if bits < 8 and values.size and not -limit <= values.min() <= values.max() < limit:
        raise InvalidArgumentError(f"{op.label!r}: a {what} does not fit {bits} bits")
    planes = op.in_planes(what)
    heads = [store_rows(h, bits, p) for h, p in zip(by_head, planes, strict=True)]
    ends = np.cumsum([0, *(head.begins[-1] for head in heads[:-1])])
    begins = np.stack([head.begins + end for head, end in zip(heads, ends, strict=True)])
    stream = np.concatenate([head.stream for head in heads])
    return {tensor: stream, pointers: begins.astype(np.int32)}


def _query_blocks(
    header: AttentionHeader,
    rows: NDArray[np.int8],
    factors: NDArray[np.float32],
    tokens: int,
    count: int,
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Query rows of all key heads, block by block: their bytes, and where blocks begin."""
    limits = header.limits(tokens, count - tokens)
    place = header.place(limits, np.arange(limits[BLOCKS]), 0)
    planes: list[NDArray[np.uint8]]
    msb: NDArray[np.uint8] | None = None
    if header.sparse:
        sliced = encode(rows, window=header.op.window, name="queries")
        planes, msb, row_ptr = [sliced.lsb, sliced.pbm], sliced.msb, sliced.row_ptr
    else:
        planes = [rows.view(np.uint8)]
    pieces, pointers = [], [0]
    for first, number in zip(place["row"].tolist(), place["rows"].tolist(), strict=True):
        last = first + number
        block = [factors[first:last].view(np.uint8), *(p[first:last].reshape(-1) for p in planes)]
        if msb is not None:
            block.append(msb[row_ptr[first] : row_ptr[last]])
        pieces += block
        pointers.append(pointers[-1] + sum(piece.size for piece in block))
    return np.concatenate(pieces), np.array(pointers, dtype=np.int32)


@dataclass(frozen=True)
class AttentionResult(SimResult):
    """What a run of an attention program gave.

    Attributes
    ----------
    work : Work
        Digits and live keys that it met.
    """

    work: Work | None = None

    @property
    def cache(self) -> AttentionCache | None:
        """Keys that it needed, and what they take; None if it was run without work."""
        bound = self.bound
        return None if self.work is None else self.work.reads(bound.header, bound.limits)


def simulate_attention(
    program: Program[AttentionHeader], tensors: Tensors, rows: int
) -> AttentionResult:
    """Run an attention program: values bit for bit, cycles and counts.

    Parameters
    ----------
    program : Program
        It is verified for these sizes: how long steps take depends on values, so these must not
        depend on time.
    tensors : mapping of Tensor to ndarray
        See `attention_tensors`. OUT may be given to be written in place.
    rows : int
        M. The tokens before are those that KEYS have more.

    Raises
    ------
    ProgramError
        If the program cannot be bound to these sizes, or does not pass verification.
    InvalidArgumentError
        If a tensor is missing or has the wrong format.
    """
    header = program.header
    if Tensor.KEY_SCALES not in tensors:
        raise InvalidArgumentError(f"{header.label!r} needs the tensor KEY_SCALES")
    shape = np.shape(tensors[Tensor.KEY_SCALES])
    count = shape[1] if len(shape) == 3 else 0
    bound = bind(program, rows, count - rows)
    checked = _checked(header, bound, rows, count, tensors)
    order = bound.once(_verified_order)
    work = run_attention(bound, order, checked)
    return _result(bound, work, checked[Tensor.OUT])


def simulate_attention_timing(
    program: Program[AttentionHeader], rows: int, past: int, work: Work
) -> AttentionResult:
    """Run an attention program without values, as `simulate_attention`."""
    return _result(bind(program, rows, past), work, None)


def _result(
    bound: BoundProgram[AttentionHeader], work: Work, output: NDArray[Any] | None
) -> AttentionResult:
    when = find_times(bound, None, work=work)
    counts, engines = count(bound, when, None, work), engine_times(bound, when)
    return AttentionResult(output, when.total_cycles, engines, counts, bound, when, work=work)


def _verified_order(bound: BoundProgram[AttentionHeader]) -> NDArray[np.int64]:
    """An order of the steps that tokens allow; in every other the values are the same."""
    verify_attention(bound.program, bound.rows, bound.past)
    work = Work.empty(bound.header, bound.limits)
    return find_times(bound, None, work=work).order


def _checked(
    header: AttentionHeader,
    bound: BoundProgram[AttentionHeader],
    rows: int,
    count: int,
    tensors: Tensors,
) -> dict[Tensor, NDArray[Any]]:
    """All tensors, held to their formats; OUT made if it is not given."""
    op = header.op
    keys = (op.kv_heads, count, op.head_dim)
    formats: dict[Tensor, tuple[tuple[int, ...] | None, type]] = {
        Tensor.QUERIES: (None, np.uint8),
        Tensor.QUERY_PTR: ((bound.limits[BLOCKS] + 1,), np.int32),
        Tensor.KEY_SCALES: ((op.kv_heads, count, 2), np.float32),
        Tensor.OUT: ((rows, op.heads, op.head_dim), np.float32),
    }
    for what, (tensor, pointers) in CACHED.items():
        formats[tensor] = (keys, np.int8)
        if op.is_stored(what):
            formats |= {tensor: (None, np.uint8), pointers: ((op.kv_heads, count + 1), np.int32)}
    out = np.full((rows, op.heads, op.head_dim), np.nan, np.float32)
    found = {Tensor.OUT: out, **tensors}
    for tensor, (shape, dtype) in formats.items():
        if tensor not in found:
            raise InvalidArgumentError(f"{header.label!r} needs the tensor {tensor.name}")
        array = found[tensor]
        if array.dtype != dtype or (shape is not None and array.shape != shape):
            raise InvalidArgumentError(
                f"{header.label!r}: {tensor.name} must be {np.dtype(dtype)} {shape or '(bytes,)'}, "
                f"got {array.dtype} {array.shape}"
            )
    _check_pointers(header, bound, found[Tensor.QUERIES], found[Tensor.QUERY_PTR])
    for what, (tensor, pointers) in CACHED.items():
        if op.is_stored(what):
            _check_rows(op, what, found[tensor], found[pointers])
    return found


def _check_rows(
    op: AttentionOp, what: CacheName, stream: NDArray[np.uint8], pointers: NDArray[np.int32]
) -> None:
    """Rows lie behind each other, each as long as it may be."""
    planes, dense = np.array(op.in_planes(what))[:, None], dense_bytes(op.head_dim)
    sizes = np.diff(pointers.astype(np.int64), axis=1)
    plain = op.row_bytes(what)
    few = sizes < np.where(planes, dense, plain)
    many = sizes > np.where(planes, dense + plane_bytes(op.head_dim)[0], plain)
    if pointers.min() < 0 or pointers.max() > stream.size or few.any() or many.any():
        raise InvalidArgumentError(
            f"{op.label!r}: pointers do not fit the {what}s; lay them out by attention_tensors"
        )


def _check_pointers(
    header: AttentionHeader,
    bound: BoundProgram[AttentionHeader],
    stream: NDArray[np.uint8],
    pointers: NDArray[np.int32],
) -> None:
    """Blocks of queries have no fewer bytes than planes have, and no more than fit."""
    place = header.place(bound.limits, np.arange(bound.limits[BLOCKS]), 0)
    sizes = np.diff(pointers.astype(np.int64))
    too_many = sizes > place["rows"] * header.query_row_bytes
    if pointers[0] != 0 or pointers[-1] > stream.size or (sizes < 0).any() or too_many.any():
        raise InvalidArgumentError(
            f"{header.label!r}: QUERY_PTR does not fit the blocks of QUERIES; lay them out by "
            "attention_tensors"
        )
