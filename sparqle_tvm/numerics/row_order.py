"""The order of rows in which few of them wait: sorted by stored digits, block by block."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparqle_tvm.errors import InvalidArgumentError


def sorted_rows(steps: NDArray[Any], block_rows: int) -> NDArray[np.int32]:
    """Sort rows by the steps that their MSB digits take, most first, within blocks.

    The rows of a group wait for the slowest of them; rows of a kind beside each other wait least.
    The sort is stable: equal rows keep their order.

    Parameters
    ----------
    steps : ndarray of integers, shape (m,)
        Key of each row: ``ceil(stored digits / lanes)``.
    block_rows : int
        Rows that are sorted together, at least 1; the last block may have fewer.

    Returns
    -------
    ndarray of int32, shape (m,)
        Row i of the new order is row ``order[i]`` of the old one, of the same block.

    Raises
    ------
    InvalidArgumentError
        If `steps` has another rank than 1, or a block no row.
    """
    if steps.ndim != 1 or block_rows < 1:
        raise InvalidArgumentError(
            f"rows are sorted by one number each, in blocks of at least one row; got numbers of "
            f"shape {steps.shape} and blocks of {block_rows}"
        )
    rows = np.arange(len(steps))
    # Stable in all keys: the last one given to lexsort comes first.
    return np.lexsort((-steps.astype(np.int64), rows // block_rows)).astype(np.int32)


def is_row_order(order: NDArray[Any], block_rows: int) -> bool:
    """Whether a list of row numbers permutes the rows of each block.

    Parameters
    ----------
    order : ndarray of integers, shape (m,)
        The list.
    block_rows : int
        Rows of a block, at least 1.
    """
    rows = np.arange(len(order))
    if len(order) and (int(order.min()) < 0 or int(order.max()) >= len(order)):
        return False
    inside = order.astype(np.int64) // block_rows == rows // block_rows
    return bool(inside.all()) and len(np.unique(order)) == len(order)
