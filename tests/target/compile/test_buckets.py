from __future__ import annotations

import pytest

from sparqle_tvm.errors import CompileError
from sparqle_tvm.target.compile.buckets import MAX_ROWS, bucket, buckets


def test_buckets() -> None:
    assert [bucket(m) for m in (1, 2, 3, 9, 16, 17, 64, 65, 256, 257, 4096, 4097)] == [
        *(1, 2, 4, 16, 16, 64, 64, 256, 256, 1024, 4096, 16384)
    ]
    assert [bucket(m, rows=64) for m in (1, 17, 33, 64, 65, 256)] == [1, 32, 64, 64, 256, 256]
    for m in range(1, 300):
        assert m <= bucket(m) == bucket(bucket(m))
    with pytest.raises(CompileError, match="at least one"):
        bucket(0)


def test_buckets_end_with_the_largest() -> None:
    assert buckets(4) == [1, 2, 4, 16, 64, 256, 1024, MAX_ROWS]
    assert buckets(16, most=64) == [1, 2, 4, 8, 16, 64]
