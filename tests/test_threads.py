"""Number of threads of compiled kernels."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.threads import core_count, use_threads


def in_new_thread(count: int | None) -> tuple[int, set[int]]:
    """``use_threads`` in a thread of its own (TVM has a pool per thread), and its processors."""

    def run() -> tuple[int, set[int]]:
        return use_threads(count), os.sched_getaffinity(0)

    with ThreadPoolExecutor(1) as executor:
        return executor.submit(run).result()


def test_cores_are_counted() -> None:
    assert 1 <= core_count() <= len(os.sched_getaffinity(0))


def test_as_many_as_cores_and_bound_to_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TVM_NUM_THREADS", raising=False)
    allowed = os.sched_getaffinity(0)
    assert in_new_thread(None) == (core_count(), allowed)
    assert in_new_thread(1) == (1, allowed)
    assert os.sched_getaffinity(0) == allowed


def test_the_environment_variable_of_tvm_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVM_NUM_THREADS", "1")
    assert in_new_thread(None)[0] == 1


def test_not_more_than_processors() -> None:
    assert in_new_thread(10**6)[0] == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("count", [0, -1])
def test_at_least_one(count: int) -> None:
    with pytest.raises(InvalidArgumentError, match="at least one"):
        use_threads(count)
