"""Optimizers by name: built-in ones, nevergrad's, and those of other distributions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np

from lmaas_tune.errors import InputError
from lmaas_tune.optimizers.base import (
    Ends,
    Optimizer,
    OptimizerFactory,
    Recommends,
    ScoreLoss,
    UsesScores,
)
from lmaas_tune.optimizers.blockwise import Blockwise, ScoredBlockwise
from lmaas_tune.optimizers.settings import check_options
from lmaas_tune.registry import Registry

OPTIMIZERS = Registry(
    "optimizer",
    group="lmaas_tune.optimizers",
    builtin={
        "cma": "lmaas_tune.optimizers.cma:CMA",
        "diagonal-cma": "lmaas_tune.optimizers.cma:diagonal_cma",
        "one-plus-one": "lmaas_tune.optimizers.nevergrad:one_plus_one",
        "cauchy-one-plus-one": "lmaas_tune.optimizers.nevergrad:cauchy_one_plus_one",
        "de": "lmaas_tune.optimizers.nevergrad:differential_evolution",
        "pso": "lmaas_tune.optimizers.nevergrad:particle_swarm",
        "tbpsa": "lmaas_tune.optimizers.nevergrad:tbpsa",
        "gauss-newton": "lmaas_tune.optimizers.gauss_newton:GaussNewton",
        "random": "lmaas_tune.optimizers.random:RandomSearch",
    },
)
"""Registry of optimizers; ``nevergrad:<Name>`` also names any optimizer of nevergrad."""

NEVERGRAD = "nevergrad:"
"""Prefix of the names of nevergrad's optimizers."""


def optimizer_names() -> tuple[str, ...]:
    """Names that `make_optimizer` takes, without the 500 of nevergrad."""
    return OPTIMIZERS.names()


def describe_optimizer(name: str) -> str:
    """One line about the optimizer `name`, without a slow import."""
    return OPTIMIZERS.describe(name)


def make_optimizer(
    optimizer: str | OptimizerFactory,
    dim: int,
    *,
    seed: int,
    calls: int | None = None,
    options: Mapping[str, object] | None = None,
) -> Optimizer:
    """Build an optimizer.

    Args:
        optimizer: A name of `optimizer_names`, ``nevergrad:<Name>``, or a factory.
        dim: Dimension of the search space.
        seed: Seed of all points.
        calls: Estimated number of points; None if unknown.
        options: Options of the optimizer by name.

    Raises:
        InputError: An unknown name or option, or a value out of its range.
    """
    name, factory = _factory(optimizer)
    options = dict(options or {})
    check_options(name, factory, options)
    built = factory(dim, seed=seed, calls=calls, **options)
    if not (hasattr(built, "ask") and hasattr(built, "tell")):
        raise InputError(
            f"optimizer {name!r} gave a {type(built).__name__}, which has no ask and tell"
        )
    return built


def make_blockwise(
    optimizer: str | OptimizerFactory,
    dim: int,
    *,
    blocks: int,
    seed: int,
    calls: int | None = None,
    options: Mapping[str, object] | None = None,
) -> Blockwise:
    """Build an optimizer for each block, and a `Blockwise` that alternates between them.

    Args:
        optimizer: As for `make_optimizer`.
        dim: Dimension of each block.
        blocks: Number of blocks.
        seed: Seed of all points; each block has its own random stream.
        calls: Estimated number of points of all blocks; None if unknown.
        options: Options of the optimizer by name.

    Raises:
        InputError: See `make_optimizer`, or `calls` pays no round.
    """
    streams = np.random.SeedSequence(seed).generate_state(blocks)
    built = [
        make_optimizer(
            optimizer,
            dim,
            seed=int(stream),
            calls=None if calls is None else max(1, calls // blocks),
            options=options,
        )
        for stream in streams
    ]
    scored = any(isinstance(block, UsesScores) for block in built)
    return (ScoredBlockwise if scored else Blockwise)(built, dim=dim, calls=calls)


def _factory(optimizer: str | OptimizerFactory) -> tuple[str, OptimizerFactory]:
    if not isinstance(optimizer, str):
        if not callable(optimizer):
            raise InputError(
                f"optimizer={optimizer!r} is neither a name nor a class or function that builds one"
            )
        return getattr(optimizer, "__name__", type(optimizer).__name__), optimizer
    if optimizer.startswith(NEVERGRAD):
        from lmaas_tune.optimizers.nevergrad import by_name

        return optimizer, by_name(optimizer.removeprefix(NEVERGRAD))
    factory = OPTIMIZERS.load(optimizer)
    if not callable(factory):
        raise InputError(
            f"optimizer {optimizer!r} is a {type(factory).__name__} and not a class or function"
        )
    return optimizer, cast("OptimizerFactory", factory)


__all__ = [
    "NEVERGRAD",
    "OPTIMIZERS",
    "Blockwise",
    "Ends",
    "Optimizer",
    "OptimizerFactory",
    "Recommends",
    "ScoreLoss",
    "UsesScores",
    "describe_optimizer",
    "make_blockwise",
    "make_optimizer",
    "optimizer_names",
]
