"""Finding the modules of a network that `kernels.py` can replace, and replacing them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.activations import SiLUActivation
from transformers.masking_utils import sdpa_mask
from transformers.pytorch_utils import Conv1D

from lmaas_tune_adapters.hf.cpu.kernels import (
    GatedUnit,
    PackedLinear,
    RootNorm,
    RotaryAttention,
    short_attention,
)
from lmaas_tune_adapters.hf.probe import close
from lmaas_tune_adapters.hf.source import failure

_SHORT = "lmaas_tune_short"


def replace_modules(network: Any) -> list[str]:
    """Make a network on a processor faster, in place.

    Returns:
        Why steps failed; the parts of the network that they concern are unchanged.
    """
    if network.device.type != "cpu":
        return []
    steps: list[Callable[[Any], None]] = [_replace_attention_function]
    if network.dtype in (torch.float32, torch.bfloat16):
        steps += [_replace_linear_layers, _replace_gated_units, _replace_attention, _replace_norms]
    failures = []
    for step in steps:
        try:
            with torch.inference_mode(False), torch.no_grad():
                step(network)
        except Exception as error:  # a private part of torch or transformers has changed
            failures.append(failure(error))
    return failures


def _children(network: Any) -> Iterator[tuple[Any, str, Any]]:
    """Iterate over (parent, name, module), while modules may be replaced."""
    for parent in list(network.modules()):
        for name, module in list(parent.named_children()):
            yield parent, name, module


def _replace_linear_layers(network: Any) -> None:
    for parent, name, layer in _children(network):
        if type(layer) is torch.nn.Linear:
            weight = layer.weight
        elif type(layer) is Conv1D:  # GPT-2's linear layer, its weight transposed
            weight = layer.weight.T
        else:
            continue
        setattr(parent, name, PackedLinear(weight.detach(), layer.bias))


def _replace_gated_units(network: Any) -> None:
    for parent, name, unit in _children(network):
        if not _is_gated_unit(unit):
            continue
        gated = GatedUnit(unit)
        x = torch.linspace(-2, 2, unit.gate_proj.width, dtype=network.dtype)[None]
        if _equal(gated(x), unit(x)):
            setattr(parent, name, gated)


def _is_gated_unit(unit: torch.nn.Module) -> bool:
    parts = dict(unit.named_children())
    act = parts.pop("act_fn", None)
    return (
        parts.keys() == {"gate_proj", "up_proj", "down_proj"}
        and all(isinstance(part, PackedLinear) for part in parts.values())
        and isinstance(act, (torch.nn.SiLU, SiLUActivation))
    )


def _replace_attention_function(network: Any) -> None:
    """Let plain products compute attention among few tokens, as behind shared prefixes."""
    causal = any(getattr(module, "is_causal", False) for module in network.modules())
    if not causal or network.config._attn_implementation != "sdpa":
        return
    AttentionInterface.register(_SHORT, short_attention)
    AttentionMaskInterface.register(_SHORT, sdpa_mask)
    network.set_attn_implementation(_SHORT)


def _replace_attention(network: Any) -> None:
    if network.config._attn_implementation not in ("sdpa", _SHORT):
        return
    for parent, name, unit in _children(network):
        if not _is_rotary_attention(unit):
            continue
        rotary = RotaryAttention(unit)
        if _attend_equally(unit, rotary):
            setattr(parent, name, rotary)


def _is_rotary_attention(unit: torch.nn.Module) -> bool:
    parts = dict(unit.named_children())
    return (
        parts.keys() == {"q_proj", "k_proj", "v_proj", "o_proj"}
        and all(isinstance(part, PackedLinear) for part in parts.values())
        and all(hasattr(unit, name) for name in ("config", "head_dim", "layer_idx", "scaling"))
        and "position_embeddings" in inspect.signature(unit.forward).parameters
    )


def _attend_equally(stock: Any, ours: RotaryAttention) -> bool:
    """Compare both with a mask and without, for large numbers too, which some models clip."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, stock.q_proj.width, generator=generator).to(stock.q_proj.weight.dtype)
    x[1] *= 100
    angles = torch.randn(1, 5, stock.head_dim // 2, generator=generator).repeat(1, 1, 2)
    positions = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    sees = torch.rand(2, 1, 5, 5, generator=generator).add(torch.eye(5)) > 0.5
    for mask in (None, sees):
        theirs, _ = stock(x, position_embeddings=positions, attention_mask=mask)
        mixed, _ = ours(x, positions, mask)
        if not all(map(_equal, mixed, theirs)):
            return False
    return True


def _replace_norms(network: Any) -> None:
    for parent, name, unit in _children(network):
        only_scales = [key for key, _ in unit.named_parameters()] == ["weight"]
        if not only_scales or not hasattr(unit, "variance_epsilon"):
            continue
        norm = RootNorm(unit)
        if _normalise_equally(unit, norm):
            setattr(parent, name, norm)


def _normalise_equally(stock: Any, ours: RootNorm) -> bool:
    """Compare both for large numbers and for small ones, whose mean is not 0."""
    numbers = torch.linspace(-1, 3, len(stock.weight), dtype=stock.weight.dtype)
    return all(_equal(ours(x), stock(x), single=1e-5) for x in (numbers, 1e-3 * numbers))


def _equal(ours: torch.Tensor, theirs: torch.Tensor, *, single: float = 1e-4) -> bool:
    return close(ours, theirs, single=single, half=2e-2)
