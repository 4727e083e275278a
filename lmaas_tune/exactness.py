"""Notes and errors if too many scores are only upper bounds."""

from __future__ import annotations

from lmaas_tune.errors import PermanentError

NOTED = 0.05
"""Share of bounds among the scores above which the user gets a note."""

REFUSED = 0.5
"""Share above which a run ends, unless `allow_bounds` is set."""


def describe_bounds(share: float) -> str:
    """The share in words, as ``98% of the scores are bounds``."""
    return f"{max(share, 0.01):.0%} of the scores are bounds"


def explain_bounds(share: float) -> str:
    """The share with its cause and remedies."""
    return (
        f"{describe_bounds(share)}, because the provider's answers do not name the label words "
        "there: choose label words that the model generates by itself, or an exact way of scoring"
    )


def refuse_bounds(share: float) -> None:
    """Check that the first scores of a run are mostly exact.

    Raises:
        PermanentError: The share is above `REFUSED`.
    """
    if share > REFUSED:
        raise PermanentError(
            f"{explain_bounds(share)}; to continue anyway, set allow_bounds=True (--allow-bounds)"
        )
