"""What TVM calls at the end of ``import tvm``, through the entry-point group ``tvm.backends``.

A module of this package may be half imported at that moment, because it is the one that imports
TVM. So this stays a leaf: nothing is imported before `register` runs, and the compiler only when
somebody asks for the pipeline.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def register() -> None:
    """Make target tags, dialect and named pipelines known to TVM. Calling it again changes nothing.

    Raises
    ------
    VersionError
        If the installed TVM is not the one this package works with. TVM turns it into a warning;
        the public names of `sparqle_tvm` raise it again.
    """
    from sparqle_tvm._versions import check_versions

    check_versions()
    from sparqle_tvm.target.accelerator import register_tags

    register_tags()
    _register_pipelines()
    from sparqle_tvm.dialect.registration import register as register_dialect

    register_dialect()
    from sparqle_tvm.host import register as register_kernels

    register_kernels()
    _register_launch()


def _register_launch() -> None:
    """Let compiled modules call the accelerator."""
    import tvm_ffi

    names = ("launch", "launch_attention", "balance_rows", "pack_weights", "weight_sums")
    for name in names:
        if tvm_ffi.get_global_func(f"sparqle.{name}", allow_missing=True) is None:
            tvm_ffi.register_global_func(f"sparqle.{name}", _at_first_call(name))


def _at_first_call(name: str) -> Callable[..., None]:
    """A function of `runtime.launch`; what that needs is loaded when it is called."""

    def call(*operands: Any) -> None:
        from sparqle_tvm.runtime import launch

        getattr(launch, name)(*operands)

    return call


def _register_pipelines() -> None:
    """Name ``relax_pipeline="sparqle"``, and ``relax.get_pipeline("sparqle_tasks")`` for tuning."""
    from tvm.relax.pipeline import PIPELINE_MAP, register_pipeline

    for name, function in (("sparqle", "pipeline"), ("sparqle_tasks", "tasks_pipeline")):
        if name not in PIPELINE_MAP:
            register_pipeline(name)(_of_api(function))


def _of_api(name: str) -> Callable[..., Any]:
    """A function of `api`; what that needs is loaded when it is called."""

    def build(**options: Any) -> Any:
        from sparqle_tvm import api

        return getattr(api, name)(**options)

    return build
