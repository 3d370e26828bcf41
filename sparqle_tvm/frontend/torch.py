"""Import a PyTorch model: quantized by torchao, by PT2E, or not at all."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import tvm
from tvm import relax

from sparqle_tvm.errors import MissingExtraError, UnsupportedModelError
from sparqle_tvm.frontend.graph_model import GraphModel, graph_input, reason_of

if TYPE_CHECKING:
    import torch
    from torch import fx

# Ops of a quantizer stay whole, and so do the layers that reports name.
_KEPT = re.compile(r"(torchao|quantized_decomposed)\.|aten\.linear\.default")
# What a numeric type is called in TVM.
_DTYPES = re.compile(r"(?:torch\.)?(u?int\d+|float\d+|bfloat16|bool)")


@contextmanager
def quiet() -> Iterator[None]:
    """Without what PyTorch and torchao log: they say it again in the exceptions that they raise."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def from_exported_program(
    source: torch.export.ExportedProgram | torch.nn.Module,
    example: Sequence[Any] | torch.Tensor | None = None,
    *,
    dynamic_shapes: Any = None,
) -> GraphModel:
    """Import a program of `torch.export`, or a module; integer weights stay integers.

    Taken are torchao's affine quantization (dynamic activations of 8 bits per token or tensor,
    weights of 8 or 4 bits per channel or group, and their ``_int_mm``), PT2E's
    ``quantized_decomposed`` ops per tensor, channel, token and group, and other ops as far as TVM
    imports them.

    Parameters
    ----------
    source : torch.export.ExportedProgram or torch.nn.Module
        A module is exported here, in evaluation mode.
    example : sequence or tensor, optional
        Arguments of the module, which it is exported with; a tensor is the only one.
    dynamic_shapes : optional
        As of `torch.export.export`: which axes of the arguments are dynamic.

    Raises
    ------
    UnsupportedModelError
        If the module cannot be exported, or an op not imported; the message names the op and the
        layer that it is in.
    MissingExtraError
        If PyTorch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError(
            "PyTorch models need torch, which is not installed: pip install 'sparqle-tvm[torch]'"
        ) from error
    name = type(source).__name__
    with quiet():
        if isinstance(source, torch.export.ExportedProgram):
            program, name = source, "the exported program"
        elif example is None:
            raise UnsupportedModelError(
                f"{name} is no exported program: give example arguments, which it is exported with"
            )
        else:
            given = (example,) if isinstance(example, torch.Tensor) else tuple(example)
            program = _exported(source, given, dynamic_shapes)
        try:
            program = _decomposed(program)
            _multiply_signed(program.graph)
            mod = _importer(program).from_exported_program(program, False, True, False, CONVERTERS)
        except UnsupportedModelError as error:
            raise UnsupportedModelError(f"{name}: {error}") from error
        except Exception as error:  # of TVM and of PyTorch: whatever they stumble over
            raise UnsupportedModelError(f"{name}: {reason_of(error)}") from error
    names = list(program.graph_signature.user_inputs)
    params = mod["main"].params
    return GraphModel(
        mod=mod,
        name=name,
        inputs=tuple(graph_input(str(n), p) for n, p in zip(names, params, strict=True)),
        outputs=tuple(map(str, program.graph_signature.user_outputs)),
    )


def _exported(
    module: torch.nn.Module, example: tuple[Any, ...], dynamic_shapes: Any
) -> torch.export.ExportedProgram:
    import torch

    training = module.training
    try:
        return torch.export.export(module.eval(), example, dynamic_shapes=dynamic_shapes)
    except Exception as error:  # of the module itself, of the tracer
        raise UnsupportedModelError(
            f"torch.export cannot export {type(module).__name__}: "
            f"{str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}"
            "; torch.export.draft_export says what stands in its way"
        ) from error
    finally:
        module.train(training)


def _decomposed(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program in core ops, but for those that the importer takes as they are."""
    import torch

    table: Any = torch.export.default_decompositions()
    for op in [op for op in table if _KEPT.match(str(op))]:
        table.pop(op)
    return program.run_decompositions(table)


