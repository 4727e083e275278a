"""A model on a processor, made faster to use; its numbers stay, to the rounding of its dtype.

Attention of few tokens to few is plain products, which is faster there than torch's own. Linear
layers get their weights laid out once for oneDNN: the default kernel lays them out anew in
every call, which costs most for the small passes that are left once work is shared. What runs
between them writes less memory: fresh pages for large results cost as much as the sums.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.activations import SiLUActivation
from transformers.cache_utils import Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D

from lmaas_tune_adapters.hf.forward import failure

_ROWS = 512  # of a typical pass: the layout is chosen for about so many
_SHORT = "lmaas_tune_short"
_NO_MATTER = ("position_ids", "cache_position", "use_cache", "output_attentions")
_LONG = 256  # of keys: for more, attention that never holds all its weights is the faster


class PackedLinear(torch.nn.Module):
    """x W^T + b, with W as oneDNN wants it.

    Args:
        weight: (out, in) float32 or bfloat16.
        bias: (out,), or None.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.width = weight.shape[1]
        self.weight = weight.new_empty(0)  # some models look at the dtype of a layer's weight
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS)
        self._bias = bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out)."""
        return self.then(x, "none")

    def then(self, x: torch.Tensor, function: str) -> torch.Tensor:
        """(..., in) to (..., out), and a function of each number."""
        image: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._weight, self._bias, function, [], ""
        )
        return image

    def times(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out), multiplied by as many other numbers."""
        image: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            x, other, self._weight, self._bias, "mul"
        )
        return image


class GatedUnit(torch.nn.Module):
    """The feed-forward of Llama and its kin, down(silu(gate(x)) * up(x)), as three operations.

    Args:
        unit: Made of `PackedLinear`.
    """

    def __init__(self, unit: Any) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = unit.gate_proj, unit.up_proj, unit.down_proj

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., H) to (..., H)."""
        gate = self.gate_proj.then(x, "swish")
        image: torch.Tensor = self.down_proj(self.up_proj.times(x, gate))
        return image


class RotaryAttention(torch.nn.Module):
    """Attention of Llama and its kin, its queries and keys turned in a third of the writes.

    Args:
        stock: The model's own.
    """

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.stock = stock

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, Any]:
        """(n, length, H) to the same; and weights, where the attention that is set gives them."""
        stock, shape = self.stock, hidden_states.shape[:2]
        given = [v for name, v in options.items() if v is not None and name not in _NO_MATTER]
        caches = [value for value in given if isinstance(value, Cache)]
        if len(caches) < len(given):  # something that only the stock one knows
            whole: tuple[torch.Tensor, Any] = stock(
                hidden_states,
                position_embeddings=position_embeddings,
                attention_mask=attention_mask,
                **options,
            )
            return whole
        query, key, value = (
            layer(hidden_states).view(*shape, -1, stock.head_dim)
            for layer in (stock.q_proj, stock.k_proj, stock.v_proj)
        )
        query = _turned(query, *position_embeddings).transpose(1, 2)
        key = _turned(key, *position_embeddings).transpose(1, 2)
        value = value.transpose(1, 2)
        for cache in caches:
            key, value = cache.update(key, value, stock.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS[stock.config._attn_implementation]
        mixed, weights = attend(stock, query, key, value, attention_mask, scaling=stock.scaling)
        return stock.o_proj(mixed.reshape(*shape, -1)), weights


class RootNorm(torch.nn.Module):
    """Root-mean-square norm of Llama and its kin, in fewer writes and with the same rounding.

    Args:
        stock: The model's own.
    """

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.weight, self._epsilon = stock.weight, stock.variance_epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., H) to (..., H)."""
        wide = x.float()
        scale = wide.square().mean(-1, keepdim=True).add_(self._epsilon).rsqrt_()
        image: torch.Tensor = (wide * scale).to(x.dtype).mul_(self.weight)
        return image


