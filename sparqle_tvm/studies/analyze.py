"""`sparqle_tvm.analyze`: what split precision gives a function of any Relax module."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np

from sparqle_tvm.errors import InvalidArgumentError, require_known
from sparqle_tvm.results.analysis import Analysis, Launch, LeftAlone
from sparqle_tvm.results.passes import PassResult
from sparqle_tvm.results.run import ModelFile, MsbSparsity
from sparqle_tvm.studies.attention import launched_attention
from sparqle_tvm.studies.call_inputs import Call, Inputs, checked_call
from sparqle_tvm.studies.count import count_call
from sparqle_tvm.studies.evaluation import encoded_activations, msb_sparsity
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.cost.energy_table import EnergyTable, default_table
from sparqle_tvm.target.cost.model import Counting, EncodedActivation
from sparqle_tvm.target.joint_op import part_labels

if TYPE_CHECKING:
    import tvm
    from tvm import relax

    from sparqle_tvm.api import CommonOptions
    from sparqle_tvm.compiler import Options
    from sparqle_tvm.runtime.executable import EncodingRecord, Executable

LOG = logging.getLogger("sparqle_tvm.analyze")
STAGE_COUNT = 5  # and one more if floats are multiplied
_REMEDY = "quantize it first: docs/models.md says which forms are taken"


def analyze(
    mod: tvm.IRModule | Any,
    inputs: Inputs = (),
    target: str | Accelerator | tvm.target.Target = "sparqle/edge",
    *,
    function: str = "main",
    params: Mapping[str, Any] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    engine: Counting = "simulator",
    table: EnergyTable | None = None,
    name: str = "",
    progress: bool = False,
    **options: Any,
) -> Analysis:
    """Compile a function, call it, and count what its dense layers cost, split and dense.

    The function is compiled in split precision and without it, and both are called with the
    inputs; cycles and bytes are those of the bitmaps of this call.

    Parameters
    ----------
    mod : tvm.IRModule or an imported model
        A module with the function, or what a frontend returns (``from_onnx``, ``from_gguf``).
    inputs : sequence or mapping of ndarray
        Inputs in their order or by name. Those that are missing are random, which the result
        and a warning in the log say: their sparsity is no measurement of the model.
    target : str, Accelerator or tvm.target.Target
        What cycles and bytes are counted for.
    function : str
        What is called.
    params : mapping of str to ndarray, optional
        Parameters of the function that are no inputs: weights, by name.
    shapes : mapping of str to ints, optional
        Shapes of random inputs with dynamic axes.
    seed : int
        Of random inputs.
    engine : {"simulator", "analytical"}
        ``simulator``: dense ops run as programs, which compute the outputs too. ``analytical``:
        kernels for this CPU, cycles by formula.
    table : EnergyTable, optional
        What energy is counted with; by default 7 nm and the accelerator's memory.
    name : str
        What reports call the model.
    progress : bool
        Show progress on standard error.
    **options
        Of `sparqle_tvm.compile`: windows, calibration, attention and others.

    Returns
    -------
    Analysis
        Sparsity and window by layer, cost of the call by scheme, part and layer, what was left
        alone and why.

    Raises
    ------
    InvalidArgumentError
        If there is no such function, an input does not fit, or an option is unknown.
    SparqleError
        Other classes of it, as `sparqle_tvm.compile` raises them.
    """
    from tvm import relax

    from sparqle_tvm import api, compiler, passes
    from sparqle_tvm.progress import Stages
    from sparqle_tvm.runtime.launch import recording_attention

    require_known("engine", engine, get_args(Counting))
    unsuited = {"engine", "stop_after", "dump"} & set(options)
    if unsuited:
        raise InvalidArgumentError(f"option {min(unsuited)!r} is of compile, not of analyze")
    machine = Accelerator.from_target(target)
    module, names = getattr(mod, "mod", mod), [each.name for each in getattr(mod, "inputs", ())]
    module, func = _only(module, function, params or {})
    call = checked_call(func, inputs, names=names, shapes=shapes, seed=seed)
    random = [each.name for each in call.described if each.source == "random"]
    if random:
        LOG.warning("random values for %s: no measurement of the model", ", ".join(random))
    # Of this call alone: programs for any number of rows would be made for nothing.
    module = relax.transform.BindSymbolicVars(call.sizes(func), function)(module)
    stages = Stages(STAGE_COUNT, progress)
    report = passes.PassReport()
    collect = passes.CollectEncodings(report=report)
    given = api.options_of(
        machine,
        cast(
            "CommonOptions",
            {**options, "engine": "simulator" if engine == "simulator" else "host"},
        ),
        report=report,
        collect=collect,
    )
    with stages("compile (split)"):
        halfway = compiler.compile(module, replace(given, stop_after="drain"))
        split = compiler.compile(halfway, given, after="drain")
    with stages("run (split)"), recording_attention() as attention:
        found = list(_leaves(split[function](*call.values)))
    whole = replace(given, engine="host", collect=None, report=passes.PassReport())
    with stages("compile (plain)"):
        plain = compiler.compile(module, replace(whole, choices={}), split=False)
    with stages("run (plain)"):
        original = list(_leaves(plain[function](*call.values)))
    exact = _digest(found) == _digest(original)
    against: Literal["module", "integers"] = "module"
    if not exact:
        # It multiplies floats that stand for integers, whose sums it rounds.
        with stages("compile (integers)"):
            plain = compiler.compile(module, whole, split=False, reference=True)
        exact = _digest(found) == _digest(_leaves(plain[function](*call.values)))
        against = "integers"
    with stages("count"):
        records = _counted_records(split, report)
        encodings = _as_compiled(encoded_activations(records), report) if records else []
        table = default_table(machine) if table is None else table
        cost, uncounted = _count(
            *(halfway[function], call, encodings, given, engine, table),
            attention=launched_attention(attention, machine, last=False) if attention else (),
        )
    drained = _drained(halfway[function])
    # That sorting rows does not pay leaves no op as it was.
    skipped = (e for e in report.skipped if e.pass_name != "BalanceRows")
    left = tuple(LeftAlone(e.pass_name, e.function, e.op, e.label, e.reason) for e in skipped)
    return Analysis(
        model=ModelFile(name or getattr(mod, "name", "") or function, getattr(mod, "sha256", "")),
        function=function,
        inputs=call.described,
        seed=seed if random else None,
        accelerator=machine,
        table=table,
        engine=engine,
        exact=exact,
        against=against,
        difference=_difference(found, original),
        msb_sparsity=msb_sparsity(records, encodings) if cost else MsbSparsity(0.0, (), ()),
        call=cost,
        why_nothing="" if cost else _why_nothing(left),
        rewritten=dict(report.rewritten),
        left=left,
        drained=drained,
        uncounted=uncounted,
        launches=tuple(
            Launch(row["label"], row["m"], row["cycles"], row["dram_bytes"])
            for row in split.profile().rows()
        ),
        seconds=stages.seconds,
    )


def _only(
    mod: Any, function: str, params: Mapping[str, Any]
) -> tuple[tvm.IRModule, relax.Function]:
    """The module with the function alone and what it calls, parameters bound."""
    import tvm
    from tvm import relax

    if not isinstance(mod, tvm.IRModule):
        raise InvalidArgumentError(
            f"a Relax module is needed, not {type(mod).__name__}: sparqle_tvm.frontend makes one "
            "of a file, as from_onnx(path)"
        )
    functions = {
        str(gv.name_hint): f for gv, f in mod.functions.items() if isinstance(f, relax.Function)
    }
    if function not in functions:
        known = ", ".join(functions) or "none"
        raise InvalidArgumentError(f"the module has no function {function!r}; it has {known}")
    if params:
        takes = [str(param.name) for param in functions[function].params]
        unknown = [each for each in params if each not in takes]
        if unknown:
            raise InvalidArgumentError(f"{function} has no parameter {unknown[0]!r}")
        bound = {each: _as_tensor(value) for each, value in params.items()}
        mod = relax.transform.BindParams(function, bound)(mod)
    reached = relax.transform.DeadCodeElimination([function])(mod)
    return reached, reached[function]


def _as_tensor(value: Any) -> Any:
    import tvm

    return tvm.runtime.tensor(value) if isinstance(value, np.ndarray) else value


def _difference(found: Sequence[np.ndarray], original: Sequence[np.ndarray]) -> float:
    """Norm of the difference of all outputs, as a share of the norm; 0 if there is nothing."""
    pairs = [(np.float64(a), np.float64(b)) for a, b in zip(found, original, strict=True)]
    norm = sum(float(np.square(b).sum()) for _, b in pairs)
    off = sum(float(np.square(a - b).sum()) for a, b in pairs)
    return (off / norm) ** 0.5 if norm and np.isfinite(off / norm) else 0.0


def _leaves(result: Any) -> Iterator[np.ndarray]:
    """The tensors of a result, one after another."""
    if hasattr(result, "numpy"):
        yield result.numpy()
    elif isinstance(result, Sequence):
        for each in result:
            yield from _leaves(each)


def _digest(arrays: Any) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _counted_records(split: Executable, report: Any) -> list[EncodingRecord]:
    """Encodings of the call, with the readers that programs exist for."""
    # An op that is left dense is a program, too; those on the host were never launched.
    launched = {part for launch in split.profile() for part in part_labels(launch.label)}
    skipped = {e.label for e in report.skipped if e.pass_name == "OffloadDense"}
    host = {label for each in skipped for label in part_labels(each)} - launched
    found = []
    for record in split.encodings:
        readers = [each for each in record.info.consumers if each.label not in host]
        if readers and record.pbm.size:
            found.append(replace(record, info=replace(record.info, consumers=readers)))
    return found


def _as_compiled(encodings: Sequence[EncodedActivation], report: Any) -> list[EncodedActivation]:
    """Encodings whose readers run one by one where the compiler could not join them."""
    alone = {e.label for e in report.skipped if e.pass_name == "JoinDense"}
    return [
        replace(each, joint=alone.isdisjoint(op.label for op in each.consumers))
        for each in encodings
    ]


def _count(
    func: relax.Function,
    call: Call,
    encodings: Sequence[EncodedActivation],
    given: Options,
    engine: Counting,
    table: EnergyTable,
    *,
    attention: Any,
) -> tuple[PassResult | None, tuple[str, ...]]:
    """The cost of the call, and what of it is not counted."""
    from sparqle_tvm.studies.rest import count_rest

    machine = given.accelerator
    assert machine is not None
    rest = count_rest(func, call.sizes(func), machine)
    if not encodings:
        return None, rest.uncounted
    counted = count_call(
        *(encodings, rest.costs, machine, engine, given.balance, given.schedules, table),
        attention=attention,
    )
    return counted, rest.uncounted


def _drained(func: relax.Function) -> tuple[str, ...]:
    """Labels of encodings that dense ops make as they drain."""
    from tvm import relax

    from sparqle_tvm import dialect

    bindings = (b for block in func.body.blocks for b in block.bindings)
    values = (b.value for b in bindings if isinstance(b, relax.VarBinding))
    found = (dialect.SplitDenseEncoded.of(value) for value in values)
    return tuple(op.out_label for op in found if op is not None)


def _why_nothing(left: Sequence[LeftAlone]) -> str:
    """Why nothing was rewritten, in a line."""
    named = [each for each in left if each.op != "module"]
    reasons = Counter(each.reason for each in named or left)
    if not reasons:
        return f"it has no matmul with weights; {_REMEDY}"
    reason, count = reasons.most_common(1)[0]
    others = f" ({count} of {len(named)} ops that were looked at)" if len(named) > 1 else ""
    return f"{reason}{others}"
