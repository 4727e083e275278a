"""`Plan`: what a search would cost, from one call."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lmaas_tune.calls.meter import Spent
from lmaas_tune.reprs import short_repr

FEWEST_GENERATIONS = 5
"""What a search needs to learn from."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a search would cost at most, if only the budget ended it.

    Attributes:
        rows: Rows that a call scores.
        starts: Starting prompts that are scored.
        population: Prompts of a generation.
        generations: Generations that the budget pays after the starts.
        call: What the probing call took: a longest prompt on all rows.
        total: What the whole search would take. It is less where prompts are shorter, or share
            work.
        reason: The limit that would end it.
    """

    rows: int
    starts: int
    population: int
    generations: int
    call: Spent
    total: Spent
    reason: str

    __repr__ = short_repr

    @property
    def warning(self) -> str | None:
        """Why the budget is too small; None if it is not."""
        if self.generations >= FEWEST_GENERATIONS:
            return None
        return few_generations(self.generations)

    def to_json(self) -> dict[str, Any]:
        """The fields, as JSON has them."""
        return {**asdict(self), "warning": self.warning}


def few_generations(generations: int) -> str:
    """The note on a budget that pays few generations."""
    return (
        f"the budget pays {generations} generation{'s' * (generations != 1)} after the starts, and "
        f"a search learns from {FEWEST_GENERATIONS} or more: expect what the best start gives, or "
        "raise the budget"
    )
