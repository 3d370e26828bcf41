"""The engines ``host`` and ``simulator`` side by side: the same bits for every kind of module."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

import sparqle_tvm
from sparqle_tvm import dialect, numerics
from sparqle_tvm.errors import InvalidArgumentError, ProgramError, QuantizationError
from sparqle_tvm.models.quantized import QMAX, GroupedWeight, emit_grouped_dense
from sparqle_tvm.numerics.quantization import QuantizedWeights
from sparqle_tvm.runtime.executable import Executable
from sparqle_tvm.runtime.launch import launch, recording
from sparqle_tvm.target.accelerator import PRESETS
from sparqle_tvm.target.isa.compute import MmaMsb
from sparqle_tvm.target.program import Program
from sparqle_tvm.target.program.bundle import pack_bundle

EDGE = PRESETS["sparqle/edge"]


@I.ir_module
class Parameters:
    """Integers and weights as parameters, more than one leading dimension."""

    @R.function
    def main(q: R.Tensor((2, "n", 3, 20), "int8"), w: R.Tensor((20, 5), "int8")):
        n = T.int64()
        with R.dataflow():
            up = R.matmul(q, w, out_dtype="int32")
            flat = R.reshape(up, (2 * n * 3, 5))
            R.output(flat)
        return flat


def random_int8(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Every int8 value, the smallest included."""
    return rng.integers(-128, 128, shape).astype(np.int8)


@pytest.fixture(scope="module")
def parameters() -> Executable:
    return sparqle_tvm.compile(Parameters, engine="simulator")


def test_weights_as_parameters_may_change_from_call_to_call(parameters: Executable) -> None:
    rng = np.random.default_rng(0)
    q = random_int8(rng, 2, 4, 3, 20)
    for _ in range(3):
        w = random_int8(rng, 20, 5)
        expected = numerics.int_matmul(q.reshape(-1, 20), np.ascontiguousarray(w.T))
        np.testing.assert_array_equal(parameters["main"](q, w).numpy(), expected)


def test_leading_dimensions_count_as_rows(parameters: Executable) -> None:
    rng = np.random.default_rng(1)
    w = random_int8(rng, 20, 5)
    for tokens in (0, 1, 3):
        q = random_int8(rng, 2, tokens, 3, 20)
        found = parameters["main"](q, w).numpy()
        assert found.shape == (6 * tokens, 5)
        expected = q.reshape(-1, 20).astype(np.int32) @ w.astype(np.int32)
        np.testing.assert_array_equal(found, expected)
        assert [record.rows for record in parameters.profile()] == [6 * tokens] * (tokens > 0)


@pytest.fixture(scope="module")
def grouped_model() -> tvm.IRModule:
    """Functions of one and of n tokens with two dense layers on one input, weights shared."""
    rng = np.random.default_rng(2)
    weights = [
        GroupedWeight(
            rng.integers(0, 16, (2, 32, n)).astype(np.int8),
            rng.uniform(1e-3, 1, (2, 1, n)).astype(np.float16),
            rng.normal(size=(2, n)).astype(np.float16),
        )
        for n in (9, 4)
    ]
    constants = [[relax.const(a) for a in (w.values, w.scale, w.minimum)] for w in weights]
    builder = relax.BlockBuilder()
    for name, tokens in (("decode", 1), ("prefill", tvm.tirx.Var("n", "int64"))):
        x = relax.Var("x", relax.TensorType((1, tokens, 64), "float32"))
        with builder.function(name, [x]):
            with builder.dataflow():
                found = [
                    builder.emit_output(emit_grouped_dense(x, *arrays, f"{name}_{label}"))
                    for arrays, label in zip(constants, ("up", "gate"), strict=True)
                ]
            builder.emit_func_output(relax.Tuple(found))
    return builder.finalize()


@pytest.fixture(scope="module")
def grouped(grouped_model: tvm.IRModule) -> Executable:
    return sparqle_tvm.compile(grouped_model, engine="simulator", collect_encodings=True)


