import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.numerics.row_nnz import RowNnz


@given(
    m=st.integers(1, 5), k=st.integers(1, 70), chunk=st.integers(1, 12), seed=st.integers(0, 9999)
)
def test_counts_are_those_of_the_bitmap(m, k, chunk, seed):
    mask = np.random.default_rng(seed).random((m, k)) < 0.4
    nnz = RowNnz.from_pbm(np.packbits(mask, axis=1, bitorder="little"), k)
    assert nnz.total == mask.sum()
    assert nnz.msb_sparsity == pytest.approx(1 - mask.mean())
    single = RowNnz.from_pbm(np.packbits(mask, axis=1, bitorder="little"), k, unit=1)
    np.testing.assert_array_equal(single.counts, mask)
    chunks = nnz.per_chunk(8 * chunk)
    for c in range(chunks.shape[1]):
        expected = mask[:, 8 * chunk * c : 8 * chunk * (c + 1)].sum(axis=1)
        assert (chunks[:, c] == expected).all()
    assert (nnz.last_row().per_chunk(k)[0] == mask[-1].sum()).all()


@given(m=st.integers(0, 40), block=st.integers(1, 12), seed=st.integers(0, 9999))
def test_sorted_rows_are_the_same_rows_with_most_steps_first_in_each_block(m, block, seed):
    counts = np.random.default_rng(seed).integers(0, 9, (m, 3))
    nnz = RowNnz(counts, 8, 24)
    order = nnz.order(block, 4)
    np.testing.assert_array_equal(nnz.sorted(block, 4).counts, counts[order])
    for begin in range(0, m, block):
        mine = order[begin : begin + block]
        assert sorted(mine.tolist()) == list(range(begin, min(begin + block, m)))
        steps = -(-counts[mine].sum(axis=1) // 4)
        assert (np.diff(steps) <= 0).all()
        assert all(a < b for a, b, d in zip(mine, mine[1:], np.diff(steps), strict=False) if not d)


def test_drawn_rows_have_their_shares():
    nnz = RowNnz.drawn(np.random.default_rng(0), np.array([0.0, 0.25, 1.0]), 1000, 16)
    # 62 spans of 16 columns and one of 8.
    assert nnz.counts.shape == (3, 63)
    assert nnz.counts[0].max() == 0
    assert 200 <= nnz.counts[1].sum() <= 300
    assert (nnz.counts[2] == [16] * 62 + [8]).all()


def test_counts_of_long_rows_do_not_overflow():
    nnz = RowNnz.from_pbm(np.full((1, 1000), 255, np.uint8), 8000)
    assert nnz.total == 8000
    assert nnz.per_chunk(8000).tolist() == [[8000]]
    assert nnz.per_chunk(4096).tolist() == [[4096, 3904]]


def test_wrong_chunk_or_counts():
    with pytest.raises(
        InvalidArgumentError, match="chunk of 12 columns is not a multiple of the 8"
    ):
        RowNnz.from_pbm(np.zeros((1, 2), np.uint8), 16).per_chunk(12)
    with pytest.raises(InvalidArgumentError, match="do not cover 17 columns"):
        RowNnz.from_pbm(np.zeros((1, 2), np.uint8), 17)
