from __future__ import annotations

import pytest

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.target.op import DenseOp, group_sum_bytes


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"m": 0}, "m = 0 must be a whole number from 1 to 2147483647"),
        ({"k": 2**31}, "k = 2147483648"),
        ({"n": True}, "n = True"),
        ({"m": "20"}, "m = '20'"),
        ({"digit_bits": 3}, "digit_bits = 3"),
        ({"weight_bits": 5}, "weight_bits = 5"),
        ({"window": "round"}, "window = 'round'"),
        ({"window": None}, "window = None"),
        ({"output": "float16"}, "output = 'float16'"),
        ({"scheme": "dense"}, "dense has no biased digits"),
        ({"scheme": "sparse"}, "scheme = 'sparse'"),
        ({"has_min": 1}, "has_min must be true or false"),
        ({"group_size": -1}, "group_size = -1"),
        ({"has_min": True}, "minima need groups"),
        ({"group_size": 8, "output": "int32"}, "need output 'float32'"),
        ({"out_chunk": 8}, "only encoded outputs have a format"),
        ({"label": 3}, "label must be a text"),
    ],
)
def test_contradictions_are_refused(fields: dict[str, object], problem: str) -> None:
    with pytest.raises(InvalidArgumentError, match=problem):
        DenseOp(**{"m": 4, "n": 4, "k": 40, **fields})  # type: ignore[arg-type]


def test_a_refusal_names_the_op() -> None:
    with pytest.raises(InvalidArgumentError, match="dense op 'up' of 4 x 4 x 0"):
        DenseOp(4, 4, 0, label="up")


def test_sums_of_groups_are_for_minima_and_as_wide_as_they_must_be() -> None:
    assert DenseOp(4, 4, 40, group_size=8).sum_group_size == 0
    assert DenseOp(4, 4, 40, group_size=8, has_min=True).sum_group_size == 8
    # 128 differences of uint8 always fit int16; one of 16 bits does not.
    assert [group_sum_bytes(g, k) for g, k in ((128, 4), (129, 4), (8, 8), (8, 2))] == [2, 4, 4, 2]
    assert 128 * 255 < 2**15 <= 129 * 255


def test_ops_of_other_names_are_equal() -> None:
    assert DenseOp(4, 4, 8, label="up") == DenseOp(4, 4, 8, label="gate")


@pytest.mark.parametrize(
    ("weight_bits", "digit_bits", "slices"), [(2, 4, 1), (4, 4, 1), (8, 4, 2), (8, 2, 4), (4, 8, 1)]
)
def test_weight_slices(weight_bits: int, digit_bits: int, slices: int) -> None:
    assert DenseOp(1, 1, 8, weight_bits, digit_bits=digit_bits).weight_slices == slices


def test_types_follow_from_output_and_groups() -> None:
    plain, grouped = DenseOp(4, 4, 40), DenseOp(4, 4, 40, group_size=8)
    assert (plain.groups, plain.accumulator_dtype, plain.out_dtype) == (0, "int32", "float32")
    assert (grouped.groups, grouped.accumulator_dtype, grouped.scaled) == (5, "float64", True)
    assert (plain.accumulator_bytes, grouped.accumulator_bytes) == (4, 8)
    assert not DenseOp(4, 4, 40, output="int32").scaled
    encoded = {bits: DenseOp(4, 4, 40, output="encoded", digit_bits=bits) for bits in (4, 8)}
    assert {bits: op.out_dtype for bits, op in encoded.items()} == {4: "int8", 8: "int16"}
