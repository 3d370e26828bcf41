"""Numbers as readers see them."""

import pytest

from sparqle_tvm.report import formats


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 s"),
        (0.0303, "30.3 ms"),
        (0.00621, "6.21 ms"),
        (0.9996, "1.00 s"),
        (1.5e-12, "1.50 ps"),
        (1.5e-15, "0.00 ps"),
        (9.566, "9.57 s"),
        (9.996, "10.0 s"),
        (99.97, "100 s"),
        (123.4, "123 s"),
        (1234, "1,234 s"),
        (999.6, "1,000 s"),
        (-0.002, "−2.00 ms"),  # noqa: RUF001 - a real minus sign
    ],
)
def test_scaled(value, text):
    assert formats.seconds(value) == text


def test_units():
    assert formats.nbytes(474145928) == "474 MB"
    assert formats.joules(0.012) == "12.0 mJ"
    assert formats.grouped(1234567) == "1,234,567"


def test_shares():
    assert formats.percent(0.174) == "17.4 %"
    assert formats.change(0.174) == f"{formats.MINUS}17.4 %"
    assert formats.change(-0.015) == "+1.5 %"


@pytest.mark.parametrize("nothing", [0.0, -0.0, 0.0004, -0.0004])
def test_nothing_has_no_sign(nothing):
    assert formats.percent(nothing) == "0.0 %"
    assert formats.change(nothing) == "0.0 %"


def test_prefix_of():
    assert formats.prefix_of(0.05) == (1e-3, "m")
