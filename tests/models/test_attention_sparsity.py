"""What was measured of attention: the stored file, its schema, and what is read off it."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest

from sparqle_tvm.errors import InvalidArgumentError, ResultFileError
from sparqle_tvm.models.attention_sparsity import (
    MeasuredAttention,
    MeasuredLayer,
    attention_file,
    load_attention,
    measured_attention,
)
from sparqle_tvm.models.builtin import BUILTIN_MODELS
from sparqle_tvm.target.cost.attention_choice import typical_attention


def layer(live: float, k: float = 0.3) -> MeasuredLayer:
    table = ((live, live), (live / 4, live / 2))
    runs = tuple(tuple(x / 2 for x in row) for row in table)
    high = ((k, k / 2), (0.8, 0.9))
    return MeasuredLayer(table, runs, (0.5, 0.2), (0.9, 1.0), 0.4, high, high)


MEASURED = MeasuredAttention(
    "by hand", "none", "0", "none", 64, (64, 256), (1, 16), (1.0, 4.0), (layer(0.8), layer(0.4))
)


def test_between_contexts_and_blocks():
    assert MEASURED.live(0, 2, 64, 1) == (0.8, 0.4)
    assert MEASURED.live(1, 2, 256, 16) == (0.2, 0.1)
    # Half way in the logarithms: 128 of 64 to 256, 4 of 1 to 16.
    assert MEASURED.live(0, 2, 128, 1) == pytest.approx((0.5, 0.25))
    assert MEASURED.live(0, 2, 256, 4) == pytest.approx((0.3, 0.15))


def test_beyond_what_was_measured():
    assert MEASURED.live(0, 2, 10_000, 99) == MEASURED.live(0, 2, 256, 16)
    assert MEASURED.live(0, 2, 3, 1) == MEASURED.live(0, 2, 64, 1)
    assert MEASURED.beyond(257) and not MEASURED.beyond(256)


def test_layers_of_another_model_take_those_at_their_depth():
    assert [MEASURED.layer_at(i, 4) for i in range(4)] == [layer(0.8)] * 2 + [layer(0.4)] * 2
    assert MEASURED.layer_at(0, 1) == layer(0.8)


def test_storage_is_what_is_smaller():
    # 0.3 of zero high digits: planes, but for values, each of which needs a pointer; 0.15: plain.
    # Twice as many heads: each measured one twice.
    storage = MEASURED.storage(0, 2, 4, 64)
    assert (storage.keys.planes, storage.values.planes) == ("pp--", "----")
    assert storage.keys.levels == 127


def test_the_file_of_the_package():
    found = measured_attention()
    assert found.model_sha256 == BUILTIN_MODELS["smollm2"].member_sha256
    assert len(found.layers) == 30 and found.contexts[-1] == 8192
    for place in range(len(found.layers)):
        one = found.layers[place]
        for context, blocks in enumerate(one.live_keys):
            # A larger block needs what its parts need.
            assert list(blocks) == sorted(blocks)
            assert one.p_nonzero[context] <= blocks[0] + 1e-4
        for of_head in (one.k_msb_sparsity, one.v_msb_sparsity):
            assert {len(heads) for heads in of_head} == {3}
            assert all(a <= b for a, b in pairwise(of_head))
    # Longer contexts need smaller shares of their keys.
    means = [found.live(15, 30, keys, 1)[0] for keys in (512, 2048, 8192)]
    assert means == sorted(means, reverse=True)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: d.pop("layers"), "missing required field `layers`"),
        (lambda d: d.update(more=1), "more is unknown"),
        (lambda d: d["layers"][3].update(q_msb_sparsity=1.5), "layer 3 has a share outside"),
        (lambda d: d["layers"][2]["live_keys"].pop(), "layer 2 has tables of another size"),
        (lambda d: d["layers"][1]["k_msb_sparsity"].pop(), "layer 1 has not a sparsity for every"),
        (lambda d: d.update(contexts=[]), "contexts, blocks, factors and layers"),
        (lambda d: d["layers"][0]["p_nonzero"].__setitem__(0, "x"), "Expected `float`"),
    ],
)
def test_a_damaged_file(tmp_path, change, message):
    data = json.loads(attention_file().read_text())
    change(data)
    path = tmp_path / "attention.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ResultFileError, match=message):
        load_attention(path)


def test_rising_places():
    with pytest.raises(InvalidArgumentError, match="have to be there"):
        replace(MEASURED, factors=(4.0, 1.0))


@pytest.mark.parametrize("keys", [64, 512, 2048, 8192])
def test_what_is_typical_is_the_mean_of_what_was_measured(keys):
    found, typical = measured_attention().expected(range(30), 30, keys), typical_attention(keys)
    assert found.tokens == typical.tokens
    assert typical.queries == pytest.approx(found.queries, abs=0.005)
    assert typical.probabilities == pytest.approx(found.probabilities, abs=0.001)
    assert typical.live == pytest.approx(found.live, abs=0.01)
    assert typical.runs == pytest.approx(found.runs, abs=0.01)


def test_expected_attention():
    expected = MEASURED.expected([0, 1], 2, 64)
    assert (expected.queries, expected.tokens) == (pytest.approx(0.6), (1.0, 16.0))
    assert expected.live == pytest.approx((0.6, 0.6))
    shares = expected.shares(4)
    # Of all probabilities 0.1 have a stored digit, and 0.6 of the keys are live.
    assert (shares.live, shares.runs) == pytest.approx((0.6, 0.3))
    assert shares.probabilities == pytest.approx(0.1 / 0.6)
