"""Small PyTorch models, quantized by torchao and by PT2E."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

with warnings.catch_warnings():
    # It tries kernels for other processors, and names that PyTorch will not have for ever.
    warnings.simplefilter("ignore")
    import torchao.quantization as ao
    from torchao.quantization.granularity import PerAxis, PerGroup
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

WIDTH, HIDDEN, HEADS = 64, 128, 4


class Mlp(nn.Module):
    """Two layers with biases and a ReLU."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, HIDDEN, bias), nn.Linear(HIDDEN, 32, bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(x)))


class Block(nn.Module):
    """A layer of a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.mlp = Mlp()
        self.mlp.down = nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm1(x)
        batch, length, width = y.shape

        def heads(z: torch.Tensor) -> torch.Tensor:
            return z.view(batch, length, HEADS, width // HEADS).transpose(1, 2)

        q, k, v = heads(self.q(y)), heads(self.k(y)), heads(self.v(y))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(self.norm2(x))


def _intx(granularity: Any, **options: Any) -> Any:
    return ao.Int8DynamicActivationIntxWeightConfig(
        weight_dtype=torch.int4, weight_granularity=granularity, **options
    )


CONFIGS: dict[str, Any] = {
    "int8 x int8": lambda: ao.Int8DynamicActivationInt8WeightConfig(),
    "int8 x int4 per channel": lambda: _intx(PerAxis(0)),
    "int8 x int4 in groups": lambda: _intx(PerGroup(32)),
    "int8 x int4 in groups, float16": lambda: _intx(PerGroup(32), weight_scale_dtype=torch.float16),
    "int8 x int4 in groups, zero points": lambda: _intx(
        PerGroup(32),
        weight_mapping_type=ao.quant_primitives.MappingType.ASYMMETRIC,
    ),
}
"""Ways of torchao."""


def by_torchao(make: Any, config: str, seed: int = 0) -> nn.Module:
    """An eager module with quantized weights."""
    torch.manual_seed(seed)
    module = make().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ao.quantize_(module, CONFIGS[config]())
    return module


def by_pt2e(module: nn.Module, example: tuple[Any, ...], *, dynamic: bool) -> Any:
    """The exported program of a module that PT2E has quantized on its example."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantizer = x86.X86InductorQuantizer()
        options = {"is_dynamic": dynamic}
        quantizer.set_global(x86.get_default_x86_inductor_quantization_config(**options))
        prepared = prepare_pt2e(torch.export.export(module.eval(), example).module(), quantizer)
        prepared(*example)
        return torch.export.export(convert_pt2e(prepared), example)
