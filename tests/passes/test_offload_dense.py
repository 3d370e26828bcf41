"""Split dense ops become launches of accelerator programs that equal ops share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pass_helpers import Runnable, apply, assert_changed, assert_equal_bits, assert_unchanged
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from sparqle_tvm import dialect, numerics
from sparqle_tvm.passes import OffloadDense, PassReport
from sparqle_tvm.target.accelerator import PRESETS
from sparqle_tvm.target.compile.codegen import generate
from sparqle_tvm.target.compile.schedule import default_schedule
from sparqle_tvm.target.op import DenseOp
from sparqle_tvm.target.program.bundle import PROGRAMS_FUNCTION, pack_bundle, unpack_bundle
from sparqle_tvm.target.simulator import pack_weights

TINY = replace(
    PRESETS["sparqle/edge"],
    name="tiny",
    rows=4,
    cols=4,
    lanes=8,
    activation_buffer_bytes=4096,
    scratchpad=False,
    weight_buffer_bytes=4096,
    accumulator_buffer_bytes=4096,
)
# An array of 4 rows: buckets up to 4 are narrow, then every second power of two to 4096.
BUCKETS = [1, 2, 4, 16, 64, 256, 1024, 4096]


def programs_of(*specs: DenseOp, label: str = "up") -> Any:
    """What the pass makes of these ops, as the array of its constant."""
    named = [replace(spec, label=label) for spec in specs]
    made = [generate(default_schedule(spec, TINY), spec, TINY) for spec in named]
    return np.frombuffer(pack_bundle(made), np.uint8)


W = np.arange(-8, 8, dtype=np.int8).repeat(3).reshape(3, 16)
BIAS = np.array([4, 0, -9], np.int32)
INTEGER = DenseOp(m=6, n=3, k=16, window="unsigned", has_offset=True, output="int32")
GROUPED = DenseOp(m=1, n=3, k=16, weight_bits=8, group_size=8, has_min=True, has_offset=True)
PACKED = pack_weights(W, 4)
INTEGER_PROGRAMS = programs_of(INTEGER)
GROUPED_PROGRAMS = programs_of(*(replace(GROUPED, m=m) for m in BUCKETS))


@I.ir_module
class Integer:
    """Static rows (2 * 3), a constant weight of 4 bits, an int32 result."""

    @R.function
    def main(q: R.Tensor((2, 3, 16), "int8")):
        with R.dataflow():
            enc = R.sparqle.encode(q, k=4, window="unsigned", label="up")
            up = R.sparqle.split_dense(
                enc, R.const(W), R.const(BIAS),
                k=4, window="unsigned", in_features=16, weight_bits=4, label="up",
            )  # fmt: skip
            R.output(up)
        return up


@I.ir_module
class IntegerExpected:
    @R.function
    def main(q: R.Tensor((2, 3, 16), "int8")):
        with R.dataflow():
            enc = R.sparqle.encode(q, k=4, window="unsigned", label="up")
            lsb = enc[0]
            pbm = enc[1]
            msb = enc[2]
            row_ptr = enc[3]
            up = R.call_dps_packed(
                "sparqle.launch",
                (
                    R.str("up"), R.const(INTEGER_PROGRAMS), lsb, pbm, msb, row_ptr,
                    R.const(PACKED), R.const(BIAS),
                ),
                out_ty=R.Tensor((2, 3, 3), "int32"),
            )  # fmt: skip
            R.output(up)
        return up

    @R.function
    def sparqle_programs():
        return (R.const(INTEGER_PROGRAMS),)


@I.ir_module
class Grouped:
    """Symbolic rows, every operand a parameter: what the window adds is known at run time only."""

    @R.function
    def main(
        x: R.Tensor((1, "n", 16), "float32"),
        w: R.Tensor((3, 16), "int8"),
        d: R.Tensor((3, 2), "float16"),
        offset: R.Tensor((3,), "float64"),
        m: R.Tensor((3, 2), "float16"),
    ):
        with R.dataflow():
            enc = R.sparqle.quantize_encode(x, k=4, window="signed", group_size=8, label="up")
            scale = enc[4]
            sums = enc[5]
            up = R.sparqle.split_dense_scaled(
                enc, scale, w, d, offset, m, sums, k=4, window="signed", in_features=16,
                group_size=8, weight_bits=8, label="up",
            )  # fmt: skip
            R.output(up)
        return up


@I.ir_module
class GroupedExpected:
    @R.function
    def main(
        x: R.Tensor((1, "n", 16), "float32"),
        w: R.Tensor((3, 16), "int8"),
        d: R.Tensor((3, 2), "float16"),
        offset: R.Tensor((3,), "float64"),
        m: R.Tensor((3, 2), "float16"),
    ):
        n = T.int64()
        with R.dataflow():
            enc = R.sparqle.quantize_encode(x, k=4, window="signed", group_size=8, label="up")
            scale = enc[4]
            sums = enc[5]
            groups = R.reshape(w, R.shape([3, 2, 8]))
            group_weights = R.astype(groups, dtype="int32")
            weight_sums = R.sum(group_weights, axis=[2])
            weight_sums64 = R.astype(weight_sums, dtype="float64")
            d64 = R.astype(d, dtype="float64")
            scaled_sums = R.multiply(weight_sums64, d64)
            channel_sums = R.sum(scaled_sums, axis=[1])
            window_offset = R.multiply(channel_sums, R.const(-8, "float64"))
            rest = R.subtract(offset, window_offset)
            lsb = enc[0]
            pbm = enc[1]
            msb = enc[2]
            row_ptr = enc[3]
            up = R.call_dps_packed(
                "sparqle.launch",
                (
                    R.str("up"), R.const(GROUPED_PROGRAMS), lsb, pbm, msb, row_ptr, w, rest,
                    scale, d, m, sums,
                ),
                out_ty=R.Tensor((1, n, 3), "float32"),
            )  # fmt: skip
            R.output(up)
        return up

    @R.function
    def sparqle_programs():
        return (R.const(GROUPED_PROGRAMS),)


@pytest.mark.parametrize(
    ("before", "expected"),
    [(Integer, IntegerExpected), (Grouped, GroupedExpected)],
    ids=["static", "symbolic"],
)
def test_expected_module(before: tvm.IRModule, expected: tvm.IRModule) -> None:
    report = assert_changed(OffloadDense, before, expected, accelerator=TINY, planes="always")
    assert report.rewritten["OffloadDense"] == 1
    assert report.skipped == []


def dense_module(
    *weights: np.ndarray | tuple[int, int],
    rows: int | None = None,
    k: int = 4,
    window: str = "signed",
    weight_bits: int = 8,
    functions: tuple[str, ...] = ("main",),
) -> tvm.IRModule:
    """Functions with one int32 dense per weight: a constant (N, K), or the shape of a parameter."""
    builder = relax.BlockBuilder()
    attrs: dict[str, Any] = {"k": k, "window": window}
    constants = [w if isinstance(w, tuple) else relax.const(w) for w in weights]
    columns = (weights[0] if isinstance(weights[0], tuple) else weights[0].shape)[1]
    for name in functions:
        lead = tvm.tirx.Var("n", "int64") if rows is None else rows
        q = relax.Var("q", relax.TensorType((lead, columns), "int16" if k == 8 else "int8"))
        operands = [
            relax.Var(f"w{i}", relax.TensorType(w, "int8")) if isinstance(w, tuple) else w
            for i, w in enumerate(constants)
        ]
        parameters = [q, *(w for w in operands if isinstance(w, relax.Var))]
        with builder.function(name, parameters):
            with builder.dataflow():
                enc = builder.emit(dialect.encode(q, label="x", **attrs))
                found = []
                for i, w in enumerate(operands):
                    bias = relax.const(np.zeros(int(w.ty.shape.values[0]), np.int32))
                    dense = dialect.split_dense(
                        enc,
                        w,
                        bias,
                        in_features=columns,
                        weight_bits=weight_bits,
                        label=f"{name}{i}",
                        **attrs,
                    )
                    found.append(builder.emit_output(dense))
            builder.emit_func_output(relax.Tuple(found))
    return builder.finalize()


def launches(mod: tvm.IRModule) -> list[relax.Call]:
    """The calls of the accelerator, by function and order."""
    return [
        binding.value
        for _, function in sorted(mod.functions_items(), key=lambda item: item[0].name_hint)
        for block in function.body.blocks
        for binding in block.bindings
        if isinstance(binding.value, relax.Call)
        and str(getattr(binding.value.op, "name", "")) == "relax.call_dps_packed"
    ]


def operands_of(launch: relax.Call) -> list[Any]:
    """Label, programs, and the operands of a call."""
    assert str(launch.args[0].global_symbol) == "sparqle.launch"
    return list(launch.args[1].fields)


def test_equal_ops_share_their_programs() -> None:
    other = np.zeros((5, 16), np.int8)
    mod = dense_module(W, W + 0, other, rows=2, weight_bits=4, functions=("decode", "prefill"))
    report = PassReport()
    offload = OffloadDense(TINY, report=report, planes="always")
    calls = [operands_of(launch) for launch in launches(offload(mod))]
    assert report.rewritten["OffloadDense"] == len(calls) == 6
    assert [str(call[0].value) for call in calls] == [
        f"{name}{i}" for name in ("decode", "prefill") for i in range(3)
    ]
    first, second, third = (call[1] for call in calls[:3])
    assert first.same_as(second)
    assert not first.same_as(third)
    assert all(a[1].same_as(b[1]) for a, b in zip(calls[:3], calls[3:], strict=True))
    # Packed weights are shared by functions, too; equal values in other constants are not.
    assert all(a[6].same_as(b[6]) for a, b in zip(calls[:3], calls[3:], strict=True))
    assert [(spec.m, spec.n, spec.k) for spec, _ in offload.library.programs] == [
        (2, 3, 16),
        (2, 5, 16),
    ]
    # A program bears the label of the first op that needed it.
    assert {program.header.label for program in offload.library.programs.values()} == {
        "decode0",
        "decode2",
    }


def test_all_programs_can_be_reached() -> None:
    # Functions that come later are offloaded by a second run; it keeps what the first one left.
    first = dense_module(W, np.zeros((5, 16), np.int8), W + 0, rows=2, weight_bits=4)
    offload = OffloadDense(TINY, planes="always")
    mod = offload(first)
    mod.update(dense_module(W, rows=3, weight_bits=4, functions=("later",)))
    again = OffloadDense(TINY, planes="always")
    fields = again(mod)[PROGRAMS_FUNCTION].body.body.fields
    bundles = [field.value.numpy().tobytes() for field in fields]
    found = [program for bundle in bundles for program in unpack_bundle(bundle)]
    assert found == [*offload.library.programs.values(), *again.library.programs.values()]
    assert [(p.header.op.m, p.header.op.n) for p in found] == [(2, 3), (2, 5), (3, 3)]


def test_symbolic_rows_have_a_program_per_bucket() -> None:
    offload = OffloadDense(TINY, planes="always")
    (launch,) = launches(offload(dense_module((3, 16))))
    programs = unpack_bundle(operands_of(launch)[1].value.numpy().tobytes())
    assert [program.header.op.m for program in programs] == BUCKETS
    assert [spec.m for spec, _ in offload.library.programs] == BUCKETS
    assert programs == tuple(offload.library.programs.values())


@pytest.mark.parametrize(
    ("weight", "bits", "stored"),
    [
        (np.array([[-8, 7] * 8], np.int8), 4, (4, True)),
        (np.array([[0, 15] * 8], np.int8), 4, (4, False)),
        (np.array([[0, 7] * 8], np.int8), 4, (4, True)),
        (np.array([[0, 3] * 8], np.int8), 2, (2, False)),
        (np.array([[-128, 127] * 8], np.int8), 8, (8, True)),
        # Of a parameter, nobody knows whether 4 bits mean -8..7 or 0..15; its int8 hold both.
        ((1, 16), 4, (8, True)),
        ((1, 16), 8, (8, True)),
    ],
)
def test_how_weights_are_stored(weight: Any, bits: int, stored: tuple[int, bool]) -> None:
    offload = OffloadDense(TINY, planes="always")
    (launch,) = launches(offload(dense_module(weight, rows=1, weight_bits=bits)))
    ((spec, _),) = offload.library.programs
    assert (spec.weight_bits, spec.weight_signed) == stored
    operand = operands_of(launch)[6]
    if isinstance(weight, tuple):
        assert isinstance(operand, relax.Var)
    else:
        np.testing.assert_array_equal(operand.value.numpy(), pack_weights(weight, bits))


def scaled_module(offset: np.ndarray, window: str = "signed", rows: int = 2) -> tvm.IRModule:
    """One dense with groups of 8, constant weights W, a scale of 0.25 and this offset."""
    builder = relax.BlockBuilder()
    q = relax.Var("q", relax.TensorType((rows, 16), "int8"))
    with builder.function("main", [q]):
        with builder.dataflow():
            enc = builder.emit(dialect.encode(q, k=4, window=window, label="x"))
            dense = dialect.split_dense_scaled(
                enc,
                relax.const(1, "float32"),
                relax.const(W),
                relax.const(np.full((3, 2), 0.25, np.float16)),
                relax.const(offset, "float64"),
                k=4,
                window=window,
                in_features=16,
                group_size=8,
                weight_bits=4,
                label="up",
            )
            y = builder.emit_output(dense)
        builder.emit_func_output(y)
    return builder.finalize()


# What undoes the signed window of 4 bits: -8 times the scaled sums of the weights.
SCALED = np.full((3, 2), 0.25, np.float16)
OWN = numerics.grouped_bias_term(numerics.QuantizedWeights(W, SCALED, None, 4), 4, "signed")
REST = np.array([1.5, 0, -(2.0**-24)])


def test_readers_of_one_encoding_share_the_chunk() -> None:
    machine = replace(TINY, weight_buffer_bytes=1024, activation_buffer_bytes=2048)
    wide, narrow = np.full((32, 512), 100, np.int8), np.zeros((4, 512), np.int8)

    def chunks(*weights: np.ndarray) -> list[int]:
        offload = OffloadDense(machine, planes="always")
        mod = dense_module(*weights, rows=16, weight_bits=4)
        return [
            program.header.k_chunk
            for launch in launches(offload(mod))
            for program in unpack_bundle(operands_of(launch)[1].value.numpy().tobytes())
        ]

    alone = chunks(wide) + chunks(narrow)
    assert len(set(alone)) == 2
    assert len(chunks(wide, narrow)) == 2
    assert len(set(chunks(wide, narrow))) == 1


def test_a_reader_that_fits_no_buffer_is_left_alone() -> None:
    builder = relax.BlockBuilder()
    q = relax.Var("q", relax.TensorType((4, 4096), "int8"))
    with builder.function("main", [q]):
        with builder.dataflow():
            enc = builder.emit(dialect.encode(q))
            found = [
                builder.emit_output(
                    dialect.split_dense_scaled(
                        enc,
                        relax.const(1, "float32"),
                        relax.const(np.ones((4, 4096), np.int8)),
                        relax.const(np.ones((4, 4096 // size), np.float16)),
                        relax.const(np.zeros(4), "float64"),
                        k=4,
                        window="unsigned",
                        in_features=4096,
                        group_size=size,
                        weight_bits=4,
                        label=f"groups of {size}",
                    )
                )
                for size in (4096, 32)
            ]
        builder.emit_func_output(relax.Tuple(found))
    small_buffers = replace(TINY, activation_buffer_bytes=1024, weight_buffer_bytes=1024)
    after, report = apply(OffloadDense, builder.finalize(), accelerator=small_buffers)
    assert [entry.label for entry in report.skipped] == ["groups of 4096"]
    assert [str(operands_of(launch)[0].value) for launch in launches(after)] == ["groups of 32"]


def test_nothing_is_loaded_for_a_window() -> None:
    assert OWN.any()
    offload = OffloadDense(TINY, planes="always")
    (launch,) = launches(offload(scaled_module(OWN)))
    ((spec, _),) = offload.library.programs
    assert not spec.has_offset
    # Label, programs, four planes, weight, scales of activations and weights.
    assert len(operands_of(launch)) == 2 + 4 + 1 + 2


@pytest.mark.parametrize(("window", "own"), [("signed", OWN), ("unsigned", 0 * OWN)])
def test_what_is_left_of_an_offset_is_loaded(window: str, own: np.ndarray) -> None:
    mod = scaled_module(own + REST, window)
    offload = OffloadDense(TINY, planes="always")
    (launch,) = launches(offload(mod))
    ((spec, _),) = offload.library.programs
    assert spec.has_offset
    np.testing.assert_array_equal(operands_of(launch)[7].value.numpy(), REST)
    q = np.random.default_rng(0).integers(-128, 120, (2, 16)).astype(np.int8)
    exact = 0.25 * (q.astype(np.int64) @ W.astype(np.int64).T) + REST
    assert_equal_bits(Runnable(mod, offload)(q), exact.astype(np.float32))


@pytest.mark.parametrize("rest", [2.0**-25, 2.0**29, np.nan, np.inf])
def test_an_offset_that_would_round_stays_on_the_host(rest: float) -> None:
    (reason,) = assert_unchanged(OffloadDense, scaled_module(OWN + rest), accelerator=TINY)
    assert "no multiple of 2^-24 below 2^29" in reason


@I.ir_module
class NoDense:
    @R.function
    def main(q: R.Tensor((2, 16), "int8"), w: R.Tensor((16, 3), "int8")):
        with R.dataflow():
            enc = R.sparqle.encode(q, k=4, window="unsigned")
            pbm = enc[1]
            y = R.matmul(q, w, out_dtype="int32")
            R.output(pbm, y)
        return (pbm, y)


def test_unchanged_without_split_dense_ops() -> None:
    assert assert_unchanged(OffloadDense, NoDense, accelerator=TINY) == []


def test_digits_of_another_width_stay_on_the_host() -> None:
    (reason,) = assert_unchanged(OffloadDense, dense_module((3, 16), k=2), accelerator=TINY)
    assert "has digits of 2 bits, accelerator 'tiny' of 4" in reason


def test_groups_that_no_tile_holds_stay_on_the_host() -> None:
    # A K chunk holds whole groups: 4096 columns of 4 rows need more than 1024 bytes.
    small_buffers = replace(TINY, activation_buffer_bytes=1024, weight_buffer_bytes=1024)
    builder = relax.BlockBuilder()
    q = relax.Var("q", relax.TensorType((4, 4096), "int8"))
    w = relax.Var("w", relax.TensorType((4, 4096), "int8"))
    with builder.function("main", [q, w]):
        with builder.dataflow():
            enc = builder.emit(dialect.encode(q))
            dense = dialect.split_dense_scaled(
                enc,
                relax.const(1, "float32"),
                w,
                relax.const(np.ones((4, 1), np.float16)),
                relax.const(np.zeros(4), "float64"),
                k=4,
                window="unsigned",
                in_features=4096,
                group_size=4096,
                weight_bits=8,
                label="down",
            )
            y = builder.emit_output(dense)
        builder.emit_func_output(y)
    (reason,) = assert_unchanged(OffloadDense, builder.finalize(), accelerator=small_buffers)
    assert "buffer" in reason


def test_one_op_is_left_and_the_other_is_not() -> None:
    mod = dense_module(W, rows=2, k=2, window="unsigned", functions=("a",))
    mod.update(dense_module(W, rows=2, functions=("b",)))
    after, report = apply(OffloadDense, mod, accelerator=TINY)
    assert [entry.label for entry in report.skipped] == ["a0"]
    assert [str(operands_of(launch)[0].value) for launch in launches(after)] == ["b0"]


@settings(max_examples=2, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 9),
    st.sampled_from(["signed", "unsigned"]),
    st.sampled_from([-8, 0]),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_exact_numbers(
    columns: int, channels: int, window: str, low: int, parameter: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    w = rng.integers(low, low + 16, (channels, columns)).astype(np.int8)
    w[0, 0] = low + 15
    mod = dense_module(w.shape if parameter else w, window=window, weight_bits=4)
    run = Runnable(mod, OffloadDense(TINY, planes="always"))
    for rows in (0, 1, 21):
        q = rng.integers(-128, 128, (rows, columns)).astype(np.int8)
        # Without the bias that undoes the window: it is zero here.
        exact = q.astype(np.int64) @ w.astype(np.int64).T - numerics.bias_term(w, 4, window)
        assert_equal_bits(run(q, w) if parameter else run(q), [exact.astype(np.int32)])


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_what_is_left_dense_gives_the_same(data: st.DataObject) -> None:
    """Every digit is expected, so planes hardly pay: programs read integers stored whole."""
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    columns, outputs = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 9))
    window = data.draw(st.sampled_from(["signed", "unsigned"]))
    w = rng.integers(-8, 8, (outputs, columns), dtype=np.int8)
    mod = dense_module(w, rows=data.draw(st.integers(1, 9)), window=window)
    x = rng.integers(-128, 128, tuple(map(int, mod["main"].params[0].ty.shape)), dtype=np.int8)
    report = PassReport()
    offload = OffloadDense(TINY, densities={"x": 1.0}, report=report)
    found = Runnable(mod, offload)(x)
    # Schedules within a percent count as equal: now and then, planes cost no more than that.
    assume([spec.scheme for spec, _ in offload.library.programs] == ["dense"])
    (left,) = report.skipped
    assert left.label == "main0"
    assert "left dense" in left.reason
    assert "cycles split" in left.reason
    # `dense_module` adds nothing, so digits of the signed window lack their bias.
    expected = x.astype(np.int32) @ w.T.astype(np.int32)
    if window == "signed":
        expected += 8 * w.sum(axis=1, dtype=np.int32)
    assert_equal_bits(found, [expected])


def test_some_row_counts_are_left_dense() -> None:
    """One call, and a program of its own for every row count: planes or integers."""
    rng = np.random.default_rng(3)
    w = rng.integers(-8, 8, (64, 64), dtype=np.int8)
    mod = dense_module(w)
    split, chosen = (
        Runnable(mod, OffloadDense(TINY, densities={"x": 0.7}, planes=planes))
        for planes in ("always", "cost")
    )
    offload = OffloadDense(TINY, densities={"x": 0.7})
    offload(mod)
    assert {spec.scheme for spec, _ in offload.library.programs} == {"dense", "sparqle"}
    for rows in (1, 3, 40):
        x = rng.integers(-128, 128, (rows, 64), dtype=np.int8)
        assert_equal_bits(chosen(x), split(x))
