"""The passes in their phases: from a quantized Relax module to an executable.

Everything comes as plain data here: windows and choices as mappings, schedules as an object that
knows them. `sparqle_tvm.api` reads calibrations and tuning databases and calls this.
"""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import tvm
from tvm import relax

from sparqle_tvm import dialect, passes
from sparqle_tvm.errors import InvalidArgumentError, TargetError, require_known
from sparqle_tvm.files import write_text
from sparqle_tvm.host.processor import checked_host, require_cpu
from sparqle_tvm.numerics import EncodingChoice
from sparqle_tvm.numerics.attention import AttentionType
from sparqle_tvm.numerics.kv_cache import PLAIN_INT8, KvStorage
from sparqle_tvm.runtime.executable import Executable
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.compile.library import Schedules
from sparqle_tvm.target.cost.block_rows import BALANCES, Balance
from sparqle_tvm.target.cost.scheme_choice import PLANES, Planes

# What runs the dense ops: kernels for this CPU, or accelerator programs on the simulator.
Executor = Literal["host", "simulator"]
Phases = Mapping[str, Sequence[tvm.transform.Pass]]
# The phases that end in split-precision form: the module holds R.sparqle ops.
SPLIT = ("import", "split", "choose")
DUMPED_FILE = re.compile(r"\d\d_(import|split|choose|drain|offload|lower|merge)\.py")


@dataclass(frozen=True)
class Options:
    """What a compilation is told. Attributes that are not named here: `api.CommonOptions`.

    Attributes
    ----------
    accelerator : Accelerator, optional
        What the engine ``simulator`` simulates.
    checks : sequence of tvm.transform.Pass
        Passes that refuse a module in split-precision form that the options do not suit.
    weights : FoldWeights
        Has the tensors of weights that functions take as parameters, and gets the prepared ones.
    lift, collect, offload, report
        Passes to use, and their report, as of `sparqle_tvm.pipeline`.
    schedules : Schedules, optional
        Schedules that programs are generated with, where they have one.
    densities : mapping of str to float
        Share of stored MSB digits of encodings by label, where it is known: what schedules of
        programs are chosen for, and what is left dense. Others are typical (`cost.expected`).

    Raises
    ------
    InvalidArgumentError
        If engine, attention, planes or the goal of the balance is unknown, or the simulator has no
        accelerator.
    """

    accelerator: Accelerator | None = None
    windows: Mapping[str, str] = field(default_factory=dict)
    default_window: str | None = None
    choices: Mapping[str, EncodingChoice] = field(default_factory=dict)
    checks: Sequence[tvm.transform.Pass] = ()
    engine: Executor = "host"
    attention: AttentionType = "float"
    kv: Mapping[str, KvStorage] = field(default_factory=dict)
    default_kv: KvStorage = PLAIN_INT8
    balance: Balance = "array"
    planes: Planes = "cost"
    weights: passes.FoldWeights = field(default_factory=passes.FoldWeights)
    lift: passes.LiftChoices | None = None
    collect: passes.CollectEncodings | None = None
    schedules: Schedules | None = None
    densities: Mapping[str, float] = field(default_factory=dict)
    offload: passes.OffloadDense | None = None
    report: passes.PassReport = field(default_factory=passes.PassReport)
    stop_after: str | None = None
    dump: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        """Check the words."""
        if self.engine not in get_args(Executor):
            raise InvalidArgumentError(f'engine "{self.engine}" is neither "host" nor "simulator"')
        if self.attention not in get_args(AttentionType):
            raise InvalidArgumentError(
                f'attention "{self.attention}" is neither "float" nor "int8"'
            )
        if self.balance not in BALANCES:
            known = ", ".join(BALANCES)
            raise InvalidArgumentError(f'balance "{self.balance}" is not one of {known}')
        require_known("planes", self.planes, PLANES)
        if self.engine == "simulator" and self.accelerator is None:
            raise InvalidArgumentError("the simulator needs an accelerator")

    def said_of(self, label: str) -> Hashable:
        """What is said of the op with a label alone: layers that differ in it are not equal."""
        known = (self.windows, self.kv, self.densities)
        # A choice is none that another op has.
        return (*(each.get(label) for each in known), label if label in self.choices else None)


