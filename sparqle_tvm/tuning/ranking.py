"""What the search believes of candidates: an estimate first, then a model that learns from runs.

MetaSchedule's XGBoost model needs numbers for every candidate. Its own extractor reads loops and
stores of TIR, which our candidates show only when they are built; so `KnobFeatures` gives it what
decides here: the tile, loop order, slots, and the terms of the estimate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms

from sparqle_tvm.target.compile.schedule import Decisions
from sparqle_tvm.tuning.estimate import Estimator
from sparqle_tvm.tuning.space import decisions_of
from sparqle_tvm.tuning.task import TuningTask, task_of

Ranking = Literal["learned", "estimate", "random"]

PREFILTER = 1.3
"""Candidates whose estimate is above this times the best one are not worth a simulation."""

# Below that many results a learned model knows less than the estimate.
_WARM_UP = 24


def features(task: TuningTask, decisions: Decisions, estimator: Estimator) -> NDArray[np.float32]:
    """What the model sees of a candidate: float32 (1, n), logarithms where sizes count."""
    estimate, d = estimator.estimate(decisions), decisions
    extents = (task.rows, task.spec.n, task.spec.k)
    tiles = [math.ceil(e / t) for e, t in zip(extents, d.tile, strict=True)]
    bound = estimator.lower_bound_cycles()
    sizes = [
        *d.tile,
        *tiles,
        *(e / (t * c) for e, t, c in zip(extents, d.tile, tiles, strict=True)),
        estimate.total_cycles / bound,
        estimate.dma_cycles / bound,
        estimate.mma_cycles / bound,
    ]
    shares = [estimate.exposed_cycles / bound, estimate.serial_cycles / bound]
    knobs = [d.rows_outer, d.keep_outer, d.activation_slots, d.weight_slots]
    row = [*np.log2(sizes), *shares, *knobs, d.accumulator_slots, d.row_split]
    return np.asarray([row], dtype=np.float32)


@derived_object
class KnobFeatures(ms.feature_extractor.PyFeatureExtractor):
    """`features` of candidates, for MetaSchedule's models.

    Parameters
    ----------
    estimator_of : callable
        The estimator of a task.
    """

    def __init__(self, estimator_of: Callable[[TuningTask], Estimator]) -> None:
        super().__init__()
        self.estimator_of = estimator_of

    def extract_from(self, context: Any, candidates: Any) -> list[Any]:
        """One tensor (1, n) for each candidate."""
        task = task_of(context.mod)
        estimator = self.estimator_of(task)
        return [
            tvm.runtime.tensor(features(task, decisions_of(c.sch.mod), estimator))
            for c in candidates
        ]


@derived_object
class CandidateModel(ms.cost_model.PyCostModel):
    """Scores candidates, larger is better: at most 1.

    Parameters
    ----------
    estimator_of : callable
        The estimator of a task.
    ranking : {"learned", "estimate", "random"}
        ``learned``: MetaSchedule's XGBoost model over `KnobFeatures` as soon as it has seen enough
        results, the estimate before, and nothing whose estimate is far above the best.
        ``estimate``: always the estimate. ``random``: for comparison.
    seed : int
        Of the random scores.
    """

    def __init__(
        self,
        estimator_of: Callable[[TuningTask], Estimator],
        ranking: Ranking = "learned",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.estimator_of, self.ranking = estimator_of, ranking
        self.rng = np.random.default_rng(seed)
        self.results = 0
        self.best: dict[TuningTask, float] = {}
        self.model = None
        if ranking == "learned":
            self.model = ms.cost_model.XGBModel(
                extractor=KnobFeatures(estimator_of),
                num_warmup_samples=1,
                num_tuning_cores=1,
                verbose_eval=0,
            )

    def load(self, path: str) -> None:
        """Nothing is kept in a file: the database has all results."""

    def save(self, path: str) -> None:
        """Nothing is kept in a file: the database has all results."""

    def update(self, context: Any, candidates: Sequence[Any], results: Sequence[Any]) -> None:
        """Learn from results; those that failed are the worst."""
        if self.model is None or not len(candidates):
            return
        self.model.update(context, candidates, results)
        self.results += len(candidates)

    def predict(self, context: Any, candidates: Sequence[Any]) -> NDArray[np.float64]:
        """Scores of candidates, float64 (n,)."""
        if self.ranking == "random":
            return self.rng.random(len(candidates))
        task = task_of(context.mod)
        estimator = self.estimator_of(task)
        estimates = np.array(
            [estimator.estimate(decisions_of(c.sch.mod)).total_cycles for c in candidates]
        )
        best = min(self.best.get(task, math.inf), float(estimates.min(initial=math.inf)))
        self.best[task] = best
        scores = best / estimates
        if self.model is None or self.results < _WARM_UP:
            return scores
        learned = self.model.predict(context, candidates)
        # A hopeless candidate stays behind all others, in the order of the estimates.
        return np.where(scores * PREFILTER >= 1, 1e-3 + np.maximum(learned, 0), 1e-3 * scores)
