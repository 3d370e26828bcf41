"""The pipeline, in one place: from a quantized Relax module to an executable.

``pipeline`` is a TVM pass for ``relax.build(mod, "llvm", relax_pipeline=...)``; ``compile`` does
that build and wraps the result; ``host_pipeline`` is the same lowering without the
split-precision passes, for the models that ours is compared with.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import tvm
from tvm import relax

from sparqle_tvm import dialect, passes
from sparqle_tvm.errors import CompileError, InvalidArgumentError, MissingExtraError
from sparqle_tvm.host.processor import host_target
from sparqle_tvm.numerics import EncodingChoice
from sparqle_tvm.runtime.executable import EncodingRecord, Executable
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.cost.block_rows import BALANCES, Balance

if TYPE_CHECKING:
    from sparqle_tvm.calibration import Budget, Calibration
    from sparqle_tvm.tuning.database import TuningDatabase

__all__ = [
    "EncodingRecord",
    "Engine",
    "Executable",
    "compile",
    "host_pipeline",
    "host_target",
    "load",
    "lowering_passes",
    "open_database",
    "pipeline",
    "reference_pipeline",
    "split_passes",
]

PIPELINE_NAME = "sparqle"
Engine = Literal["host", "simulator"]


def split_passes(
    *,
    windows: Mapping[str, str] | None = None,
    default_window: str | None = None,
    allow_saturation: bool = False,
    choices: Mapping[str, EncodingChoice] | None = None,
    calibration: Calibration | None = None,
    report: passes.PassReport | None = None,
) -> list[tvm.transform.Pass]:
    """The passes that bring quantized dense ops into split-precision form, in their order.

    Parameters are those of :func:`pipeline`, but that a calibration is only held to the module
    here: windows and choices are given. The result still holds ``R.sparqle`` ops.
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
    if calibration is not None:
        from sparqle_tvm.calibration.apply import CheckCalibration

        found.append(CheckCalibration(calibration))
    if windows or default_window:
        found.append(
            passes.ChooseWindow(
                windows, default=default_window, allow_saturation=allow_saturation, report=report
            )
        )
    if choices:
        found.append(passes.RaiseMsbSparsity(choices, report=report))
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
    choices: Mapping[str, EncodingChoice] | None = None,
    calibration: Calibration | str | os.PathLike[str] | None = None,
    budget: Budget | None = None,
    engine: Engine = "host",
    balance: Balance = "array",
    lift: passes.LiftChoices | None = None,
    database: str | os.PathLike[str] | TuningDatabase | None = None,
    collect: passes.CollectEncodings | None = None,
    offload: passes.OffloadDense | None = None,
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
    choices : mapping of label to EncodingChoice, optional
        Factors and bands for single encodings (lossy); see ``passes.RaiseMsbSparsity``.
    calibration : Calibration or path, optional
        Of this model; gives windows and factors, those named in `windows` and `choices` aside.
    budget : calibration.Budget, optional
        What the factors may lose; by default nothing, so that there are none.
    engine : {"host", "simulator"}
        What runs the dense ops: kernels for this CPU, or accelerator programs on the simulator.
    balance : {"array", "time", "none"}
        Where encodings sort their rows, so that few wait in the MSB pass: where encoding and array
        take fewer cycles by it (``array``), or encoding and dense ops less time (``time``). Results
        do not depend on it, and kernels for this CPU do not sort.
    lift : passes.LiftChoices, optional
        Makes functions take factors and bands as parameters.
    database : path or TuningDatabase, optional
        Folder that `sparqle_tvm.tune` filled: its schedules are used for the programs of the
        simulator, and ``report.tuned`` names the ops that have one.
    collect : passes.CollectEncodings, optional
        Makes functions return their bitmaps as well.
    offload : passes.OffloadDense, optional
        The pass to offload with instead, to read the programs from it afterwards; it brings its
        own schedules.
    report : passes.PassReport, optional
        Takes what was rewritten and what was skipped.

    Raises
    ------
    TargetError
        If the target is not a sparqle accelerator.
    InvalidArgumentError
        If the engine or the goal of the balance is unknown.
    TuningError
        If the database is damaged, or of another accelerator.
    """
    accelerator = Accelerator.from_target(target)
    tuned = open_database(database, accelerator)
    if engine not in get_args(Engine):
        raise InvalidArgumentError(f'engine "{engine}" is neither "host" nor "simulator"')
    if balance not in BALANCES:
        raise InvalidArgumentError(f'balance "{balance}" is not one of {", ".join(BALANCES)}')
    dialect.register()
    known: Calibration | None = None
    if calibration is not None:
        from sparqle_tvm.calibration.apply import as_calibration, select

        known = as_calibration(calibration)
        selection = select(known, budget)
        windows = {**selection.windows, **(windows or {})}
        choices = {**selection.choices, **(choices or {})}
    elif budget is not None:
        raise InvalidArgumentError("a budget needs a calibration to choose factors from")
    steps = split_passes(
        windows=windows,
        default_window=default_window,
        allow_saturation=allow_saturation,
        choices=choices,
        calibration=known,
        report=report,
    )
    if lift is not None:
        steps.append(lift)
    if collect is not None:
        steps.append(collect)
    steps.append(passes.DrainEncoded(report=report))
    if engine == "simulator":
        steps.append(passes.BalanceRows(accelerator, balance, report=report))
        steps.append(offload or passes.OffloadDense(accelerator, tuned=tuned, report=report))
    return tvm.transform.Sequential(steps + lowering_passes(), name=PIPELINE_NAME)


def open_database(
    database: str | os.PathLike[str] | TuningDatabase | None, accelerator: Accelerator
) -> TuningDatabase | None:
    """Open a tuning database for an accelerator; None stays None.

    Raises
    ------
    TuningError
        If it is missing, damaged, or of another accelerator.
    MissingExtraError
        If what MetaSchedule needs is not installed.
    """
    if database is None:
        return None
    try:
        from sparqle_tvm.tuning.database import TuningDatabase
    except ImportError as error:
        raise MissingExtraError(
            f"a tuning database needs {error.name}, which is not installed: "
            "pip install 'sparqle-tvm[tune]'"
        ) from error
    opened = TuningDatabase.open(database)
    opened.check_accelerator(accelerator)
    return opened


def reference_pipeline(
    *,
    windows: Mapping[str, str] | None = None,
    default_window: str | None = None,
    allow_saturation: bool = False,
    choices: Mapping[str, EncodingChoice] | None = None,
    lift: passes.LiftChoices | None = None,
    report: passes.PassReport | None = None,
) -> tvm.transform.Pass:
    """The plain int8 form of what :func:`pipeline` computes, factors and bands included.

    Quantization and dense ops are plain Relax ops on integers, without planes and without the
    kernels for them: the reference that the split form equals bit for bit. Parameters are those
    of :func:`pipeline`.
    """
    dialect.register()
    steps = split_passes(
        windows=windows,
        default_window=default_window,
        allow_saturation=allow_saturation,
        choices=choices,
        report=report,
    )
    if lift is not None:
        steps.append(lift)
    steps.append(passes.MergePrecision(report=report))
    return tvm.transform.Sequential(steps + lowering_passes(), name="sparqle_reference")


def host_pipeline() -> tvm.transform.Pass:
    """The same lowering and host kernels as :func:`pipeline`, without split precision."""
    dialect.register()
    shared = [
        relax.transform.CanonicalizeBindings(),
        relax.transform.EliminateCommonSubexpr(),
    ]
    return tvm.transform.Sequential(shared + lowering_passes(), name="sparqle_host")


def compile(
    mod: tvm.IRModule,
    target: str | tvm.target.Target | Accelerator = "sparqle/edge",
    *,
    host: str | tvm.target.Target | None = None,
    split: bool = True,
    engine: Engine = "host",
    balance: Balance = "array",
    collect_encodings: bool = False,
    windows: Mapping[str, str] | None = None,
    default_window: str | None = None,
    allow_saturation: bool = False,
    choices: Mapping[str, EncodingChoice] | None = None,
    lift_choices: bool = False,
    calibration: Calibration | str | os.PathLike[str] | None = None,
    budget: Budget | None = None,
    database: str | os.PathLike[str] | TuningDatabase | None = None,
) -> Executable:
    """Compile a Relax module for an accelerator.

    Parameters
    ----------
    mod : tvm.IRModule
        Relax functions with quantized dense ops; it is not changed.
    target, windows, default_window, allow_saturation, choices, calibration, budget, database
        As in :func:`pipeline`.
    host : str or tvm.target.Target, optional
        CPU that runs everything else; by default this one.
    split : bool
        False leaves the split-precision passes out (the plain int8 or float model); with choices,
        it is int8 with their factors and bands, the reference for the split form.
    engine : {"host", "simulator"}
        As in :func:`pipeline`; with ``simulator``, ``Executable.profile`` tells cycles and bytes.
    balance : {"array", "time", "none"}
        As in :func:`pipeline`.
    collect_encodings : bool
        Whether ``Executable.encodings`` holds the bitmaps after each call.
    lift_choices : bool
        Leave factors and bands open: ``Executable.choose`` sets them between calls, without
        another compilation. Encodings in `choices` keep what they have there.

    Raises
    ------
    TargetError
        If the target is not a sparqle accelerator, or the host no CPU.
    TuningError
        If the database is damaged, or of another accelerator.
    """
    report = passes.PassReport()
    collect = passes.CollectEncodings(report=report) if collect_encodings else None
    lift = passes.LiftChoices(report=report) if lift_choices else None
    chosen = tvm.target.Target(host) if host is not None else host_target()
    if split:
        steps = pipeline(
            target,
            windows=windows,
            default_window=default_window,
            allow_saturation=allow_saturation,
            choices=choices,
            calibration=calibration,
            budget=budget,
            engine=engine,
            balance=balance,
            lift=lift,
            database=database,
            collect=collect,
            report=report,
        )
    elif choices or lift is not None:
        Accelerator.from_target(target)
        steps = reference_pipeline(
            windows=windows,
            default_window=default_window,
            allow_saturation=allow_saturation,
            choices=choices,
            lift=lift,
            report=report,
        )
    else:
        Accelerator.from_target(target)
        steps = host_pipeline()
    executable = relax.build(mod, chosen, relax_pipeline=steps)
    return Executable(
        executable,
        collected=collect.collected if collect is not None else None,
        lifted=lift.lifted if lift is not None else None,
        report=report,
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
