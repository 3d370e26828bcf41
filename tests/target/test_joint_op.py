"""Ops that read one encoding, side by side; and their shares of what they take together."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from sparqle_tvm.target.joint_op import join, joined, part_labels, portions
from sparqle_tvm.target.op import DenseOp

Q, K = (DenseOp(8, n, 64, 4, 32, True, label) for label, n in (("q", 48), ("k", 16)))
# Another format: it runs alone.
V = DenseOp(8, 16, 64, 8, label="v")
ENCODED = replace(V, label="up", output="encoded", out_chunk=16, out_low=-128, out_high=127)


def test_channels_lie_side_by_side():
    first, second = join((Q, V, K))
    assert (first.op, first.parts) == (replace(Q, n=64), (Q, K))
    assert part_labels(first.op.label) == ["q", "k"]
    assert (second.op, second.parts) == (V, (V,))


def test_encoded_outputs_and_single_ops_stay_alone():
    assert joined((ENCODED, ENCODED)) == (ENCODED, ENCODED)
    assert joined((Q,)) == (Q,)
    assert joined((Q,))[0].label == "q"
    assert joined(()) == ()


@given(st.integers(0, 10**12), st.lists(st.integers(1, 5000), min_size=1, max_size=5))
def test_portions_add_up(amount, channels):
    found = portions(amount, channels)
    assert sum(found) == amount
    for share, count in zip(found, channels, strict=True):
        assert abs(share - amount * count / sum(channels)) <= 1 + 1e-12 * amount
