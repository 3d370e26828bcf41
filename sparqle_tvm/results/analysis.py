"""What `sparqle_tvm.analyze` finds out about any module, as data with JSON both ways."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from sparqle_tvm.errors import InvalidArgumentError, ResultFileError
from sparqle_tvm.files import Amount, Count, read_json
from sparqle_tvm.results.form import Form
from sparqle_tvm.results.passes import PassResult, Saved
from sparqle_tvm.results.run import Measured, RunResult

KIND = "analysis"


@dataclass(frozen=True)
class InputValue:
    """An input of the function.

    Attributes
    ----------
    name, dtype : str
        As the function has them.
    shape : tuple of int
        Of what it was given.
    source : {"given", "random"}
        Where the values came from. Sparsity of random ones says nothing about the model.
    """

    name: str
    shape: tuple[Count, ...]
    dtype: str
    source: Literal["given", "random"]


@dataclass(frozen=True)
class LeftAlone:
    """An op that a pass looked at and left as it was: its function, name, and why."""

    pass_name: str
    function: str
    op: str
    label: str
    reason: str


@dataclass(frozen=True)
class Launch:
    """A program that the simulator ran: its op, rows, cycles and bytes."""

    label: str
    rows: Count
    cycles: Count
    dram_bytes: Count


@dataclass(frozen=True, kw_only=True)
class Analysis(Measured):
    """All that is known of a function of a module and a call of it.

    It is exact if every output is that of the module without split precision, bit for bit, or if
    that multiplies floats, of the same integers multiplied whole.

    Attributes
    ----------
    function : str
        What was called.
    against : {"module", "integers"}
        What the outputs were compared with: the module as it came, or its integers.
    difference : float
        Of the outputs to those of the module as it came: norm, as a share.
    inputs : tuple of InputValue
        With what.
    seed : int or None
        Of the random inputs; None if there are none.
    call : PassResult or None
        What the call costs; None if nothing was rewritten.
    why_nothing : str
        Why nothing was rewritten, in a line; empty if something was.
    rewritten : mapping of str to int
        How often each pass rewrote something.
    left : tuple of LeftAlone
        What was left as it was.
    drained : tuple of str
        Encodings that the accelerator makes as it drains the layer before. They are counted as
        those of the vector unit under all schemes: the baseline has no such drain.
    uncounted : tuple of str
        Ops besides dense layers that are in no count, because their sizes are not known.
    launches : tuple of Launch
        The programs that ran, in order; none if the engine is not the simulator.
    """

    FORM = Form(KIND, 1, "sparqle run")

    function: str
    against: Literal["module", "integers"]
    difference: Amount
    inputs: tuple[InputValue, ...]
    seed: int | None
    call: PassResult | None
    why_nothing: str
    rewritten: Mapping[str, Count] = field(default_factory=dict)
    left: tuple[LeftAlone, ...] = ()
    drained: tuple[str, ...] = ()
    uncounted: tuple[str, ...] = ()
    launches: tuple[Launch, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what does not belong together."""
        super().__post_init__()
        if (self.call is None) != bool(self.why_nothing):
            raise InvalidArgumentError("a call without cost has to say why, and no other")
        if bool(self.random_inputs) != (self.seed is not None):
            raise InvalidArgumentError("random inputs, and no others, have a seed")

    def __repr__(self) -> str:
        """What came out, in a line."""
        said = [f"{self.function}: {'exact' if self.exact else 'not exact'}"]
        if self.call is None:
            said.append(f"nothing rewritten ({self.why_nothing})")
        else:
            said += [
                f"{len(self.call.layers)} dense layers",
                f"MSB sparsity {100 * self.msb_sparsity.mean:.1f} %",
                f"{100 * self.saved('sparqle').cycles:.1f} % of the cycles saved",
            ]
        said += [f"{len(self.left)} notes on ops left alone"] if self.left else []
        said += [f"random inputs: {', '.join(self.random_inputs)}"] if self.random_inputs else []
        return f"<Analysis of {', '.join(said)}>"

    def saved(self, scheme: str, part: str = "whole_model") -> Saved:
        """What a scheme saves of the call, see `PassResult.saved`.

        Raises
        ------
        InvalidArgumentError
            If nothing was rewritten, or the scheme or the part is unknown.
        """
        if self.call is None:
            raise InvalidArgumentError(f"nothing was rewritten: {self.why_nothing}")
        return self.call.saved(scheme, part)

    @property
    def random_inputs(self) -> tuple[str, ...]:
        """Names of the inputs that had no values."""
        return tuple(each.name for each in self.inputs if each.source == "random")

    @property
    def passes(self) -> tuple[PassResult, ...]:
        """The call, if anything of it was counted."""
        return () if self.call is None else (self.call,)


def load_result(path: str | os.PathLike[str]) -> RunResult | Analysis:
    """Read a file that ``sparqle run --json`` wrote, of a language model or of any other.

    Raises
    ------
    ResultFileError
        If there is no such file, it is not JSON, of another version, or not whole.
    """
    data = read_json(path, ResultFileError, "a file of sparqle run --json")
    analysis = isinstance(data, dict) and "function" in data
    return Analysis.from_json(data, path) if analysis else RunResult.from_json(data, path)
