"""Many estimates at once: a grid or a list of points, on all cores or on a Dask cluster.

``points`` says which, ``checkpoint`` keeps what is done so that a killed sweep goes on,
``execute`` runs them, ``table`` writes CSV and JSON.
"""

from __future__ import annotations

from sparqle_tvm.studies.sweep.execute import evaluate_point, run_sweep
from sparqle_tvm.studies.sweep.points import Sweep, parse_axis, read_sweep
from sparqle_tvm.studies.sweep.table import SweepResult

__all__ = ["Sweep", "SweepResult", "evaluate_point", "parse_axis", "read_sweep", "run_sweep"]