def test_functions_that_share_their_weights(
    grouped_model: tvm.IRModule, grouped: Executable
) -> None:
    host = sparqle_tvm.compile(grouped_model)
    x = np.random.default_rng(3).laplace(size=(1, 21, 64)).astype(np.float32)
    for name, tokens in (("decode", 1), ("prefill", 1), ("prefill", 21)):
        found = grouped[name](x[:, :tokens])
        for one, other in zip(found, host[name](x[:, :tokens]), strict=True):
            assert one.numpy().tobytes() == other.numpy().tobytes()
        # Both ops read one encoding and run as one.
        labels = [f"{name}_{label}" for label in ("up", "gate")]
        assert [record.label for record in grouped.profile()] == ["+".join(labels)]
        assert all(grouped.profile()[label] is grouped.profile().records[0] for label in labels)
        # The bitmap is that of the encoding that they read.
        (encoding,) = grouped.encodings
        q, _ = numerics.quantize_per_token(x[0, :tokens], qmax=QMAX)
        np.testing.assert_array_equal(encoding.pbm, numerics.encode(q).pbm)
    assert (host.programs, host.inspect_source(), len(host.profile())) == ([], "", 0)


def test_functions_share_their_programs(grouped: Executable) -> None:
    headers = [program.header for program in grouped.programs]
    assert all(sum(h.op.m == one.op.m for h in headers) == 1 for one in headers)
    # `decode` made those of one row, and `prefill` took them.
    labels = {h.label for h in headers if h.op.m == 1}
    assert labels == {"decode_up+decode_gate"}
    assert grouped.inspect_source() == "\n".join(p.disassemble() for p in grouped.programs)


def test_non_finite_activations_are_named(grouped: Executable) -> None:
    x = np.ones((1, 3, 64), np.float32)
    x[0, 2, 5] = np.inf
    with pytest.raises(QuantizationError, match=r"prefill_up holds NaN or Inf in row 2"):
        grouped["prefill"](x)


def slicing_model(k: int, window: str, weights: QuantizedWeights, rows: int) -> tvm.IRModule:
    """One dense with digits of k bits on integers and a single activation scale of 0.5."""
    columns = weights.shape[1]
    builder = relax.BlockBuilder()
    q = relax.Var("q", relax.TensorType((rows, columns), "int16" if k == 8 else "int8"))
    group = weights.group_size
    make = numerics.grouped_bias_term if group else numerics.bias_term
    bias = make(weights if group else weights.values, k, window)
    attrs: dict[str, Any] = {"k": k, "window": window, "label": "up"}
    with builder.function("main", [q]):
        with builder.dataflow():
            enc = builder.emit(dialect.encode(q, group_size=group, **attrs))
            minima = []
            if weights.minimum is not None:
                sums = builder.emit(relax.TupleGetItem(enc, 4))
                minima = [relax.const(weights.minimum), sums]
            dense = dialect.split_dense_scaled(
                enc,
                relax.const(0.5, "float32"),
                relax.const(weights.values),
                relax.const(weights.scale),
                relax.const(bias, str(bias.dtype)),
                *minima,
                in_features=columns,
                group_size=group,
                weight_bits=weights.bits,
                **attrs,
            )
            y = builder.emit_output(dense)
        builder.emit_func_output(y)
    return builder.finalize()


