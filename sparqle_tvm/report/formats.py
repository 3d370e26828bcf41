"""Numbers as readers see them, with their units."""

from __future__ import annotations

MINUS = "\N{MINUS SIGN}"


def percent(value: float) -> str:
    """``0.174`` -> ``17.4 %``."""
    # Adding 0 turns a rounded -0.0 into 0.0.
    return f"{round(value, 3) + 0.0:.1%}".replace("%", " %").replace("-", MINUS)


def signed_percent(value: float, digits: int = 1) -> str:
    """``0.174`` -> ``+17.4 %``, with a real minus sign; what rounds to nothing has no sign."""
    shown = round(value, digits + 2) + 0.0
    return f"{shown:{'+' if shown else ''}.{digits}%}".replace("%", " %").replace("-", MINUS)


def loss(value: float) -> str:
    """What perplexity grows by, finely: ``0.0225`` -> ``+2.25 %``."""
    return signed_percent(value, 2)


def change(saved: float) -> str:
    """What a saving of a share changes: ``0.174`` -> ``-17.4 %`` with a real minus sign."""
    return signed_percent(-saved)


def grouped(value: float) -> str:
    """``1234567`` -> ``1,234,567``."""
    return f"{value:,.0f}"


def count(value: float) -> str:
    """A number of things, three digits and a prefix: ``3790000000`` -> ``3.79 G``."""
    return grouped(value) if value < 1000 else scaled(value, "").rstrip()


def scaled(value: float, unit: str) -> str:
    """Three digits and a prefix: ``scaled(0.0303, "s")`` -> ``30.3 ms``."""
    if value == 0:
        return f"0 {unit}"
    factor, prefix = prefix_of(value)
    return f"{_three_digits(value / factor)} {prefix}{unit}".replace("-", MINUS)


def prefix_of(value: float) -> tuple[float, str]:
    """Factor and name of the prefix that a value is written with."""
    return next((p for p in _PREFIXES if abs(value) >= p[0] * 0.9995), _PREFIXES[-1])


def seconds(value: float) -> str:
    """Time in seconds: nobody counts in kiloseconds."""
    return f"{grouped(value)} s" if value >= 999.5 else scaled(value, "s")


def joules(value: float) -> str:
    """Energy in joules."""
    return scaled(value, "J")


def nbytes(value: float) -> str:
    """Bytes, in powers of 1000."""
    return scaled(value, "B")


_PREFIXES = (
    (1e12, "T"),
    (1e9, "G"),
    (1e6, "M"),
    (1e3, "k"),
    (1.0, ""),
    (1e-3, "m"),
    (1e-6, "µ"),
    (1e-9, "n"),
    (1e-12, "p"),
)


def _three_digits(value: float) -> str:
    # Rounded first: 9.57 has one digit before the point, 9.996 has two.
    whole = len(str(int(abs(float(f"{value:.3g}")))))
    return f"{value:.{max(0, 3 - whole)}f}"
