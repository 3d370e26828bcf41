"""ONNX graphs: read from a file, checked, and brought into forms that the importer takes.

Ops that hold a quantization of their own (QLinearMatMul and its kin of onnxruntime) become what
they stand for: DequantizeLinear, a float op, QuantizeLinear; or MatMulInteger, where scales come at
run time. The rewritten graph is an ONNX graph of the same numbers, which any runtime can run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from onnx import helper, numpy_helper

from sparqle_tvm.errors import InvalidArgumentError, ModelFileError, UnsupportedModelError

OPSETS = range(13, 22)
"""Versions of the standard operator set that are imported."""

DOMAINS = ("", "ai.onnx", "com.microsoft")
"""Domains of ops that are known; the last is onnxruntime's."""

_DIMENSION = re.compile(r"\w+( ?(\+|-|\*|//|/) ?\w+)*")


def load_model(source: str | PathLike[str] | onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """Read and check a model; also what to call it in messages.

    Raises
    ------
    ModelFileError
        If the file (or one with its tensors) is missing or damaged, or what it says contradicts
        itself.
    """
    if isinstance(source, onnx.ModelProto):
        model, name = onnx.ModelProto(), source.graph.name or "the model"
        model.CopyFrom(source)
    else:
        path = Path(source)
        name = str(path)
        if not path.is_file():
            raise ModelFileError(f"{path}: no such file")
        try:
            model = onnx.load(path)
        except Exception as error:  # of protobuf, of its checks, of the system
            raise ModelFileError(f"{path} is no ONNX model: {_first_line(error)}") from error
    try:
        _check(model.graph, set())
    except (ValueError, TypeError, KeyError, OSError, OverflowError) as error:
        raise ModelFileError(f"{name}: the graph is not valid: {_first_line(error)}") from error
    return model, name


def _check(graph: onnx.GraphProto, outer: set[str]) -> None:
    """Raise ValueError unless tensors are whole, and every value is made once, before it is read.

    ONNX's own checker refuses graphs that every runtime takes (outputs without a shape), and needs
    the whole model as one string.
    """
    for tensor in graph.initializer:
        try:
            numpy_helper.to_array(tensor)
        except Exception as error:  # of NumPy and protobuf: whatever a damaged tensor ends in
            raise ValueError(f"tensor {tensor.name!r}: {_first_line(error)}") from error
    made = {each.name for each in graph.initializer} | {each.name for each in graph.input} | outer
    for node in graph.node:
        where = f"node {node.name!r} ({node.op_type})"
        missing = [name for name in node.input if name and name not in made]
        if missing:
            raise ValueError(f"{where} reads {missing[0]!r}, which nothing before it makes")
        again = [name for name in node.output if name and name in made - outer]
        if again or not node.output:
            what = f"{again[0]!r} again" if again else "nothing"
            raise ValueError(f"{where} makes {what}")
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _check(attribute.g, made)
        made |= set(node.output)
    lost = [each.name for each in graph.output if each.name not in made]
    if lost or not graph.output:
        raise ValueError(f"nothing makes the output {lost[0]!r}" if lost else "it has no output")


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def rewritten(
    model: onnx.ModelProto, sizes: Mapping[str, int] = MappingProxyType({})
) -> tuple[onnx.ModelProto, int]:
    """The model with its quantized ops spelled out, and named axes of these sizes; and its opset.

    It may be changed in place.

    Raises
    ------
    UnsupportedModelError
        If its operator set, or the domain of an op, is not supported.
    InvalidArgumentError
        If no input has an axis of a name that is given a size.
    """
    versions = {each.domain or "ai.onnx": each.version for each in model.opset_import}
    version = versions.get("ai.onnx", 1)
    if version not in OPSETS:
        raise UnsupportedModelError(
            f"opset {version} is not supported, {OPSETS[0]} to {OPSETS[-1]} are; export the model "
            "anew, or convert it by onnx.version_converter"
        )
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    foreign = {f"{n.domain}.{n.op_type}" for n in model.graph.node if n.domain not in DOMAINS}
    if foreign:
        raise UnsupportedModelError(f"ops of unknown domains: {', '.join(sorted(foreign)[:5])}")
    _name_axes(model.graph, sizes)
    _Rewriter(model.graph).run()
    _drop_unused(model.graph)
    return model, version


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Remove tensors that no node reads any more: also those of types that TVM has not."""
    read = {each.name for each in graph.output} | _read(graph)
    kept = [each for each in graph.initializer if each.name in read]
    if len(kept) < len(graph.initializer):
        del graph.initializer[:]
        graph.initializer.extend(kept)


def _read(graph: onnx.GraphProto) -> set[str]:
    names = {name for node in graph.node for name in node.input}
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                names |= _read(attribute.g) | {each.name for each in attribute.g.output}
    return names


def _name_axes(graph: onnx.GraphProto, sizes: Mapping[str, int]) -> None:
    """Fix the axes that are given a size, and give every other dynamic one a name of its own."""
    known = {each.name for each in graph.initializer}
    inputs = [each for each in graph.input if each.name not in known]
    dims = [d for each in inputs for d in each.type.tensor_type.shape.dim]
    named = {d.dim_param for d in dims if d.dim_param}
    unknown = sorted(set(sizes) - named)
    if unknown:
        axes = ", ".join(sorted(named)) or "none"
        raise InvalidArgumentError(f"axis {unknown[0]!r} is none of the model's; it has: {axes}")
    for each in inputs:
        for axis, dim in enumerate(each.type.tensor_type.shape.dim):
            if dim.dim_param in sizes:
                dim.dim_value = sizes[dim.dim_param]
            elif not dim.dim_param and dim.dim_value <= 0:
                dim.dim_param = f"{re.sub(r'[^0-9a-zA-Z_]', '_', each.name)}_{axis}"
            elif dim.dim_param and not _is_expression(dim.dim_param, named):
                dim.dim_param = re.sub(r"\W", "_", dim.dim_param)


def _is_expression(text: str, named: Iterable[str]) -> bool:
    """Whether a dimension is a name, or a sum (product) of numbers and of other axes' names."""
    if not _DIMENSION.fullmatch(text):
        return False
    names = [word for word in re.split(r" ?(?:\+|-|\*|//|/) ?", text) if not word.isdigit()]
    return names == [text] or all(each in named for each in names)


class _Rewriter:
    """Rewrites the nodes of a graph, and of the graphs in its branches."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.constants = {each.name: each for each in graph.initializer}
        self.taken = {name for n in graph.node for name in (n.name, *n.output)}
        self.taken |= set(self.constants) | {each.name for each in graph.input}
        self.nodes: list[onnx.NodeProto] = []
        self.node = onnx.NodeProto()

    def run(self) -> None:
        """Rewrite the graph in place."""
        for node in self.graph.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    _Rewriter(attribute.g).run()
            self._note_constant(node)
            if not node.name:
                node.name = self.fresh(node.output[0] or node.op_type)
            self.node = node
            rewrite = REWRITES.get(node.op_type)
            if rewrite is None:
                self.nodes.append(node)
                continue
            inputs = [*node.input, *[""] * (10 - len(node.input))]
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            rewrite(self, inputs, attributes)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)

    def _note_constant(self, node: onnx.NodeProto) -> None:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            self.constants[node.output[0]] = node.attribute[0].t

    def fresh(self, hint: str) -> str:
        """A name that no value and no node has."""
        name, count = hint, 0
        while name in self.taken:
            count += 1
            name = f"{hint}_{count}"
        self.taken.add(name)
        return name

    def emit(self, op: str, inputs: Sequence[str], hint: str, **attrs: Any) -> str:
        """Add a node; the name of its output."""
        output = self.fresh(f"{self.node.output[0]}_{hint}")
        name = self.fresh(f"{self.node.name}_{hint}")
        self.nodes.append(self._made(op, inputs, [output], name, attrs))
        return output

    def result(self, op: str, inputs: Sequence[str], **attrs: Any) -> None:
        """Add the node that makes the output of the one that is rewritten."""
        name = self.fresh(f"{self.node.name}_out")
        self.nodes.append(self._made(op, inputs, [self.node.output[0]], name, attrs))

    def product(self, op: str, inputs: Sequence[str], *, last: bool = False) -> str:
        """Add the matrix product of the node that is rewritten: it bears that one's name."""
        out = self.node.output[0] if last else self.fresh(f"{self.node.output[0]}_product")
        self.nodes.append(self._made(op, inputs, [out], self.node.name, {}))
        return out

    @staticmethod
    def _made(
        op: str, inputs: Sequence[str], outputs: Sequence[str], name: str, attrs: Mapping[str, Any]
    ) -> onnx.NodeProto:
        given = list(inputs)
        while given and not given[-1]:
            given.pop()
        return helper.make_node(op, given, outputs, name, **attrs)

    def constant(self, value: np.ndarray, hint: str) -> str:
        """Add an initializer."""
        name = self.fresh(f"{self.node.output[0]}_{hint}")
        made = numpy_helper.from_array(value, name)
        self.graph.initializer.append(made)
        self.constants[name] = made
        return name

    def value(self, name: str) -> np.ndarray | None:
        """The value of a constant, None for anything else."""
        found = self.constants.get(name)
        return None if found is None else numpy_helper.to_array(found)

    def is_vector(self, name: str) -> bool:
        """Whether a constant has several elements."""
        found = self.value(name)
        return found is not None and found.size > 1

    def times(self, a: str, b: str, hint: str) -> str:
        """The product of two scales: a constant if they are."""
        left, right = self.value(a), self.value(b)
        if left is None or right is None:
            return self.emit("Mul", [a, b], hint)
        return self.constant(np.asarray(left * right, left.dtype), hint)

    def dequantize(self, operand: Sequence[str], hint: str, axis: int) -> str:
        """``(x - zero) * scale`` of (x, scale, zero); a vector of scales goes along the axis."""
        x, scale, zero = operand
        attrs = {"axis": axis} if self.is_vector(scale) else {}
        return self.emit("DequantizeLinear", _quantizer(self, x, scale, zero), hint, **attrs)

    def bias(self, values: str, scale: str) -> str:
        """An int32 vector in steps of a scale, dequantized."""
        steps = self.value(scale)
        zero = np.zeros(steps.shape if steps is not None else (), np.int32)
        return self.dequantize((values, scale, self.constant(zero, "none")), "bias", -1)

    def quantized(self, x: str, scale: str, zero: str) -> None:
        """The output of the node that is rewritten: x quantized."""
        self.result("QuantizeLinear", _quantizer(self, x, scale, zero))


def _quantizer(to: _Rewriter, x: str, scale: str, zero: str) -> list[str]:
    """Inputs of a quantization: one element in a vector stands for all, as a number does."""
    given = [x]
    for name in (scale, zero):
        value = to.value(name) if name else None
        if value is not None and value.shape == (1,):
            name = to.constant(value.reshape(()), "one")
        given.append(name)
    return given


Rewrite = Callable[[_Rewriter, Sequence[str], Mapping[str, Any]], None]


def _linear(to: _Rewriter, given: Sequence[str], attrs: Mapping[str, Any]) -> None:
    """QuantizeLinear, DequantizeLinear: scales of one element, and integers of 4 bits as int8."""
    node = to.node
    x, scale, zero = given[:3]
    wide = {}
    if node.op_type == "DequantizeLinear":
        value = to.value(x)
        if value is not None and value.dtype.itemsize == 1 and "int4" in str(value.dtype):
            dtype = np.uint8 if "uint4" in str(value.dtype) else np.int8
            wide[0] = to.constant(value.astype(dtype), "int8")
            of_zero = to.value(zero) if zero else None
            if of_zero is not None:
                zero = to.constant(of_zero.astype(dtype), "zero_int8")
    given = _quantizer(to, wide.get(0, x), scale, zero)
    attributes = dict(attrs)
    if not to.is_vector(given[1]) and not attributes.get("block_size"):
        attributes.pop("axis", None)
    to.nodes.append(to._made(node.op_type, given, node.output, node.name, attributes))


def _qlinear_matmul(to: _Rewriter, given: Sequence[str], _: Mapping[str, Any]) -> None:
    known = [to.value(given[place]) for place in (1, 4, 6)]
    scales = [each for each in known if each is not None]
    if to.value(given[3]) is not None and len(scales) == len(known):
        # The sum times one ratio, as onnxruntime rounds it: what is quantized is in output steps.
        a_scale, b_scale, scale = scales
        ratio = np.asarray(a_scale * b_scale / scale, np.float32)
        acc = to.product("MatMulInteger", [given[0], given[3], given[2], given[5]])
        wide = to.emit("Cast", [acc], "float", to=onnx.TensorProto.FLOAT)
        ratio = ratio.reshape(() if ratio.size == 1 else -1)
        found = to.emit("Mul", [wide, to.constant(ratio, "ratio")], "steps")
        to.quantized(found, to.constant(np.array(1, np.float32), "step"), given[7])
        return
    a = to.dequantize(given[0:3], "a", -2)
    b = to.dequantize(given[3:6], "b", -1)
    to.quantized(to.product("MatMul", [a, b]), *given[6:8])


def _qgemm(to: _Rewriter, given: Sequence[str], attrs: Mapping[str, Any]) -> None:
    """``alpha * A' B' + C``; C is int32 in steps of ``alpha * a_scale * b_scale``."""
    a_scale, b_scale = given[1], given[4]
    if attrs.get("alpha", 1.0) != 1.0:
        alpha = to.constant(np.array(attrs["alpha"], np.float32), "alpha")
        b_scale = to.times(b_scale, alpha, "alpha_scale")
    a = to.dequantize((given[0], a_scale, given[2]), "a", 1)
    # A vector of scales goes along N, which is the first axis of a transposed B.
    columns = 0 if attrs.get("transB") else 1
    b = to.dequantize((given[3], b_scale, given[5]), "b", columns)
    found = _product(to, a, b, attrs)
    if given[6]:
        bias = to.bias(given[6], to.times(a_scale, b_scale, "sum_scale"))
        found = to.emit("Add", [found, bias], "sum")
    if given[7]:
        to.quantized(found, given[7], given[8])
    else:
        to.result("Identity", [found])


def _product(to: _Rewriter, a: str, b: str, attrs: Mapping[str, Any], *, last: bool = False) -> str:
    if attrs.get("transA"):
        a = to.emit("Transpose", [a], "a_moved", perm=[1, 0])
    if attrs.get("transB"):
        b = to.emit("Transpose", [b], "b_moved", perm=[1, 0])
    return to.product("MatMul", [a, b], last=last)


def _gemm(to: _Rewriter, given: Sequence[str], attrs: Mapping[str, Any]) -> None:
    """``alpha * A' B' + beta * C``, the product by itself, so that it has the node's name."""
    alpha, beta = (float(attrs.get(name, 1.0)) for name in ("alpha", "beta"))
    plain = alpha == 1.0 and not given[2]
    found = _product(to, given[0], given[1], attrs, last=plain)
    if plain:
        return
    if alpha != 1.0:
        factors = [found, to.constant(np.array(alpha, np.float32), "alpha")]
        if not given[2]:
            to.result("Mul", factors)
            return
        found = to.emit("Mul", factors, "scaled")
    bias = given[2]
    if beta != 1.0:
        bias = to.times(bias, to.constant(np.array(beta, np.float32), "beta"), "bias")
    to.result("Add", [found, bias])


def _qlinear_add(to: _Rewriter, given: Sequence[str], attrs: Mapping[str, Any]) -> None:
    """``round(fixed + a * ratio_a + b * ratio_b)``, zero points inside of it.

    The scales of a sum are often alike, so that many sums lie exactly between two integers: they
    are rounded as onnxruntime does it only if they are computed as it does it.
    """
    known = [to.value(name) for name in (*given[1:3], *given[4:8])]
    values = [each.reshape(()) for each in known if each is not None and each.size == 1]
    if len(values) < len(known):
        _of_two("Add")(to, given, attrs)
        return
    scale_a, zero_a, scale_b, zero_b, scale, zero = values
    ratios = [np.float32(each / scale) for each in (scale_a, scale_b)]
    shift = np.float32(ratios[0] * np.float32(zero_a)) + np.float32(ratios[1] * np.float32(zero_b))
    found = to.constant(np.array(np.float32(zero) - shift, np.float32), "fixed")
    for name, ratio, which in zip((given[0], given[3]), ratios, "ab", strict=True):
        wide = to.emit("Cast", [name], f"{which}_wide", to=onnx.TensorProto.FLOAT)
        times = to.constant(np.array(ratio, np.float32), f"{which}_ratio")
        found = to.emit("Add", [found, to.emit("Mul", [wide, times], which)], f"with_{which}")
    limits = np.iinfo(zero.dtype)
    edges = [to.constant(np.array(v, np.float32), "edge") for v in (limits.min, limits.max)]
    clipped = to.emit("Clip", [to.emit("Round", [found], "rounded"), *edges], "clipped")
    to.result("Cast", [clipped], to=helper.np_dtype_to_tensor_dtype(zero.dtype))


def _of_two(op: str) -> Rewrite:
    def rewrite(to: _Rewriter, given: Sequence[str], _: Mapping[str, Any]) -> None:
        a, b = to.dequantize(given[0:3], "a", -1), to.dequantize(given[3:6], "b", -1)
        to.quantized(to.emit(op, [a, b], op.lower()), *given[6:8])

    return rewrite


def _of_one(op: str) -> Rewrite:
    def rewrite(to: _Rewriter, given: Sequence[str], attrs: Mapping[str, Any]) -> None:
        known = {name: attrs[name] for name in ("alpha", "axis") if name in attrs}
        x = to.dequantize(given[0:3], "x", -1)
        to.quantized(to.emit(op, [x], op.lower(), **known), *given[3:5])

    return rewrite


def _qlinear_concat(to: _Rewriter, _: Sequence[str], attrs: Mapping[str, Any]) -> None:
    scale, zero, *parts = to.node.input
    found = [to.dequantize(parts[i : i + 3], f"x{i // 3}", -1) for i in range(0, len(parts), 3)]
    to.quantized(to.emit("Concat", found, "concat", axis=attrs["axis"]), scale, zero)


def _qlinear_conv(to: _Rewriter, given: Sequence[str], attrs: Mapping[str, Any]) -> None:
    x, w = to.dequantize(given[0:3], "x", 1), to.dequantize(given[3:6], "w", 0)
    operands = [x, w]
    if given[8]:
        operands.append(to.bias(given[8], to.times(given[1], given[4], "sum_scale")))
    to.quantized(to.emit("Conv", operands, "conv", **attrs), *given[6:8])


def _integer_to_float(to: _Rewriter, given: Sequence[str], _: Mapping[str, Any]) -> None:
    """MatMulIntegerToFloat: A, B, their scales, their zero points, bias."""
    _scaled_product(to, (given[0], given[1]), (given[4], given[5]), given[2:4], given[6])


def _dynamic_matmul(to: _Rewriter, given: Sequence[str], _: Mapping[str, Any]) -> None:
    """DynamicQuantizeMatMul: A (float), B, scale and zero point of B, bias."""
    base = to.node.output[0]
    outputs = [to.fresh(f"{base}_{part}") for part in ("q", "scale", "zero_point")]
    name = to.fresh(f"{to.node.name}_quantize")
    to.nodes.append(helper.make_node("DynamicQuantizeLinear", [given[0]], outputs, name))
    q, scale, zero = outputs
    _scaled_product(to, (q, given[1]), (zero, given[3]), (scale, given[2]), given[4])


def _scaled_product(
    to: _Rewriter,
    operands: tuple[str, str],
    zeros: tuple[str, str],
    scales: Sequence[str],
    bias: str,
) -> None:
    acc = to.product("MatMulInteger", [*operands, *zeros])
    wide = to.emit("Cast", [acc], "float", to=onnx.TensorProto.FLOAT)
    factors = [wide, to.times(scales[0], scales[1], "scales")]
    if bias:
        to.result("Add", [to.emit("Mul", factors, "scaled"), bias])
    else:
        to.result("Mul", factors)


REWRITES: Mapping[str, Rewrite] = {
    "QuantizeLinear": _linear,
    "DequantizeLinear": _linear,
    "Gemm": _gemm,
    "QLinearMatMul": _qlinear_matmul,
    "QGemm": _qgemm,
    "QLinearAdd": _qlinear_add,
    "QLinearMul": _of_two("Mul"),
    "QLinearSigmoid": _of_one("Sigmoid"),
    "QLinearLeakyRelu": _of_one("LeakyRelu"),
    "QLinearSoftmax": _of_one("Softmax"),
    "QLinearConcat": _qlinear_concat,
    "QLinearConv": _qlinear_conv,
    "MatMulIntegerToFloat": _integer_to_float,
    "DynamicQuantizeMatMul": _dynamic_matmul,
}
"""By type of op, what stands for it; some are rewritten into themselves, with other inputs."""
