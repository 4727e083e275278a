"""Abilities of a causal model, tried on five tokens when it is loaded.

A trial computes logits in a way that saves work and compares them with those of a plain forward
pass. A way that fails is switched off and reported with the reason; scores stay the same.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch

from lmaas_tune_adapters.hf.kv_cache import (
    States,
    attention_window,
    cache_arguments,
    compute_states,
    empty_cache,
    positions_and_mask,
    prefix_cache,
)
from lmaas_tune_adapters.hf.probe import (
    OTHER_SCORES,
    TrialFailedError,
    close,
    failure_reason,
    probe_embeddings,
)
from lmaas_tune_adapters.hf.speedups import PartialLayer, Speedups


@dataclass(frozen=True)
class Abilities:
    """Features of a causal model that save work.

    Attributes:
        shares_prefixes: Prefixes can be computed once, and rows continue them.
        takes_masks: A pass takes an attention mask and position ids.
        last: The last layer, if it can be computed for the last positions alone.
        window: The longest row for which all this holds; None for any.
        layers: How many layers keep keys and values.
    """

    shares_prefixes: bool
    takes_masks: bool
    last: PartialLayer | None
    window: int | None
    layers: int


def find_abilities(network: Any, body: Any, speedups: Speedups) -> Abilities:
    """Try the abilities of a model, and report them to `speedups`."""
    trial = CausalTrial(network)
    not_shared = failure_reason(trial.check_prefixes)
    not_joint = not_shared or failure_reason(trial.check_masks)
    trial.takes_masks = not not_joint
    speedups.report("shared prefixes", not_shared)
    speedups.report("joint passes", not_joint)
    if not_shared:
        speedups.report("partial last layer", not_shared)
        last = None
    else:
        last = speedups.last_layer(body, trial.layers, trial.check_last_layer)
    return Abilities(
        shares_prefixes=not not_shared,
        takes_masks=trial.takes_masks,
        last=last,
        window=trial.window,
        layers=trial.layers,
    )


class CausalTrial:
    """Trials of one model on five tokens. Each check raises where the model does not pass.

    Attributes:
        takes_masks: Whether `check_last_layer` tries a tree of tokens too.
        window: See `Abilities`; known after `check_prefixes`.
    """

    def __init__(self, network: Any) -> None:
        self._network = network
        self._tokens = probe_embeddings(network)  # (1, 5, H)
        self._plain = self._logits(self._tokens, use_cache=False)[0]
        self._states: States = []
        self.takes_masks = False
        self.window: int | None = None

    @property
    def layers(self) -> int:
        """How many layers keep keys and values; known after `check_prefixes`."""
        return len(self._states)

    def check_prefixes(self) -> None:
        """Read three tokens behind the cached states of two."""
        self.window = attention_window(self._network.config)
        if self.window is not None and self.window < self._tokens.shape[1]:
            raise TrialFailedError(f"its layers see {self.window} tokens")
        self._states = compute_states(self._network.base_model, self._tokens[:, :2])
        self._check(self._behind(self._tokens[:, 2:])[0], self._plain[2:])

    def check_masks(self) -> None:
        """Read a tree of tokens behind two tokens, and behind the first of them alone."""
        if "position_ids" not in inspect.signature(self._network.forward).parameters:
            raise TrialFailedError("it takes no positions")
        self._check(self._behind(*self._fork()), self._forked())

    def check_last_layer(self, layer: PartialLayer) -> None:
        """Compute the last layer at one position, and at two."""
        whole, plain = self._tokens, self._plain
        with layer.last(1):
            cache = cache_arguments(self._network, empty_cache(self.layers))
            alone = self._logits(whole, **cache)
            behind = self._behind(whole[:, 2:])
        self._check(torch.stack([alone[0, -1], behind[0, -1]]), plain[[4, 4]])
        with layer.last(2):
            self._check(self._behind(whole[:, 2:])[0, -2:], plain[3:])
            if self.takes_masks:
                self._check(self._behind(*self._fork())[:, -2:], self._forked()[:, -2:])

    def _fork(self) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Embeddings of one token and the next two twice, with their positions and mask."""
        whole = self._tokens
        forked = torch.cat([whole[:, [2, 3, 4, 3, 4]], whole[:, [1, 2, 3, 2, 3]]])
        return forked, positions_and_mask([2, 1], 2, (-1, 0, -1, 2), forked)

    def _forked(self) -> torch.Tensor:
        """The logits that `_fork` must give."""
        return torch.stack([self._plain[[2, 3, 4, 3, 4]], self._plain[[1, 2, 3, 2, 3]]])

    def _behind(
        self, embeddings: torch.Tensor, inputs: dict[str, torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Logits of tokens behind the cached states."""
        cache = prefix_cache(self._states, [len(embeddings)])
        return self._logits(embeddings, **cache_arguments(self._network, cache), **(inputs or {}))

    def _logits(self, embeddings: torch.Tensor, **inputs: Any) -> torch.Tensor:
        logits: torch.Tensor = self._network(inputs_embeds=embeddings, **inputs).logits
        return logits

    def _check(self, ours: torch.Tensor, theirs: torch.Tensor) -> None:
        if not close(ours, theirs):
            raise TrialFailedError(OTHER_SCORES)
