"""Logits of a transformers model, computed only at the positions that are read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from lmaas_tune.prompts import Insertion
from lmaas_tune_adapters.hf.encoding import EncodedRow
from lmaas_tune_adapters.hf.label_tokens import Reading
from lmaas_tune_adapters.hf.probe import close


def logits_at(network: Any, body: Any, positions: torch.Tensor, **inputs: Any) -> torch.Tensor:
    """Compute the vocabulary's logits at some positions only.

    A hook on the body passes only these positions on, so that any kind of head (with bias,
    scaling or soft cap) computes nothing else.

    Args:
        network: The model with its head.
        body: The module after which positions no longer attend to each other, see `find_body`.
        positions: (n, reads) for n sequences; consecutive in each.
        inputs: Arguments of the model.

    Returns:
        (n, reads, vocabulary)
    """
    rows = torch.arange(len(positions), device=positions.device)[:, None]

    def select(module: Any, _inputs: Any, output: Any) -> Any:
        if module is network:
            return None  # its logits are selected below
        if isinstance(output, tuple):
            return output[0][rows, positions], *output[1:]
        output.last_hidden_state = output.last_hidden_state[rows, positions]
        return output

    hook = body.register_forward_hook(select)
    try:
        logits: torch.Tensor = network(**inputs).logits
    finally:
        hook.remove()
    if logits.shape[1] != positions.shape[1]:  # the head does not use its body's output
        logits = logits[rows, positions]
    return logits


def find_body(network: Any, **inputs: Any) -> Any:
    """Find the module after which positions no longer attend to each other.

    Models name it differently, and some use the name for another module, so each candidate is
    tried.

    Args:
        network: The model with its head.
        inputs: Arguments of the model, for one sequence of 3 positions or more.

    Returns:
        The module; the network itself if no candidate passes.
    """
    positions = torch.tensor([[1, 2]], device=network.device)
    plain = network(**inputs).logits[:, 1:3]
    for body in (network.get_decoder(), network.base_model, *network.children()):
        if body is network:
            continue
        with contextlib.suppress(Exception):  # another module's output raises any exception
            if close(logits_at(network, body, positions, **inputs), plain):
                return body
    return network


@contextlib.contextmanager
def output_replaced(module: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Replace the output of a module by `change(output)` in every forward pass inside."""
    hook = module.register_forward_hook(lambda _module, _inputs, output: change(output))
    try:
        yield
    finally:
        hook.remove()


def pad_ids(rows: Sequence[EncodedRow], device: torch.device) -> torch.Tensor:
    """Stack token ids: (n, longest), with zeros behind the shorter rows."""
    longest = max(len(row.ids) for row in rows)
    ids = [row.ids + (0,) * (longest - len(row.ids)) for row in rows]
    return torch.tensor(ids, dtype=torch.long, device=device)


def insert_vectors(
    embeddings: torch.Tensor,
    starts: Sequence[int],
    vectors: torch.Tensor,
    insertion: Insertion,
) -> torch.Tensor:
    """Put each sequence's soft prompt into its embeddings.

    Args:
        embeddings: (n, length, H).
        starts: For each sequence, the position of its first vector.
        vectors: (n, L, H).
        insertion: ``concat`` replaces the embeddings there, ``add`` adds to them.

    Returns:
        (n, length, H), a copy.
    """
    n, count = vectors.shape[:2]
    rows = torch.arange(n, device=embeddings.device)[:, None]
    first = torch.tensor(starts, device=embeddings.device)[:, None]
    columns = first + torch.arange(count, device=embeddings.device)
    result = embeddings.clone()
    result[rows, columns] = vectors + embeddings[rows, columns] if insertion == "add" else vectors
    return result


def add_up(reading: Reading, logits: torch.Tensor, out: torch.Tensor) -> None:
    """Add the log-probabilities that a reading picks to their columns.

    Args:
        reading: What to read.
        logits: (n, nodes, vocabulary).
        out: (n, columns) float64, changed in place.
    """
    nodes, tokens, columns = torch.tensor(reading.picks, device=logits.device).T
    logits = logits.float()
    picked = logits[:, nodes, tokens] - torch.logsumexp(logits, dim=-1)[:, nodes]
    picked.clamp_(max=0)  # rounding can give more than 0
    out.index_add_(1, columns.cpu(), picked.double().cpu())
