"""The driver behind ``sparqle generate``: tokens one by one, and what each step costs.

Every sequence has a cache of its own, so sequences of any lengths go together without padding. A
step takes one token of each: the accelerator runs its dense layers once, with a row of each
sequence, counted from the bitmaps of all; attention is that of each sequence alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sparqle_tvm.calibration.apply import as_calibration
from sparqle_tvm.errors import InvalidArgumentError, TextError, require_known
from sparqle_tvm.numerics.attention import AttentionType
from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.progress import Stages
from sparqle_tvm.results.counted import CountedAttention
from sparqle_tvm.results.generation import GeneratedText, Generation, Step
from sparqle_tvm.results.run import ModelFile
from sparqle_tvm.studies.attention import counted_attention, launched_attention, written_token
from sparqle_tvm.studies.count import Beside, PassCounter
from sparqle_tvm.studies.evaluation import encoded_activations, transformer_shape
from sparqle_tvm.studies.inputs import (
    BUILTIN_MODEL,
    checked_accelerator,
    chosen_kv,
    kv_options,
    model_path,
    require_attention,
)
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.cost.baselines import Scheme
from sparqle_tvm.target.cost.energy_table import EnergyTable, default_table
from sparqle_tvm.target.cost.model import Counting, EncodedActivation
from sparqle_tvm.target.cost.vector import TransformerShape, VectorCost, vector_costs

if TYPE_CHECKING:
    import tvm

    from sparqle_tvm.calibration import Calibration
    from sparqle_tvm.frontend import ImportedModel
    from sparqle_tvm.frontend.tokenizer import Tokenizer
    from sparqle_tvm.runtime.cache import ExecutableCache
    from sparqle_tvm.runtime.executable import Executable
    from sparqle_tvm.runtime.launch import AttentionLaunch

_FUNCTIONS = ("create_cache", "prefill", "decode", "token_limits")
_SCHEMES: tuple[Literal["dense", "sparqle"], ...] = ("dense", "sparqle")
# The bar is done when the first token is told.
STAGE_COUNT = 2
Told = Callable[[int, str], None]
"""Called with the number of a sequence, and the text that came to it."""


def generate(
    prompts: Sequence[str],
    tokens: int,
    model: str | PathLike[str] = BUILTIN_MODEL,
    accelerator: str | Accelerator | tvm.target.Target = "sparqle/edge",
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    seed: int = 0,
    engine: Counting = "simulator",
    attention: AttentionType = "int8",
    kv: str = "int8",
    calibration: Calibration | str | PathLike[str] | None = None,
    table: EnergyTable | None = None,
    told: Told = lambda _, __: None,
    cache: ExecutableCache | None = None,
    progress: bool = True,
) -> Generation:
    """Generate text in split precision, and count what every pass costs on the accelerator.

    Parameters
    ----------
    prompts : sequence of str
        One of each sequence.
    tokens : int
        How many to generate for each, at most.
    model, accelerator, engine, attention, kv, table, cache, progress
        As of `studies.run.run_model`.
    calibration : Calibration or path, optional
        Of this model: chooses windows, and keys and values within a budget (`kv`).
    temperature : float
        What logits are divided by before a token is drawn; 0 takes the likeliest.
    top_k : int
        Draw from so many of the likeliest; 0: from all.
    seed : int
        Of the draws; each sequence has its own.
    told : callable
        Hears of text as it comes.

    Raises
    ------
    SparqleError
        One of its classes: a bad prompt, target or model file, numbers out of range.
    """
    require_known("engine", engine, get_args(Counting))
    known = None if calibration is None else as_calibration(calibration)
    kv, kv_choice = chosen_kv(kv, known)
    require_attention(attention, kv)
    _check(prompts, tokens, temperature, top_k)
    machine = checked_accelerator(accelerator, 2)
    from sparqle_tvm.api import compile as compile_model
    from sparqle_tvm.frontend import from_gguf

    path, stages = model_path(model, progress=progress), Stages(STAGE_COUNT, progress)
    with stages("import"):
        imported = from_gguf(path, activations="int8", progress=progress)
        sequences = [_Sequence.of(i, prompt, imported, seed) for i, prompt in enumerate(prompts)]
    with stages("compile"):
        executable = compile_model(
            _functions(imported, stored=known is None),
            machine,
            # A calibration is held to weights that are constants.
            weights=imported.weights if known is None else None,
            engine="simulator" if engine == "simulator" else "host",
            attention=attention,
            collect_encodings=True,
            cache=cache,
            calibration=known,
            **kv_options(kv, imported),
        )
    table = default_table(machine) if table is None else table
    shape = transformer_shape(imported.config)
    coster = _Coster(PassCounter(shape, machine, engine), shape, attention == "int8", kv, table)
    drawing = _Drawing(temperature, top_k)
    start = time.perf_counter()
    steps = [*_prefill(sequences, executable, coster, drawing, told, tokens)]
    while active := [each for each in sequences if not each.ended]:
        steps.append(_decode(active, executable, coster, drawing, told, tokens))
    return Generation(
        model=ModelFile(imported.name, imported.sha256),
        accelerator=machine,
        table=table,
        engine=engine,
        attention=attention,
        kv=kv,
        kv_choice=kv_choice,
        temperature=temperature,
        top_k=top_k,
        seed=seed,
        texts=tuple(each.result() for each in sequences),
        steps=tuple(steps),
        seconds={**stages.seconds, "generate": round(time.perf_counter() - start, 3)},
    )


def _check(prompts: Sequence[str], tokens: int, temperature: float, top_k: int) -> None:
    if not prompts:
        raise InvalidArgumentError("there is no prompt")
    for number, prompt in enumerate(prompts, start=1):
        if not prompt.strip():
            raise TextError(f"prompt {number} is empty")
    if tokens < 1:
        raise InvalidArgumentError(f"the number of tokens is {tokens}, it must be at least 1")
    if not 0 <= temperature < float("inf"):
        raise InvalidArgumentError(f"temperature = {temperature} must be 0 or more, and finite")
    if top_k < 0:
        raise InvalidArgumentError(f"top_k = {top_k} must be 0 or more")


def _functions(imported: ImportedModel, *, stored: bool) -> tvm.IRModule:
    """What generating calls; with `stored`, weights are parameters."""
    import tvm

    mod = imported.template if stored else imported.mod
    return tvm.IRModule({name: mod[name] for name in _FUNCTIONS})


@dataclass(frozen=True)
class _Drawing:
    """How a token is drawn from logits (V,) float32."""

    temperature: float
    top_k: int

    def __call__(self, logits: NDArray[np.float32], rng: np.random.Generator) -> int:
        """The id of a token."""
        if not self.temperature:
            return int(logits.argmax())
        wide = logits.astype(np.float64)
        kept = np.arange(len(wide))
        if 0 < self.top_k < len(wide):
            # The order of equal logits is that of ids, so that the draw is the same everywhere.
            kept = np.sort(np.argsort(-wide, kind="stable")[: self.top_k])
        scaled = (wide[kept] - wide[kept].max()) / self.temperature
        weights = np.exp(scaled)
        return int(kept[rng.choice(len(kept), p=weights / weights.sum())])


@dataclass
class _Sequence:
    """A sequence on its way."""

    number: int
    prompt: str
    ids: list[int]
    tokenizer: Tokenizer
    context: int
    rng: np.random.Generator
    cache: Any = None
    made: list[int] = field(default_factory=list)
    shown: str = ""
    ended: str = ""

    @classmethod
    def of(cls, number: int, prompt: str, imported: ImportedModel, seed: int) -> _Sequence:
        """One that begins with a prompt.

        Raises
        ------
        TextError
            If the prompt fills the context.
        """
        ids, context = imported.tokenizer.encode(prompt), imported.config.context
        if len(ids) >= context:
            raise TextError(
                f"prompt {number + 1} has {len(ids)} tokens, the model's context is {context}"
            )
        if not ids:
            raise TextError(f"prompt {number + 1} has no tokens")
        rng = np.random.default_rng([seed, number])
        return cls(number, prompt, ids, imported.tokenizer, context, rng)

    @property
    def past(self) -> int:
        """Tokens in the cache before the next decode step."""
        return len(self.ids) + len(self.made) - 1

    def take(self, token: int, most: int, told: Told) -> None:
        """Go on with a token, tell its text, and end if that is due."""
        if token == self.tokenizer.eos:
            self.ended = "end"
        else:
            self.made.append(token)
            if len(self.made) >= most:
                self.ended = "tokens"
            elif self.past >= self.context:
                self.ended = "context"
        text = self.tokenizer.decode(self.made)
        # Half a character is no text yet.
        if self.ended or not text.endswith("\ufffd"):
            told(self.number, text[len(self.shown) :])
            self.shown = text

    def result(self) -> GeneratedText:
        """The sequence as data."""
        ended: Any = self.ended
        return GeneratedText(
            self.prompt, len(self.ids), self.tokenizer.decode(self.made), tuple(self.made), ended
        )


@dataclass(frozen=True)
class _Pass:
    """What one call of a sequence met: its encodings, and programs of attention."""

    encodings: list[EncodedActivation]
    attention: list[AttentionLaunch]
    tokens: int
    past: int


@dataclass(frozen=True)
class _Coster:
    """Counts passes of some sequences together."""

    counter: PassCounter
    shape: TransformerShape
    int8: bool
    kv: str
    table: EnergyTable

    def step(self, phase: Literal["prefill", "decode"], parts: Sequence[_Pass]) -> Step:
        """Count a pass in which each sequence has a part."""
        together = [_stacked(found) for found in zip(*(p.encodings for p in parts), strict=True)]
        attention = [one for part in parts for one in self._attention(part)]
        # Integers of attention are the array's where it was counted, else the vector unit's.
        beside = Beside(lambda scheme: self._vector(parts, attention, scheme), attention)
        past = max(part.past for part in parts)
        counted = self.counter.count(
            *(phase, together, past, "array", self.table), batch=len(parts), beside=beside
        )
        return Step.of(counted, phase)

    def _attention(self, part: _Pass) -> list[CountedAttention]:
        machine = self.counter.accelerator
        if not self.int8:
            return []
        if len(part.attention) == self.shape.layers:
            return launched_attention(part.attention, machine, last=False)
        if self.counter.engine == "simulator":
            return []
        given = (self.shape, part.tokens, part.past, 1, machine, _SCHEMES, 0)
        return counted_attention(*given, self.kv)

    def _vector(
        self,
        parts: Sequence[_Pass],
        attention: Sequence[CountedAttention],
        scheme: Scheme,
    ) -> tuple[VectorCost, ...]:
        """The vector unit's work, that of all sequences one after another."""
        options: Any = {"attention": not attention, "scheme": scheme}
        if attention:
            options["stored"] = written_token(attention, scheme)
        machine = self.counter.accelerator
        found = [vector_costs(self.shape, p.tokens, p.past, machine, **options) for p in parts]
        numbers = [f.name for f in fields(VectorCost) if f.name != "label"]
        return tuple(
            replace(same[0], **{name: sum(getattr(s, name) for s in same) for name in numbers})
            for same in zip(*found, strict=True)
        )


