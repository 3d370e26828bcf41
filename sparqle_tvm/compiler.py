"""The passes in their phases: from a quantized Relax module to an executable.

Everything comes as plain data here: windows and choices as mappings, schedules as an object that
knows them. `sparqle_tvm.api` reads calibrations and tuning databases and calls this.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import tvm
from tvm import relax

from sparqle_tvm import dialect, passes
from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.files import replacing
from sparqle_tvm.host.processor import host_target
from sparqle_tvm.numerics import EncodingChoice
from sparqle_tvm.runtime.executable import Executable
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.compile.library import Schedules
from sparqle_tvm.target.cost.block_rows import BALANCES, Balance

# What runs the dense ops: kernels for this CPU, or accelerator programs on the simulator.
Executor = Literal["host", "simulator"]
Phases = Mapping[str, Sequence[tvm.transform.Pass]]
# The phases that end in split-precision form: the module holds R.sparqle ops.
SPLIT = ("import", "split", "choose")


@dataclass(frozen=True)
class Options:
    """What a compilation is told. Attributes that are not named here: `sparqle_tvm.pipeline`.

    Attributes
    ----------
    accelerator : Accelerator, optional
        What the engine ``simulator`` simulates.
    checks : sequence of tvm.transform.Pass
        Passes that refuse a module in split-precision form that the options do not suit.
    lift : passes.LiftChoices, optional
        Makes functions take factors and bands as parameters.
    collect : passes.CollectEncodings, optional
        Makes functions return their bitmaps as well.
    schedules : Schedules, optional
        Schedules that programs are generated with, where they have one.
    offload : passes.OffloadDense, optional
        The pass to offload with instead; it brings its own schedules.
    report : passes.PassReport
        Takes what was rewritten and what was skipped.

    Raises
    ------
    InvalidArgumentError
        If the engine or the goal of the balance is unknown, or the simulator has no accelerator.
    """

    accelerator: Accelerator | None = None
    windows: Mapping[str, str] = field(default_factory=dict)
    default_window: str | None = None
    allow_saturation: bool = False
    choices: Mapping[str, EncodingChoice] = field(default_factory=dict)
    checks: Sequence[tvm.transform.Pass] = ()
    engine: Executor = "host"
    balance: Balance = "array"
    lift: passes.LiftChoices | None = None
    collect: passes.CollectEncodings | None = None
    schedules: Schedules | None = None
    offload: passes.OffloadDense | None = None
    report: passes.PassReport = field(default_factory=passes.PassReport)

    def choose_window(self) -> passes.ChooseWindow:
        """The pass that sets the windows."""
        return passes.ChooseWindow(
            self.windows,
            default=self.default_window,
            allow_saturation=self.allow_saturation,
            report=self.report,
        )

    def balance_rows(self) -> passes.BalanceRows:
        """The pass that lets encodings sort their rows."""
        assert self.accelerator is not None
        return passes.BalanceRows(self.accelerator, self.balance, report=self.report)

    def offload_dense(self) -> passes.OffloadDense:
        """The pass that generates the programs."""
        if self.offload is not None:
            return self.offload
        assert self.accelerator is not None
        return passes.OffloadDense(self.accelerator, tuned=self.schedules, report=self.report)

    def __post_init__(self) -> None:
        """Check the words."""
        if self.engine not in get_args(Executor):
            raise InvalidArgumentError(f'engine "{self.engine}" is neither "host" nor "simulator"')
        if self.balance not in BALANCES:
            known = ", ".join(BALANCES)
            raise InvalidArgumentError(f'balance "{self.balance}" is not one of {known}')
        if self.engine == "simulator" and self.accelerator is None:
            raise InvalidArgumentError("the simulator needs an accelerator")


def phases(options: Options) -> Phases:
    """The passes of each phase, in their order: the table of contents of a compilation."""
    given, report = options, options.report
    return {
        # Bring the forms of other frameworks into integer ops.
        "import": [
            relax.transform.CanonicalizeBindings(),
            passes.LowerQDQ(report=report),
        ],
        # From integer ops to R.sparqle ops, which encode and multiply planes.
        "split": [
            passes.SplitGroupedDense(report=report),
            passes.SplitPrecision(report=report),
            passes.FuseQuantize(report=report),
            passes.FoldScales(report=report),
            passes.ShareEncodings(report=report),
        ],
        # Windows and factors of encodings, and what functions take and return besides.
        "choose": [
            *given.checks,
            *([given.choose_window()] if given.windows or given.default_window else []),
            *([passes.RaiseMsbSparsity(given.choices, report=report)] if given.choices else []),
            *([given.lift] if given.lift is not None else []),
            *([given.collect] if given.collect is not None else []),
        ],
        # Dense ops that write their outputs encoded.
        "drain": [passes.DrainEncoded(report=report)],
        # Dense ops that become calls of accelerator programs.
        "offload": [] if given.engine == "host" else [given.balance_rows(), given.offload_dense()],
        # All that is left, for a host CPU.
        "lower": lowering_passes(),
    }


def reference_phases(options: Options) -> Phases:
    """The plain int8 form of what :func:`phases` compute, factors and bands included.

    Quantization and dense ops are plain Relax ops on integers, without planes and without the
    kernels for them: the reference that the split form equals bit for bit.
    """
    split = phases(options)
    return {
        **{name: split[name] for name in SPLIT},
        "merge": [passes.MergePrecision(report=options.report)],
        "lower": split["lower"],
    }


def host_phases() -> Phases:
    """The same lowering and host kernels as in :func:`phases`, without split precision."""
    shared = [relax.transform.CanonicalizeBindings(), relax.transform.EliminateCommonSubexpr()]
    return {"import": shared, "lower": lowering_passes()}


def split_passes(**options: Any) -> list[tvm.transform.Pass]:
    """The passes of the phases up to the `SPLIT` form; keywords are attributes of `Options`."""
    found = phases(Options(**options))
    return [each for name in SPLIT for each in found[name]]


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


def sequence(
    phases: Phases,
    *,
    name: str = "sparqle",
    stop_after: str | None = None,
    dump: str | os.PathLike[str] | None = None,
) -> tvm.transform.Pass:
    """One pass that does the passes of the phases.

    Parameters
    ----------
    phases : mapping of name to passes
        In their order.
    name : str
        Name of the pass.
    stop_after : str, optional
        Name of the last phase that is done; by default all are.
    dump : path, optional
        Folder for the module after each phase as TVMScript: ``01_import.py``, ``02_split.py`` and
        so on. It is made if it is missing; files of an earlier compilation are replaced, and those
        of later phases go. Tensors are printed as ``metadata[..]``, without their values: only a
        module without constants besides scalars can be read back from the text.

    Raises
    ------
    InvalidArgumentError
        If no phase has the name; when applied, if the folder cannot be written.
    """
    if stop_after is not None and stop_after not in phases:
        known = ", ".join(phases)
        raise InvalidArgumentError(f'stop_after "{stop_after}" is no phase; known: {known}')
    dialect.register()
    files = [f"{number:02}_{phase}.py" for number, phase in enumerate(phases, start=1)]
    steps: list[tvm.transform.Pass] = []
    for done, (phase, found) in enumerate(phases.items()):
        steps += found
        if dump is not None:
            steps.append(_Dump(Path(dump), files[done], files[done + 1 :]))
        if phase == stop_after:
            break
    return tvm.transform.Sequential(steps, name=name)


@tvm.transform.module_pass(opt_level=0, name="Dump")
class _Dump:
    """Write the module to a file of a folder, and remove files of another compilation."""

    def __init__(self, folder: Path, file: str, stale: Sequence[str]) -> None:
        self.folder = folder
        self.file = file
        self.stale = stale

    def transform_module(self, mod: tvm.IRModule, _ctx: Any) -> tvm.IRModule:
        """Write, and return ``mod`` itself."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in self.stale:
                (self.folder / name).unlink(missing_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise InvalidArgumentError(f"{self.folder} cannot be written: {reason}") from error
        with replacing(self.folder / self.file) as temporary:
            temporary.write_text(mod.script(show_meta=False) + "\n", encoding="utf-8")
        return mod


def host_pipeline() -> tvm.transform.Pass:
    """The same lowering and host kernels as `pipeline`, without split precision."""
    return sequence(host_phases(), name="sparqle_host")


def compile(
    mod: tvm.IRModule,
    options: Options,
    *,
    split: bool = True,
    host: str | tvm.target.Target | None = None,
    stop_after: str | None = None,
    dump: str | os.PathLike[str] | None = None,
) -> Executable | tvm.IRModule:
    """Compile a Relax module; see `sparqle_tvm.compile`."""
    if split:
        found = phases(options)
    elif options.choices or options.lift is not None:
        found = reference_phases(options)
    else:
        found = host_phases()
    steps = sequence(found, stop_after=stop_after, dump=dump)
    chosen = tvm.target.Target(host) if host is not None else host_target()
    if stop_after is not None:
        with chosen:
            return steps(mod)
    return Executable(
        relax.build(mod, chosen, relax_pipeline=steps),
        collected=options.collect.collected if options.collect is not None else None,
        lifted=options.lift.lifted if options.lift is not None else None,
        report=options.report,
    )
