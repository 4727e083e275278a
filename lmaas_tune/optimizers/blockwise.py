"""`Blockwise`: divide and conquer, with one optimizer for each block of a large space."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lmaas_tune.errors import InputError
from lmaas_tune.optimizers.base import Optimizer, ScoreLoss, UsesScores
from lmaas_tune.optimizers.generation import check_no_pending_ask, losses_in_ask_order
from lmaas_tune.optimizers.settings import check_calls, check_dim
from lmaas_tune.prompts import FloatArray


class Blockwise:
    """Alternates between blocks: one generation of each, with the other blocks at their best.

    The divide and conquer of BBTv2 (Sun et al., EMNLP 2022), where blocks are layers. The best
    point of a block is the one with the lowest loss when it was scored; the other blocks may have
    changed since. Blocks without a generation so far are at zero.

    Args:
        blocks: The optimizers of the blocks.
        dim: Dimension of each block.
        calls: Number of calls of the run; only whole rounds are made. None if unknown.

    Raises:
        InputError: There is no block, or `calls` pays no round.
    """

    def __init__(self, blocks: Sequence[Optimizer], *, dim: int, calls: int | None = None) -> None:
        if not blocks:
            raise InputError("blocks is empty: a search has one block or more")
        self._blocks, self._dim = tuple(blocks), check_dim(dim)
        self._rounds = self._planned(check_calls(calls))
        self._done = 0  # generations
        self._best = np.zeros((len(self._blocks), self._dim))
        self._lowest = np.full(len(self._blocks), np.inf)
        self._asked: FloatArray | None = None

    @property
    def population(self) -> int:
        """Population of the next block."""
        return self._blocks[self._turn].population

    @property
    def ended(self) -> str | None:
        """See `lmaas_tune.optimizers.base.Ends`; it ends after whole rounds only."""
        rounds, turns = self._rounds, len(self._blocks)
        if rounds is None or self._done < rounds * turns:
            return None
        return f"rounds: {rounds} over {turns} layers are done, and the budget pays no further one"

    def ask(self) -> FloatArray:
        """See `lmaas_tune.optimizers.base.Optimizer.ask`."""
        check_no_pending_ask(self._asked)
        own = self._blocks[self._turn].ask()
        points = np.tile(self._best, (len(own), 1, 1))
        points[:, self._turn] = own
        self._asked = points.reshape(len(own), -1)
        return self._asked.copy()

    def tell(self, points: FloatArray, losses: FloatArray, /) -> None:
        """See `lmaas_tune.optimizers.base.Optimizer.tell`; the order of the points is free."""
        own = self._told(points, losses)
        self._blocks[self._turn].tell(own, losses)
        self._done += 1

    def _told(self, points: FloatArray, losses: FloatArray) -> FloatArray:
        """(population, block's dim) the points of the block whose turn it is."""
        ordered, turn = losses_in_ask_order(self._asked, points, losses), self._turn
        asked = np.asarray(self._asked).reshape(len(ordered), len(self._blocks), self._dim)
        lowest = int(ordered.argmin())
        if ordered[lowest] < self._lowest[turn]:
            self._lowest[turn], self._best[turn] = ordered[lowest], asked[lowest, turn]
        self._asked = None
        return np.array(points).reshape(asked.shape)[:, turn].copy()

    @property
    def _turn(self) -> int:
        return self._done % len(self._blocks)

    def _planned(self, calls: int | None) -> int | None:
        """Number of whole rounds that `calls` calls pay."""
        if calls is None:
            return None
        points = sum(block.population for block in self._blocks)
        if calls < points:
            raise InputError(
                f"{calls} calls pay no round over {len(self._blocks)} layers, which takes "
                f"{points} prompts: raise the budget, or take fewer layers (deep) or a smaller "
                "population (an option of the optimizer)"
            )
        return calls // points


class ScoredBlockwise(Blockwise):
    """A `Blockwise` with blocks that are told the scores, see `UsesScores`.

    It is a class of its own, because a search keeps all scores for an optimizer that uses them.
    """

    def begin(self, loss: ScoreLoss, /) -> None:
        """See `lmaas_tune.optimizers.base.UsesScores.begin`."""
        for block in self._blocks:
            if isinstance(block, UsesScores):
                block.begin(loss)

    def tell_scores(self, points: FloatArray, losses: FloatArray, scores: FloatArray, /) -> None:
        """See `lmaas_tune.optimizers.base.UsesScores.tell_scores`."""
        block = self._blocks[self._turn]
        if not isinstance(block, UsesScores):
            self.tell(points, losses)
            return
        own = self._told(points, losses)
        block.tell_scores(own, losses, scores)
        self._done += 1