def _stacked(same: Sequence[EncodedActivation]) -> EncodedActivation:
    """One encoding with the rows of all sequences."""
    first = same[0]
    if len(same) == 1:
        return first
    counts = np.concatenate([each.nnz.counts for each in same])
    nnz = RowNnz(counts, first.nnz.unit, first.nnz.in_features)
    return replace(
        first, nnz=nnz, consumers=tuple(replace(op, m=nnz.rows) for op in first.consumers)
    )


def _call(
    sequence: _Sequence, name: str, ids: Sequence[int], past: int, executable: Executable
) -> tuple[NDArray[np.float32], _Pass]:
    """Run tokens of a sequence; the logits of the last one, and what was met."""
    import tvm

    from sparqle_tvm.runtime.launch import recording_attention

    tensor = tvm.runtime.tensor(np.asarray(ids, np.int32)[None])
    with recording_attention() as launches:
        logits, sequence.cache = executable[name](tensor, sequence.cache)
    found = encoded_activations(executable.encodings)
    return logits.numpy()[0, -1], _Pass(found, launches, len(ids), past)


def _prefill(
    sequences: Sequence[_Sequence],
    executable: Executable,
    coster: _Coster,
    drawing: _Drawing,
    told: Told,
    most: int,
) -> Iterator[Step]:
    """Run the prompts one after another; each gives its first token."""
    for each in sequences:
        each.cache = executable["create_cache"]()
        logits, met = _call(each, "prefill", each.ids, 0, executable)
        each.take(drawing(logits, each.rng), most, told)
        yield coster.step("prefill", [met])


def _decode(
    active: Sequence[_Sequence],
    executable: Executable,
    coster: _Coster,
    drawing: _Drawing,
    told: Told,
    most: int,
) -> Step:
    """A token of each sequence that goes on."""
    parts = []
    for each in active:
        logits, met = _call(each, "decode", each.made[-1:], each.past, executable)
        parts.append(met)
        each.take(drawing(logits, each.rng), most, told)
    return coster.step("decode", parts)
