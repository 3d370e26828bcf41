"""The pipeline, in one place: from a quantized Relax module to an executable.

``pipeline`` is a TVM pass for ``relax.build(mod, "llvm", relax_pipeline=...)``; ``compile`` does
that build and wraps the result; ``host_pipeline`` is the same lowering without the
split-precision passes, for the models that ours is compared with.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import relax

from sparqle_tvm import dialect, passes
from sparqle_tvm.errors import CompileError, InvalidArgumentError, QuantizationError
from sparqle_tvm.target.accelerator import Accelerator

PIPELINE_NAME = "sparqle"


def split_passes(
    *,
    windows: Mapping[str, str] | None = None,
    default_window: str | None = None,
    allow_saturation: bool = False,
    report: passes.PassReport | None = None,
) -> list[tvm.transform.Pass]:
    """The passes that bring quantized dense ops into split-precision form, in their order.

    Parameters are those of :func:`pipeline`. The result still holds ``R.sparqle`` ops.
    """
    found = [
        relax.transform.CanonicalizeBindings(),
        passes.LowerQDQ(report=report),
        passes.SplitGroupedDense(report=report),
        passes.SplitPrecision(report=report),
        passes.FuseQuantize(report=report),
        passes.FoldScales(report=report),
        passes.ShareEncodings(report=report),
    ]
    if windows or default_window:
        found.append(
            passes.ChooseWindow(
                windows, default=default_window, allow_saturation=allow_saturation, report=report
            )
        )
    return found


def lowering_passes() -> list[tvm.transform.Pass]:
    """From Relax ops (ours included) to what the VM's code generator takes, for a host CPU."""
    return [
        relax.backend.DispatchSampling(),
        relax.backend.DispatchSortScan(),
        passes.LegalizeHost(),
        relax.transform.LegalizeOps(),
        passes.FoldConstants(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(),
        relax.transform.RewriteDataflowReshape(),
        relax.transform.ToNonDataflow(),
        relax.transform.RemovePurityChecking(),
        relax.transform.CallTIRRewrite(),
        relax.transform.StaticPlanBlockMemory(),
        relax.transform.LowerAllocTensor(),
        relax.transform.KillAfterLastUse(),
        relax.transform.LowerRuntimeBuiltin(),
        relax.transform.ComputePrimValue(),
        relax.transform.VMShapeLower(),
        relax.transform.AttachGlobalSymbol(),
    ]


def pipeline(
    target: str | tvm.target.Target | Accelerator = "sparqle/edge",
    *,
    windows: Mapping[str, str] | None = None,
    default_window: str | None = None,
    allow_saturation: bool = False,
    collect: passes.CollectEncodings | None = None,
    report: passes.PassReport | None = None,
) -> tvm.transform.Pass:
    """The whole compilation for ``relax.build(mod, "llvm", relax_pipeline=pipeline(...))``.

    Parameters
    ----------
    target : str, tvm.target.Target or Accelerator
        The accelerator, as ``"sparqle/edge"``.
    windows : mapping of label to window, optional
        ``"signed"`` or ``"unsigned"`` for single encodings; see ``passes.ChooseWindow``.
    default_window : str, optional
        The window of all others; by default ``signed`` where that is exact.
    allow_saturation : bool
        Whether a window may be set that saturates values (lossy).
    collect : passes.CollectEncodings, optional
        Makes functions return their bitmaps as well.
    report : passes.PassReport, optional
        Takes what was rewritten and what was skipped.

    Raises
    ------
    TargetError
        If the target is not a sparqle accelerator.
    """
    Accelerator.from_target(target)
    dialect.register()
    steps = split_passes(
        windows=windows,
        default_window=default_window,
        allow_saturation=allow_saturation,
        report=report,
    )
    if collect is not None:
        steps.append(collect)
    return tvm.transform.Sequential(steps + lowering_passes(), name=PIPELINE_NAME)


def host_pipeline() -> tvm.transform.Pass:
    """The same lowering and host kernels as :func:`pipeline`, without split precision."""
    dialect.register()
    shared = [
        relax.transform.CanonicalizeBindings(),
        relax.transform.EliminateCommonSubexpr(),
    ]
    return tvm.transform.Sequential(shared + lowering_passes(), name="sparqle_host")


def host_target() -> tvm.target.Target:
    """The CPU this process runs on, as a TVM target."""
    return tvm.target.Target({"kind": "llvm", "mcpu": tvm.target.codegen.llvm_get_system_cpu()})


@dataclass(frozen=True)
class EncodingRecord:
    """What one encoding held in the last call.

    Attributes
    ----------
    info : passes.EncodingInfo
        Label, window, and the dense ops that read it.
    pbm : np.ndarray
        (M, ceil(K/8)) uint8, the precision bitmap.
    scale : np.ndarray or None
        (M, 1) float32.
    saturated : int
        Elements that did not fit the window.
    """

    info: passes.EncodingInfo
    pbm: np.ndarray
    scale: np.ndarray | None
    saturated: int

    @property
    def label(self) -> str:
        """Name of the encoded tensor."""
        return self.info.label

    @property
    def window(self) -> str:
        """``"signed"`` or ``"unsigned"``."""
        return self.info.window

    @property
    def consumers(self) -> list[passes.DenseInfo]:
        """The dense ops that read the encoding."""
        return self.info.consumers


def _records(infos: list[passes.EncodingInfo], observed: Any) -> list[EncodingRecord]:
    """The observations of one call, in the order ``CollectEncodings`` returns them."""
    values = iter([value.numpy() for value in observed])
    records = []
    for info in infos:
        pbm = next(values)
        scale = next(values).reshape(-1, 1) if info.quantizes else None
        saturated = int(next(values)) if info.may_saturate else 0
        records.append(EncodingRecord(info, pbm.reshape(-1, pbm.shape[-1]), scale, saturated))
    return records


def _raise_if_non_finite(function: str, records: list[EncodingRecord]) -> None:
    for record in records:
        if record.scale is None or np.isfinite(record.scale).all():
            continue
        row = int(np.flatnonzero(~np.isfinite(record.scale))[0])
        raise QuantizationError(
            f"{function}: the activation of {record.label} holds NaN or Inf in row {row}; "
            "check the input and the weights before that layer"
        )


class Executable:
    """A compiled module: its functions are called by name, with NumPy arrays or TVM tensors.

    Parameters
    ----------
    executable : relax.VMExecutable or tvm.runtime.Module
        What ``relax.build`` made, or what was loaded.
    collected : mapping of function name to encodings
        What functions return beside their result.

    Attributes
    ----------
    encodings : list of EncodingRecord
        The encodings of the last call of a function that returns them.
    report : passes.PassReport
        What the passes did and skipped.
    """

    def __init__(
        self,
        executable: Any,
        *,
        collected: Mapping[str, list[passes.EncodingInfo]] | None = None,
        report: passes.PassReport | None = None,
    ) -> None:
        self._executable = executable
        self._collected = dict(collected or {})
        self._vm = relax.VirtualMachine(executable, tvm.cpu())
        self.encodings: list[EncodingRecord] = []
        self.report = report if report is not None else passes.PassReport()

    def __getitem__(self, name: str) -> Any:
        """The compiled function ``name``, as a callable."""
        try:
            function = self._vm[name]
        except (AttributeError, ValueError, RuntimeError) as error:
            raise InvalidArgumentError(f"the executable has no function {name}") from error
        infos = self._collected.get(name)

        def call(*args: Any) -> Any:
            result = function(*[_to_tensor(arg) for arg in args])
            if infos is None:
                return result
            value, observed = result
            self.encodings = _records(infos, observed)
            _raise_if_non_finite(name, self.encodings)
            return value

        return call

    def export(self, path: str | os.PathLike[str]) -> None:
        """Write a shared library that :func:`load` reads; ``path`` ends in ``.so``."""
        target = Path(path)
        if target.suffix != ".so":
            raise InvalidArgumentError(f"{target}: an exported library has to end in .so")
        try:
            with tempfile.TemporaryDirectory(dir=target.parent) as folder:
                temporary = Path(folder) / target.name
                self._executable.export_library(str(temporary))
                os.replace(temporary, target)
        except OSError as error:
            raise CompileError(f"{target} cannot be written: {error}") from error


def _to_tensor(value: Any) -> Any:
    return tvm.runtime.tensor(value) if isinstance(value, np.ndarray) else value


def compile(
    mod: tvm.IRModule,
    target: str | tvm.target.Target | Accelerator = "sparqle/edge",
    *,
    host: str | tvm.target.Target | None = None,
    split: bool = True,
    collect_encodings: bool = False,
    windows: Mapping[str, str] | None = None,
    default_window: str | None = None,
    allow_saturation: bool = False,
) -> Executable:
    """Compile a Relax module for an accelerator.

    Parameters
    ----------
    mod : tvm.IRModule
        Relax functions with quantized dense ops; it is not changed.
    target, windows, default_window, allow_saturation
        As in :func:`pipeline`.
    host : str or tvm.target.Target, optional
        CPU that runs everything else; by default this one.
    split : bool
        False leaves the split-precision passes out (the plain int8 or float model).
    collect_encodings : bool
        Whether ``Executable.encodings`` holds the bitmaps after each call.

    Raises
    ------
    TargetError
        If the target is not a sparqle accelerator, or the host no CPU.
    """
    report = passes.PassReport()
    collect = passes.CollectEncodings(report=report) if collect_encodings else None
    chosen = tvm.target.Target(host) if host is not None else host_target()
    if split:
        steps = pipeline(
            target,
            windows=windows,
            default_window=default_window,
            allow_saturation=allow_saturation,
            collect=collect,
            report=report,
        )
    else:
        Accelerator.from_target(target)
        steps = host_pipeline()
    executable = relax.build(mod, chosen, relax_pipeline=steps)
    return Executable(
        executable, collected=collect.collected if collect is not None else None, report=report
    )


def load(path: str | os.PathLike[str]) -> Executable:
    """Load what :meth:`Executable.export` wrote.

    Raises
    ------
    CompileError
        If the file is missing or no library of a Relax executable.
    """
    dialect.register()
    if not Path(path).is_file():
        raise CompileError(f"{path}: no such file")
    try:
        return Executable(tvm.runtime.load_module(str(path)))
    except (RuntimeError, OSError, AttributeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise CompileError(f"{path} is no exported executable: {reason}") from error