def phases(given: Options) -> Phases:
    """The passes of each phase, in their order: the table of contents of a compilation."""
    report = given.report
    return {
        # Bring the forms of other frameworks into integer ops.
        "import": [
            # All that follows sees one of equal layers.
            passes.OutlineLayers(given.said_of),
            relax.transform.CanonicalizeBindings(),
            passes.LowerQDQ(report=report),
            *_attention_passes(given),
        ],
        # From integer ops to R.sparqle ops, which encode and multiply planes.
        "split": [
            passes.SplitGroupedDense(report=report),
            passes.SplitPrecision(report=report),
            passes.FuseQuantize(report=report),
            passes.FoldScales(report=report),
            passes.ShareEncodings(report=report),
            passes.ReportLeft(report=report),
        ],
        # Windows and factors of encodings, and what functions take and return besides.
        "choose": _choosing_passes(given),
        # Dense ops that write their outputs encoded.
        "drain": [passes.DrainEncoded(report=report)],
        # Dense ops that become calls of accelerator programs.
        "offload": _offloading_passes(given),
        # All that is left, for a host CPU.
        "lower": lowering_passes(given.weights),
    }


def _attention_passes(given: Options) -> list[tvm.transform.Pass]:
    """Attention in integers, where it is asked for."""
    if given.attention == "float":
        return []
    return [
        passes.QuantizeAttention(given.kv, default=given.default_kv, report=given.report),
        passes.QuantizeCache(report=given.report),
    ]


def _choosing_passes(given: Options) -> list[tvm.transform.Pass]:
    """Passes for what was chosen, and none for what was not."""
    steps = [*given.checks]
    if given.windows or given.default_window:
        steps.append(
            passes.ChooseWindow(
                given.windows,
                default=given.default_window,
                report=given.report,
            )
        )
        steps.append(passes.ReportLeft(report=given.report))  # the windows are other ones now
    if given.choices:
        steps.append(passes.RaiseMsbSparsity(given.choices, report=given.report))
    return steps + [step for step in (given.lift, given.collect) if step is not None]


def _offloading_passes(given: Options) -> list[tvm.transform.Pass]:
    """Ops joined, rows sorted, programs generated, if the simulator runs the dense ops."""
    machine, report = given.accelerator, given.report
    if given.engine == "host" or machine is None:
        return []
    return [
        passes.JoinDense(report=report),
        passes.BalanceRows(machine, given.balance, densities=given.densities, report=report),
        given.offload
        or passes.OffloadDense(
            machine,
            tuned=given.schedules,
            densities=given.densities,
            planes=given.planes,
            report=report,
        ),
        passes.OffloadAttention(machine, planes=given.planes, report=report),
    ]


def reference_phases(given: Options) -> Phases:
    """The plain int8 form of what :func:`phases` compute, factors and bands included.

    Quantization and dense ops are plain Relax ops on integers, without planes and without the
    kernels for them: the reference that the split form equals bit for bit.
    """
    split = phases(given)
    return {
        **{name: split[name] for name in SPLIT},
        "merge": [passes.MergePrecision(report=given.report)],
        "lower": split["lower"],
    }


def host_phases(given: Options) -> Phases:
    """The same lowering and host kernels as in :func:`phases`, without split precision."""
    shared = [
        passes.OutlineLayers(given.said_of),
        relax.transform.CanonicalizeBindings(),
        relax.transform.EliminateCommonSubexpr(),
    ]
    return {"import": [*shared, *_attention_passes(given)], "lower": lowering_passes(given.weights)}


def split_passes(**options: Any) -> list[tvm.transform.Pass]:
    """The passes of the phases up to the `SPLIT` form; keywords are attributes of `Options`."""
    found = phases(Options(**options))
    return [*(each for name in SPLIT for each in found[name]), passes.InlineLayers()]


