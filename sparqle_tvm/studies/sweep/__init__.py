"""Many estimates at once: a grid or a list of points, on all cores or on a Dask cluster.

``points`` says which, ``checkpoint`` keeps what is done so that a killed sweep goes on,
``execute`` runs them, ``table`` writes CSV and JSON. ``pivot`` arranges one of the ``figures`` in
rows and columns, and ``crossing`` finds where it reaches a level.
"""

from __future__ import annotations

from sparqle_tvm.studies.sweep.as_json import (
    KIND,
    KIND_OF_CROSSINGS,
    crossings_json,
    read_crossings,
    read_result,
    sweep_json,
)
from sparqle_tvm.studies.sweep.crossing import Scan, find_crossings, parse_find, parse_over
from sparqle_tvm.studies.sweep.execute import evaluate_point, run_sweep
from sparqle_tvm.studies.sweep.figures import quantity
from sparqle_tvm.studies.sweep.pivot import pivot, require_axes
from sparqle_tvm.studies.sweep.points import Sweep, parse_axis, read_sweep
from sparqle_tvm.studies.sweep.table import SweepResult

__all__ = [
    "KIND",
    "KIND_OF_CROSSINGS",
    "Scan",
    "Sweep",
    "SweepResult",
    "crossings_json",
    "evaluate_point",
    "find_crossings",
    "parse_axis",
    "parse_find",
    "parse_over",
    "pivot",
    "quantity",
    "read_crossings",
    "read_result",
    "read_sweep",
    "require_axes",
    "run_sweep",
    "sweep_json",
]
