"""Encodings get an order of their rows where that pays; results do not depend on it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from pass_helpers import Runnable, apply, assert_changed, assert_equal_bits, assert_unchanged
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

import sparqle_tvm
from sparqle_tvm import dialect, numerics
from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.passes import BalanceRows, OffloadDense
from sparqle_tvm.runtime.launch import recording
from sparqle_tvm.target.accelerator import PRESETS
from sparqle_tvm.target.isa.header import Engine

# Four rows wait for each other; the buffers hold a few blocks.
TINY = replace(
    PRESETS["sparqle/edge"],
    name="tiny",
    rows=4,
    cols=4,
    lanes=8,
    activation_buffer_bytes=8192,
    scratchpad=False,
    weight_buffer_bytes=8192,
    accumulator_buffer_bytes=16384,
)
BLOCK, MIN_ROWS = 32, 16
RNG = np.random.default_rng(0)
N, K = 96, 64
W = RNG.integers(-8, 8, (N, K)).astype(np.int8)
W2 = RNG.integers(-8, 8, (N, K)).astype(np.int8)
D = RNG.uniform(0.01, 0.1, N).astype(np.float32)
OFFSET = numerics.bias_term(W, 4, "signed")
OFFSET2 = numerics.bias_term(W2, 4, "signed")


@I.ir_module
class Shared:
    """Two dense ops read one encoding of a symbolic number of rows."""

    @R.function
    def main(x: R.Tensor((1, "n", 64), "float32")):
        with R.dataflow():
            enc = R.sparqle.quantize_encode(
                x, k=4, window="signed", qmax=119, group_size=0, label="x"
            )
            s = enc[4]
            a = R.sparqle.split_dense_scaled(
                enc, s, R.const(W), R.const(D), R.const(OFFSET),
                k=4, window="signed", in_features=64, group_size=0, weight_bits=4, label="a",
            )  # fmt: skip
            b = R.sparqle.split_dense_scaled(
                enc, s, R.const(W2), R.const(D), R.const(OFFSET2),
                k=4, window="signed", in_features=64, group_size=0, weight_bits=4, label="b",
            )  # fmt: skip
            y = R.add(a, b)
            R.output(y)
        return y


@I.ir_module
class SharedExpected:
    @R.function
    def main(x: R.Tensor((1, "n", 64), "float32")):
        with R.dataflow():
            enc = R.sparqle.quantize_encode(
                x, k=4, window="signed", qmax=119, group_size=0, label="x"
            )
            s = enc[4]
            pbm = enc[1]
            order = R.sparqle.balance_rows(
                pbm, in_features=64, block_rows=BLOCK, lanes=8, min_rows=MIN_ROWS, label="x"
            )
            a = R.sparqle.split_dense_scaled(
                enc, s, R.const(W), R.const(D), R.const(OFFSET), row_order=order,
                k=4, window="signed", in_features=64, group_size=0, weight_bits=4, label="a",
            )  # fmt: skip
            b = R.sparqle.split_dense_scaled(
                enc, s, R.const(W2), R.const(D), R.const(OFFSET2), row_order=order,
                k=4, window="signed", in_features=64, group_size=0, weight_bits=4, label="b",
            )  # fmt: skip
            y = R.add(a, b)
            R.output(y)
        return y


def one_dense(rows: int, outputs: int = N) -> tvm.IRModule:
    """One dense op of a static number of rows."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((rows, K), "float32"))
    weights = RNG.integers(-8, 8, (outputs, K)).astype(np.int8)
    with builder.function("main", [x]):
        with builder.dataflow():
            enc = builder.emit(dialect.quantize_encode(x, label="x"))
            dense = dialect.split_dense_scaled(
                enc,
                builder.emit(relax.TupleGetItem(enc, 4)),
                relax.const(weights),
                relax.const(np.ones(outputs, np.float32)),
                relax.const(numerics.bias_term(weights, 4, "signed")),
                k=4,
                window="signed",
                in_features=K,
                group_size=0,
                weight_bits=4,
                label="up",
            )
            y = builder.emit_output(dense)
        builder.emit_func_output(y)
    return builder.finalize()


def test_readers_of_an_encoding_share_one_order() -> None:
    report = assert_changed(BalanceRows, Shared, SharedExpected, accelerator=TINY)
    assert report.rewritten["BalanceRows"] == 1


@pytest.mark.parametrize(
    ("mod", "options"),
    [(one_dense(4), {}), (one_dense(32, outputs=2), {}), (Shared, {"goal": "none"})],
    ids=["one row group", "little to gain", "switched off"],
)
def test_rows_stay_in_order_where_it_does_not_pay(mod: Any, options: dict[str, str]) -> None:
    assert assert_unchanged(BalanceRows, mod, accelerator=TINY, **options) == []


