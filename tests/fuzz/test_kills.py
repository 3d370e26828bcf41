"""Every command is killed a few times; `python -m tests.fuzz --kills N` does so more often."""

from __future__ import annotations

import random

import pytest
from fuzz_kills import COMMANDS, kill, prepare

KILLS = 3


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills") / "whole"
    folder.mkdir()
    prepare(folder)
    return folder


@pytest.mark.parametrize("name", list(COMMANDS))
def test_a_kill_leaves_nothing_half_and_nothing_running(whole, name):
    for number in range(KILLS):
        _, faults = kill(name, random.Random(f"{name} {number}"), whole)
        assert faults == []
