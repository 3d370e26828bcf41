"""Golden listings: `golden(name, text)` compares, ``--regenerate-golden`` rewrites them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--regenerate-golden",
        action="store_true",
        help="rewrite tests/target/golden (name tests/target on the command line)",
    )


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a listing with tests/target/golden/<name>.asm."""

    def check(name: str, text: str) -> None:
        file = GOLDEN / f"{name}.asm"
        # The option does not exist when a test run began elsewhere than in this folder.
        if request.config.getoption("--regenerate-golden", default=False):
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
        assert file.exists(), f"{file} is missing; run pytest tests/target --regenerate-golden"
        assert text == file.read_text(), "if meant: run pytest tests/target --regenerate-golden"

    return check
