"""What a ranking and its tests say, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmaas_tune.lab.significance import Significance

if TYPE_CHECKING:
    import pandas as pd

NO_RANKING = "No ranking: one seed. Another seed may turn the order round."


def verdict(ranking: pd.DataFrame, tests: Significance) -> str:
    """Who has the lowest mean rank, and from whom that one differs."""
    best = ranking.iloc[0]
    if best["mean_rank"] != best["mean_rank"]:
        return "No block has a loss of every optimizer, so they cannot be ranked."
    rank, blocks = shown_rank(best["mean_rank"]), f"{tests.blocks} block{'s'[: tests.blocks != 1]}"
    first = [
        name
        for name, own in zip(ranking["optimizer"], ranking["mean_rank"], strict=True)
        if shown_rank(own) == rank
    ]
    of = f"{rank} of {len(ranking)}, over {blocks}."
    if len(first) > 1:
        return f"{', '.join(first)} share the lowest mean rank: {of}"
    return f"The lowest mean rank is that of {first[0]}: {of} {_differences(first[0], tests)}"


def _differences(first: str, tests: Significance) -> str:
    differing = [{pair.first, pair.second} for pair in tests.pairs.of if pair.differ]
    worse = [other for pair in differing for other in pair - {first} if first in pair]
    if worse:
        return f"It differs significantly from {', '.join(worse)}, and from no other."
    if tests.pairs.untested is not None:
        return f"Whether that is more than chance was not tested: {tests.pairs.untested}."
    return "It does not differ significantly from the others."


def shown_rank(value: float) -> str:
    """A mean rank with two decimals."""
    return f"{value:.2f}"
