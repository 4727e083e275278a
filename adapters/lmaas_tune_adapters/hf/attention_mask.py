"""Positions and attention masks of rows that continue prefixes and end in a tree of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def positions_and_mask(
    prefixes: Sequence[int], longest: int, parents: Sequence[int], embeddings: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Positions and masks for suffixes that follow cached prefixes of several lengths.

    Args:
        prefixes: For each sequence, the length of its prefix, which all its tokens attend to.
        longest: Length of the longest; a shorter one leaves its last positions empty.
        parents: For each token of the tree, the index in the tree of the token that it follows;
            -1 for the last token before the tree.
        embeddings: (n, width, H) of the suffixes, the tree last; gives dtype and device.

    Returns:
        ``position_ids`` and ``attention_mask`` of a transformers model.
    """
    width = embeddings.shape[1]
    stem = width - len(parents)
    sees = torch.ones(width, width, dtype=torch.bool).tril()
    steps = list(range(stem))
    for index, parent in enumerate(parents):
        sees[stem + index, stem:] = False if parent < 0 else sees[stem + parent, stem:]
        sees[stem + index, stem + index] = True
        steps.append(steps[stem + parent] + 1 if parent >= 0 else stem)
    lengths = torch.tensor(prefixes[:1] if len(set(prefixes)) == 1 else prefixes)[:, None]
    filled = torch.arange(longest) < lengths
    seen = torch.cat(
        [filled[:, None].expand(-1, width, -1), sees.expand(len(lengths), -1, -1)], dim=2
    )
    mask = torch.zeros(seen.shape, dtype=embeddings.dtype)
    mask.masked_fill_(~seen, torch.finfo(mask.dtype).min)
    return {
        "position_ids": (lengths + torch.tensor(steps)).to(embeddings.device),
        "attention_mask": mask.to(embeddings.device)[:, None],
    }
