"""Keys and values that passes go on from, as cache classes of transformers."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import (
    Cache,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)

States = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of each layer, (prefixes, attention heads, length, width)."""

_PARAMETERS = ("cache", "past_key_values")  # its name from transformers 5.24 on, and before


class PrefixLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer's keys and values of prefixes that rows go on from; a pass adds nothing to it.

    Args:
        keys: (prefixes, attention heads, length, width).
        values: The same.
        fans: For each prefix, how many rows of the pass go on from it; they come in this order.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, fans: Sequence[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lazy_initialization(keys, values)
        self.keys, self.values = self._prefixes = keys, values
        self._fans = list(fans)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Each row's states behind its prefix's."""
        keys, values = self._prefixes
        return self._joint(keys, key_states), self._joint(values, value_states)

    def _joint(self, prefixes: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        length = prefixes.shape[-2]
        joint = rows.new_empty(*rows.shape[:-2], length + rows.shape[-2], rows.shape[-1])
        joint[..., length:, :] = rows
        places = torch.split(joint[..., :length, :], self._fans)
        for prefix, place in zip(prefixes, places, strict=True):
            place[:] = prefix
        return joint


class EmptyLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """No prefix, and nothing is kept."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The states as they are."""
        return key_states, value_states


def prefix_cache(states: States, fans: Sequence[int]) -> Cache:
    """A cache for one pass over rows that go on from prefixes, see `PrefixLayer`."""
    layers: list[Any] = [PrefixLayer(keys, values, fans) for keys, values in states]
    return Cache(layers=layers)


def empty_cache(layers: int) -> Cache:
    """A cache for one pass over whole rows: a layer finds its cache there all the same."""
    return Cache(layers=[EmptyLayer() for _ in range(layers)])  # type: ignore[no-untyped-call]


def cached(module: Any, cache: Cache) -> dict[str, Any]:
    """The arguments that make a model, or a part of it, read behind a cache.

    Raises:
        TypeError: It takes none.
    """
    for part in (module, module.base_model):  # some heads only hand it on
        parameters = inspect.signature(part.forward).parameters
        for name in _PARAMETERS:
            if name in parameters:
                return {name: cache, "use_cache": True}
    raise TypeError(f"{type(module).__name__} takes no cache")


def compute_states(module: Any, embeddings: torch.Tensor) -> States:
    """The keys and values of each layer for (n, length, H) embeddings.

    Raises:
        TypeError: The module keeps something else.
    """
    cache = DynamicCache()  # whole, where layers with a window would keep its end alone
    module(inputs_embeds=embeddings, **cached(module, cache))
    layers: list[Any] = cache.layers
    states = [(layer.keys, layer.values) for layer in layers]
    if not states or any(keys is None for keys, _ in states):
        raise TypeError(f"{type(module).__name__} keeps no keys and values")
    return states


def attention_window(config: Any) -> int | None:
    """How many tokens a token attends to at most; None where there is no bound.

    Raises:
        TypeError: Some layers keep something other than keys and values.
    """
    windows = [config.window_size] if "local" in getattr(config, "attention_layers", ()) else []
    for layer in DynamicCache(config=config).layers:
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            raise TypeError(f"its layers keep a {type(layer).__name__}")
        if isinstance(layer, DynamicSlidingWindowLayer):
            windows.append(layer.sliding_window)
    return min(windows, default=None)
