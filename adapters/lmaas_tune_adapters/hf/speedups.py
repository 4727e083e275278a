"""The ways in which this backend saves work, in the words that a user reads."""

from __future__ import annotations

from lmaas_tune.backend import Speedup

SWITCHED_OFF = "speedups=False"
OTHER_SCORES = "it changes the scores"


def processor_kernels(reason: str) -> Speedup:
    """Modules replaced by faster ones."""
    cost = "the model's modules are the stock ones, which are slower on a processor"
    return Speedup(name="processor kernels", reason=reason, cost=cost)


def shared_prefixes(reason: str) -> Speedup:
    """Beginnings that rows have in common, read once."""
    cost = "every row is read whole under every prompt"
    return Speedup(name="shared prefixes", reason=reason, cost=cost)


def joint_passes(reason: str) -> Speedup:
    """Rows of all lengths, and all label words, in one pass."""
    cost = "each length of text, and each label word of several tokens, takes a pass of its own"
    return Speedup(name="joint passes", reason=reason, cost=cost)


def partial_last_layer(reason: str) -> Speedup:
    """The last layer, where a label is read only."""
    cost = "the last layer is computed at every position"
    return Speedup(name="partial last layer", reason=reason, cost=cost)
