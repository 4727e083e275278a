"""One pass through a transformers model, reading only the positions that are asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from lmaas_tune.prompts import Insertion
from lmaas_tune_adapters.hf.encoding import EncodedRow


@contextlib.contextmanager
def head_reads_only(body: Any, positions: torch.Tensor) -> Iterator[None]:
    """Let a model's head see only these positions of its body's last hidden states.

    The head, of whatever make (bias, scaling, soft cap), then computes the logits of the
    vocabulary there and nowhere else.

    Args:
        body: The module below the head.
        positions: (n, reads) for a pass of n sequences.
    """
    rows = torch.arange(len(positions), device=positions.device)[:, None]

    def narrow(_module: Any, _inputs: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[rows, positions]
        return output

    hook = body.register_forward_hook(narrow)
    try:
        yield
    finally:
        hook.remove()


@contextlib.contextmanager
def embeddings_changed(embeddings: Any, change: Any) -> Iterator[None]:
    """Let `change` replace what an embedding module (positions and LayerNorm too) gives."""
    hook = embeddings.register_forward_hook(lambda _module, _inputs, output: change(output))
    try:
        yield
    finally:
        hook.remove()


def token_ids(rows: Sequence[EncodedRow], device: torch.device) -> torch.Tensor:
    """(n, length) ids of rows of one length."""
    return torch.tensor([row.ids for row in rows], dtype=torch.long, device=device)


def placed(
    embeddings: torch.Tensor,
    starts: Sequence[int],
    vectors: torch.Tensor,
    insertion: Insertion,
) -> torch.Tensor:
    """Embeddings with each sequence's vectors put in from its start: set, or added.

    Args:
        embeddings: (n, length, H).
        starts: n indices.
        vectors: (n, L, H).
        insertion: ``concat`` or ``add``.
    """
    n, count = vectors.shape[:2]
    rows = torch.arange(n, device=embeddings.device)[:, None]
    first = torch.tensor(starts, device=embeddings.device)[:, None]
    columns = first + torch.arange(count, device=embeddings.device)
    result = embeddings.clone()
    result[rows, columns] = vectors + embeddings[rows, columns] if insertion == "add" else vectors
    return result
