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
    from sparqle_tvm.calibration import Calibration
    from sparqle_tvm.compiler import compile, host_pipeline, load, pipeline
    from sparqle_tvm.studies.calibrate import calibrate
    from sparqle_tvm.tuning import tune

__all__ = [
    "Calibration",
    "__version__",
    "calibrate",
    "calibration",
    "compile",
    "errors",
    "frontend",
    "host_pipeline",
    "load",
    "numerics",
    "passes",
    "pipeline",
    "target",
    "tune",
]

_FROM_COMPILER = ("compile", "host_pipeline", "load", "pipeline")
_FROM_TUNING = ("tune",)
_FROM_CALIBRATION = ("Calibration",)
_FROM_STUDIES = ("calibrate",)
_WITHOUT_TVM = ("errors", "numerics", "target")
_WITH_TVM = ("calibration", "frontend", "passes")


def __getattr__(name: str) -> Any:
    """Load a public name (PEP 562); VersionError if it needs TVM and that is of a wrong version."""
    known = (
        _FROM_COMPILER + _FROM_CALIBRATION + _FROM_STUDIES + _FROM_TUNING + _WITHOUT_TVM + _WITH_TVM
    )
    if name not in known:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name not in _WITHOUT_TVM:
        from sparqle_tvm._versions import check_versions

        check_versions()
    if name in _FROM_TUNING:
        value = getattr(importlib.import_module(f"{__name__}.tuning"), name)
    elif name in _FROM_STUDIES:
        value = getattr(importlib.import_module(f"{__name__}.studies.calibrate"), name)
    elif name in _FROM_COMPILER:
        value = getattr(importlib.import_module(f"{__name__}.compiler"), name)
    elif name in _FROM_CALIBRATION:
        value = getattr(importlib.import_module(f"{__name__}.calibration"), name)
    else:
        value = importlib.import_module(f"{__name__}.{name}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """All public names, loaded or not."""
    return sorted({*globals(), *__all__})
