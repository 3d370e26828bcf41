"""PyTorch models as torchao and PT2E quantize them, against PyTorch."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch_models import CONFIGS, WIDTH, Block, Mlp, by_pt2e, by_torchao

import sparqle_tvm
from sparqle_tvm.errors import UnsupportedModelError
from sparqle_tvm.frontend import from_exported_program
from sparqle_tvm.frontend.torch import CONVERTERS
from sparqle_tvm.results.analysis import load_result

GENERATOR = torch.Generator().manual_seed(0)


def rows(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR)


def theirs(module: Callable[..., torch.Tensor], *given: torch.Tensor) -> np.ndarray:
    """What PyTorch computes."""
    with torch.no_grad():
        return module(*given).numpy()


def ours(source: Any, *given: torch.Tensor, **options: Any) -> tuple[np.ndarray, Any]:
    """What the compiled model computes, and its executable."""
    compiled = sparqle_tvm.compile(from_exported_program(source, given, **options).mod)
    return compiled["main"](*(each.numpy() for each in given)).numpy(), compiled


def test_the_table_names_what_is_tested() -> None:
    """Each way of torchao here and each of PT2E below has a row in docs/models.md."""
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    rows_of_torchao = re.findall(r"^\| torchao `(\w+)`(?:, `(\w+)\(\w+\)`)? \|", text, re.MULTILINE)
    tested = set()
    for make in CONFIGS.values():
        config = make()
        granularity = getattr(config, "weight_granularity", None)
        tested.add((type(config).__name__, type(granularity).__name__ if granularity else ""))
    assert {(row, "" if "Int8Weight" in row else given) for row, given in rows_of_torchao} == tested
    assert re.findall(r"^\| PT2E, (\w+) \|", text, re.MULTILINE) == ["static", "dynamic"]
    (ways,) = re.findall(r"^\| `quantized_decomposed` ops per ([a-z, ]+) \|", text, re.MULTILINE)
    assert ways.split(", ") == ["tensor", "channel", "token", "group"]


@pytest.mark.parametrize("config", CONFIGS)
def test_eager_modules_of_torchao(config: str) -> None:
    module, x = by_torchao(Mlp, config), rows(5, WIDTH)
    found, compiled = ours(module, x)
    report = compiled.report
    assert report.rewritten["SplitPrecision"] + report.rewritten["SplitGroupedDense"] == 2
    assert report.skipped == []
    # Another integer anywhere would be off by a step, some 1e-3.
    np.testing.assert_allclose(found, theirs(module, x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("config", list(CONFIGS)[:3])
def test_a_transformer_block_on_the_simulator(config: str) -> None:
    module, x = by_torchao(Block, config, seed=1), rows(2, 6, WIDTH)
    imported = from_exported_program(module, (x,))
    found = {}
    for engine in ("host", "simulator"):
        compiled = sparqle_tvm.compile(imported.mod, engine=engine)
        found[engine] = compiled["main"](x.numpy()).numpy()
        assert compiled.report.skipped == []
    assert compiled.report.rewritten["OffloadDense"] == 6
    # Layers bear their names.
    labels = [record.label for record in compiled.profile()]
    assert labels == ["q", "k", "v", "out", "mlp_up", "mlp_down"]
    np.testing.assert_array_equal(found["host"], found["simulator"])
    # A value on a border may go either way, because norms add in another order.
    expected = theirs(module, x)
    assert np.linalg.norm(found["host"] - expected) < 0.01 * np.linalg.norm(expected)


@pytest.mark.parametrize("config", ["int8 x int8", "int8 x int4 per channel"])
def test_dynamic_axes(config: str) -> None:
    module, count = by_torchao(Mlp, config), torch.export.Dim("count", min=2, max=64)
    imported = from_exported_program(module, (rows(5, WIDTH),), dynamic_shapes=({0: count},))
    assert imported.inputs[0].shape[1] == str(WIDTH) and not imported.inputs[0].shape[0].isdigit()
    compiled = sparqle_tvm.compile(imported.mod)
    for many in (2, 17):
        x = rows(many, WIDTH)
        found = compiled["main"](x.numpy()).numpy()
        np.testing.assert_allclose(found, theirs(module, x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_programs_of_pt2e(dynamic: bool, bias: bool) -> None:
    torch.manual_seed(2)
    x = rows(9, WIDTH)
    program = by_pt2e(Mlp(bias), (x,), dynamic=dynamic)
    found, compiled = ours(program, x)
    assert compiled.report.rewritten["SplitPrecision"] == 2
    # A scale per token takes whole rows; a static one is the drain's, behind the float bias.
    assert compiled.report.rewritten["DrainEncoded"] == (not dynamic)
    if bias and not dynamic:
        mod = from_exported_program(program, (x,)).mod
        simulated = sparqle_tvm.compile(mod, engine="simulator")
        np.testing.assert_array_equal(simulated["main"](x.numpy()).numpy(), found)
    np.testing.assert_allclose(found, theirs(program.module(), x), rtol=0, atol=1e-6)


def test_a_quantized_program_runs_as_a_file(tmp_path: Path) -> None:
    x = rows(9, WIDTH)
    torch.export.save(by_pt2e(Mlp(), (x,), dynamic=False), tmp_path / "model.pt2")
    np.savez(tmp_path / "in.npz", x=x.numpy())
    # In a process of its own: here the ops of PT2E are known already.
    command = [Path(sys.executable).with_name("sparqle"), "run", "--model", "model.pt2"]
    more = ["--inputs", "in.npz", "--engine", "analytical", "--json", "out.json"]
    subprocess.run([*command, *more], cwd=tmp_path, check=True, capture_output=True)
    found = load_result(tmp_path / "out.json")
    assert found.exact
    assert [each.consumers for each in found.msb_sparsity.layers] == [("up",), ("down",)]


def decomposed(name: str) -> Any:
    """An op of PT2E."""
    packet, overload = name.rsplit(".", 1)
    return getattr(getattr(torch.ops.quantized_decomposed, packet), overload)


def per_token(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Scales and zero points of rows by PT2E's op, weights in groups of 16 or per channel."""
    scale, zero = decomposed("choose_qparams_per_token_asymmetric.default")(x, torch.int8)
    q = decomposed("quantize_per_token.default")(x, scale, zero, -128, 127, torch.int8)
    return decomposed("dequantize_per_token.default")(
        q, scale, zero, -128, 127, torch.int8, torch.float32
    )


