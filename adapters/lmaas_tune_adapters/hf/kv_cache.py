"""Caches of the keys and values of shared prefixes, and masks for rows that continue them."""

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
"""Keys and values of each layer, each (prefixes, attention heads, length, width)."""

_PARAMETERS = ("cache", "past_key_values")  # its name from transformers 5.24 on, and before


class PrefixLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer's keys and values of prefixes that rows continue; a forward pass adds nothing.

    Args:
        keys: (prefixes, attention heads, length, width).
        values: The same.
        rows_per_prefix: For each prefix, how many rows continue it; rows come in this order.
    """

    def __init__(
        self, keys: torch.Tensor, values: torch.Tensor, rows_per_prefix: Sequence[int]
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lazy_initialization(keys, values)
        self.keys, self.values = self._prefixes = keys, values
        self._rows_per_prefix = list(rows_per_prefix)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put each row's keys and values behind those of its prefix."""
        keys, values = self._prefixes
        return self._joint(keys, key_states), self._joint(values, value_states)

    def _joint(self, prefixes: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        length = prefixes.shape[-2]
        joint = rows.new_empty(*rows.shape[:-2], length + rows.shape[-2], rows.shape[-1])
        joint[..., length:, :] = rows
        groups = torch.split(joint[..., :length, :], self._rows_per_prefix)
        for prefix, group in zip(prefixes, groups, strict=True):
            group[:] = prefix
        return joint


class EmptyLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """No prefix; a forward pass leaves nothing in it."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the states unchanged."""
        return key_states, value_states


def prefix_cache(states: States, rows_per_prefix: Sequence[int]) -> Cache:
    """Make the cache of one forward pass over rows that continue prefixes, see `PrefixLayer`."""
    layers: list[Any] = [PrefixLayer(keys, values, rows_per_prefix) for keys, values in states]
    return Cache(layers=layers)


def empty_cache(layers: int) -> Cache:
    """Make a cache for whole rows, for code that needs every layer to have one."""
    return Cache(layers=[EmptyLayer() for _ in range(layers)])  # type: ignore[no-untyped-call]


def cache_arguments(module: Any, cache: Cache) -> dict[str, Any]:
    """Name the arguments that pass a cache to a model or a part of it.

    Raises:
        TypeError: It takes no cache.
    """
    for part in (module, module.base_model):  # some models only pass it to their base
        parameters = inspect.signature(part.forward).parameters
        for name in _PARAMETERS:
            if name in parameters:
                return {name: cache, "use_cache": True}
    raise TypeError(f"{type(module).__name__} takes no cache")


def compute_states(module: Any, embeddings: torch.Tensor) -> States:
    """Compute each layer's keys and values for (n, length, H) embeddings.

    Raises:
        TypeError: The module caches something else.
    """
    cache = DynamicCache()  # without the config: a layer with a window would drop the start
    module(inputs_embeds=embeddings, **cache_arguments(module, cache))
    layers: list[Any] = cache.layers
    states = [(layer.keys, layer.values) for layer in layers]
    if not states or any(keys is None for keys, _ in states):
        raise TypeError(f"{type(module).__name__} keeps no keys and values")
    return states


def attention_window(config: Any) -> int | None:
    """Return the most tokens that a token attends to; None where there is no bound.

    Raises:
        TypeError: Some layers cache something other than keys and values.
    """
    windows = [config.window_size] if "local" in getattr(config, "attention_layers", ()) else []
    for layer in DynamicCache(config=config).layers:
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            raise TypeError(f"its layers keep a {type(layer).__name__}")
        if isinstance(layer, DynamicSlidingWindowLayer):
            windows.append(layer.sliding_window)
    return min(windows, default=None)


def positions_and_mask(
    prefixes: Sequence[int], longest: int, parents: Sequence[int], embeddings: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Positions and masks for suffixes that follow cached prefixes of several lengths.

    Args:
        prefixes: For each sequence, the length of its prefix, which all its tokens attend to.
        longest: Length of the longest; a shorter one leaves its last positions empty.
        parents: For each token of the tree, the index in the tree of the token that it follows;
            -1 for the last token before the tree.
        embeddings: (n, width, H) of the suffixes, the tree last; gives dtype and device.

    Returns:
        ``position_ids`` and ``attention_mask`` of a transformers model.
    """
    width = embeddings.shape[1]
    stem = width - len(parents)
    sees = torch.ones(width, width, dtype=torch.bool).tril()
    steps = list(range(stem))
    for index, parent in enumerate(parents):
        sees[stem + index, stem:] = False if parent < 0 else sees[stem + parent, stem:]
        sees[stem + index, stem + index] = True
        steps.append(steps[stem + parent] + 1 if parent >= 0 else stem)
    lengths = torch.tensor(prefixes[:1] if len(set(prefixes)) == 1 else prefixes)[:, None]
    filled = torch.arange(longest) < lengths
    seen = torch.cat(
        [filled[:, None].expand(-1, width, -1), sees.expand(len(lengths), -1, -1)], dim=2
    )
    mask = torch.zeros(seen.shape, dtype=embeddings.dtype)
    mask.masked_fill_(~seen, torch.finfo(mask.dtype).min)
    return {
        "position_ids": (lengths + torch.tensor(steps)).to(embeddings.device),
        "attention_mask": mask.to(embeddings.device)[:, None],
    }
