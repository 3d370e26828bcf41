"""The accelerator as data: one frozen description, known to TVM as a target tag.

An accelerator is an array of `rows` x `cols` processing elements (PEs). A PE row works on one
activation row, a PE column on one output channel; each PE multiplies `lanes` pairs of
`digit_bits`-bit digits along K per cycle and adds them up in int32. Load, compute and store
engines run beside each other on finite on-chip buffers; a vector unit does everything that is
not a dense layer. `sparqle_tvm.target.cost` holds the formulas that use these numbers.
"""

from __future__ import annotations

import functools
import inspect
import math
import os
import re
import textwrap
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sparqle_tvm.errors import TargetError, choose_from, closest
from sparqle_tvm.files import read_toml
from sparqle_tvm.numerics.integers import DIGIT_BITS

if TYPE_CHECKING:
    from tvm.target import Target

TARGET_KIND = "llvm"
TARGET_KEY = "sparqle"
"""A target of this kind with this key is an accelerator: its host and its simulator are CPUs."""
_FEATURE_PREFIX = "feature."
ENGINE_FEATURE = "feature.engine"
"""Attribute of a target, if it has one: what runs the dense ops, as ``compile(engine=...)``."""
# What TVM adds to targets of ARM processors.
_FEATURES_OF_CPUS = ("feature.is_", "feature.has_")
MEMORIES = ("LPDDR4", "LPDDR5", "DDR4", "HBM2")
"""Types of DRAM. Each has a table of energy, ``target/cost/data/memory_*.toml``."""
_CHOICES: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {"digit_bits": DIGIT_BITS, "float_bytes": (2, 4), "memory": MEMORIES}
)
PIPELINE_CYCLES = 2
"""From the end of an MMA's last step until its sums are whole, as in `target.rtl`. Steps of the
next one follow without a gap; who takes the sums waits, in all schemes alike."""
OTHER_NAMES = MappingProxyType({"bandwidth": "dram_bytes_per_cycle", "pes": "rows"})
"""What else fields are called, to say the right name where one of these is given."""
MAX_SIZE = 2**40
"""No number of an accelerator is larger, so that nothing counted from them overflows."""
_RANGES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "rows": (1, 2**16),
        "cols": (1, 2**16),
        "lanes": (1, 2**16),
        "clock_ghz": (1e-9, 1e6),
        "dram_bytes_per_cycle": (1e-6, 1e9),
        "dma_descriptor_cycles": (0, 2**32),
    }
)


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """An accelerator with a split-precision MAC array.

    Attributes
    ----------
    name : str
        Name of the configuration; of a preset, the tag of its TVM target.
    rows : int, PEs
        PE rows; each works on one activation row (token).
    cols : int, PEs
        PE columns; each works on one output channel.
    lanes : int, multipliers
        Digit multipliers per PE, side by side along K.
    clock_ghz : float, GHz
        Clock of array, vector unit and DMA.
    dram_bytes_per_cycle : float, bytes/cycle
        DRAM bandwidth per clock cycle, reads and writes together; at 1 GHz also GB/s.
    dma_descriptor_cycles : int, cycles
        Cycles that every DMA descriptor (one strided transfer) costs besides its bytes.
    activation_buffer_bytes : int, bytes
        On-chip buffer of activations. Two tiles of an operand fit where transfers are to run
        beside the computation.
    weight_buffer_bytes : int, bytes
        On-chip buffer of weights.
    accumulator_buffer_bytes : int, bytes
        On-chip buffer of sums.
    drain_elements_per_cycle : int, outputs/cycle
        Outputs that the drain path takes out of the accumulators and scales.
    vector_lanes : int, ops/cycle
        Elementwise operations (add, multiply, max, exp, ...) of the vector unit.
    vector_macs_per_cycle : int, MACs/cycle
        Products that the vector unit adds up (attention).
    digit_bits : int, bits
        Width k of a digit (2, 4 or 8). Activations have 2k bits, a weight slice k bits.
    float_bytes : int, bytes
        One element of a float tensor in DRAM (2 or 4): dense outputs, residual stream.
        It says what is counted; no value is rounded to that width by this library.
    msb_across_groups : bool
        True: a PE has a segmented adder tree with one partial sum per weight group, so the MSB
        digits of several groups may share a cycle. False: the digits of every weight group
        begin a new cycle (cheaper PEs, longer MSB passes for group-quantized weights).
    rows_share_k : bool
        True: PE rows that have no activation row of their own may share the columns of another's,
        and their partial sums are added (`row_split`). False: they stand idle.
    scratchpad : bool
        True: the three buffers are one memory of their total size, which the compiler divides
        for every op.
    memory : str
        Type of DRAM, LPDDR4, LPDDR5, DDR4 or HBM2, in any case: what its accesses cost in energy.
        Its bandwidth is a field of its own.

    Raises
    ------
    TargetError
        If a field has the wrong type, is not positive, or buffers do not hold one tile.

    Examples
    --------
    >>> Accelerator.from_target("sparqle/edge").macs_per_cycle
    4096
    """

    name: str
    rows: int
    cols: int
    lanes: int
    clock_ghz: float
    dram_bytes_per_cycle: float
    dma_descriptor_cycles: int
    activation_buffer_bytes: int
    weight_buffer_bytes: int
    accumulator_buffer_bytes: int
    drain_elements_per_cycle: int
    vector_lanes: int
    vector_macs_per_cycle: int
    digit_bits: int = 4
    float_bytes: int = 2
    msb_across_groups: bool = True
    rows_share_k: bool = True
    scratchpad: bool = False
    memory: str = MEMORIES[0]

    def __post_init__(self) -> None:
        """Check every field, and that the smallest tile fits the buffers."""
        for field in fields(self):
            value = _checked(self, field.name, str(field.type))
            object.__setattr__(self, field.name, value.upper() if field.name == "memory" else value)
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise TargetError(
                    f"accelerator {self.name!r}: {name} = {getattr(self, name)!r} must be one of "
                    f"{choices}; {explained(name)}"
                )
        self._require_buffers()

    def _require_buffers(self) -> None:
        # One tile is rows x cols x lanes with all digits present, 8 bytes per accumulator and
        # 9/8 of the dense size for planes and bitmap; a tile may use half of a buffer.
        bits = 2 * self.digit_bits + 1
        smallest = {
            "activation_buffer_bytes": self.rows * math.ceil(max(self.lanes, 8) * bits / 8),
            "weight_buffer_bytes": self.cols * math.ceil(max(self.lanes, 8) * 8 / 8),
            "accumulator_buffer_bytes": self.rows * self.cols * 8,
        }
        for field, tile_bytes in smallest.items():
            if getattr(self, field) < 2 * tile_bytes:
                raise TargetError(
                    f"accelerator {self.name!r}: {field} = {getattr(self, field)} is too small: "
                    f"two tiles of {tile_bytes} bytes must fit (double buffering); "
                    f"use at least {2 * tile_bytes}; {explained(field)}"
                )

    def changed(self, changes: Mapping[str, Any]) -> Accelerator:
        """The same with other values of some fields; TargetError if one is unknown or wrong."""
        self._require_fields({**asdict(self), **changes}, f"accelerator {self.name!r}")
        return replace(self, **changes)

    @property
    def activation_bits(self) -> int:
        """Bits of a quantized activation, two digits."""
        return 2 * self.digit_bits

    @property
    def onchip_bytes(self) -> int:
        """Bytes of all buffers."""
        buffers = self.activation_buffer_bytes, self.weight_buffer_bytes
        return sum(buffers) + self.accumulator_buffer_bytes

    def memory_bytes(self, word: str) -> int:
        """Bytes of the memory that holds ``activation``, ``weight`` or ``accumulator`` tiles."""
        size: int = getattr(self, f"{word}_buffer_bytes")
        return self.onchip_bytes if self.scratchpad else size

    @property
    def macs_per_cycle(self) -> int:
        """Digit products of the array per cycle."""
        return self.rows * self.cols * self.lanes

    @property
    def peak_macs_per_second(self) -> float:
        """Peak rate of the array in digit products per second."""
        return self.macs_per_cycle * self.clock_ghz * 1e9

    @property
    def dram_bytes_per_second(self) -> float:
        """DRAM bandwidth in bytes per second."""
        return self.dram_bytes_per_cycle * self.clock_ghz * 1e9

    def seconds(self, cycles: float) -> float:
        """Time of `cycles` clock cycles in seconds."""
        return cycles / (self.clock_ghz * 1e9)

    def to_target_config(self) -> dict[str, Any]:
        """Describe this accelerator as a TVM target configuration (a ``dict`` for ``Target``).

        Its attributes are the target's ``feature.*``; what is no dense op is compiled for the
        processor of this machine (``mcpu``).
        """
        from tvm.target import codegen

        features = {_FEATURE_PREFIX + key: value for key, value in asdict(self).items()}
        host = {"keys": [TARGET_KEY, "cpu"], "mcpu": codegen.llvm_get_system_cpu()}
        return {"kind": TARGET_KIND, **host, **features}

    @staticmethod
    def describes(target: Target | None) -> bool:
        """Whether a target is one of an accelerator."""
        return (
            target is not None
            and target.kind.name == TARGET_KIND
            and TARGET_KEY in list(target.keys)
        )

    @classmethod
    def from_target(cls, target: str | Target | Accelerator) -> Accelerator:
        """Read the accelerator that a target describes.

        Parameters
        ----------
        target : str, tvm.target.Target or Accelerator
            A preset's name or a registered target tag, an accelerator file (its name ends in
            ``.toml``), a target with the key ``sparqle``, or an accelerator, which is returned
            as it is.

        Raises
        ------
        TargetError
            If the name is unknown, the target is of another kind, or a feature is missing,
            unknown or wrong.
        """
        if isinstance(target, Accelerator):
            return target
        if isinstance(target, str):
            if target.endswith(".toml"):
                return cls.from_toml(target)
            return PRESETS[target] if target in PRESETS else cls._from_tag(target)
        if not hasattr(target, "kind"):
            raise TargetError(
                f"{target!r} is no target; give the name of a preset ({', '.join(PRESETS)}), an "
                "accelerator file, an Accelerator or a tvm.target.Target"
            )
        if not cls.describes(target):
            if TARGET_KEY in list(target.keys):
                raise TargetError(
                    f"target of kind {target.kind.name!r} with the key {TARGET_KEY!r}: "
                    f"accelerators are of kind {TARGET_KIND!r} now; use "
                    "tvm.target.Target('sparqle/edge'), or Accelerator.to_target_config()"
                )
            raise TargetError(
                f"target {target} is not a sparqle accelerator: it needs the kind {TARGET_KIND} "
                f"and the key {TARGET_KEY!r}; known presets: {', '.join(PRESETS)}"
            )
        return cls.from_features(dict(target.attrs))

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> Accelerator:
        """Read an accelerator from a TOML file with one line for each attribute.

        With ``base = "sparqle/edge"`` all that the file does not say is as in that preset.
        Else attributes that have a default may be left out. `name` is by default the file's name.

        Raises
        ------
        TargetError
            Names the file and the field: the file cannot be read or is no TOML, its base is
            unknown, a field is missing, unknown, of the wrong type, negative or zero, or a buffer
            is too small for two tiles.
        """
        content, base = read_toml(path, TargetError), {}
        if "base" in content:
            name = content.pop("base")
            if not isinstance(name, str) or name not in PRESETS:
                raise TargetError(
                    f"accelerator file {path}: base = {name!r} is no preset; known: "
                    f"{', '.join(PRESETS)}"
                )
            base = asdict(PRESETS[name])
        given = {**base, "name": Path(path).stem, **content}
        cls._require_fields(given, f"accelerator file {path}")
        try:
            return cls(**given)
        except TargetError as error:
            raise TargetError(f"accelerator file {path}: {error}") from error

    @classmethod
    def _from_tag(cls, tag: str) -> Accelerator:
        from tvm.target import Target, list_tags

        if tag not in (list_tags() or {}):
            hint = f"{choose_from(tag, list(PRESETS))}, or a FILE.toml"
            raise TargetError(f"unknown target {tag!r}; {hint}")
        return cls.from_target(Target(tag))

    @classmethod
    def from_features(cls, attrs: Mapping[str, Any]) -> Accelerator:
        """The accelerator of the attributes ``feature.*`` of a target; TargetError as above."""
        given = {
            str(key).removeprefix(_FEATURE_PREFIX): value
            for key, value in attrs.items()
            if str(key).startswith(_FEATURE_PREFIX)
            and not str(key).startswith((ENGINE_FEATURE, *_FEATURES_OF_CPUS))
        }
        cls._require_fields(given, f"target features of accelerator {given.get('name', '?')!r}")
        return cls(**given)

    @classmethod
    def _require_fields(cls, given: Mapping[str, Any], where: str) -> None:
        known = {field.name: field for field in fields(cls)}
        unknown = sorted(set(given) - set(known))
        missing = [n for n, f in known.items() if f.default is MISSING and n not in given]
        if unknown:
            close = closest(OTHER_NAMES.get(unknown[0], unknown[0]), known)
            hint = f"did you mean {explained(close)}" if close else f"known: {', '.join(known)}"
            raise TargetError(f"{where}: unknown {unknown}; {hint}")
        if missing:
            raise TargetError(
                f'{where}: missing {missing}; {explained(missing[0])}. `base = "sparqle/edge"` '
                "in an accelerator file takes what it does not say from that preset"
            )


