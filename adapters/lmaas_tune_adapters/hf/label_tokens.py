"""Tokens of label words: where each one's log-probability is read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Word = tuple[int, ...]
"""Token ids of a label word, or of a part of one."""


@dataclass(frozen=True)
class Reading:
    """Tokens to put in the label's place, and the log-probabilities to read there.

    Attributes:
        fill: Tokens in the label's place: masks, or all tokens of label words but the last.
        parents: For each token of `fill`, the index in `fill` of the token that it follows; -1
            for the last token before the label.
        picks: (node, token, column): the log-probability of `token` at `node` is added to
            `column`. Node 0 is the first position that is read.
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
        """For each node of the tree, the tokens of `fill` that lead to it."""
        paths: list[Word] = [()]
        for token, parent in zip(self.fill, self.parents, strict=True):
            paths.append((*paths[parent + 1], token))
        return paths

    @property
    def nodes(self) -> int:
        """How many positions are read."""
        return 1 + max(node for node, _, _ in self.picks)


def tree(words: Sequence[Word]) -> Reading:
    """Read all words at once: their tokens but the last form a tree without repetition."""
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


def chains(words: Sequence[Word], *, separate: bool = False) -> list[Reading]:
    """Read words in chains of tokens; a word shares the chain of a longer word that contains it.

    Args:
        words: The label words.
        separate: Share nothing, for models where later tokens change earlier scores.
    """
    inner = {word[:-1] for word in words}
    longest = [a for a in inner if separate or not any(a != b and b[: len(a)] == a for b in inner)]
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
    """Read words of one length together, at as many masks as they have tokens."""
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
