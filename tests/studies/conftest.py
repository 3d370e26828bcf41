"""A tiny model and its calibration, made once for all tests of this folder."""

from __future__ import annotations

import pytest
from tiny_calibration import calibrate_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return calibrate_tiny(tmp_path_factory.mktemp("calibration"))