@dataclass(frozen=True)
class FieldText:
    """What the description of `Accelerator` says of a field: its unit (maybe empty) and meaning."""

    unit: str
    meaning: str


@functools.cache
def field_texts() -> Mapping[str, FieldText]:
    """Unit and meaning of every field of `Accelerator`, from its docstring."""
    text = inspect.getdoc(Accelerator) or ""
    entries = re.findall(r"^(\w+) : \w+(?:, (\S+))?\n((?:    .*\n)+)", text, re.M)
    found = {name: FieldText(unit, " ".join(lines.split())) for name, unit, lines in entries}
    return {field.name: found.get(field.name, FieldText("", "")) for field in fields(Accelerator)}


def explained(field: str) -> str:
    """A field with its unit, its meaning in a sentence, and its value in the first preset."""
    text = field_texts()[field]
    unit = f" ({text.unit})" if text.unit else ""
    known = globals().get("PRESETS", {})  # missing while the presets themselves are read
    example = next((f"; {a.name} has {getattr(a, field)}" for a in known.values()), "")
    return f"{field}{unit}: {text.meaning.split('. ')[0].rstrip('.')}{example}"


def to_toml(accelerator: Accelerator, base: str = "") -> str:
    """An accelerator file with the unit and the meaning of every field as comments.

    It begins with `base`, the name of a preset, if one is given.
    """
    lines = ["# An accelerator, for --target."]
    if base:
        lines += ["# A field that is left out is as in this preset.", f'base = "{base}"']
    for name, text in field_texts().items():
        if name == "name":
            continue
        value = getattr(accelerator, name)
        shown = str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')
        if isinstance(value, int) and not isinstance(value, bool):
            shown = f"{value:_}"
        unit = f"  # {text.unit}" if text.unit else ""
        meaning = textwrap.wrap(text.meaning, 96, initial_indent="# ", subsequent_indent="# ")
        lines += ["", *meaning, f"{name} = {shown}{unit}"]
    return "\n".join(lines) + "\n"


