"""A last layer that is computed only at the few positions that are read.

The layer needs all other positions for their keys and values alone: their attention, their
feed-forward and all that follows the layer are left out.
"""

from __future__ import annotations

import contextlib
import inspect
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache

if TYPE_CHECKING:
    from collections.abc import Iterator

_AXES = {
    "hidden_states": 1,
    "position_ids": -1,
    "cache_position": -1,
    "position_embeddings": 1,
    "attention_mask": 2,
}
"""The axis of positions in each argument of a layer."""


def last_layer(decoder: Any, count: int) -> Any:
    """Find the last of `count` layers of a decoder; None if it keeps no list of them."""
    lists = [m for m in decoder.children() if isinstance(m, torch.nn.ModuleList)]
    return next((layers[-1] for layers in lists if len(layers) == count), None)


@contextlib.contextmanager
def only_last(layer: Any, reads: int) -> Iterator[None]:
    """Compute only the last `reads` positions of a layer; it gives zeros for the others.

    Args:
        layer: Is called with a cache of transformers, under any name, and updates it with its
            keys and values. It needs an attention mask unless one position is read: a causal
            mask differs between a sequence and its end.
        reads: Positions at the end of every sequence.
    """
    signature = inspect.signature(layer.forward)
    length = 0

    def narrow(_module: Any, args: Any, options: Any) -> Any:
        nonlocal length
        call = signature.bind(*args, **options).arguments
        call |= call.pop("kwargs", {})
        length = call["hidden_states"].shape[1]
        (cache,) = (name for name, value in call.items() if isinstance(value, Cache))
        call[cache] = _AllStates(call[cache])
        with contextlib.suppress(_StatesKnown):
            layer.forward(**call)
        for name, axis in _AXES.items():
            if call.get(name) is not None:
                call[name] = _end(call[name], axis, reads)
        return (), call

    def widen(_module: Any, _inputs: Any, output: Any) -> Any:
        few, *rest = output if isinstance(output, tuple) else (output,)
        whole = few.new_zeros(len(few), length, few.shape[-1])
        whole[:, -reads:] = few
        return (whole, *rest) if isinstance(output, tuple) else whole

    hooks = [
        layer.register_forward_pre_hook(narrow, with_kwargs=True),
        layer.register_forward_hook(widen),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _StatesKnown(Exception):  # noqa: N818 (a signal, no error)
    """Ends a layer's first call once the keys and values of all positions are known."""


class _AllStates(Cache):
    """Replaces a layer's cache: records all positions' states, then gives them to the last few."""

    def __init__(self, cache: Cache) -> None:
        super().__init__(layers=[])
        self._cache = cache
        self._states: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **options: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Record the states in the first call, and return them in the second."""
        if self._states is not None:
            return self._states
        self._states = self._cache.update(key_states, value_states, layer_idx, *args, **options)
        raise _StatesKnown


def _end(value: Any, axis: int, reads: int) -> Any:
    if isinstance(value, tuple):
        return tuple(_end(part, axis, reads) for part in value)
    start = max(0, value.shape[axis] - reads)
    return value.narrow(axis, start, value.shape[axis] - start)
