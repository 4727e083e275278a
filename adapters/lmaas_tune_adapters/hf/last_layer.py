"""A decoder's last layer, where only the last few positions are read.

The others matter there only as what is attended to: their keys and values. Nothing asks for their
attention, their feed-forward, or what comes behind the layer.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from transformers.cache_utils import Cache

_AXES = {
    "hidden_states": 1,
    "position_ids": -1,
    "cache_position": -1,
    "position_embeddings": 1,
    "attention_mask": 2,
}
"""The axis of positions in what a layer is called with."""


def last_layer(decoder: Any, count: int) -> Any:
    """The layer that runs last of so many, or None where the decoder keeps no list of them."""
    lists = [m for m in decoder.children() if isinstance(m, torch.nn.ModuleList)]
    return next((layers[-1] for layers in lists if len(layers) == count), None)


@contextlib.contextmanager
def only_last(layer: Any, reads: int) -> Iterator[None]:
    """Let a layer work out its last `reads` positions only; it gives zeros for the others.

    Args:
        layer: Is called with a cache of transformers, whatever it calls it, and updates that with
            its keys and values. It must be given a mask, or read one position: a sequence and a
            part of it are causal in different ways.
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
    """The keys and values of all positions are known: the layer need not go on."""


class _AllStates(Cache):
    """In place of a layer's cache: takes in all positions' states, then serves the few's call."""

    def __init__(self, cache: Cache) -> None:
        super().__init__(layers=[])
        self._cache = cache
        self._states: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *place: Any,
        **options: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The states of all positions, once they are known."""
        if self._states is not None:
            return self._states
        self._states = self._cache.update(key_states, value_states, layer_idx, *place, **options)
        raise _StatesKnown


def _end(value: Any, axis: int, reads: int) -> Any:
    if isinstance(value, tuple):
        return tuple(_end(part, axis, reads) for part in value)
    start = max(0, value.shape[axis] - reads)
    return value.narrow(axis, start, value.shape[axis] - start)
