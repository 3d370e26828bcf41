"""The search for schedules leaves out next to nothing that would have been chosen."""

from dataclasses import replace

import numpy as np
import pytest

from sparqle_tvm.target.accelerator import PRESETS
from sparqle_tvm.target.cost import tiling
from sparqle_tvm.target.op import DenseOp

EDGE = PRESETS["sparqle/edge"]
STARVED = replace(
    EDGE,
    dram_bytes_per_cycle=2.0,
    activation_buffer_bytes=1 << 16,
    scratchpad=False,
    weight_buffer_bytes=1 << 16,
    accumulator_buffer_bytes=1 << 16,
)


def random_shapes(count: int):
    rng = np.random.default_rng(7)
    for _ in range(count):
        group = int(rng.choice([0, 32]))
        k = 32 * int(rng.integers(1, 40)) if group else int(rng.integers(16, 1500))
        rows, cols = (int(n) for n in rng.integers(1, 900, 2))
        yield DenseOp(rows, cols, k, int(rng.choice([2, 4, 8])), group, bool(group and k % 64))


@pytest.mark.parametrize("scheme", ["sparqle", "dense"])
@pytest.mark.parametrize("accelerator", [EDGE, STARVED], ids=["edge", "starved"])
def test_every_candidate_timed_is_no_better_choice(monkeypatch, accelerator, scheme):
    def chosen():
        tiling._choose.cache_clear()
        found = []
        for shape in random_shapes(6):
            (decisions,) = tiling.choose_schedules((shape,), accelerator, scheme)
            search = tiling._Search(
                tiling._plain(shape, scheme), np.array([decisions.k]), accelerator, scheme
            )
            search.time_first()
            search.time_rest(np.array([np.inf]), 1)
            found.append(search.best[0])
        return np.array(found)

    pruned = chosen()
    for name in ("FIRST_CANDIDATES", "MOST_CANDIDATES"):
        monkeypatch.setattr(tiling, name, 1 << 40)
    everything = chosen()
    assert (everything <= pruned).all()
    assert (pruned <= tiling.EQUAL * everything).all()
    tiling._choose.cache_clear()