def _multiply_signed(graph: fx.Graph) -> None:
    """Undo a detour of torchao: ``(q + 128 as uint8) @ w - 128 * sum(w)`` is ``q @ w``.

    It multiplies so on CPUs that have no product of two signed bytes.
    """
    for node in graph.nodes:
        found = _shifted_product(node)
        if found is not None:
            product, q = found
            product.args = (q, product.args[1])
            node.replace_all_uses_with(product)
    graph.eliminate_dead_code()


def _shifted_product(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The product, and q, if a node is that difference."""
    product, correction = _operands(node, "sub.Tensor")
    unsigned, weight = _operands(product, "_int_mm.default")
    sums, shift = _operands(correction, "mul.Tensor")
    summed, axes = _operands(sums, "sum.dim_IntList")
    added, by = _operands(_operands(unsigned, "_to_copy.default")[0], "add.Tensor")
    q = _operands(added, "_to_copy.default")[0]
    if q is None or len(product.users) != 1 or not (summed is weight and axes == [0]):
        return None
    types = [each.meta["val"].dtype for each in (q, unsigned, product)]
    narrow = [str(dtype) for dtype in types] == ["torch.int8", "torch.uint8", "torch.int32"]
    return (product, q) if narrow and shift == by == 128 else None


def _operands(node: Any, op: str) -> tuple[Any, Any]:
    """The first two arguments of a call of an op; nothing if it is another node."""
    if getattr(node, "op", "") != "call_function" or node.target.__name__ != op:
        return None, None
    return (*node.args, None, None)[:2]


def _importer(program: torch.export.ExportedProgram) -> Any:
    """TVM's importer, with typed errors that name the op and its layer."""
    from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

    constants: dict[str, Any] = {
        spec.arg.name: value
        for spec in program.graph_signature.input_specs
        for value in [_tensor_of(program, spec.target)]
        if value is not None
    }

    class Importer(ExportedProgramImporter):
        def create_convert_map(self) -> dict[Any, Callable[..., Any]]:
            known = super().create_convert_map()
            return {name: _named(convert) for name, convert in known.items()}

        def _check_unsupported_func_type(self, nodes: Any) -> None:
            calls = [node for node in nodes if node.op == "call_function"]
            unknown = {
                str(n.target): layer_of(n)
                for n in calls
                if n.target.__name__ not in self.convert_map
            }
            if unknown:
                where = ", ".join(f"{op} (in {layer})" for op, layer in sorted(unknown.items()))
                raise UnsupportedModelError(
                    f"ops that are not imported: {where}; write them in ops of PyTorch's core "
                    "set, or give torch.export a decomposition of them"
                )

        def constant(self, node: Any) -> np.ndarray | None:
            """The value of a parameter or buffer."""
            found = constants.get(getattr(node, "name", ""))
            return None if found is None else found.detach().cpu().numpy()

    return Importer()


def _tensor_of(program: torch.export.ExportedProgram, target: str | None) -> Any:
    for tensors in (program.state_dict, program.constants):
        if target in tensors:
            return tensors[target]
    return None


def _named(convert: Callable[..., Any]) -> Callable[..., Any]:
    """A converter whose errors name the node."""

    def converted(node: Any, *rest: Any) -> Any:
        try:
            return convert(node, *rest)
        except UnsupportedModelError:
            raise
        except Exception as error:  # whatever TVM makes of it
            raise UnsupportedModelError(
                f"op {node.target} (in {layer_of(node)}) is not imported: {reason_of(error)}"
            ) from error

    return converted


def layer_of(node: Any) -> str:
    """What reports call the layer that a node comes from: ``layers_0_up``."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [str(path) for path, _ in stack.values()]
    own = re.sub(r"^L__self___?|^L\['self'\]\.?|^_modules", "", paths[-1]) if paths else ""
    return re.sub(r"\W+", "_", own).strip("_") or str(node.name)


def _dtype(of: Any) -> str:
    found = _DTYPES.fullmatch(str(of))
    if found is None:
        raise UnsupportedModelError(f"values are {of}, which is not supported")
    return found.group(1)


class _Call:
    """A node as its converter sees it: arguments by name, expressions, and what they are."""

    def __init__(self, node: Any, importer: Any) -> None:
        self.node, self.importer, self.bb = node, importer, importer.block_builder
        names = [each.name for each in node.target._schema.arguments]
        defaults = {a.name: a.default_value for a in node.target._schema.arguments}
        self.given = {**defaults, **dict(zip(names, node.args, strict=False)), **node.kwargs}

    def __getitem__(self, name: str) -> Any:
        return self.given.get(name)

    def expr(self, name: str) -> relax.Expr:
        """The value of an argument that is a tensor."""
        return self.importer.env[self.given[name]]

    def emit(self, expr: relax.Expr, name: str = "") -> relax.Var:
        return self.bb.emit(expr, name)

    def number(self, name: str) -> float | None:
        """An argument that is one number, given as such or as a constant."""
        given = self.given.get(name)
        value = np.asarray(given) if isinstance(given, int | float) else self.array(name)
        return float(value.reshape(())) if value is not None and value.size == 1 else None

    def array(self, name: str) -> np.ndarray | None:
        """The value of an argument that is a parameter, a buffer, or a constant made here."""
        found = self.importer.constant(self.given.get(name))
        if found is not None:
            return found
        expr = self.importer.env.get(self.given.get(name))
        return expr.value.numpy() if isinstance(expr, tvm.ir.GenericConst) else None


def _blocks(x: relax.Expr, block: Sequence[Any]) -> tuple[list[Any], list[int], list[Any]]:
    """How a tensor is cut into blocks: its shape then, the axes inside of them, one per block."""
    shape: list[Any] = []
    inside: list[int] = []
    for size, of in zip(x.ty.shape.values, block, strict=True):
        known = int(size) if isinstance(size, tvm.tirx.IntImm) else None
        if isinstance(of, int) and known is not None and 1 < of != known:
            shape.append(known // of)
            size = of
        if of != 1:
            inside.append(len(shape))
        shape.append(size)
    return shape, inside, [1 if axis in inside else d for axis, d in enumerate(shape)]


def _viewed(call: _Call, x: relax.Expr, shape: Sequence[Any]) -> relax.Expr:
    """A tensor in another shape; a number is of any."""
    dims = list(x.ty.shape.values)
    same = len(dims) == len(shape) and all(
        str(a) == str(b) for a, b in zip(dims, shape, strict=True)
    )
    return x if same or not dims else call.emit(relax.op.reshape(x, list(shape)))


def _float(value: float) -> relax.Expr:
    return relax.const(np.float32(value))


def _choose_affine(call: _Call) -> Any:
    """Scale and zero point of each block, as ``torchao.choose_qparams_affine`` has them."""
    op, x, kind = relax.op, call.expr("input"), call["mapping_type"]
    low, high = float(call["quant_min"]), float(call["quant_max"])
    shape, inside, _ = _blocks(x, call["block_size"])
    eps = call["eps"] if call["eps"] is not None else float(np.finfo(np.float32).smallest_normal)
    cut, zero = _viewed(call, x, shape), _float(0)
    smallest = call.emit(op.minimum(op.min(cut, inside, keepdims=True), zero))
    largest = call.emit(op.maximum(op.max(cut, inside, keepdims=True), zero))
    dtype = _dtype(call["zero_point_dtype"] or "int32")
    if kind == "SYMMETRIC":
        widest = op.maximum(op.negative(smallest), largest)
        scale = op.divide(widest, _float((high - low) / 2))
    elif kind == "SYMMETRIC_NO_CLIPPING_ERR":
        below, above = op.divide(smallest, _float(low)), op.divide(largest, _float(high))
        scale = op.maximum(below, above)
    elif kind == "ASYMMETRIC":
        scale = op.divide(op.subtract(largest, smallest), _float(high - low))
    else:
        raise UnsupportedModelError(f"scales are chosen as {kind}")
    scale = call.emit(op.maximum(scale, _float(eps)), "scale")
    if kind == "ASYMMETRIC":
        rounded = op.round(op.divide(smallest, scale))
        clipped = op.clip(op.subtract(_float(low), rounded), low, high)
        chosen = call.emit(op.astype(clipped, dtype), "zero_point")
    else:
        return scale, relax.const(np.array(int((high + low + 1) / 2), dtype))
    return scale, chosen


def _zero_of(call: _Call, name: str, shape: Sequence[Any]) -> relax.Expr | None:
    """The zero points in a shape, None if they are 0."""
    given = call.array(name) if call[name] is not None else np.zeros(())
    if given is not None and not given.any():
        return None
    return _viewed(call, call.expr(name), shape)


def _quantize(
    call: _Call,
    shape: Sequence[Any],
    single: Sequence[Any],
    scale: relax.Expr,
    zero: relax.Expr | None,
    *,
    add_first: bool = False,
) -> relax.Expr:
    """``clip(round(x * (1 / scale)) + zero)``; the zero point may be added before it is rounded."""
    op, x, dtype = relax.op, call.expr("input"), _target(call)
    own = list(x.ty.shape.values)
    inverse = call.emit(op.divide(_float(1), _viewed(call, _wide(call, scale), single)))
    found = call.emit(op.multiply(_viewed(call, x, shape), inverse))
    added = None if zero is None else _wide(call, zero)
    if added is not None and add_first:
        found = call.emit(op.round(op.add(found, added)))
    else:
        found = call.emit(op.round(found))
        found = found if added is None else call.emit(op.add(found, added))
    low, high = float(call["quant_min"]), float(call["quant_max"])
    return _viewed(call, call.emit(op.astype(op.clip(found, low, high), dtype), "quantized"), own)


def _wide(call: _Call, x: relax.Expr) -> relax.Expr:
    return x if str(x.ty.dtype) == "float32" else call.emit(relax.op.astype(x, "float32"))


def _target(call: _Call) -> str:
    for name in ("output_dtype", "dtype"):
        if call[name] is not None and "int" in str(call[name]):
            return _dtype(call[name])
    raise UnsupportedModelError("the type of the quantized values is not said")


def _dequantize(
    call: _Call, shape: Sequence[Any], scale: relax.Expr, zero: relax.Expr | None
) -> relax.Expr:
    """``(q - zero) * scale`` in float32."""
    op, q = relax.op, call.expr("input")
    own = list(q.ty.shape.values)
    found = call.emit(op.astype(_viewed(call, q, shape), "float32"))
    if zero is not None:
        found = call.emit(op.subtract(found, op.astype(zero, "float32")))
    return _viewed(call, call.emit(op.multiply(found, _wide(call, scale))), own)


def _quantize_affine(call: _Call) -> relax.Expr:
    number = call.number("scale")
    if number is not None and call.number("zero_point") is not None:
        return _quantize_static(call)
    shape, _, single = _blocks(call.expr("input"), call["block_size"])
    zero = _zero_of(call, "zero_point", single)
    return _quantize(call, shape, single, call.expr("scale"), zero)


def _dequantize_affine(call: _Call) -> relax.Expr:
    shape, _, single = _blocks(call.expr("input"), call["block_size"])
    scale = _viewed(call, call.expr("scale"), single)
    return _dequantize(call, shape, scale, _zero_of(call, "zero_point", single))


def _quantize_static(call: _Call) -> relax.Expr:
    """One constant scale and zero point: TVM's own op, which divides by the scale.

    PyTorch multiplies with its inverse; a value within a rounding of a border goes either way.
    """
    op, dtype = relax.op, _target(call)
    scale, zero = call.number("scale"), int(call.number("zero_point") or 0)
    limits = np.iinfo(dtype)
    low, high = int(call["quant_min"]), int(call["quant_max"])
    x = _wide(call, call.expr("input"))
    if (low, high) == (limits.min, limits.max):
        made = op.quantize(x, _float(scale or 0), relax.const(np.array(zero, dtype)), 0, dtype)
        return call.emit(made, "quantized")
    rounded = call.emit(op.round(op.divide(x, _float(scale or 0))))
    if zero:
        rounded = call.emit(op.add(rounded, _float(zero)))
    return call.emit(op.astype(op.clip(rounded, float(low), float(high)), dtype), "quantized")


def _dequantize_static(call: _Call) -> relax.Expr:
    scale, zero = call.number("scale"), int(call.number("zero_point") or 0)
    q = call.expr("input")
    point = relax.const(np.array(zero, str(q.ty.dtype)))
    return call.emit(relax.op.dequantize(q, _float(scale or 0), point, 0))


def _choose_tensor(call: _Call, *, symmetric: bool = False) -> Any:
    """Scale and zero point of a tensor: a float32 and an integer of the target's type."""
    op, x = relax.op, call.expr("input")
    low, high = _limits(call)
    zero, dtype = _float(0), _dtype(call["dtype"])
    smallest = call.emit(op.minimum(op.min(x), zero))
    largest = call.emit(op.maximum(op.max(x), zero))
    if symmetric:
        widest = op.maximum(op.negative(smallest), largest)
        scale = op.divide(widest, _float((high - low) / 2))
        scale = call.emit(op.maximum(scale, _float(call["eps"])), "scale")
        return scale, relax.const(np.array(128 if dtype == "uint8" else 0, dtype))
    scale = op.divide(op.subtract(largest, smallest), _float(high - low))
    scale = call.emit(op.maximum(scale, _float(call["eps"])), "scale")
    rounded = op.subtract(_float(low), op.round(op.divide(smallest, scale)))
    clipped = op.clip(rounded, float(low), float(high))
    return scale, call.emit(op.astype(clipped, dtype), "zero_point")


def _limits(call: _Call) -> tuple[int, int]:
    low = call["quant_min"] if call["quant_min"] is not None else call["qmin"]
    high = call["quant_max"] if call["quant_max"] is not None else call["qmax"]
    return int(low), int(high)


def _per_tensor(quantizes: bool) -> Callable[[_Call], relax.Expr]:
    def convert(call: _Call) -> relax.Expr:
        if call.number("scale") is not None and call.number("zero_point") is not None:
            return _quantize_static(call) if quantizes else _dequantize_static(call)
        shape = list(call.expr("input").ty.shape.values)
        ones = [1] * len(shape)
        scale = _viewed(call, call.expr("scale"), ones)
        zero = _zero_of(call, "zero_point", ones)
        if quantizes:
            return _quantize(call, shape, ones, scale, zero)
        return _dequantize(call, shape, scale, zero)

    return convert


def _per_channel(quantizes: bool) -> Callable[[_Call], relax.Expr]:
    def convert(call: _Call) -> relax.Expr:
        shape = list(call.expr("input").ty.shape.values)
        axis = int(call["axis"]) % len(shape)
        single = [d if i == axis else 1 for i, d in enumerate(shape)]
        scale = _viewed(call, call.expr("scales"), single)
        zero = _zero_of(call, "zero_points", single)
        if quantizes:
            return _quantize(call, shape, single, scale, zero)
        return _dequantize(call, shape, scale, zero)

    return convert


def _choose_token(call: _Call) -> Any:
    """Symmetric scales per token: ``max(amax(|x|), 1e-5) / 127``."""
    op, x = relax.op, call.expr("input")
    amax = op.max(op.abs(x), [-1], keepdims=True)
    scale = op.divide(op.maximum(amax, _float(1e-5)), _float(127))
    return call.emit(scale, "scale"), relax.const(np.array(0, "int8"))


def _choose_token_asymmetric(call: _Call) -> Any:
    """Scale and zero point per token, the zero point by the smaller of two errors, as XNNPACK."""
    op, x, zero = relax.op, call.expr("input"), _float(0)
    smallest = call.emit(op.minimum(op.min(x, [-1], keepdims=True), zero))
    largest = call.emit(op.maximum(op.max(x, [-1], keepdims=True), zero))
    scale = op.divide(op.subtract(largest, smallest), _float(255))
    scale = call.emit(op.maximum(scale, _float(float(np.finfo(np.float32).eps))), "scale")
    low, high = _float(-128), _float(127)
    below, above = call.emit(op.divide(smallest, scale)), call.emit(op.divide(largest, scale))
    error = op.add(op.add(low, below), op.add(high, above))
    chosen = op.where(op.greater(error, zero), op.subtract(low, below), op.subtract(high, above))
    rounded = op.round(op.clip(chosen, -128.0, 127.0))
    return scale, call.emit(op.astype(rounded, "int8"), "zero_point")


def _per_token(quantizes: bool) -> Callable[[_Call], relax.Expr]:
    def convert(call: _Call) -> relax.Expr:
        shape = list(call.expr("input").ty.shape.values)
        rows = [*shape[:-1], 1]
        scale = _viewed(call, call.expr("scales"), rows)
        zero = _zero_of(call, "zero_points", rows)
        if quantizes:
            return _quantize(call, shape, rows, scale, zero, add_first=True)
        return _dequantize(call, shape, scale, zero)

    return convert


def _per_group(quantizes: bool) -> Callable[[_Call], relax.Expr]:
    def convert(call: _Call) -> relax.Expr:
        name = "input" if quantizes else "w_int8" if call["w_int8"] is not None else "input"
        call.given["input"] = call.given[name]
        rows, columns = (int(d) for d in call.expr("input").ty.shape.values)
        size = min(int(call["group_size"]), columns)
        shape, single = [rows, columns // size, size], [rows, columns // size, 1]
        scale = _viewed(call, call.expr("scales"), single)
        zero = _zero_of(call, "zero_points", single)
        if quantizes:
            return _quantize(call, shape, single, scale, zero, add_first=True)
        return _dequantize(call, shape, scale, zero)

    return convert


def _linear(call: _Call) -> relax.Expr:
    """``x @ weight' + bias``; the product bears the name of its layer."""
    op, label = relax.op, layer_of(call.node)
    weight = call.emit(op.permute_dims(call.expr("weight")))
    found = call.emit(op.matmul(call.expr("input"), weight), label)
    return found if call["bias"] is None else call.emit(op.add(found, call.expr("bias")))


def _int_mm(call: _Call) -> relax.Expr:
    """A product of bytes in int32."""
    a, b = call.expr("self"), call.expr("mat2")
    return call.emit(relax.op.matmul(a, b, out_dtype="int32"), layer_of(call.node))


def _extreme(reduce: Callable[..., relax.Expr]) -> Callable[[_Call], relax.Expr]:
    def convert(call: _Call) -> relax.Expr:
        axes = list(call["dim"] or []) or None
        return call.emit(reduce(call.expr("self"), axes, keepdims=bool(call["keepdim"])))

    return convert


def _converters() -> Mapping[str, Callable[[Any, Any], Any]]:
    def converter(of: Callable[[_Call], Any]) -> Callable[[Any, Any], Any]:
        return _named(lambda node, importer: of(_Call(node, importer)))

    tensor = {
        f"{way}quantize_per_tensor.{kind}": _per_tensor(not way)
        for way in ("", "de")
        for kind in ("default", "tensor", "tensor2")
    }
    known: dict[str, Callable[[_Call], Any]] = {
        "choose_qparams_affine.default": _choose_affine,
        "quantize_affine.default": _quantize_affine,
        "dequantize_affine.default": _dequantize_affine,
        **tensor,
        "choose_qparams.tensor": _choose_tensor,
        "choose_qparams_symmetric.tensor": lambda call: _choose_tensor(call, symmetric=True),
        "quantize_per_channel.default": _per_channel(True),
        "dequantize_per_channel.default": _per_channel(False),
        "choose_qparams_per_token.default": _choose_token,
        "choose_qparams_per_token_asymmetric.default": _choose_token_asymmetric,
        "_choose_qparams_per_token_asymmetric_impl.default": _choose_token_asymmetric,
        "quantize_per_token.default": _per_token(True),
        "dequantize_per_token.default": _per_token(False),
        "quantize_per_channel_group.default": _per_group(True),
        "dequantize_per_channel_group.default": _per_group(False),
        "linear.default": _linear,
        "_int_mm.default": _int_mm,
        "amax.default": _extreme(relax.op.max),
        "amin.default": _extreme(relax.op.min),
    }
    return {name: converter(of) for name, of in known.items()}


CONVERTERS = _converters()
"""By op, what converts it: the map that TVM's importer takes besides its own."""
