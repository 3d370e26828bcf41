"""The order of rows in which few of them wait."""

from __future__ import annotations

import numpy as np
import pytest

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.numerics import is_row_order, sorted_rows


def test_rows_are_sorted_within_blocks_and_stay_in_order_where_equal() -> None:
    steps = np.array([1, 3, 2, 3, 0, 9, 0], dtype=np.uint8)
    assert sorted_rows(steps, 4).tolist() == [1, 3, 2, 0, 5, 4, 6]
    assert sorted_rows(steps, 1).tolist() == list(range(7))
    assert sorted_rows(steps, 100).tolist() == [5, 1, 3, 2, 0, 4, 6]
    assert sorted_rows(steps[:0], 4).tolist() == []


def test_sorting_takes_one_number_per_row() -> None:
    for steps, block in ((np.zeros((2, 2)), 4), (np.zeros(2), 0)):
        with pytest.raises(InvalidArgumentError, match="in blocks of at least one row"):
            sorted_rows(steps, block)


@pytest.mark.parametrize(
    ("order", "fine"),
    [
        ([], True),
        ([1, 0, 2], True),
        ([1, 0, 3, 2, 4], True),
        ([2, 0, 1], False),
        ([0, 0, 2], False),
        ([0, -1, 2], False),
        ([0, 1, 3], False),
    ],
)
def test_an_order_has_every_row_of_each_block_once(order: list[int], fine: bool) -> None:
    assert is_row_order(np.array(order, dtype=np.int32), 2) == fine
