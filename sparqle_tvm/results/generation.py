"""What `sparqle generate` finds out: texts, and what each step costs, as data with a JSON form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from sparqle_tvm.files import Amount, Count, Positive, Share
from sparqle_tvm.results.form import Form, Stored
from sparqle_tvm.results.losses import KvChoice
from sparqle_tvm.results.passes import PassResult, Phase
from sparqle_tvm.results.run import ModelFile
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.cost.energy_table import EnergyTable
from sparqle_tvm.target.cost.model import Counting

KIND = "generation"


@dataclass(frozen=True)
class GeneratedText:
    """A sequence: its prompt, what was generated, and why it ended.

    `ended` is ``tokens``, as many as were asked for; ``end``, the model's end of text; or
    ``context``, no room was left.
    """

    prompt: str
    prompt_tokens: Positive
    text: str
    tokens: tuple[Count, ...]
    ended: Literal["tokens", "end", "context"]


@dataclass(frozen=True)
class Step:
    """One pass: a prefill of a sequence, or one token of each sequence that goes on.

    Attributes
    ----------
    phase : {"prefill", "decode"}
        Which of them.
    rows, sequences : int
        Rows of its dense layers, and sequences in it.
    past : int
        Tokens in the longest cache before.
    msb_sparsity : float
        Share of zero MSB digits, weighted by MACs.
    cycles, joules : mapping of str to number
        By scheme, of the whole model.
    """

    phase: Phase
    rows: Positive
    sequences: Positive
    past: Count
    msb_sparsity: Share
    cycles: Mapping[str, Count]
    joules: Mapping[str, Amount]

    @classmethod
    def of(cls, one: PassResult, phase: Phase) -> Step:
        """Take it from a pass."""
        parts = {scheme: found.whole_model for scheme, found in one.schemes.items()}
        return cls(
            phase=phase,
            rows=one.tokens * one.batch,
            sequences=one.batch,
            past=one.past,
            msb_sparsity=one.msb_sparsity,
            cycles={scheme: part.cycles for scheme, part in parts.items()},
            joules={scheme: part.energy.joules.mid for scheme, part in parts.items()},
        )


@dataclass(frozen=True, kw_only=True)
class Generation(Stored):
    """All that was generated, and what it costs on the accelerator.

    Attributes
    ----------
    model, accelerator, table : ModelFile, Accelerator, EnergyTable
        What ran, what is counted for, and what energy is counted with.
    engine : {"simulator", "analytical"}
        Whether dense layers and attention were simulated, or counted by formula.
    attention, kv : str
        How attention was computed, and how keys and values were stored.
    kv_choice : KvChoice, optional
        The budget that chose `kv`.
    temperature, top_k, seed : float, int, int
        How tokens were drawn; temperature 0: always the likeliest.
    texts : tuple of GeneratedText
        The sequences.
    steps : tuple of Step
        The passes in order.
    seconds : mapping
        Wall time of the stages on the host.
    """

    FORM = Form(KIND, 1, "sparqle generate", "the generation")

    model: ModelFile
    accelerator: Accelerator
    table: EnergyTable
    engine: Counting
    attention: str
    kv: str
    temperature: Amount
    top_k: Count
    seed: Count
    texts: tuple[GeneratedText, ...]
    steps: tuple[Step, ...]
    seconds: Mapping[str, Amount] = field(default_factory=dict)
    kv_choice: KvChoice | None = None

    def of_phase(self, phase: Phase) -> tuple[Step, ...]:
        """The steps of a phase."""
        return tuple(step for step in self.steps if step.phase == phase)

    def tokens(self, phase: Phase) -> int:
        """Tokens that go through the model in a phase."""
        return sum(step.rows for step in self.of_phase(phase))

    def tokens_per_second(self, phase: Phase, scheme: str) -> float:
        """Of the accelerator, all sequences together; 0 without a step."""
        cycles = sum(step.cycles[scheme] for step in self.of_phase(phase))
        return self.tokens(phase) / self.accelerator.seconds(cycles) if cycles else 0.0

    def joules_per_token(self, phase: Phase, scheme: str) -> float:
        """Mid of the energy's band, by token; 0 without a step."""
        joules = sum(step.joules[scheme] for step in self.of_phase(phase))
        return joules / self.tokens(phase) if joules else 0.0

    def msb_sparsity(self, phase: Phase) -> float:
        """Mean over the tokens of a phase; 0 without one."""
        zero = sum(step.msb_sparsity * step.rows for step in self.of_phase(phase))
        return zero / self.tokens(phase) if zero else 0.0
