"""The driver behind ``sparqle run``: a model on a text, measured and counted.

The model is compiled three times, one after the other: with float activations, with int8
activations, and with int8 activations in split precision; attention is in integers in the last two,
if it is asked for, and the first is run with both. Perplexity and exactness come from the logits of
all tokens; cycles and bytes from the bitmaps of the same pass.

With a cache, compiled forms are kept, but of the float form its perplexity alone, see
`float_reference`. The int8 form runs every time, because exactness is what it is run for.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, get_args

from sparqle_tvm.errors import InvalidArgumentError, TargetError, require_known
from sparqle_tvm.models.sparsity import measured_densities
from sparqle_tvm.numerics.attention import AttentionType
from sparqle_tvm.progress import Stages
from sparqle_tvm.results.run import (
    ModelFile,
    PhaseGain,
    RunResult,
    Text,
    TuningGain,
)
from sparqle_tvm.studies.attention import LABEL, counted_attention, launched_attention
from sparqle_tvm.studies.count import (
    OUTPUT_LABEL,
    Attention,
    count_phases,
    count_sorting,
    prefill_encodings,
)
from sparqle_tvm.studies.evaluation import (
    Evaluation,
    encoded_activations,
    evaluate,
    msb_sparsity,
    transformer_shape,
)
from sparqle_tvm.studies.float_reference import float_perplexity
from sparqle_tvm.studies.inputs import (
    BUILTIN_MODEL,
    check_text,
    checked_accelerator,
    chosen_kv,
    functions_of_a_run,
    kv_options,
    model_path,
    read_content,
    require_attention,
)
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.attention_op import DIGIT_BITS, AttentionOp
from sparqle_tvm.target.cost.attention_choice import choose_plan
from sparqle_tvm.target.cost.baselines import Scheme
from sparqle_tvm.target.cost.block_rows import BALANCES, Balance
from sparqle_tvm.target.cost.energy_table import EnergyTable, default_table
from sparqle_tvm.target.cost.model import Counting
from sparqle_tvm.target.cost.vector import TransformerShape

if TYPE_CHECKING:
    import tvm

    from sparqle_tvm.calibration import Budget, Calibration, Selection
    from sparqle_tvm.frontend import ImportedModel
    from sparqle_tvm.models.decoder import DecoderConfig
    from sparqle_tvm.runtime.cache import ExecutableCache
    from sparqle_tvm.runtime.executable import EncodingRecord
    from sparqle_tvm.tuning.database import TuningDatabase

LOSS_TOKENS = 2048
"""Tokens that the loss of scale factors is measured on by default."""

# Imports, compilations and runs of three forms (two imports), and the count.
STAGE_COUNT = 9
_DENSE_OF_A_BLOCK = (
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_output",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
)


def run_model(
    model: str | PathLike[str] = BUILTIN_MODEL,
    text: str | PathLike[str] | None = None,
    tokens: int = 512,
    accelerator: str | Accelerator | tvm.target.Target = "sparqle/edge",
    *,
    engine: Counting = "simulator",
    attention: AttentionType = "int8",
    kv: str = "int8",
    balance: Balance = "array",
    database: str | PathLike[str] | None = None,
    calibration: Calibration | str | PathLike[str] | None = None,
    budget: Budget | None = None,
    loss_tokens: int = LOSS_TOKENS,
    table: EnergyTable | None = None,
    dump: str | PathLike[str] | None = None,
    cache: ExecutableCache | None = None,
    beside: bool = False,
    progress: bool = True,
) -> RunResult:
    """Run a language model on a text in three forms, and count what the split one saves.

    Parameters
    ----------
    model : str or path
        ``"smollm2"`` (fetched on first use) or a GGUF file.
    text : path, optional
        A UTF-8 text file; prose of the standard library's documentation by default.
    tokens : int
        Tokens of the text to run, at least 2.
    accelerator : str, Accelerator or tvm.target.Target
        What cycles and bytes are counted for.
    engine : {"simulator", "analytical"}
        ``simulator``: the split model computes its logits on simulated accelerator programs, and
        cycles are theirs. ``analytical``: logits from kernels for this CPU, cycles by formula.
    attention : {"int8", "float"}
        How the int8 and the split form compute attention, see `sparqle_tvm.compile`.
    kv : str
        How keys and values of attention in int8 are stored, see `numerics.kv_cache.parse_kv`; with
        ``planes`` the built-in model's heads as measured (`studies.inputs.kv_options`);
        ``planes:1%`` takes the smallest of what the calibration measured within that budget.
    balance : {"array", "time", "none"}
        Where encodings sort their rows, see `sparqle_tvm.compile`.
    database : path, optional
        Folder that ``sparqle tune`` filled: its schedules run, and are compared with the default
        ones. Needs the simulator.
    calibration : Calibration or path, optional
        What `sparqle_tvm.calibrate` gave for this model: chooses windows, and scale factors within
        the budget. With factors, exactness is that against the plain int8 form with the same
        factors, and their loss is measured on text that calibration did not see.
    budget : Budget, optional
        What the factors may lose; by default nothing. Needs a calibration.
    loss_tokens : int
        Tokens that the loss is measured on, at most: of `text`, or of the half of the built-in
        prose that calibration does not run.
    table : EnergyTable, optional
        What energy is counted with; by default 7 nm and the accelerator's memory.
    dump : path, optional
        Folder for the split form's module after each phase, see `sparqle_tvm.compile`.
    cache : ExecutableCache, optional
        Where compiled forms are looked for, and kept; by default nowhere.
    beside : bool
        Compile and run the float form in another process meanwhile, if there are cores and memory
        for that. The main module is imported there once more, as `multiprocessing` does it.
    progress : bool
        Show progress on standard error.

    Raises
    ------
    SparqleError
        One of its classes: a bad target, text or model file, a download that failed, NaN or Inf
        in activations, an unsuitable TVM.
    """
    require_known("engine", engine, get_args(Counting))
    require_known("balance", balance, BALANCES)
    known, selection = _select(calibration, budget)
    kv, kv_choice = chosen_kv(kv, known)
    require_attention(attention, kv)
    chosen = checked_accelerator(accelerator, tokens)
    if loss_tokens < 2:
        raise InvalidArgumentError(f"a loss needs at least 2 tokens, {loss_tokens} were asked for")
    from sparqle_tvm.calibration.budget import Budget
    from sparqle_tvm.calibration.choosable_model import ChoosableModel
    from sparqle_tvm.frontend import from_gguf
    from sparqle_tvm.frontend.text import load_tokens
    from sparqle_tvm.passes import QuantizeAttention
    from sparqle_tvm.studies.held_out import ChosenFunctions, held_out_loss

    tuned = _open_database(database, chosen, engine)
    check_text(text, tokens)
    name, content = read_content(text)
    path = model_path(model, progress=progress)
    lossy = selection is not None and bool(selection.choices)
    stages = Stages(STAGE_COUNT + 2 * lossy, progress)
    with stages("import (int8)"):
        imported = from_gguf(path, activations="int8", progress=progress)
        ids = load_tokens(imported.tokenizer, content, tokens)
    densities = measured_densities(_dense_layers(imported.config), chosen.digit_bits)
    densities |= selection.densities if selection is not None else {}
    told: dict[str, Any] = {"attention": attention, **kv_options(kv, imported)}
    stored = {**told, "cache": cache}
    model_file = ModelFile(imported.name, imported.sha256)
    with_floats = float_perplexity(
        stages, path, model_file, ids, chosen, told, cache, beside=beside
    )
    # The split form first: what cannot be split is refused before minutes are spent on the rest.
    split = _evaluate(
        *(stages, "sparqle", imported, ids, chosen),
        engine="simulator" if engine == "simulator" else "host",
        **stored,
        balance=balance,
        densities=densities,
        collect_encodings=True,
        database=tuned,
        calibration=known,
        budget=budget,
        dump=dump,
    )
    records = [*split.hidden, *split.head]
    with stages("count"):
        encodings = encoded_activations(records, densities)
        shape = transformer_shape(imported.config)
        table = table or default_table(chosen)
        given = (encodings, shape, chosen, engine, balance)
        mixing, not_on_array = _attention(attention, kv, split, shape, chosen, tokens)
        passes = count_phases(*given, tuned, table, attention=mixing)
        sorting = count_sorting(passes[0], *given, tuned)
        tuning = None
        if tuned is not None:
            default = count_phases(*given, None, table, attention=mixing)
            gains = (PhaseGain.of(*pair) for pair in zip(default, passes, strict=True))
            tuning = TuningGain(str(database), *gains)
    loss = None
    if known is not None and selection is not None and selection.choices:
        with stages("compile (int8)"):
            mod = imported.mod
            if attention == "int8":
                quantize: Any = QuantizeAttention(stored["kv"], default=stored["default_kv"])
                mod = quantize(mod)
            choosable = ChoosableModel(mod)
        with stages("run (int8)"):
            plain = evaluate(ChosenFunctions(choosable), ids)
            loss = held_out_loss(
                *(choosable, imported, selection, budget or Budget()),
                calibration_text=known.text_name,
                text=text,
                tokens=loss_tokens,
            )
        del choosable
        same = _evaluate(
            *(stages, "int8, factors", imported, ids, chosen),
            split=False,
            **stored,
            choices=selection.choices,
            windows=selection.windows,
        )
    else:
        plain = same = _evaluate(*(stages, "int8", imported, ids, chosen), split=False, **stored)
    config = imported.config
    del imported  # one model in memory at a time
    perplexity, kept = with_floats()
    return RunResult(
        model=model_file,
        text=Text(name, tokens),
        transformer=shape,
        accelerator=chosen,
        table=table,
        engine=engine,
        exact=split.digest == same.digest,
        loss=loss,
        perplexity={"int8": plain.perplexity, "sparqle": split.perplexity, **perplexity},
        float_kept=kept,
        kv=kv,
        kv_choice=kv_choice,
        not_on_array=not_on_array,
        msb_sparsity=msb_sparsity(records, prefill_encodings(encodings)),
        prefill=passes[0],
        decode=passes[1],
        balance=sorting,
        uncounted=_uncounted(config, records),
        tuning=tuning,
        seconds=stages.seconds,
    )


def _attention(
    attention: AttentionType,
    kv: str,
    split: Evaluation,
    shape: TransformerShape,
    accelerator: Accelerator,
    tokens: int,
) -> tuple[Attention | None, str]:
    """How attention on the array is counted: as its programs ran, or by formula; or why not.

    Programs of some layers alone are those of ops that stayed on the host: the vector unit counts
    for all of them.
    """
    if attention == "float":
        return None, ""
    if accelerator.digit_bits != DIGIT_BITS:
        bits = accelerator.digit_bits
        return None, f"digits have {bits} bits, those of attention {DIGIT_BITS}"
    launches, layers = split.attention, shape.layers
    if len(launches) == layers:
        return (lambda _, past: launched_attention(launches, accelerator, last=past > 0)), ""
    if launches:
        return None, f"{layers - len(launches)} of {layers} layers have no programs"
    heads = (shape.kv_heads, shape.heads // shape.kv_heads, shape.head_dim)
    try:
        for rows in (tokens, 1):
            choose_plan(AttentionOp(rows, tokens, *heads, label=LABEL), accelerator)
    except TargetError as error:
        return None, str(error)
    schemes: tuple[Scheme, ...] = ("dense", "sparqle")
    by_formula = (accelerator, schemes, 0, kv)
    return (lambda count, past: counted_attention(shape, count, past, 1, *by_formula)), ""


def _select(
    calibration: Calibration | str | PathLike[str] | None, budget: Budget | None
) -> tuple[Calibration | None, Selection | None]:
    """The calibration and what it chooses; refused before minutes are spent."""
    if calibration is None:
        if budget is not None:
            raise InvalidArgumentError(
                "a budget needs a calibration: run sparqle calibrate, and give its file with "
                "--calibration"
            )
        return None, None
    from sparqle_tvm.calibration.apply import as_calibration, select

    known = as_calibration(calibration)
    return known, select(known, budget)


def _open_database(
    database: str | PathLike[str] | None, accelerator: Accelerator, engine: str
) -> TuningDatabase | None:
    if database is None:
        return None
    if engine != "simulator":
        raise InvalidArgumentError(
            "schedules of a tuning database run on the simulator; leave the database out, or use "
            "the engine 'simulator'"
        )
    from sparqle_tvm.api import open_database

    return open_database(database, accelerator)


def _evaluate(
    stages: Stages,
    name: str,
    imported: ImportedModel,
    ids: Sequence[int],
    accelerator: Accelerator,
    **options: Any,
) -> Evaluation:
    """Compile a form of the model, with options of `sparqle_tvm.compile`, and run the tokens."""
    from sparqle_tvm.api import compile as compile_model

    # Factors go into weights that are constants.
    stored = options.get("calibration") is None and not options.get("choices")
    if stored:
        options["weights"] = imported.weights
    with stages(f"compile ({name})"):
        functions = functions_of_a_run(imported, stored=stored)
        executable = compile_model(functions, accelerator, **options)
    with stages(f"run ({name})"):
        return evaluate(executable, ids)


def _uncounted(config: DecoderConfig, records: Sequence[EncodingRecord]) -> tuple[str, ...]:
    """Dense layers of the model that read no encoding, because their weights are floats."""
    counted = {consumer.label for record in records for consumer in record.consumers}
    return tuple(label for label in _dense_layers(config) if label not in counted)


def _dense_layers(config: DecoderConfig) -> list[str]:
    """Labels of the dense layers of a model."""
    names = [f"blk_{i}_{name}" for i in range(config.layers) for name in _DENSE_OF_A_BLOCK]
    return [*names, OUTPUT_LABEL]
