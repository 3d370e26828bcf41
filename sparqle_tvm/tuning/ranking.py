"""What the search believes of candidates: a prediction first, then a model that learns from runs.

The model needs numbers for every candidate. MetaSchedule's own extractor reads loops and stores of
TIR, which our candidates show only when they are built; so `KnobFeatures` gives what decides here:
the tile, loop order, slots, and the terms of the prediction.

What is learned is what `ms.cost_model.XGBModel` learns, with its settings: boosted trees of speed
relative to the best of a task. Ours are fitted when they are asked for, and not after every batch,
by XGBoost's own loss: that of TVM, for candidates of many stores, and its early stopping are
Python functions, which took 20 ms after every batch.
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

_TREES = 60


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
    row = [*map(math.log2, sizes), *shares, *knobs, d.accumulator_slots, d.row_split]
    return np.asarray([row], dtype=np.float32)


class _Rows:
    """`features` of candidates, each made once: a population has most of them again and again."""

    def __init__(self, predictor_of: Callable[[TuningTask], Predictor]) -> None:
        self.predictor_of = predictor_of
        self.known: dict[tuple[TuningTask, Decisions], NDArray[np.float32]] = {}

    def of(self, task: TuningTask, candidates: Sequence[Any]) -> list[NDArray[np.float32]]:
        """For each candidate float32 (1, n)."""
        predictor = self.predictor_of(task)
        decided = [decisions_of(candidate.sch.mod) for candidate in candidates]
        predictor.look_at(decided)
        for decisions in decided:
            if (task, decisions) not in self.known:
                self.known[task, decisions] = features(task, decisions, predictor)
        return [self.known[task, decisions] for decisions in decided]


@derived_object
class KnobFeatures(ms.feature_extractor.PyFeatureExtractor):
    """`features` of candidates, for MetaSchedule's models; `predictor_of` gives that of a task."""

    def __init__(self, predictor_of: Callable[[TuningTask], Predictor]) -> None:
        super().__init__()
        self.rows = _Rows(predictor_of)

    def extract_from(self, context: Any, candidates: Any) -> list[Any]:
        """One tensor (1, n) for each candidate."""
        return [tvm.runtime.tensor(row) for row in self.rows.of(task_of(context.mod), candidates)]


class _Trees:
    """Boosted trees of what candidates cost: the best of a task by it, 0 to 1."""

    def __init__(self) -> None:
        self.rows: dict[TuningTask, list[NDArray[np.float32]]] = {}
        self.costs: dict[TuningTask, list[float]] = {}
        self.count = 0
        self.fitted: Any = None

    def learn(self, task: TuningTask, rows: Sequence[Any], costs: Sequence[float]) -> None:
        """Take results; infinite for those that failed."""
        self.rows.setdefault(task, []).extend(rows)
        self.costs.setdefault(task, []).extend(costs)
        self.count, self.fitted = self.count + len(costs), None

    def scores(self, rows: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
        """What candidates are worth, float64 (n,)."""
        if self.fitted is None:
            self.fitted = self._fit()
        found: NDArray[np.float64] = self.fitted.inplace_predict(np.concatenate(rows))
        return found.astype(np.float64)

    def _fit(self) -> Any:
        import xgboost  # an optional dependency

        known = np.concatenate([row for rows in self.rows.values() for row in rows])
        worth = np.concatenate([_worth(np.array(costs)) for costs in self.costs.values()])
        settings = ms.cost_model.xgb_model.XGBConfig(nthread=1).to_dict()
        # Slow ones count little, as for TVM: it does not matter how bad they are.
        data = xgboost.DMatrix(known, worth, weight=worth)
        return xgboost.train({**settings, "base_score": 0.5}, data, _TREES)


def _worth(costs: NDArray[np.float64]) -> NDArray[np.float64]:
    """The best of some costs by each, 0 where there is none."""
    worked = np.isfinite(costs)
    return np.divide(costs.min(), costs, out=np.zeros_like(costs), where=worked)


@derived_object
class CandidateModel(ms.cost_model.PyCostModel):
    """Scores candidates, larger is better: at most 1.

    Parameters
    ----------
    predictor_of : callable
        As for `KnobFeatures`.
    ranking : {"learned", "predicted", "random"}
        ``learned``: boosted trees over `features` as soon as there are enough results, the
        prediction before, and nothing whose prediction is far above the best.
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
        self.best: dict[TuningTask, float] = {}
        self.rows, self.trees = _Rows(predictor_of), _Trees()

    def load(self, path: str) -> None:
        """Nothing is kept in a file: the database has all results."""

    def save(self, path: str) -> None:
        """Nothing is kept in a file: the database has all results."""

    def update(self, context: Any, candidates: Sequence[Any], results: Sequence[Any]) -> None:
        """Learn from results; those that failed are the worst."""
        if self.ranking == "learned" and len(candidates):
            task = task_of(context.mod)
            costs = [float(r.run_secs[0]) if r.run_secs else math.inf for r in results]
            self.trees.learn(task, self.rows.of(task, candidates), costs)

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
        if self.ranking == "predicted" or self.trees.count < _WARM_UP:
            return scores
        learned = self.trees.scores(self.rows.of(task, candidates))
        # A hopeless candidate stays behind all others, in the order of the predictions.
        return np.where(scores * PREFILTER >= 1, 1e-3 + np.maximum(learned, 0), 1e-3 * scores)
