"""What the search believes of candidates: a prediction first, then a model that learns from runs.

MetaSchedule's XGBoost model needs numbers for every candidate. Its own extractor reads loops and
stores of TIR, which our candidates show only when they are built; so `KnobFeatures` gives it what
decides here: the tile, loop order, slots, and the terms of the prediction.
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

from sparqle_tvm.target.cost.schedule import Decisions
from sparqle_tvm.tuning.predict import Predictor
from sparqle_tvm.tuning.space import decisions_of
from sparqle_tvm.tuning.task import TuningTask, task_of

Ranking = Literal["learned", "predicted", "random"]

PREFILTER = 1.3
"""Candidates whose prediction is above this times the best one are not worth a simulation."""

# Below that many results a learned model knows less than the prediction.
_WARM_UP = 24


def features(task: TuningTask, decisions: Decisions, predictor: Predictor) -> NDArray[np.float32]:
    """What the model sees of a candidate: float32 (1, n), logarithms where sizes count."""
    prediction, d = predictor.predict(decisions), decisions
    extents = (task.rows, task.spec.n, task.spec.k)
    tiles = task.tile_counts(d.tile)
    bound = predictor.lower_bound_cycles()
    sizes = [
        *d.tile,
        *tiles,
        *(e / (t * c) for e, t, c in zip(extents, d.tile, tiles, strict=True)),
        prediction.total_cycles / bound,
        prediction.dma_cycles / bound,
        prediction.mma_cycles / bound,
    ]
    shares = [prediction.waiting_cycles / bound, prediction.tail_cycles / bound]
    knobs = [d.rows_outer, d.keep_outer, d.activation_slots, d.weight_slots]
    row = [*np.log2(sizes), *shares, *knobs, d.accumulator_slots, d.row_split]
    return np.asarray([row], dtype=np.float32)


@derived_object
class KnobFeatures(ms.feature_extractor.PyFeatureExtractor):
    """`features` of candidates, for MetaSchedule's models; `predictor_of` gives that of a task."""

    def __init__(self, predictor_of: Callable[[TuningTask], Predictor]) -> None:
        super().__init__()
        self.predictor_of = predictor_of
        # A population has most of its candidates again and again.
        self.known: dict[tuple[TuningTask, Decisions], Any] = {}

    def extract_from(self, context: Any, candidates: Any) -> list[Any]:
        """One tensor (1, n) for each candidate."""
        task = task_of(context.mod)
        predictor = self.predictor_of(task)
        decided = [decisions_of(candidate.sch.mod) for candidate in candidates]
        predictor.look_at(decided)
        for decisions in decided:
            if (task, decisions) not in self.known:
                row = features(task, decisions, predictor)
                self.known[task, decisions] = tvm.runtime.tensor(row)
        return [self.known[task, decisions] for decisions in decided]


@derived_object
class CandidateModel(ms.cost_model.PyCostModel):
    """Scores candidates, larger is better: at most 1.

    Parameters
    ----------
    predictor_of : callable
        As for `KnobFeatures`.
    ranking : {"learned", "predicted", "random"}
        ``learned``: MetaSchedule's XGBoost model over `KnobFeatures` as soon as it has seen enough
        results, the prediction before, and nothing whose prediction is far above the best.
        ``predicted``: always the prediction. ``random``: for comparison.
    seed : int
        Of the random scores.
    """

    def __init__(
        self,
        predictor_of: Callable[[TuningTask], Predictor],
        ranking: Ranking = "learned",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.predictor_of, self.ranking = predictor_of, ranking
        self.rng = np.random.default_rng(seed)
        self.results = 0
        self.best: dict[TuningTask, float] = {}
        self.model = None
        if ranking == "learned":
            self.model = ms.cost_model.XGBModel(
                extractor=KnobFeatures(predictor_of),
                num_warmup_samples=1,
                early_stopping_rounds=10,
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
        predictor = self.predictor_of(task)
        decided = [decisions_of(c.sch.mod) for c in candidates]
        predictor.look_at(decided)
        predictions = np.array([predictor.cycles(decisions) for decisions in decided])
        best = min(self.best.get(task, math.inf), float(predictions.min(initial=math.inf)))
        self.best[task] = best
        scores = best / predictions
        if self.model is None or self.results < _WARM_UP:
            return scores
        learned = self.model.predict(context, candidates)
        # A hopeless candidate stays behind all others, in the order of the predictions.
        return np.where(scores * PREFILTER >= 1, 1e-3 + np.maximum(learned, 0), 1e-3 * scores)
