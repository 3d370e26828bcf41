"""The tiny accelerator as a fixture."""

from __future__ import annotations

import pytest
from tiny_accelerator import TINY

from sparqle_tvm.target.accelerator import Accelerator


@pytest.fixture(scope="session")
def tiny() -> Accelerator:
    return TINY
