"""Hooks on a model's layers: finding the layers, adding deep prompts, recording inputs.

A deep prompt is added to a layer's input at the prompt's positions. A hook before each layer
does this for one forward pass, so the model itself stays unchanged.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

_CLIPPINGS = 5


def find_layers(body: Any, embeddings: torch.Tensor) -> tuple[Any, ...]:
    """Find the layers of a body that form a plain stack, each passing its output to the next.

    Args:
        body: Takes ``inputs_embeds``.
        embeddings: (1, length, H), for a trial.

    Returns:
        From the bottom, each from (n, length, H) to (n, length, H); empty if no layers
        form one.
    """
    lists = [module for module in body.modules() if isinstance(module, torch.nn.ModuleList)]
    calls: defaultdict[int, list[tuple[int, Any, Any]]] = defaultdict(list)

    def record(stack: int, number: int) -> Any:
        def hook(_module: Any, args: Any, options: Any, output: Any) -> None:
            state = output[0] if isinstance(output, tuple) else output
            calls[stack].append((number, _input(args, options), state))

        return hook

    with contextlib.ExitStack() as hooks:
        for stack, layers in enumerate(lists):
            for number, layer in enumerate(layers):
                hook = layer.register_forward_hook(record(stack, number), with_kwargs=True)
                hooks.callback(hook.remove)
        body(inputs_embeds=embeddings)
    for stack, layers in enumerate(lists):  # the outer of two nested stacks comes first
        if _is_stack(calls[stack], len(layers), embeddings.shape):
            return tuple(layers)
    return ()


def _is_stack(calls: Sequence[tuple[int, Any, Any]], count: int, shape: torch.Size) -> bool:
    """Whether layers ran once each, in order, each on the output of the one before."""
    if not count or [number for number, _, _ in calls] != list(range(count)):
        return False
    states = [state for _, *pair in calls for state in pair]
    if not all(isinstance(s, torch.Tensor) and s.shape == shape for s in states):
        return False
    outputs, inputs = states[1:-1:2], states[2::2]
    return all(torch.equal(given, taken) for given, taken in zip(outputs, inputs, strict=True))


def _input(args: tuple[Any, ...], options: Mapping[str, Any]) -> Any:
    """The hidden states that a layer is called with."""
    return args[0] if args else options.get("hidden_states")


@contextlib.contextmanager
def vectors_added(
    layers: Sequence[Any],
    above: Mapping[int, torch.Tensor],
    requests: Sequence[int],
    starts: Sequence[int],
    length: int,
) -> Iterator[None]:
    """Add vectors to the inputs of layers, in every forward pass inside.

    Args:
        layers: The whole stack.
        above: By the number of a layer, (requests, L, H).
        requests: For each sequence of a pass, the request whose vectors it gets.
        starts: For each, the position of its prompt in the pass: below 0 where the pass begins
            within or behind the prompt, past the end where it ends before the prompt.
        length: Positions of the pass.
    """
    with contextlib.ExitStack() as hooks:
        for number, vectors in above.items():
            add = _add_hook(vectors, requests, starts, length)
            hook = layers[number].register_forward_pre_hook(add, with_kwargs=True)
            hooks.callback(hook.remove)
        yield


def _add_hook(
    vectors: torch.Tensor, requests: Sequence[int], starts: Sequence[int], length: int
) -> Any:
    """Make the hook that adds vectors, see `vectors_added`."""
    columns = torch.tensor(starts)[:, None] + torch.arange(vectors.shape[1])
    inside = (columns >= 0) & (columns < length)
    rows, tokens = (index.to(vectors.device) for index in torch.nonzero(inside, as_tuple=True))
    positions = columns[inside].to(vectors.device)
    added_vectors = vectors[torch.tensor(requests, device=vectors.device)[rows], tokens]

    def added(state: torch.Tensor) -> torch.Tensor:
        result = state.clone()
        result[rows, positions] += added_vectors
        return result

    def hook(_layer: Any, args: Any, options: Any) -> Any:
        if args:
            return (added(args[0]), *args[1:]), options
        return args, {**options, "hidden_states": added(options["hidden_states"])}

    return hook


@contextlib.contextmanager
def inputs_recorded(layers: Sequence[Any]) -> Iterator[list[list[torch.Tensor]]]:
    """Record each layer's inputs in every forward pass inside, flat and in main memory."""
    inputs: list[list[torch.Tensor]] = [[] for _ in layers]

    def record(states: list[torch.Tensor]) -> Any:
        def hook(_layer: Any, args: Any, options: Any) -> None:
            states.append(_input(args, options).float().flatten().cpu())

        return hook

    with contextlib.ExitStack() as hooks:
        for layer, states in zip(layers, inputs, strict=True):
            hook = layer.register_forward_pre_hook(record(states), with_kwargs=True)
            hooks.callback(hook.remove)
        yield inputs


def clipped_std(states: Sequence[torch.Tensor]) -> float:
    """Standard deviation of all numbers, after five rounds of clipping at the mean ± 3 of it."""
    numbers = torch.cat(list(states))
    for _ in range(_CLIPPINGS):
        mean, std = float(numbers.mean(dtype=torch.float64)), _std(numbers)
        numbers = numbers.clamp(mean - 3 * std, mean + 3 * std)
    return _std(numbers)


def _std(numbers: torch.Tensor) -> float:
    return float(numbers.double().std(correction=0))