def _checked(accelerator: Accelerator, field: str, kind: str) -> Any:
    """Return the field's value as a plain Python value of its type, or raise TargetError."""
    value = getattr(accelerator, field)

    def refused(reason: str) -> TargetError:
        what = f"accelerator {accelerator.name!r}: {field} = {value!r} must be {reason}"
        return TargetError(f"{what}; {explained(field)}")

    if kind == "str":
        if not value or not isinstance(value, str):
            raise refused("a non-empty string")
        return str(value)
    if kind == "bool":
        if value not in (True, False):
            raise refused("true or false")
        return bool(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise refused("a number")
    if kind == "int" and isinstance(value, float) and math.isfinite(value) and value % 1:
        raise refused("a whole number")
    low, high = _RANGES.get(field, (1, MAX_SIZE))
    # A comparison, which an integer of any size stands.
    if not low <= value <= high:
        raise refused(f"positive and finite: from {low:g} to {high:g}")
    return int(value) if kind == "int" else float(value)


PRESETS: Mapping[str, Accelerator] = MappingProxyType(
    {
        accelerator.name: accelerator
        for accelerator in map(
            Accelerator.from_toml, sorted((Path(__file__).parent / "presets").glob("*.toml"))
        )
    }
)
"""The built-in accelerators by the name of their target tag: the files in ``target/presets``."""


def register_tags() -> None:
    """Make every preset known to TVM, so that ``tvm.target.Target("sparqle/edge")`` works.

    Calling it again changes nothing.
    """
    from tvm.target import list_tags, register_tag

    known = list_tags() or {}
    for name, accelerator in PRESETS.items():
        if name not in known:
            register_tag(name, accelerator.to_target_config())
