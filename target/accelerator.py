"""The accelerator as data: one frozen description, known to TVM as a target tag.

An accelerator is an array of `rows` x `cols` processing elements (PEs). A PE row works on one
activation row, a PE column on one output channel; each PE multiplies `lanes` pairs of
`digit_bits`-bit digits along K per cycle and adds them up in int32. Load, compute and store
engines run beside each other on finite on-chip buffers; a vector unit does everything that is
not a dense layer. `sparqle_tvm.target.cost` holds the formulas that use these numbers.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sparqle_tvm.errors import TargetError
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
        Name of the configuration, for presets the TVM target tag (``sparqle/edge``).
    rows : int
        PE rows; each works on one activation row (token).
    cols : int
        PE columns; each works on one output channel.
    lanes : int
        Digit multipliers per PE, side by side along K.
    digit_bits : int
        Width k of a digit in bits (2, 4 or 8). Activations have 2k bits, a weight slice k bits.
    clock_ghz : float
        Clock of array, vector unit and DMA in GHz.
    dram_bytes_per_cycle : float
        DRAM bandwidth in bytes per clock cycle, reads and writes together.
    dma_descriptor_cycles : int
        Cycles that every DMA descriptor (one strided transfer) costs besides its bytes.
    activation_buffer_bytes, weight_buffer_bytes, accumulator_buffer_bytes : int
        On-chip buffers in bytes. Two tiles of an operand fit where transfers are to run beside the
        computation.
    drain_elements_per_cycle : int
        Outputs per cycle that the drain path takes out of the accumulators and scales.
    vector_lanes : int
        Elementwise operations (add, multiply, max, exp, ...) of the vector unit per cycle.
    vector_macs_per_cycle : int
        Multiply-accumulates of the vector unit per cycle (attention).
    float_bytes : int
        Bytes of one element of a float tensor in DRAM (2 or 4): dense outputs, residual stream.
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
        Type of DRAM, one of `MEMORIES`, in any case: what its accesses cost in energy
        (`cost.energy_table`). Its bandwidth is `dram_bytes_per_cycle`.

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
                    f"{choices}"
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
                    f"use at least {2 * tile_bytes}"
                )

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

        Attributes that have a default may be left out; `name` is the file's name then, too.

        Raises
        ------
        TargetError
            Names the file and the field: the file cannot be read or is no TOML, a field is
            missing, unknown, of the wrong type, negative or zero, or a buffer is too small for
            two tiles.
        """
        given = {"name": Path(path).stem, **read_toml(path, TargetError)}
        cls._require_fields(given, f"accelerator file {path}")
        try:
            return cls(**given)
        except TargetError as error:
            raise TargetError(f"accelerator file {path}: {error}") from error

    @classmethod
    def _from_tag(cls, tag: str) -> Accelerator:
        from tvm.target import Target, list_tags

        if tag not in (list_tags() or {}):
            raise TargetError(f"unknown target {tag!r}; known: {', '.join(PRESETS)}")
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
        if unknown or missing:
            what = f"unknown {unknown}" if unknown else f"missing {missing}"
            raise TargetError(f"{where}: {what}; known: {', '.join(known)}")


def _checked(accelerator: Accelerator, field: str, kind: str) -> Any:
    """Return the field's value as a plain Python value of its type, or raise TargetError."""
    value = getattr(accelerator, field)
    where = f"accelerator {accelerator.name!r}: {field} = {value!r}"
    if kind == "str":
        if not value or not isinstance(value, str):
            raise TargetError(f"{where} must be a non-empty string")
        return str(value)
    if kind == "bool":
        if value not in (True, False):
            raise TargetError(f"{where} must be true or false")
        return bool(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TargetError(f"{where} must be a number")
    if kind == "int" and isinstance(value, float) and math.isfinite(value) and value % 1:
        raise TargetError(f"{where} must be a whole number")
    low, high = _RANGES.get(field, (1, MAX_SIZE))
    # A comparison, which an integer of any size stands.
    if not low <= value <= high:
        raise TargetError(f"{where} must be positive and finite: from {low:g} to {high:g}")
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