@I.ir_module
class Mixed:
    """An int32 reader, and an encoding that is returned whole."""

    @R.function
    def main(q: R.Tensor((64, 64), "int8"), x: R.Tensor((64, 64), "float32")):
        with R.dataflow():
            enc = R.sparqle.encode(q, k=4, window="signed", group_size=0, label="q")
            a = R.sparqle.split_dense(
                enc, R.const(W), R.const(OFFSET),
                k=4, window="signed", in_features=64, weight_bits=4, label="a",
            )  # fmt: skip
            b = R.sparqle.split_dense_scaled(
                enc, R.const(1.0, "float32"), R.const(W), R.const(D), R.const(OFFSET),
                k=4, window="signed", in_features=64, group_size=0, weight_bits=4, label="b",
            )  # fmt: skip
            whole = R.sparqle.quantize_encode(
                x, k=4, window="signed", qmax=119, group_size=0, label="x"
            )
            c = R.sparqle.split_dense_scaled(
                whole, R.const(1.0, "float32"), R.const(W), R.const(D), R.const(OFFSET),
                k=4, window="signed", in_features=64, group_size=0, weight_bits=4, label="c",
            )  # fmt: skip
            result = (a, b, c, whole)
            R.output(result)
        return result


def test_other_readers_leave_rows_in_order() -> None:
    assert assert_unchanged(BalanceRows, Mixed, accelerator=TINY) == [
        "an int32 result is stored without parameters per row, so without their order",
        "the encoding is passed on as a whole",
    ]


class Offloaded:
    """A module on the simulator, with or without balance."""

    def __init__(self, mod: Any, goal: str) -> None:
        offload = OffloadDense(TINY, planes="always")
        self.run = Runnable(mod, BalanceRows(TINY, goal), offload)  # type: ignore[arg-type]
        self.blocks = {
            program.header.op.block_rows for program in offload.library.programs.values()
        }

    def __call__(self, x: np.ndarray) -> tuple[np.ndarray, int]:
        """The result, and the array's cycles."""
        with recording() as records:
            result = self.run(x)
        cycles = (record.result.engines[Engine.MMA].busy for record in records)
        return result, sum(cycles)


@pytest.fixture(scope="module")
def engines() -> dict[str, Any]:
    """The module with the symbolic row count on the host, and on the simulator both ways."""
    after, _ = apply(BalanceRows, Shared, accelerator=TINY)
    return {
        "host": Runnable(Shared),
        "host, balanced": Runnable(after),
        "none": Offloaded(Shared, "none"),
        "array": Offloaded(Shared, "array"),
    }


def test_programs_for_few_rows_leave_them_in_order(engines: dict[str, Any]) -> None:
    assert engines["none"].blocks == {0}
    assert engines["array"].blocks == {0, BLOCK}


def test_programs_that_are_left_dense_ask_for_no_order(engines: dict[str, Any]) -> None:
    """Every digit is expected on a slow memory: those of many rows, sorted else, are dense."""
    slow = replace(TINY, dram_bytes_per_cycle=1)
    offload = OffloadDense(slow, densities={"x": 1.0})
    run = Runnable(Shared, BalanceRows(slow, "array"), offload)
    assert not any(spec.block_rows for spec, _ in offload.library.programs)
    x = np.random.default_rng(0).standard_normal((1, 130, K)).astype(np.float32)
    assert_equal_bits(run(x), engines["host"](x))


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 150), spread=st.sampled_from([0.0, 1.0]), seed=st.integers(0, 9999))
def test_results_do_not_depend_on_the_order(
    engines: dict[str, Any], rows: int, spread: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    # Rows as a whole are wide or narrow: a few outliers in some make the others small.
    x = rng.standard_normal((1, rows, K)) * np.exp(spread * rng.standard_normal((1, rows, 1)))
    x[0, :: 1 + seed % 7, 0] *= 30
    x = x.astype(np.float32)
    expected = engines["host"](x)
    assert_equal_bits(engines["host, balanced"](x), expected)
    for goal in ("none", "array"):
        assert_equal_bits(engines[goal](x)[0], expected)


def test_fewer_rows_wait(engines: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 128, K)).astype(np.float32)
    x[0, ::2, 0] = 40.0  # every second row has one large value and hardly another digit
    (_, waiting), (_, ordered) = engines["none"](x), engines["array"](x)
    # Of the MSB pass, the groups of quiet rows are all but free: about half of it.
    assert ordered < 0.85 * waiting


def test_the_order_itself(engines: dict[str, Any]) -> None:
    builder = relax.BlockBuilder()
    pbm = relax.Var("pbm", relax.TensorType((3, 7, 5), "uint8"))
    with builder.function("main", [pbm]):
        order = dialect.balance_rows(pbm, in_features=37, block_rows=8, lanes=4, min_rows=1)
        builder.emit_func_output(builder.emit(order))
    bitmap = np.random.default_rng(1).integers(0, 2, (21, 37)).astype(bool)
    packed = np.packbits(bitmap, axis=1, bitorder="little")
    found = Runnable(builder.finalize())(packed.reshape(3, 7, 5))
    steps = -(-bitmap.sum(axis=1) // 4)
    assert_equal_bits(found, numerics.sorted_rows(steps, 8))


def test_an_unknown_goal_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match='balance "fast" is not one of array, time'):
        sparqle_tvm.pipeline(balance="fast")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="row balance for 'fast' is unknown"):
        BalanceRows(TINY, "fast")(Shared)  # type: ignore[arg-type]