@pytest.mark.parametrize(
    ("k", "window", "bits", "group"),
    [(2, "signed", 4, 16), (8, "unsigned", 8, 0)],
)
def test_digits_and_weights_of_every_width(k: int, window: str, bits: int, group: int) -> None:
    rng = np.random.default_rng(k)
    low = -(1 << (bits - 1))
    scale = rng.uniform(0.01, 1, (7, 3) if group else 7)
    weights = QuantizedWeights(
        rng.integers(low, -low, (7, 48)).astype(np.int8),
        scale.astype(np.float16 if group else np.float32),
        rng.normal(size=(7, 3)).astype(np.float16) if group else None,
        bits,
    )
    q = rng.integers(-(2 ** (2 * k - 1)), 2 ** (2 * k - 1), (5, 48))
    q = q.astype(np.int16 if k == 8 else np.int8)
    mod = slicing_model(k, window, weights, 5)
    machine = replace(EDGE, name=f"edge of {k}", digit_bits=k)
    simulator = sparqle_tvm.compile(mod, machine, engine="simulator")
    (program,) = simulator.programs
    assert (program.header.op.digit_bits, program.header.op.weight_bits) == (k, bits)
    found = simulator["main"](q).numpy()
    exact = np.zeros((5, 7))
    size = group or 48
    for i, part in enumerate(np.split(q.astype(np.float64), 48 // size, axis=1)):
        columns = slice(i * size, (i + 1) * size)
        factor = weights.scale[:, i].astype(np.float64) if group else 1.0
        exact += (part @ weights.values[:, columns].T.astype(np.float64)) * factor
        if weights.minimum is not None:
            exact += part.sum(axis=1)[:, None] * weights.minimum[:, i].astype(np.float64)
    expected = exact.astype(np.float32) * np.float32(0.5)
    np.testing.assert_array_equal(found, expected if group else expected * weights.scale)


def test_what_the_accelerator_does_not_take_runs_on_the_host() -> None:
    weights = QuantizedWeights(np.ones((7, 48), np.int8), np.ones(7, np.float32), None, 2)
    mod = slicing_model(2, "unsigned", weights, 3)
    executable = sparqle_tvm.compile(mod, engine="simulator")
    assert executable.programs == []
    (skipped,) = (s for s in executable.report.skipped if s.pass_name == "OffloadDense")
    assert (skipped.label, "digits of 2 bits" in skipped.reason) == ("up", True)
    found = executable["main"](np.ones((3, 48), np.int8)).numpy()
    np.testing.assert_array_equal(found, np.full((3, 7), 24, np.float32))
    assert len(executable.profile()) == 0


def test_an_engine_that_does_not_exist() -> None:
    with pytest.raises(InvalidArgumentError, match='"fpga" is neither "host" nor "simulator"'):
        sparqle_tvm.compile(Parameters, engine="fpga")  # type: ignore[arg-type]


def launch_operands(program: Program, q: np.ndarray, w: np.ndarray) -> list[np.ndarray]:
    """What a compiled module hands to `launch` for an int32 op, the output last."""
    sliced = numerics.encode(q)
    planes = [sliced.lsb, sliced.pbm, sliced.msb, sliced.row_ptr]
    return [*planes, w, np.full((len(q), len(w)), -1, np.int32)]


def bundle_of(*programs: Program) -> np.ndarray:
    return np.frombuffer(pack_bundle(programs), np.uint8).copy()


def test_launch_writes_its_last_operand(parameters: Executable) -> None:
    rng = np.random.default_rng(5)
    q, w = random_int8(rng, 3, 20), random_int8(rng, 5, 20)
    operands = launch_operands(parameters.programs[0], q, w)
    with recording() as records:
        launch("anything", bundle_of(*parameters.programs), *operands)
    np.testing.assert_array_equal(operands[-1], numerics.int_matmul(q, w))
    (record,) = records
    # The label is that of the call; the program may be another op's.
    assert (record.label, record.rows, record.program.header.label) == ("anything", 3, "up")
    assert record.program.header.op.m == 4


def test_damaged_programs_are_refused_before_anything_is_written(parameters: Executable) -> None:
    q, w = np.ones((3, 20), np.int8), np.ones((5, 20), np.int8)
    operands = launch_operands(parameters.programs[0], q, w)
    bundle = bundle_of(*parameters.programs)
    for place, message in ((len(bundle) // 2, "damaged"), (0, "not an accelerator program")):
        damaged = bundle.copy()
        damaged[place] ^= 0xFF
        with pytest.raises(ProgramError, match=message), recording() as records:
            launch("up", damaged, *operands)
        assert records == []
    with pytest.raises(ProgramError, match="'up' was compiled for at most 2 rows, 3 came"):
        launch("up", bundle_of(*parameters.programs[:2]), *operands)
    assert (operands[-1] == -1).all()
    launch("up", bundle, *operands)
    assert (operands[-1] == 20).all()


def test_a_wrong_program_with_the_right_checksum_is_refused(parameters: Executable) -> None:
    q, w = np.ones((3, 20), np.int8), np.ones((5, 20), np.int8)
    operands = launch_operands(parameters.programs[0], q, w)
    short = [
        replace(
            program,
            instructions=tuple(i for i in program.instructions if not isinstance(i, MmaMsb)),
        )
        for program in parameters.programs
    ]
    for _ in range(2):
        with pytest.raises(ProgramError, match="not all K chunks"), recording() as records:
            launch("up", bundle_of(*short), *operands)
        assert records == []
        assert (operands[-1] == -1).all()


def test_programs_of_another_op_are_refused(parameters: Executable) -> None:
    q, w = np.ones((3, 20), np.int8), np.ones((5, 20), np.int8)
    planes_and_weight = launch_operands(parameters.programs[0], q, w)[:-1]
    out = np.full((3, 5), -1, np.float32)
    operands = [*planes_and_weight, np.ones(3, np.float32), np.ones(5, np.float32), out]
    with pytest.raises(ProgramError, match="'up' takes 5 operands and an output, 8 came"):
        launch("up", bundle_of(*parameters.programs), *operands)
    assert (out == -1).all()


def test_threads_record_their_own_launches(parameters: Executable) -> None:
    q, w = np.ones((1, 20), np.int8), np.ones((5, 20), np.int8)
    bundle = bundle_of(*parameters.programs)
    seen: list[int] = []

    def work() -> None:
        with recording() as mine:
            launch("there", bundle, *launch_operands(parameters.programs[0], q, w))
        seen.append(len(mine))

    with recording() as records:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        launch("here", bundle, *launch_operands(parameters.programs[0], q, w))
    assert seen == [1]
    assert [record.label for record in records] == ["here"]
    # Nobody listens any more.
    launch("later", bundle, *launch_operands(parameters.programs[0], q, w))
    assert len(records) == 1


@pytest.mark.parametrize("zeros", ["constant", "one", "rows"])
def test_uint8_around_zero_points_of_every_kind(zeros: str) -> None:
    """The accelerator multiplies q - zero point, whenever that is known: the host does the same."""
    rng = np.random.default_rng(len(zeros))
    w = random_int8(rng, 20, 5)
    shape = {"constant": None, "one": (1, 1), "rows": (6, 1)}[zeros]
    q = relax.Var("q", relax.TensorType((6, 20), "uint8"))
    parameters = [q]
    zero: relax.Expr = relax.const(117, "int32")
    builder = relax.BlockBuilder()
    if shape:
        given = relax.Var("zero", relax.TensorType(shape, "uint8"))
        parameters.append(given)
        zero = relax.op.astype(given, "int32")
    with builder.function("main", parameters):
        with builder.dataflow():
            wide = relax.op.subtract(relax.op.astype(q, "int32"), zero)
            weight = relax.op.astype(relax.const(w), "int32")
            found = builder.emit_output(relax.op.matmul(wide, weight, out_dtype="int32"))
        builder.emit_func_output(found)
    executable = sparqle_tvm.compile(builder.finalize(), engine="simulator")
    (op,) = {program.header.op for program in executable.programs}
    assert (op.act_signed, op.window, op.row_zeros) == (False, "signed", zeros != "constant")
    values = rng.integers(0, 256, (6, 20)).astype(np.uint8)
    # At both ends, where centres are not zero points, and between.
    points = np.array([[0], [3], [117], [128], [252], [255]], np.uint8)
    for index in range(6 if zeros == "one" else 1):
        arguments = {"constant": [], "one": [points[index : index + 1]], "rows": [points]}[zeros]
        counted_from = arguments[0].astype(int) if arguments else 117
        result = executable["main"](values, *arguments).numpy()
        np.testing.assert_array_equal(result, (values.astype(int) - counted_from) @ w.astype(int))
        assert len(executable.profile()) == 1
