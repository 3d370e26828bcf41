"""The public way to compile and load; calibrations and tuning databases are opened here."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import tvm

from sparqle_tvm import compiler, passes
from sparqle_tvm.calibration.apply import CheckCalibration, as_calibration, select
from sparqle_tvm.calibration.budget import Budget
from sparqle_tvm.calibration.calibration import Calibration
from sparqle_tvm.compiler import Executor, Options
from sparqle_tvm.errors import InvalidArgumentError, MissingExtraError
from sparqle_tvm.host.processor import checked_host
from sparqle_tvm.numerics import EncodingChoice
from sparqle_tvm.numerics.attention import AttentionType
from sparqle_tvm.numerics.kv_cache import KvStorage
from sparqle_tvm.passes import PassReport
from sparqle_tvm.runtime.executable import Executable
from sparqle_tvm.target.accelerator import ENGINE_FEATURE, TARGET_KEY, Accelerator
from sparqle_tvm.target.cost.block_rows import Balance
from sparqle_tvm.target.cost.scheme_choice import Planes

if TYPE_CHECKING:
    from sparqle_tvm.runtime.cache import ExecutableCache
    from sparqle_tvm.tuning.database import TuningDatabase


DEFAULT_TARGET = "sparqle/edge"


class CommonOptions(TypedDict, total=False):
    """What `pipeline` and `compile` both take by keyword; nothing is required.

    Attributes
    ----------
    windows : mapping of label to window
        ``"signed"`` or ``"unsigned"`` for single encodings; see ``passes.ChooseWindow``.
    default_window : str
        The window of all others; by default what ``numerics.default_window`` takes.
    choices : mapping of label to EncodingChoice
        Factors and bands for single encodings (lossy); see ``passes.RaiseMsbSparsity``.
    calibration : Calibration or path
        Of this model; gives windows, factors and densities, those named in `windows`, `choices`
        and `densities` aside.
    budget : calibration.Budget
        What the factors may lose; by default nothing, so that there are none.
    engine : {"host", "simulator"}
        What runs the dense ops: kernels for this CPU (the default), or accelerator programs on the
        simulator; then ``Executable.profile`` tells cycles and bytes.
    attention : {"float", "int8"}
        ``int8`` computes attention in integers (lossy, see ``passes.QuantizeAttention``), ``float``
        (the default) as the module has it.
    kv : mapping of label to KvStorage
        How keys and values of single attentions are stored, see ``numerics.kv_cache``.
    default_kv : KvStorage
        The same of all others; by default plain int8.
    balance : {"array", "time", "none"}
        Where encodings sort their rows, so that few wait in the MSB pass: where encoding and array
        take fewer cycles by it (``array``, the default), or encoding and dense ops less time
        (``time``). Results do not depend on it, and kernels for this CPU do not sort.
    densities : mapping of label to float
        Share of stored MSB digits to expect of single encodings, 0 to 1: schedules are chosen for
        it. By default what the calibration expects, else what is typical.
    planes : {"cost", "always"}
        ``cost`` (the default): where planes would take more time than integers stored whole, the
        programs of an encoding's readers take dense passes, and the report says so. ``always``:
        none do. Results do not depend on it.
    database : path, TuningDatabase or ms.database.Database
        What `sparqle_tvm.tune` or MetaSchedule's ``tune_relax`` filled, or its folder: its
        schedules are used for the programs of the simulator, and ``report.tuned`` names the ops
        that have one.
    stop_after : str
        Name of the last phase that is done; by default all are.
    dump : path
        Folder for the module after each phase as TVMScript, ``01_import.py`` and so on; see
        `compiler.sequence`.
    """

    windows: Mapping[str, str] | None
    default_window: str | None
    choices: Mapping[str, EncodingChoice] | None
    calibration: Calibration | str | os.PathLike[str] | None
    budget: Budget | None
    engine: Executor
    attention: AttentionType
    kv: Mapping[str, KvStorage] | None
    default_kv: KvStorage
    balance: Balance
    densities: Mapping[str, float] | None
    planes: Planes
    database: str | os.PathLike[str] | TuningDatabase | Any | None
    stop_after: str | None
    dump: str | os.PathLike[str] | None


def pipeline(
    target: str | tvm.target.Target | Accelerator | None = None,
    *,
    lift: passes.LiftChoices | None = None,
    collect: passes.CollectEncodings | None = None,
    offload: passes.OffloadDense | None = None,
    report: passes.PassReport | None = None,
    **options: Unpack[CommonOptions],
) -> tvm.transform.Pass:
    """The whole compilation for ``relax.build(mod, "sparqle/edge", relax_pipeline=pipeline())``.

    Its phases are ``import``, ``split``, ``choose``, ``drain``, ``offload`` and ``lower``;
    `compiler.phases` lists their passes.

    Parameters
    ----------
    target : str, tvm.target.Target or Accelerator, optional
        The accelerator; by default that of the target that is built for, and ``sparqle/edge`` if
        that is a plain CPU. The attribute ``feature.engine`` of a target is the default of
        `engine`.
    lift : passes.LiftChoices, optional
        Makes functions take factors and bands as parameters.
    collect : passes.CollectEncodings, optional
        Makes functions return their bitmaps as well.
    offload : passes.OffloadDense, optional
        The pass to offload with instead, to read the programs from it afterwards; it brings its
        own schedules.
    report : passes.PassReport, optional
        Takes what was rewritten and what was skipped.
    **options
        `windows`, `choices`, `calibration`, `engine` and the others of `CommonOptions`.

    Raises
    ------
    TargetError
        If the target is not a sparqle accelerator; when applied, if it is another one than the
        target that is built for.
    InvalidArgumentError
        If the engine, the goal of the balance or the phase is unknown.
    TuningError
        If the database is damaged, or of another accelerator.
    """
    passed: dict[str, Any] = {"lift": lift, "collect": collect, "offload": offload}
    passed["report"] = report if report is not None else PassReport()

    def build(target: Any, options: CommonOptions) -> tvm.transform.Pass:
        known = options_of(target, options, **passed)
        return compiler.sequence(compiler.phases(known), known)

    current = tvm.target.Target.current(allow_none=True)
    if target is None and Accelerator.describes(current):
        target = current
    if target is not None:
        return build(target, options)
    if (calibration := options.get("calibration")) is not None:
        options["calibration"] = as_calibration(calibration)
    without: Any = {name: value for name, value in options.items() if name != "database"}
    build(DEFAULT_TARGET, without)  # what is wrong with the options is said now
    return _ForTarget(lambda target: build(target, options))


def tasks_pipeline(**options: Any) -> tvm.transform.Pass:
    """What comes before MetaSchedule's ``tune_relax``: ``relax.get_pipeline("sparqle_tasks")``.

    From a module, or one after the split phase, its dense ops as ``call_tir`` of the PrimFuncs that
    are tuned, for the accelerator that is built for.

    Parameters
    ----------
    **options
        `rows` and the others of `tuning.dense_module`.

    Raises
    ------
    MissingExtraError
        If what MetaSchedule needs is not installed; when applied, as `tuning.dense_module`.
    """
    dense_module = _tuning("metaschedule").dense_module
    return _ForTarget(lambda target: lambda mod: dense_module(mod, target, **options))


@tvm.transform.module_pass(opt_level=0, name="sparqle")
class _ForTarget:
    """The pipeline for the target that is built for, which is known when it is applied."""

    def __init__(self, build: Callable[[Any], Callable[[tvm.IRModule], tvm.IRModule]]) -> None:
        self.build = build

    def transform_module(self, mod: tvm.IRModule, _ctx: Any) -> tvm.IRModule:
        """Apply the pipeline."""
        current = tvm.target.Target.current(allow_none=True)
        if current is not None and TARGET_KEY in list(current.keys):
            return self.build(current)(mod)
        return self.build(DEFAULT_TARGET)(mod)


def compile(
    mod: tvm.IRModule,
    target: str | tvm.target.Target | Accelerator = DEFAULT_TARGET,
    *,
    host: str | tvm.target.Target | None = None,
    split: bool = True,
    collect_encodings: bool = False,
    lift_choices: bool = False,
    weights: passes.WeightSource | None = None,
    cache: ExecutableCache | None = None,
    **options: Unpack[CommonOptions],
) -> Executable | tvm.IRModule:
    """Compile a Relax module for an accelerator.

    Parameters
    ----------
    mod : tvm.IRModule
        Relax functions with quantized dense ops; it is not changed.
    target : str, tvm.target.Target or Accelerator
        The accelerator, as ``"sparqle/edge"``. The attribute ``feature.engine`` of a target is the
        default of `engine`.
    host : str or tvm.target.Target, optional
        CPU that runs everything else; by default that of the target, or this one.
    split : bool
        False leaves the split-precision passes out (the plain int8 or float model); with choices,
        it is int8 with their factors and bands, the reference for the split form.
    collect_encodings : bool
        Whether ``Executable.encodings`` holds the bitmaps after each call.
    lift_choices : bool
        Leave factors and bands open: ``Executable.choose`` sets them between calls, without
        another compilation. Encodings in `choices` keep what they have there.
    weights : WeightSource, optional
        Tensors of the parameters that functions declare to be weights, as
        ``imported.weights`` for ``imported.template`` of `sparqle_tvm.frontend.from_gguf`. They are
        prepared one after the other, and belong to the executable: its functions do not take them.
    cache : runtime.cache.ExecutableCache, optional
        Where the result is looked for first, and kept; by default nowhere. Not with a database,
        `stop_after` or `dump`.
    **options
        `windows`, `choices`, `calibration`, `engine` and the others of `CommonOptions`.

    Returns
    -------
    Executable or tvm.IRModule
        The module after the phase, if `stop_after` names one.

    Raises
    ------
    TargetError
        If the target is not a sparqle accelerator, or the host no CPU.
    InvalidArgumentError, TuningError
        As in :func:`pipeline`.
    """
    report = PassReport()
    known = options_of(
        target,
        options,
        split=split,
        lift=passes.LiftChoices(report=report) if lift_choices else None,
        collect=passes.CollectEncodings(report=report) if collect_encodings and split else None,
        weights=passes.FoldWeights(weights),
        report=report,
    )
    if host is None and isinstance(target, tvm.target.Target):
        host = target

    def make() -> Any:
        return compiler.compile(mod, known, split=split, host=host)

    if cache is None or known.dump is not None or known.stop_after is not None:
        return make()
    # Checks are of a calibration, the report is new, and passes say only whether they are there.
    passed = {"checks", "report", "lift", "collect", "weights"}
    told = {each.name: getattr(known, each.name) for each in fields(known)}
    told = {name: value for name, value in told.items() if name not in passed}
    told["weights"] = None if weights is None else weights.content
    told |= {"split": split, "lift": lift_choices, "collect": collect_encodings}
    calibration = options.get("calibration")
    checked = None if calibration is None else as_calibration(calibration)
    told |= {"host": checked_host(host), "checked": checked}
    names = (str(gv.name_hint) for gv in mod.get_global_vars() if _is_public(mod[gv]))
    title = (
        f"{', '.join(sorted(names))}: {'split' if split else 'not split'}, {known.attention} "
        f"attention, {known.engine}, for {known.accelerator.name if known.accelerator else 'none'}"
    )
    return cache.compiled(mod, told, make, title)


def _is_public(function: Any) -> bool:
    return function.attrs is not None and "global_symbol" in function.attrs


def load(path: str | os.PathLike[str]) -> Executable:
    """Load what :meth:`Executable.export` wrote.

    Loading a module runs its code: load only what you would run as a program.

    Raises
    ------
    CompileError
        If the file cannot be read, is not what was exported, bit for bit, or was exported for
        another machine.
    """
    return Executable.load(path)


def options_of(
    target: str | tvm.target.Target | Accelerator,
    options: CommonOptions,
    *,
    split: bool = True,
    **others: Any,
) -> Options:
    """What the compiler is told: windows and factors within the budget, and opened schedules."""
    accelerator, given = Accelerator.from_target(target), dict[str, Any](options)
    if isinstance(target, str) and not target.endswith(".toml"):
        target = tvm.target.Target(target)
    if isinstance(target, tvm.target.Target) and ENGINE_FEATURE in target.attrs:
        given.setdefault("engine", str(target.attrs[ENGINE_FEATURE]))
    for name in given:
        if name not in CommonOptions.__annotations__:
            raise TypeError(f"unexpected keyword argument '{name}'")
    calibration, budget, database = (
        given.pop(name, None) for name in ("calibration", "budget", "database")
    )
    if not split:
        calibration = budget = database = None
    if calibration is None and budget is not None:
        raise InvalidArgumentError("a budget needs a calibration to choose factors from")
    for name in ("windows", "choices", "densities", "kv"):
        given[name] = given.get(name) or {}
    if calibration is not None:
        calibration = as_calibration(calibration)
        selection = select(calibration, budget)
        given["windows"] = {**selection.windows, **given["windows"]}
        given["choices"] = {**selection.choices, **given["choices"]}
        given["checks"] = [CheckCalibration(calibration)]
        given["densities"] = {**selection.densities, **given["densities"]}
    schedules = open_database(database, accelerator)
    return Options(accelerator=accelerator, schedules=schedules, **given, **others)


def open_database(
    database: str | os.PathLike[str] | TuningDatabase | Any | None, accelerator: Accelerator
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
    opened: TuningDatabase = _tuning("database").TuningDatabase.open(database)
    opened.check_accelerator(accelerator)
    return opened


def _tuning(module: str) -> Any:
    """A module of `sparqle_tvm.tuning`, which needs the extra ``tune``."""
    try:
        return importlib.import_module(f"sparqle_tvm.tuning.{module}")
    except ImportError as error:
        raise MissingExtraError(
            f"tuning and its databases need {error.name}, which is not installed: "
            "pip install 'sparqle-tvm[tune]'"
        ) from error
