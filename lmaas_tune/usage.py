"""Usage: what answering took, as a provider bills it."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What answering took; adds up with ``+``.

    Attributes:
        requests: Requests to the provider (HTTP requests; calls of `score` locally).
        sequences: Rows scored.
        tokens: Tokens of the rows as the model reads them, start token and prompt included,
            as if none had been shared or kept: what a provider would bill as input. A label
            word of several tokens adds all but its last, once a row; a provider that has to be
            sent the row again for each of them bills, and reports, the row again.
        bytes_up: Bytes sent.
        bytes_down: Bytes received.
        money: What the provider charges, in the user's currency; 0 if unknown.
    """

    requests: int = 0
    sequences: int = 0
    tokens: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    money: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            **{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        )
