"""`Usage`: requests, rows, tokens, bytes and money of an answer, as a provider bills them."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Resources that an answer took; values add up with ``+``.

    Attributes:
        requests: Requests to the provider (HTTP requests; calls of `score` locally).
        sequences: Rows scored.
        tokens: Input tokens as a provider would bill them: tokens of the rows with start token
            and prompt, without savings by sharing or caching. A label word of several tokens adds
            all but its last, once a row; if the row is sent again for each of them, it counts
            again.
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