class PerToken(nn.Module):
    """int8 activations with zero points of rows, int8 weights in groups with float16 scales."""

    def __init__(self, size: int = 16) -> None:
        super().__init__()
        self.size = size
        generator = torch.Generator().manual_seed(3)
        w = torch.randint(-8, 8, (24, WIDTH), generator=generator, dtype=torch.int8)
        scale = torch.rand(24, WIDTH // size, generator=generator) / 9 + 0.01
        self.register_buffer("w", w)
        self.register_buffer("scale", scale.half().float())
        self.register_buffer("zero", torch.zeros(24, WIDTH // size, dtype=torch.int8))
        self.register_buffer("of_channels", self.scale[:, 0].clone())
        self.register_buffer("of_zeros", torch.zeros(24, dtype=torch.int8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = decomposed("dequantize_per_channel_group.default")(
            self.w, self.scale, self.zero, -8, 7, torch.int8, self.size, torch.float32
        )
        return nn.functional.linear(per_token(x, self.w), weight)


class Symmetric(PerToken):
    """The same with symmetric scales of rows, and one scale per channel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale, zero = decomposed("choose_qparams_per_token.default")(x, torch.int8)
        q = decomposed("quantize_per_token.default")(x, scale, zero, -128, 127, torch.int8)
        given = decomposed("dequantize_per_token.default")(
            q, scale, zero, -128, 127, torch.int8, torch.float32
        )
        weight = decomposed("dequantize_per_channel.default")(
            self.w, self.of_channels, self.of_zeros, 0, -128, 127, torch.int8
        )
        return nn.functional.linear(given, weight)


@pytest.mark.parametrize("module", [PerToken(), PerToken(32), Symmetric()])
def test_tokens_and_groups_of_pt2e(module: nn.Module) -> None:
    # Rows that are all positive have zero points at the end of the type.
    x = torch.cat([rows(3, WIDTH), rows(3, WIDTH).abs(), torch.zeros(1, WIDTH)])
    found, compiled = ours(module, x)
    split = compiled.report.rewritten
    assert split["SplitPrecision"] + split["SplitGroupedDense"] == 1
    expected = theirs(module, x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


class OneOp(nn.Module):
    """One op of a quantizer, on its own."""

    def __init__(self, op: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.op = op

    def forward(self, x: torch.Tensor) -> Any:
        return self.op(x)


def choose(name: str, *args: Any) -> Callable[[torch.Tensor], Any]:
    def op(x: torch.Tensor) -> Any:
        scale, zero = decomposed(name)(x, *args)
        # As single elements: PyTorch makes vectors of them.
        return x * scale.float() + zero.float()

    return op


S, Z = torch.tensor([0.05]), torch.tensor([3])
OPS: dict[str, Callable[[torch.Tensor], Any]] = {
    "choose_qparams": choose("choose_qparams.tensor", 0, 255, 1e-3, torch.uint8),
    "choose_qparams_symmetric": choose(
        "choose_qparams_symmetric.tensor", -127, 127, 1e-3, torch.int8
    ),
    "choose_qparams_per_token": choose("choose_qparams_per_token.default", torch.int8),
    "choose_qparams_per_token_asymmetric": choose(
        "choose_qparams_per_token_asymmetric.default", torch.int8
    ),
    "quantize_per_tensor": lambda x: decomposed("quantize_per_tensor.default")(
        x, 0.05, 3, -128, 127, torch.int8
    ),
    "quantize_per_tensor of 7 bits": lambda x: decomposed("quantize_per_tensor.default")(
        x, 0.05, 3, 0, 127, torch.uint8
    ),
    "quantize_per_tensor of tensors": lambda x: decomposed("quantize_per_tensor.tensor")(
        x, x.abs().max() / 100, x.abs().max().to(torch.int64), 0, 255, torch.uint8
    ),
    "quantize_per_channel": lambda x: decomposed("quantize_per_channel.default")(
        x, torch.linspace(0.01, 0.1, 64), torch.arange(64) % 5, 1, -128, 127, torch.int8
    ),
    "quantize_per_channel_group": lambda x: decomposed("quantize_per_channel_group.default")(
        x,
        torch.full((5, 4), 0.05),
        torch.ones(5, 4, dtype=torch.int64),
        -8,
        7,
        torch.int8,
        16,
    ),
    "amax": lambda x: torch.amax(x, 1, keepdim=True),
    "amin": lambda x: torch.amin(x, (0, 1)),
}


@pytest.mark.parametrize("name", OPS)
def test_ops_alone(name: str) -> None:
    module, x = OneOp(OPS[name]).eval(), rows(5, WIDTH)
    found, _ = ours(module, x)
    np.testing.assert_array_equal(found, theirs(module, x).reshape(found.shape))


@pytest.mark.parametrize("kind", ["ASYMMETRIC", "SYMMETRIC", "SYMMETRIC_NO_CLIPPING_ERR"])
@pytest.mark.parametrize("block", [(1, WIDTH), (5, WIDTH), (1, 16)])
def test_affine_ops_of_torchao(kind: str, block: tuple[int, ...]) -> None:
    ao = torch.ops.torchao

    def op(x: torch.Tensor) -> torch.Tensor:
        given = (torch.int8, -128, 127)
        scale, zero = ao.choose_qparams_affine(x, kind, block, *given, None, None, torch.int8)
        q = ao.quantize_affine(x, block, scale, zero, *given)
        return ao.dequantize_affine(q, block, scale, zero, *given)

    module, x = OneOp(op).eval(), rows(5, WIDTH)
    found, _ = ours(module, x)
    np.testing.assert_allclose(found, theirs(module, x), rtol=1e-6, atol=0)


def test_every_converter_is_an_op() -> None:
    """The map names ops that PyTorch and torchao of these versions have."""
    homes = (torch.ops.torchao, torch.ops.quantized_decomposed, torch.ops.aten)
    for name in CONVERTERS:
        packet, overload = name.split(".")
        assert any(overload in getattr(home, packet, _None).overloads() for home in homes), name


class _None:
    @staticmethod
    def overloads() -> list[str]:
        return []


def test_ops_that_are_not_imported_are_named() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.odd = OneOp(lambda x: torch.linalg.qr(x)[0])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.odd(x)

    with pytest.raises(UnsupportedModelError, match=r"aten\.linalg_qr\.default \(in odd\)"):
        from_exported_program(Layer(), (rows(4, 4),))


@pytest.mark.filterwarnings("ignore")
def test_modules_that_cannot_be_exported() -> None:
    class Branch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(UnsupportedModelError, match=r"torch\.export cannot export Branch: .+"):
        from_exported_program(Branch(), (rows(4, 4),))
    with pytest.raises(UnsupportedModelError, match="give example arguments"):
        from_exported_program(Mlp())


def test_the_module_stays_as_it_is() -> None:
    module = Mlp().train()
    from_exported_program(module, (rows(2, WIDTH),))
    assert module.training
