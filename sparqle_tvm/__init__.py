"""Split-precision (sub-precision sparsity) for quantized language models, on Apache TVM.

``pipeline`` is a TVM pass for ``relax.build``, ``compile`` and ``load`` give an executable, and
``host_pipeline`` is the same lowering without the split. ``frontend`` imports models, ``numerics``
defines the format in NumPy, ``passes`` and ``target`` hold the parts, ``errors`` what is raised.

The public names are loaded on first use, because importing TVM takes seconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sparqle_tvm._versions import VERSION as __version__

if TYPE_CHECKING:
    from sparqle_tvm import calibration, errors, frontend, numerics, passes, target
    from sparqle_tvm.api import compile, load, pipeline
    from sparqle_tvm.calibration import Calibration
    from sparqle_tvm.compiler import host_pipeline
    from sparqle_tvm.studies.analyze import analyze
    from sparqle_tvm.studies.calibrate import calibrate
    from sparqle_tvm.studies.estimate import estimate
    from sparqle_tvm.tuning import tune

__all__ = [
    "Calibration",
    "__version__",
    "analyze",
    "calibrate",
    "calibration",
    "compile",
    "errors",
    "estimate",
    "frontend",
    "host_pipeline",
    "load",
    "numerics",
    "passes",
    "pipeline",
    "target",
    "tune",
]

# Public name -> module that it is taken from.
_HOMES = {
    "Calibration": "calibration",
    "analyze": "studies.analyze",
    "calibrate": "studies.calibrate",
    "compile": "api",
    "estimate": "studies.estimate",
    "host_pipeline": "compiler",
    "load": "api",
    "pipeline": "api",
    "tune": "tuning",
}
_WITHOUT_TVM = ("errors", "estimate", "numerics", "target")
_WITH_TVM = ("calibration", "frontend", "passes")


def __getattr__(name: str) -> Any:
    """Load a public name (PEP 562); VersionError if it needs TVM and that is of a wrong version."""
    if name not in (*_HOMES, *_WITHOUT_TVM, *_WITH_TVM):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name not in _WITHOUT_TVM:
        from sparqle_tvm._versions import check_versions

        check_versions()
    if name in _HOMES:
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    else:
        value = importlib.import_module(f"{__name__}.{name}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """All public names, loaded or not."""
    return sorted({*globals(), *__all__})
