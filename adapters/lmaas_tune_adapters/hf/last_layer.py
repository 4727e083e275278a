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

_AXES = {"hidden_states": 1, "position_ids": -1, "position_embeddings": 1, "attention_mask": 2}
"""The axis of positions in what a layer is called with."""


def last_layer(decoder: Any, count: int) -> Any:
    """The layer that runs last of so many, or None where the decoder keeps no list of them."""
    lists = [m for m in decoder.children() if isinstance(m, torch.nn.ModuleList)]
    return next((layers[-1] for layers in lists if len(layers) == count), None)


@contextlib.contextmanager
def only_last(layer: Any, reads: int) -> Iterator[None]:
    """Let a layer work out its last `reads` positions only; it gives zeros for the others.

    Args:
        layer: Takes in keys and values by the ``update`` of its memory, as transformers' do. It
            must be given a mask, or read one position: a sequence and a part of it are causal in
            different ways.
        reads: Positions at the end of every sequence.
    """
    signature = inspect.signature(layer.forward)
    length = 0

    def narrow(_module: Any, args: Any, options: Any) -> Any:
        nonlocal length
        call = signature.bind(*args, **options)
        length = call.arguments["hidden_states"].shape[1]
        call.arguments["past_key_values"] = _AllStates(call.arguments.get("past_key_values"))
        with contextlib.suppress(_StatesKnown):
            layer.forward(*call.args, **call.kwargs)
        for name, axis in _AXES.items():
            if call.arguments.get(name) is not None:
                call.arguments[name] = _end(call.arguments[name], axis, reads)
        return call.args, call.kwargs

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


class _AllStates:
    """In place of a layer's memory: takes in all positions' states, then serves the few's call."""

    def __init__(self, memory: Any) -> None:
        self._memory = memory
        self._states: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, *place: Any, **options: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The states of all positions, once they are known."""
        if self._states is not None:
            return self._states
        self._states = keys, values
        if self._memory is not None:
            self._states = self._memory.update(keys, values, *place, **options)
        raise _StatesKnown


def _end(value: Any, axis: int, reads: int) -> Any:
    if isinstance(value, tuple):
        return tuple(_end(part, axis, reads) for part in value)
    start = max(0, value.shape[axis] - reads)
    return value.narrow(axis, start, value.shape[axis] - start)
