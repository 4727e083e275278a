"""Which token to read where, so that every label word gets its summed log-probability."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

Word = tuple[int, ...]


@dataclass(frozen=True)
class Reading:
    """Tokens in the label's place, and what to read at and around them.

    Attributes:
        fill: Tokens put in the label's place: masks, or the inner tokens of label words.
        parents: For each token of `fill`, the index in `fill` of the token it follows; -1 for
            the last token before the label.
        picks: (node, token, column): add the log-probability of `token` as read at `node` to
            `column`. Nodes count from 0, at the first position read.
    """

    fill: Word
    parents: tuple[int, ...]
    picks: tuple[tuple[int, int, int], ...]

    @property
    def is_chain(self) -> bool:
        """Whether every token of `fill` follows the one before it."""
        return self.parents == tuple(range(-1, len(self.parents) - 1))

    @property
    def paths(self) -> list[Word]:
        """For each node of a tree, the tokens of `fill` that lead to it."""
        paths: list[Word] = [()]
        for token, parent in zip(self.fill, self.parents, strict=True):
            paths.append((*paths[parent + 1], token))
        return paths

    @property
    def nodes(self) -> int:
        """Positions to read."""
        return 1 + max(node for node, _, _ in self.picks)

    def add_up(self, logits: torch.Tensor, out: torch.Tensor) -> None:
        """Add up the picked log-probabilities.

        Args:
            logits: (n, nodes, vocabulary).
            out: (n, columns) float64; added to in place.
        """
        nodes, tokens, columns = torch.tensor(self.picks, device=logits.device).T
        logits = logits.float()
        picked = logits[:, nodes, tokens] - torch.logsumexp(logits, dim=-1)[:, nodes]
        picked.clamp_(max=0)  # what rounding may leave above
        out.index_add_(1, columns.cpu(), picked.double().cpu())


def tree(words: Sequence[Word]) -> Reading:
    """One reading for all words: their inner tokens as a tree, each read once."""
    prefixes = sorted({word[:end] for word in words for end in range(1, len(word))})
    index = {prefix: position for position, prefix in enumerate(prefixes)}
    index[()] = -1
    return Reading(
        fill=tuple(prefix[-1] for prefix in prefixes),
        parents=tuple(index[prefix[:-1]] for prefix in prefixes),
        picks=tuple(
            (index[word[:end]] + 1, word[end], column)
            for column, word in enumerate(words)
            for end in range(len(word))
        ),
    )


def chains(words: Sequence[Word], *, apart: bool = False) -> list[Reading]:
    """One reading a chain of inner tokens; a word joins a chain that begins with its own.

    Args:
        apart: No word joins a longer chain, as later tokens would change its score.
    """
    inner = {word[:-1] for word in words}
    longest = [a for a in inner if apart or not any(a != b and b[: len(a)] == a for b in inner)]
    home = {a: next(b for b in sorted(longest) if b[: len(a)] == a) for a in inner}
    return [
        Reading(
            fill=chain,
            parents=tuple(range(-1, len(chain) - 1)),
            picks=_in_order((c, word) for c, word in enumerate(words) if home[word[:-1]] == chain),
        )
        for chain in sorted(longest)
    ]


def masks(words: Sequence[Word], mask: int) -> list[Reading]:
    """One reading a word length: as many masks as the words have tokens."""
    return [
        Reading(
            fill=(mask,) * length,
            parents=tuple(range(-1, length - 1)),
            picks=_in_order((c, word) for c, word in enumerate(words) if len(word) == length),
        )
        for length in sorted({len(word) for word in words})
    ]


def _in_order(words: Iterable[tuple[int, Word]]) -> tuple[tuple[int, int, int], ...]:
    return tuple((node, token, column) for column, word in words for node, token in enumerate(word))
