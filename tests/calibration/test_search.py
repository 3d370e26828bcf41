"""The search over factors, on statistics made by hand and on those of a tiny model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sparqle_tvm.calibration import Calibration, Search
from sparqle_tvm.calibration.budget import (
    Budget,
    choose,
    nats_per_expected,
    parse_share,
)
from sparqle_tvm.calibration.loss import LossIncrease, MeasuredLoss
from sparqle_tvm.calibration.search import stream_shares
from sparqle_tvm.calibration.statistics import (
    FACTORS,
    UNCHANGED,
    DenseStatistics,
    EncodingStatistics,
)
from sparqle_tvm.errors import CalibrationError, InvalidArgumentError

OPTIONS = len(FACTORS)


def statistics(label: str, **changes) -> EncodingStatistics:
    """One encoding of 4 columns in two units of 2, seen in 10 rows.

    A coarser grid loses more (error 1 per column and step of sqrt(2)) and stores less: per unit
    20 digits without a factor, 2 less with every step. A finer grid saturates.
    """
    steps = np.arange(OPTIONS) - UNCHANGED
    error = np.where(steps < 0, 1000.0, 10.0 * np.exp2(steps / 2.0))
    dense = DenseStatistics("d_" + label, 3, 4, 2, np.ones(4, np.float32), 10.0, 0.0, False)
    stored = np.clip(20 - 2 * steps, 0, 20)
    values = {
        "label": label,
        "digest": "0" * 64,
        "columns": 4,
        "qmax": 119,
        "window": "signed",
        "unit": 2,
        "tied": False,
        "rows": 10,
        "largest": 1.0,
        "error": np.repeat(error[:, None], 4, axis=1),
        "stored": np.stack([np.repeat(stored[:, None], 2, axis=1)] * 2),
        "sample": np.zeros((1, OPTIONS, 2), np.uint8),
        "fisher": None,
        "dense": (dense,),
    }
    return EncodingStatistics(**{**values, **changes})


def calibration(*encodings: EncodingStatistics) -> Calibration:
    return Calibration("hand", "none", 10, encodings, np.zeros(1, np.uint64))


def test_loss_and_digits_counted_by_hand():
    search = Search(calibration(statistics("a")))
    assert search.lossless().choices == {}
    assert search.lossless().msb_sparsity == 0.0  # 40 digits of 40 elements
    # Two steps: 16 digits of 20 in either unit; errors of 2 instead of 1 in 4 columns, each with
    # weight column_energy * gain / rows = 1, in 10 rows of error 10 in sum.
    at_least = search.for_sparsity(0.199)
    assert at_least.msb_sparsity == pytest.approx(0.2)
    np.testing.assert_allclose(at_least.choices["a"].factors, 2.0)
    assert at_least.loss == pytest.approx(4 * (2 - 1))


def test_the_cheaper_group_is_coarsened_first():
    error = statistics("a").error.copy()
    error[:, 2:] /= 100
    search = Search(calibration(statistics("a", error=error)))
    found = search.for_sparsity(0.199).choices["a"].factors
    assert found[0] == found[1] < found[2] == found[3]


def test_one_price_serves_all_encodings():
    cheap = statistics("cheap", error=statistics("a").error / 100)
    search = Search(calibration(statistics("dear"), cheap))
    found = search.for_sparsity(0.199)
    assert found.options["cheap"].min() > found.options["dear"].max()
    for label, options in found.options.items():
        same = search.at(found.multiplier).options[label]
        np.testing.assert_array_equal(options, same)


def test_tied_units_get_one_factor():
    error = statistics("a").error.copy()
    error[:, 2:] /= 100
    search = Search(calibration(statistics("a", error=error, tied=True)))
    found = search.for_sparsity(0.199).choices["a"].factors
    assert (found == found[0]).all() and found[0] > 1


def test_what_arrives_quantized_keeps_its_scale():
    given = statistics("given", qmax=0)
    search = Search(calibration(given, statistics("ours")))
    for found in (search.lossless(), search.most_sparse):
        assert "given" not in found.choices
    with pytest.raises(CalibrationError, match=r"no choice .* 90.0%; the sparsest gives 40.0%"):
        search.for_sparsity(0.9)


def test_windows_come_from_calibration_with_a_margin():
    stored = statistics("a").stored.copy()
    stored[1] = stored[0] * 0.5
    tie = statistics("tie")
    search = Search(calibration(statistics("a", stored=stored), tie))
    assert search.windows == {"a": "unsigned", "tie": "signed"}
    assert search.lossless().msb_sparsity == pytest.approx(0.25)
    assert Search(search.calibration, windows={"a": "signed"}).windows["a"] == "signed"


def test_streams_weigh_branches_by_their_share():
    def dense(label, share, stream):
        one = statistics(label).dense[0]
        return (replace(one, label=label, share=10 * share, stream=stream),)

    inside = statistics("up", dense=dense("up", 0, False))
    writes = statistics("down", dense=dense("down", 0.25, True))
    last = statistics("last", dense=dense("last", 0.75, True))
    head = statistics("head", dense=dense("head", 0, False))
    shares = stream_shares(calibration(inside, writes, last, head))
    # The median of 0.25 and 0.75 is the least that a branch counts.
    assert shares == {"up": 0.5, "down": 1.0, "last": 1.0, "head": 0.5}
    assert stream_shares(calibration(inside)) == {"up": 1.0}


def test_importance_by_gradients():
    plain = calibration(statistics("a"))
    with pytest.raises(CalibrationError, match="no gradients"):
        Search(plain, importance="fisher")
    with pytest.raises(InvalidArgumentError, match="importance 'luck' is unknown"):
        Search(plain, importance="luck")
    fisher = np.array([0.0, 0.0, 20.0, 20.0])
    found = Search(calibration(statistics("a", fisher=fisher)), importance="fisher")
    factors = found.for_sparsity(0.199).choices["a"].factors
    assert factors[0] > factors[2]
    # Half the squared gradient (2 per row) times the error: 1 per column at no factor.
    everything = found.at(1e9)
    assert everything.loss == pytest.approx(2 * (2.0 ** ((OPTIONS - 1 - UNCHANGED) / 2) - 1))


def increase(nats: float, error: float) -> LossIncrease:
    return LossIncrease(100, 10.0, 11.0, nats, error, 0.0, 0.0)


def measured(*points) -> list[MeasuredLoss]:
    return [MeasuredLoss("weights", x, 0.9, increase(y, e)) for x, y, e in points]


def test_expected_loss_is_brought_to_nats():
    slope, error = nats_per_expected(measured((0.1, 0.2, 0.01), (0.2, 0.4, 0.01)))
    assert slope == pytest.approx(2.0) and error == pytest.approx(0.05)


def test_budgets():
    search = Search(calibration(statistics("a"), statistics("b")))
    assert choose(search, Budget()).choices == {}
    assert choose(search, Budget("perplexity", 0.0)).choices == {}
    assert choose(search, Budget("sparsity", 0.2)).msb_sparsity >= 0.2
    known = measured((1.0, 0.01, 0.002), (4.0, 0.04, 0.002))
    small, large = (choose(search, Budget("perplexity", v), known) for v in (0.01, 0.2))
    slope, error = nats_per_expected(known)
    for found, limit in ((small, 0.01), (large, 0.2)):
        assert found.loss * (slope + error) <= np.log1p(limit) * (1 + 1e-9)
    assert small.msb_sparsity < large.msb_sparsity
    with pytest.raises(CalibrationError, match="no measured losses"):
        choose(search, Budget("perplexity", 0.01))


@pytest.mark.parametrize(
    "kind, value", [("perplexity", -0.01), ("perplexity", np.nan), ("sparsity", 1.0)]
)
def test_budgets_that_nothing_can_be_held_to(kind, value):
    with pytest.raises(InvalidArgumentError):
        Budget(kind, value)


def test_shares_and_words():
    assert parse_share("1%") == parse_share("1 %") == parse_share("0.01") == 0.01
    for bad in ("many", "", "%", "inf"):
        with pytest.raises(InvalidArgumentError):
            parse_share(bad)
    assert str(Budget("perplexity", 0.0025)) == "perplexity +0.25 % at most"
    assert (str(Budget()), str(Budget("sparsity", 0.85))) == ("no loss", "MSB sparsity 85.0%")
