"""Tuning schedules of dense ops with TVM's MetaSchedule, on the simulator or by formula.

Needs the extra ``tune`` (psutil, cloudpickle, xgboost).
"""

from sparqle_tvm.tuning.database import Entry, Settings, TuningDatabase
from sparqle_tvm.tuning.extract import extract_tasks, tasks_of_group
from sparqle_tvm.tuning.measure import (
    ActivationData,
    Measurement,
    Meter,
    Objective,
    RecordedMeter,
)
from sparqle_tvm.tuning.metaschedule import (
    builder,
    cost_model,
    dense_module,
    feature_extractor,
    objects,
    runner,
    search_strategy,
    space_generator,
)
from sparqle_tvm.tuning.predict import Prediction, Predictor
from sparqle_tvm.tuning.result import TaskResult, Trial, TuningResult
from sparqle_tvm.tuning.space import KNOBS, Space, default_of, make_space
from sparqle_tvm.tuning.task import TuningTask
from sparqle_tvm.tuning.tune_module import tune
from sparqle_tvm.tuning.tuner import Tuner

__all__ = [
    "KNOBS",
    "ActivationData",
    "Entry",
    "Measurement",
    "Meter",
    "Objective",
    "Prediction",
    "Predictor",
    "RecordedMeter",
    "Settings",
    "Space",
    "TaskResult",
    "Trial",
    "Tuner",
    "TuningDatabase",
    "TuningResult",
    "TuningTask",
    "builder",
    "cost_model",
    "default_of",
    "dense_module",
    "extract_tasks",
    "feature_extractor",
    "make_space",
    "objects",
    "runner",
    "search_strategy",
    "space_generator",
    "tasks_of_group",
    "tune",
]
