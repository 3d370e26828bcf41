"""Row counts that programs are made for."""

from __future__ import annotations

from sparqle_tvm.errors import CompileError

MAX_ROWS = 4096
"""A symbolic number of rows gets a program for each bucket up to this one."""


def bucket(m: int, rows: int = 16) -> int:
    """Row count whose program serves `m` rows: 1, 2, 4, .. `rows`, then every second power of two.

    A program is bound to the real number of rows when it runs, so a larger bucket costs no
    computation, only tiles that are chosen for more rows. Up to the rows of the array the buckets
    are narrow: there, rows that stand idle share K, and the fewer tokens, the more of them.

    Parameters
    ----------
    m : int
        Tokens.
    rows : int
        Rows of the array (`Accelerator.rows`).

    Raises
    ------
    CompileError
        If there is no token.
    """
    if m < 1:
        raise CompileError(f"a dense op of {m} rows cannot be compiled; it needs at least one")
    exponent = (m - 1).bit_length()
    narrow = (rows - 1).bit_length()
    return 1 << (exponent if exponent <= narrow else exponent + (exponent - narrow) % 2)


def buckets(array_rows: int, most: int = MAX_ROWS) -> list[int]:
    """All buckets (`bucket`) of up to `most` rows, ascending."""
    return sorted({bucket(1 << i, array_rows) for i in range(most.bit_length())})