def lowering_passes(weights: passes.FoldWeights | None = None) -> list[tvm.transform.Pass]:
    """From Relax ops (ours included) to what the VM's code generator takes, for a host CPU.

    `weights` prepares what functions take as weights, if they do.
    """
    return [
        passes.OutlineRepeats(),
        relax.backend.DispatchSampling(),
        relax.backend.DispatchSortScan(),
        passes.LegalizeHost(),
        relax.transform.LegalizeOps(),
        passes.HoistConstants(),
        passes.FoldConstants(),
        weights or passes.FoldWeights(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FuseOps(),
        passes.UnfuseTuples(),
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


def sequence(phases: Phases, given: Options, *, name: str = "sparqle") -> tvm.transform.Pass:
    """One pass that does the passes of the phases, up to the one that ends them.

    With a folder in ``given.dump``, the module is written into it after each phase as TVMScript:
    ``01_import.py``, ``02_split.py`` and so on. The folder is made if it is missing; the files
    of an earlier compilation go. Tensors are printed as ``metadata[..]``, without their values:
    only a module without constants besides scalars can be read back from the text.

    Raises
    ------
    InvalidArgumentError
        If no phase has the name; when applied, if the folder cannot be written.
    TargetError
        When applied, if what TVM compiles for is no CPU.
    """
    stop_after, dump = given.stop_after, given.dump
    if dump is not None and not isinstance(dump, str | os.PathLike):
        raise InvalidArgumentError(f"dump {dump!r} is no path of a folder")
    if stop_after is not None and stop_after not in list(phases):
        known = ", ".join(phases)
        raise InvalidArgumentError(f'stop_after "{stop_after}" is no phase; known: {known}')
    dialect.register()
    files = [f"{number:02}_{phase}.py" for number, phase in enumerate(phases, start=1)]
    steps: list[tvm.transform.Pass] = []
    if stop_after is None or stop_after == list(phases)[-1]:
        steps.append(_CheckTarget(given.accelerator))
    if dump is not None:
        steps.append(_EmptyDump(Path(dump)))
    for done, (phase, found) in enumerate(phases.items()):
        steps += found
        if dump is not None:
            steps.append(_Dump(Path(dump), files[done]))
        if phase == stop_after:
            steps.append(passes.InlineLayers())
            break
    return tvm.transform.Sequential(steps, name=name)


@tvm.transform.module_pass(opt_level=0, name="CheckTarget")
class _CheckTarget:
    """Refuse to compile for anything but a CPU, or for another accelerator than the target's."""

    def __init__(self, accelerator: Accelerator | None) -> None:
        self.accelerator = accelerator

    def transform_module(self, mod: tvm.IRModule, _ctx: Any) -> tvm.IRModule:
        """Return ``mod`` itself."""
        current, ours = tvm.target.Target.current(allow_none=True), self.accelerator
        require_cpu(current)
        if ours is not None and Accelerator.describes(current):
            theirs = Accelerator.from_target(current)
            if theirs != ours:
                raise TargetError(
                    f"the pipeline is for {ours.name!r}, and the module is built for "
                    f"{theirs.name!r} (or they differ in a figure); name one of them: "
                    'relax_pipeline="sparqle" takes that of the target'
                )
        return mod


@tvm.transform.module_pass(opt_level=0, name="EmptyDump")
class _EmptyDump:
    """Remove the files of an earlier compilation from a folder, and make it if it is missing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def transform_module(self, mod: tvm.IRModule, _ctx: Any) -> tvm.IRModule:
        """Return ``mod`` itself."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for file in self.folder.iterdir():
                if DUMPED_FILE.fullmatch(file.name):
                    file.unlink()
        except OSError as error:
            reason = error.strerror or error
            raise InvalidArgumentError(f"{self.folder} cannot be written: {reason}") from error
        return mod


@tvm.transform.module_pass(opt_level=0, name="Dump")
class _Dump:
    """Write the module to a file of a folder."""

    def __init__(self, folder: Path, file: str) -> None:
        self.folder = folder
        self.file = file

    def transform_module(self, mod: tvm.IRModule, _ctx: Any) -> tvm.IRModule:
        """Write, and return ``mod`` itself."""
        whole = tvm.transform.Sequential([passes.InlineLayers()])(mod)
        write_text(self.folder / self.file, whole.script(show_meta=False) + "\n")
        return mod


def host_pipeline() -> tvm.transform.Pass:
    """The same lowering and host kernels as `pipeline`, without split precision."""
    return sequence(host_phases(Options()), Options(), name="sparqle_host")


def compile(
    mod: tvm.IRModule,
    given: Options,
    *,
    split: bool = True,
    host: str | tvm.target.Target | None = None,
    after: str = "",
    reference: bool = False,
) -> Executable | tvm.IRModule:
    """Compile a Relax module; see `sparqle_tvm.compile`.

    With `after`, it is the module of an earlier call that stopped after the phase of that name.
    With `reference`, what is not split is in integers as of `reference_phases`, always.
    """
    if split:
        found = phases(given)
    elif reference or given.choices or given.lift is not None:
        found = reference_phases(given)
    else:
        found = host_phases(given)
    if after:
        names = list(found)
        found = {name: found[name] for name in names[names.index(after) + 1 :]}
    steps = sequence(found, given)
    chosen = checked_host(host)
    if given.stop_after is not None:
        with chosen:
            return steps(mod)
    built = relax.build(mod, chosen, relax_pipeline=steps)
    return Executable(
        built,
        weights=given.weights.weights,
        collected=given.collect.collected if given.collect is not None else None,
        lifted=given.lift.lifted if given.lift is not None else None,
        report=given.report,
        cpu=str(chosen.attrs.get("mcpu", "")),
    )
