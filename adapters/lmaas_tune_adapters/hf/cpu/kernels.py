"""Faster modules for models on a processor, equal to transformers' own up to rounding.

Attention among few tokens is plain matrix products, which are faster there than torch's fused
attention. Linear layers lay out their weights for oneDNN once; the default kernel does so in
every call, which costs most in the small passes that are left once work is shared. The modules
between them write less memory: fresh pages for large results cost as much as the arithmetic.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

_ROWS = 512  # in a typical pass; oneDNN chooses the layout for about this number
_IGNORED = ("position_ids", "cache_position", "use_cache", "output_attentions")
_LONG = 256  # keys: above, attention that does not store all its weights is faster


class PackedLinear(torch.nn.Module):
    """x W^T + b, with W in the layout of oneDNN.

    Args:
        weight: (out, in) float32 or bfloat16.
        bias: (out,), or None.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.width = weight.shape[1]
        self.weight = weight.new_empty(0)  # some models read the dtype of a layer's weight
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS)
        self._bias = bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out)."""
        return self.then(x, "none")

    def then(self, x: torch.Tensor, function: str) -> torch.Tensor:
        """(..., in) to (..., out), with a function applied to each number."""
        image: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._weight, self._bias, function, [], ""
        )
        return image

    def times(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out), multiplied by another tensor of that shape."""
        image: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            x, other, self._weight, self._bias, "mul"
        )
        return image


class GatedUnit(torch.nn.Module):
    """The feed-forward of Llama and similar models, down(silu(gate(x)) * up(x)), in three steps.

    Args:
        unit: The model's own, its layers `PackedLinear`.
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
    """Attention of Llama and similar models; rotary embedding takes a third of the writes.

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
        """(n, length, H) to the same, with the weights if the attention function gives them."""
        stock, shape = self.stock, hidden_states.shape[:2]
        given = [v for name, v in options.items() if v is not None and name not in _IGNORED]
        caches = [value for value in given if isinstance(value, Cache)]
        if len(caches) < len(given):  # an argument that only the stock module knows
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
        query = _rotated(query, *position_embeddings).transpose(1, 2)
        key = _rotated(key, *position_embeddings).transpose(1, 2)
        value = value.transpose(1, 2)
        for cache in caches:
            key, value = cache.update(key, value, stock.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS[stock.config._attn_implementation]
        mixed, weights = attend(stock, query, key, value, attention_mask, scaling=stock.scaling)
        return stock.o_proj(mixed.reshape(*shape, -1)), weights


class RootNorm(torch.nn.Module):
    """Root-mean-square norm of Llama and similar models, with fewer writes and equal rounding.

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


def _rotated(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate (n, length, heads, width) states by the angles of their positions.

    Args:
        states: Queries or keys.
        cos: (1 or n, length, width).
        sin: The same.

    Returns:
        The same shape; in memory each head is contiguous, as attention reads it.
    """
    cos, sin, half = cos[:, :, None], sin[:, :, None], states.shape[-1] // 2
    rotated = torch.empty_like(states.transpose(1, 2), memory_format=torch.contiguous_format)
    rotated = torch.mul(states, cos, out=rotated.transpose(1, 2))
    rotated[..., :half].addcmul_(states[..., half:], sin[..., :half], value=-1)
    rotated[..., half:].addcmul_(states[..., :half], sin[..., half:])
    return rotated


def short_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention for transformers' registry, by plain matrix products where keys are few.

    Returns:
        (n, length, heads, width) for queries of (n, heads, length, width); no weights, as ``sdpa``.
    """
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
    """Attention in float32; heads that share keys and values become rows of one product."""
    products, keys = len(key) * key.shape[1], key.shape[2]
    weights = torch.bmm(
        query.float().reshape(products, -1, query.shape[-1]),
        key.float().reshape(products, keys, -1).transpose(1, 2),
    ).view(*query.shape[:3], keys)
    if mask.dtype == torch.bool:
        sees, mask = mask, mask.new_zeros(mask.shape, dtype=weights.dtype)
        mask.masked_fill_(~sees, torch.finfo(mask.dtype).min)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    torch.add(mask, weights, alpha=scale, out=weights)
    mixed = torch.bmm(
        torch.softmax(weights, dim=-1).view(products, -1, keys),
        value.float().reshape(products, keys, -1),
    )
    return mixed.view(*query.shape[:3], value.shape[-1]).to(query.dtype)
