"""Many estimates at once: a grid or a list of points, on all cores or on a Dask cluster.

``space`` says which points, ``journal`` keeps what is done so that a killed sweep goes on where it
was, ``execute`` runs them, ``table`` writes CSV and JSON.
"""

from __future__ import annotations

from sparqle_tvm.studies.sweep.execute import evaluate_point, run_sweep
from sparqle_tvm.studies.sweep.space import Space, parse_axis, read_space
from sparqle_tvm.studies.sweep.table import SweepResult

__all__ = ["Space", "SweepResult", "evaluate_point", "parse_axis", "read_space", "run_sweep"]
