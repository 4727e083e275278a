"""What a causal model allows, tried at load: shared prefixes, steered passes, a partial last layer.

A trial reads five tokens in each way and compares the logits with those of a plain pass. What
fails is off, with the reason: answers stay the same, and take longer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lmaas_tune.backend import Speedup
from lmaas_tune_adapters.hf.forward import close, failure, trial
from lmaas_tune_adapters.hf.last_layer import last_layer, only_last
from lmaas_tune_adapters.hf.memory import (
    attention_window,
    cached,
    compute_states,
    empty_cache,
    prefix_cache,
)
from lmaas_tune_adapters.hf.speedups import (
    OTHER_SCORES,
    SWITCHED_OFF,
    joint_passes,
    partial_last_layer,
    shared_prefixes,
)


@dataclass(frozen=True)
class Abilities:
    """What a model allows.

    Attributes:
        shares: Prefixes can be read once, and rows go on from them.
        steers: A pass can be told which tokens each token sees, and its position.
        last: The last layer, if it can be computed for the last positions alone.
        window: The longest row for which this holds; None for any.
        layers: How many layers keep keys and values.
        speedups: The same, to be shown.
    """

    shares: bool
    steers: bool
    last: Any
    window: int | None
    layers: int
    speedups: tuple[Speedup, ...]


def try_out(network: Any, body: Any, *, speedups: bool) -> Abilities:
    """Find out what a model allows; without `speedups` its last layer is left alone."""
    tests = _Tests(network)
    shares = _reason(tests.share)
    steers = shares or _reason(tests.steer)
    last = None if shares else last_layer(body, len(tests.states))
    narrows = shares or (
        _reason(lambda: tests.narrow(last, steers=not steers)) if speedups else SWITCHED_OFF
    )
    return Abilities(
        shares=not shares,
        steers=not steers,
        last=None if narrows else last,
        window=tests.window,
        layers=len(tests.states),
        speedups=(
            shared_prefixes(shares),
            joint_passes(steers),
            partial_last_layer(narrows),
        ),
    )


class _Tests:
    """Each raises where the model does not allow what it tries."""

    def __init__(self, network: Any) -> None:
        self._network = network
        self._tokens = trial(network)  # (1, 5, H)
        self._plain = self._logits(self._tokens, use_cache=False)[0]
        self.states: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.window: int | None = None

    def share(self) -> None:
        """Three tokens behind the states of two."""
        self.window = attention_window(self._network.config)
        if self.window is not None and self.window < self._tokens.shape[1]:
            raise _RefusedError(f"its layers see {self.window} tokens")
        self.states = compute_states(self._network.base_model, self._tokens[:, :2])
        self._check(self._behind(self._tokens[:, 2:])[0], self._plain[2:])

    def steer(self) -> None:
        """Behind two tokens, and behind the first of them alone: one token, the next two twice."""
        if "position_ids" not in inspect.signature(self._network.forward).parameters:
            raise _RefusedError("it takes no positions")
        self._check(self._behind(*self._fork()), self._forked())

    def narrow(self, last: Any, *, steers: bool) -> None:
        """The last layer at one position, and at two."""
        if last is None:
            raise _RefusedError("its layers are in no list")
        whole, plain = self._tokens, self._plain
        with only_last(last, 1):
            alone = self._logits(whole, **cached(self._network, empty_cache(len(self.states))))
            behind = self._behind(whole[:, 2:])
        self._check(torch.stack([alone[0, -1], behind[0, -1]]), plain[[4, 4]])
        with only_last(last, 2):
            self._check(self._behind(whole[:, 2:])[0, -2:], plain[3:])
            if steers:
                self._check(self._behind(*self._fork())[:, -2:], self._forked()[:, -2:])

    def _fork(self) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        whole = self._tokens
        forked = torch.cat([whole[:, [2, 3, 4, 3, 4]], whole[:, [1, 2, 3, 2, 3]]])
        return forked, steering([2, 1], 2, (-1, 0, -1, 2), forked)

    def _forked(self) -> torch.Tensor:
        return torch.stack([self._plain[[2, 3, 4, 3, 4]], self._plain[[1, 2, 3, 2, 3]]])

    def _behind(
        self, embeddings: torch.Tensor, inputs: dict[str, torch.Tensor] | None = None
    ) -> torch.Tensor:
        cache = prefix_cache(self.states, [len(embeddings)])
        return self._logits(embeddings, **cached(self._network, cache), **(inputs or {}))

    def _logits(self, embeddings: torch.Tensor, **inputs: Any) -> torch.Tensor:
        logits: torch.Tensor = self._network(inputs_embeds=embeddings, **inputs).logits
        return logits

    def _check(self, ours: torch.Tensor, theirs: torch.Tensor) -> None:
        if not close(ours, theirs):
            raise _RefusedError(OTHER_SCORES)


class _RefusedError(Exception):
    """A reason in words."""


def _reason(test: Callable[[], None]) -> str:
    """Why a test fails; nothing if it passes."""
    try:
        test()
    except _RefusedError as error:
        return str(error)
    except Exception as error:  # a model made otherwise raises whatever it does
        return failure(error)
    return ""


def steering(
    heads: Sequence[int], longest: int, parents: Sequence[int], embeddings: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Positions and attention for tails behind heads of several lengths, each ending in a tree.

    Args:
        heads: For each sequence, the tokens before its tail, seen by all of it.
        longest: Places that they take; a shorter head leaves the last ones empty.
        parents: For each token of the tree, the index in the tree of the one it follows, or -1
            for the last token before the tree.
        embeddings: (n, width, H) of the tails, the tree last; for their dtype and device too.
    """
    width = embeddings.shape[1]
    tail = width - len(parents)
    sees = torch.ones(width, width, dtype=torch.bool).tril()
    steps = list(range(tail))
    for index, parent in enumerate(parents):
        sees[tail + index, tail:] = False if parent < 0 else sees[tail + parent, tail:]
        sees[tail + index, tail + index] = True
        steps.append(steps[tail + parent] + 1 if parent >= 0 else tail)
    lengths = torch.tensor(heads[:1] if len(set(heads)) == 1 else heads)[:, None]
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
