"""The layers of a stock model: found by trying, added to and listened to by hooks.

A deep prompt is added to what enters a layer, at the prompt's places. Nothing of the model is
patched: a hook before each layer does it for one pass.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

_CLIPPINGS = 5


def plain_stack(body: Any, embeddings: torch.Tensor) -> tuple[Any, ...]:
    """The layers of a body that hand one state up, each to the next; none where it has no such.

    Args:
        body: Takes ``inputs_embeds``.
        embeddings: (1, length, H) to try it with.

    Returns:
        From the bottom; every one takes and gives (n, length, H).
    """
    lists = [module for module in body.modules() if isinstance(module, torch.nn.ModuleList)]
    seen: defaultdict[int, list[tuple[int, Any, Any]]] = defaultdict(list)

    def listen(of: int, number: int) -> Any:
        def hook(_module: Any, args: Any, options: Any, output: Any) -> None:
            state = output[0] if isinstance(output, tuple) else output
            seen[of].append((number, _entering(args, options), state))

        return hook

    with contextlib.ExitStack() as hooks:
        for of, layers in enumerate(lists):
            for number, layer in enumerate(layers):
                hook = layer.register_forward_hook(listen(of, number), with_kwargs=True)
                hooks.callback(hook.remove)
        body(inputs_embeds=embeddings)
    for of, layers in enumerate(lists):  # the outer of two stacks comes first
        if _is_stack(seen[of], len(layers), embeddings.shape):
            return tuple(layers)
    return ()


def _is_stack(calls: Sequence[tuple[int, Any, Any]], count: int, shape: torch.Size) -> bool:
    """Whether layers ran once each, in order, and each had its state from the one before."""
    if not count or [number for number, _, _ in calls] != list(range(count)):
        return False
    states = [state for _, *pair in calls for state in pair]
    if not all(isinstance(s, torch.Tensor) and s.shape == shape for s in states):
        return False
    below, above = states[1:-1:2], states[2::2]
    return all(torch.equal(given, taken) for given, taken in zip(below, above, strict=True))


def _entering(args: tuple[Any, ...], options: Mapping[str, Any]) -> Any:
    """The state that a layer is called with."""
    return args[0] if args else options.get("hidden_states")


@contextlib.contextmanager
def deepened(
    layers: Sequence[Any],
    above: Mapping[int, torch.Tensor],
    requests: Sequence[int],
    starts: Sequence[int],
    length: int,
) -> Iterator[None]:
    """Add vectors to what enters the layers, in every pass inside.

    Args:
        layers: All of the stack.
        above: By the number of a layer, (requests, L, H).
        requests: For each sequence of a pass, the request whose vectors are its own.
        starts: For each, where its prompt begins in the pass: below 0 where the pass begins
            within or behind it, past the end where it ends before.
        length: Of the pass.
    """
    with contextlib.ExitStack() as hooks:
        for number, vectors in above.items():
            add = _adding(vectors, requests, starts, length)
            hook = layers[number].register_forward_pre_hook(add, with_kwargs=True)
            hooks.callback(hook.remove)
        yield


def _adding(
    vectors: torch.Tensor, requests: Sequence[int], starts: Sequence[int], length: int
) -> Any:
    """The hook that adds vectors as `deepened` says."""
    columns = torch.tensor(starts)[:, None] + torch.arange(vectors.shape[1])
    inside = (columns >= 0) & (columns < length)
    rows, tokens = (index.to(vectors.device) for index in torch.nonzero(inside, as_tuple=True))
    places = columns[inside].to(vectors.device)
    own = vectors[torch.tensor(requests, device=vectors.device)[rows], tokens]

    def added(state: torch.Tensor) -> torch.Tensor:
        result = state.clone()
        result[rows, places] += own
        return result

    def hook(_layer: Any, args: Any, options: Any) -> Any:
        if args:
            return (added(args[0]), *args[1:]), options
        return args, {**options, "hidden_states": added(options["hidden_states"])}

    return hook


@contextlib.contextmanager
def inputs_kept(layers: Sequence[Any]) -> Iterator[list[list[torch.Tensor]]]:
    """For each of the layers, what enters it in every pass inside, flat and on the processor."""
    kept: list[list[torch.Tensor]] = [[] for _ in layers]

    def keeps(states: list[torch.Tensor]) -> Any:
        def hook(_layer: Any, args: Any, options: Any) -> None:
            states.append(_entering(args, options).float().flatten().cpu())

        return hook

    with contextlib.ExitStack() as hooks:
        for layer, states in zip(layers, kept, strict=True):
            hook = layer.register_forward_pre_hook(keeps(states), with_kwargs=True)
            hooks.callback(hook.remove)
        yield kept


def clipped_std(states: Sequence[torch.Tensor]) -> float:
    """Standard deviation of all the numbers, clipped again and again at the mean ± 3 of it."""
    numbers = torch.cat(list(states))
    for _ in range(_CLIPPINGS):
        mean, std = float(numbers.mean(dtype=torch.float64)), _std(numbers)
        numbers = numbers.clamp(mean - 3 * std, mean + 3 * std)
    return _std(numbers)


def _std(numbers: torch.Tensor) -> float:
    return float(numbers.double().std(correction=0))