def _turned(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """(n, length, heads, width) states turned by their places' angles, (1 or n, length, width);
    in memory a head's lie together, as attention reads them."""
    cos, sin, half = cos[:, :, None], sin[:, :, None], states.shape[-1] // 2
    turned = torch.empty_like(states.transpose(1, 2), memory_format=torch.contiguous_format)
    turned = torch.mul(states, cos, out=turned.transpose(1, 2))
    turned[..., :half].addcmul_(states[..., half:], sin[..., :half], value=-1)
    turned[..., half:].addcmul_(states[..., :half], sin[..., half:])
    return turned


def pack(network: Any) -> list[str]:
    """Make a model faster in place, where it is on a processor.

    Returns:
        What did not succeed, and why: the parts of the model concerned are as they were.
    """
    if network.device.type != "cpu":
        return []
    steps: list[Callable[[Any], None]] = [_shorten_attention]
    if network.dtype in (torch.float32, torch.bfloat16):
        steps += [_pack_linear_layers, _pack_gated_units, _pack_rotary_attention, _pack_norms]
    failures = []
    for step in steps:
        try:
            with torch.inference_mode(False), torch.no_grad():
                step(network)
        except Exception as error:  # a private part of torch or transformers that has changed
            failures.append(failure(error))
    return failures


def _pack_linear_layers(network: Any) -> None:
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is torch.nn.Linear:
                weight = layer.weight
            elif type(layer) is Conv1D:  # GPT-2's: the same with its weight on its side
                weight = layer.weight.T
            else:
                continue
            setattr(parent, name, PackedLinear(weight.detach(), layer.bias))


def _pack_gated_units(network: Any) -> None:
    for parent in list(network.modules()):
        for name, unit in list(parent.named_children()):
            if not _is_gated_unit(unit):
                continue
            gated = GatedUnit(unit)
            x = torch.linspace(-2, 2, unit.gate_proj.width, dtype=network.dtype)[None]
            if _alike(gated(x), unit(x)):  # tried out, not assumed
                setattr(parent, name, gated)


def _is_gated_unit(unit: torch.nn.Module) -> bool:
    parts = dict(unit.named_children())
    act = parts.pop("act_fn", None)
    return (
        parts.keys() == {"gate_proj", "up_proj", "down_proj"}
        and all(isinstance(part, PackedLinear) for part in parts.values())
        and isinstance(act, (torch.nn.SiLU, SiLUActivation))
    )


def _shorten_attention(network: Any) -> None:
    """Where few tokens attend to few, as behind shared heads, let plain products do it."""
    causal = any(getattr(module, "is_causal", False) for module in network.modules())
    if not causal or network.config._attn_implementation != "sdpa":
        return
    AttentionInterface.register(_SHORT, _short_attention)
    AttentionMaskInterface.register(_SHORT, sdpa_mask)
    network.set_attn_implementation(_SHORT)


def _short_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """(n, heads, length, width) to (n, length, heads, width); no weights, as of ``sdpa``."""
    special = any(options.get(name) is not None for name in ("softcap", "position_bias", "cache"))
    if attention_mask is None or special or options.get("dropout"):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
    if key.shape[2] > _LONG:
        mixed = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, scale=scaling, enable_gqa=True
        )
    else:
        mixed = _products(query, key, value, attention_mask, scaling)
    return mixed.transpose(1, 2).contiguous(), None


def _products(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float | None,
) -> torch.Tensor:
    """Attention in float32; heads that share keys and values are as more rows of one product."""
    shared, keys = len(key) * key.shape[1], key.shape[2]  # products of their own
    weights = torch.bmm(
        query.float().reshape(shared, -1, query.shape[-1]),
        key.float().reshape(shared, keys, -1).transpose(1, 2),
    ).view(*query.shape[:3], keys)
    if mask.dtype == torch.bool:
        sees, mask = mask, mask.new_zeros(mask.shape, dtype=weights.dtype)
        mask.masked_fill_(~sees, torch.finfo(mask.dtype).min)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    torch.add(mask, weights, alpha=scale, out=weights)
    mixed = torch.bmm(
        torch.softmax(weights, dim=-1).view(shared, -1, keys),
        value.float().reshape(shared, keys, -1),
    )
    return mixed.view(*query.shape[:3], value.shape[-1]).to(query.dtype)


def _pack_rotary_attention(network: Any) -> None:
    if network.config._attn_implementation not in ("sdpa", _SHORT):
        return
    for parent in list(network.modules()):
        for name, unit in list(parent.named_children()):
            if _is_rotary_attention(unit) and _turns_alike(unit, turned := RotaryAttention(unit)):
                setattr(parent, name, turned)


def _is_rotary_attention(unit: torch.nn.Module) -> bool:
    parts = dict(unit.named_children())
    return (
        parts.keys() == {"q_proj", "k_proj", "v_proj", "o_proj"}
        and all(isinstance(part, PackedLinear) for part in parts.values())
        and all(hasattr(unit, name) for name in ("config", "head_dim", "layer_idx", "scaling"))
        and "position_embeddings" in inspect.signature(unit.forward).parameters
    )


def _turns_alike(stock: Any, ours: RotaryAttention) -> bool:
    """Whether both give the same, with a mask and without: tried out, not assumed.

    Of large numbers too, which some models clip.
    """
    numbers = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, stock.q_proj.width, generator=numbers).to(stock.q_proj.weight.dtype)
    x[1] *= 100
    angles = torch.randn(1, 5, stock.head_dim // 2, generator=numbers).repeat(1, 1, 2)
    places = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    sees = torch.rand(2, 1, 5, 5, generator=numbers).add(torch.eye(5)) > 0.5
    for mask in (None, sees):
        theirs, _ = stock(x, position_embeddings=places, attention_mask=mask)
        mixed, _ = ours(x, places, mask)
        if not all(map(_alike, mixed, theirs)):
            return False
    return True


def _pack_norms(network: Any) -> None:
    for parent in list(network.modules()):
        for name, unit in list(parent.named_children()):
            only_scales = [key for key, _ in unit.named_parameters()] == ["weight"]
            if not only_scales or not hasattr(unit, "variance_epsilon"):
                continue
            if _norms_alike(unit, ours := RootNorm(unit)):
                setattr(parent, name, ours)


def _norms_alike(stock: Any, ours: RootNorm) -> bool:
    """Whether both give the same, of large numbers and of small ones: tried out, not assumed."""
    numbers = torch.linspace(-1, 3, len(stock.weight), dtype=stock.weight.dtype)  # mean not 0
    return all(_alike(ours(x), stock(x), rough=1e-5) for x in (numbers, 1e-3 * numbers))


def _alike(ours: torch.Tensor, theirs: torch.Tensor, *, rough: float = 1e-4) -> bool:
    """Whether two results differ by the rounding of their dtype only, `rough` in float32."""
    rough = rough if theirs.dtype == torch.float32 else 2e-2
    return bool((ours - theirs).abs().max() <= rough * theirs.abs().max())
