"""One pass through a transformers model, reading only the positions that are asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from lmaas_tune.prompts import Insertion
from lmaas_tune_adapters.hf.encoding import EncodedRow


def logits_at(network: Any, body: Any, positions: torch.Tensor, **inputs: Any) -> torch.Tensor:
    """Logits of the vocabulary at these positions and nowhere else.

    The model's head, of whatever make (bias, scaling, soft cap), sees only these positions of
    what the module below it gives.

    Args:
        network: The model with its head.
        body: The module after which positions no longer see each other, see `body_of`.
        positions: (n, reads) for a pass of n sequences; consecutive in each.
        inputs: Of the model.

    Returns:
        (n, reads, vocabulary)
    """
    rows = torch.arange(len(positions), device=positions.device)[:, None]

    def narrow(module: Any, _inputs: Any, output: Any) -> Any:
        if module is network:
            return None  # it gives logits of all positions, which are picked below
        if isinstance(output, tuple):
            return output[0][rows, positions], *output[1:]
        output.last_hidden_state = output.last_hidden_state[rows, positions]
        return output

    hook = body.register_forward_hook(narrow)
    try:
        logits: torch.Tensor = network(**inputs).logits
    finally:
        hook.remove()
    if logits.shape[1] != positions.shape[1]:  # a head that goes past its body's output
        logits = logits[rows, positions]
    return logits


def body_of(network: Any, **inputs: Any) -> Any:
    """The module after which positions no longer see each other; the network where there is none.

    Models name it in different ways, and some name another module so: each candidate is tried.

    Args:
        network: The model with its head.
        inputs: Of the model, one sequence of 3 positions or more.
    """
    positions = torch.tensor([[1, 2]], device=network.device)
    plain = network(**inputs).logits[:, 1:3]
    for body in (network.get_decoder(), network.base_model, *network.children()):
        if body is network:
            continue
        with contextlib.suppress(Exception):  # whatever another module's output raises
            if close(logits_at(network, body, positions, **inputs), plain):
                return body
    return network


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Whether two answers are equal up to the rounding of their dtype."""
    rough = 1e-3 if theirs.dtype in (torch.float32, torch.float64) else 0.08
    return bool((ours - theirs).abs().max() <= rough * theirs.abs().max())


@contextlib.contextmanager
def embeddings_changed(embeddings: Any, change: Any) -> Iterator[None]:
    """Let `change` replace what an embedding module (positions and LayerNorm too) gives."""
    hook = embeddings.register_forward_hook(lambda _module, _inputs, output: change(output))
    try:
        yield
    finally:
        hook.remove()


def failure(error: Exception) -> str:
    """An error of somebody else's code, in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__


def trial(network: Any) -> torch.Tensor:
    """(1, 5, H) embeddings of some tokens, to try a model with."""
    table = network.get_input_embeddings()
    # from all over the vocabulary: low precision loses much of what special tokens say
    ids = torch.arange(1, 6, device=network.device)[None] * (len(table.weight) // 7)
    embeddings: torch.Tensor = table(ids)
    return embeddings


def usual_ids(network: Any, shape: tuple[int, int], numbers: torch.Generator) -> torch.Tensor:
    """Random token ids, no padding among them: some models give that no place."""
    padding = getattr(network.config, "pad_token_id", None)
    ids = torch.randint(len(network.get_input_embeddings().weight) - 1, shape, generator=numbers)
    return ids if padding is None else ids + (ids >= padding)


def sees_later(logits: Callable[[torch.Tensor], torch.Tensor], network: Any) -> bool:
    """Whether tokens change what is said before them.

    Args:
        logits: Of embeddings, (1, length, H) to (1, length, vocabulary).
        network: Whose embeddings are given.
    """
    ids = usual_ids(network, (1, 48), torch.Generator().manual_seed(0)).to(network.device)
    whole = network.get_input_embeddings()(ids)
    begun = whole[:, :24].clone()  # some models scale what they are given in place
    return not close(logits(whole)[:, :24], logits(begun))


def token_ids(rows: Sequence[EncodedRow], device: torch.device) -> torch.Tensor:
    """(n, longest) ids, with zeros behind the shorter rows."""
    longest = max(len(row.ids) for row in rows)
    ids = [row.ids + (0,) * (longest - len(row.ids)) for row in rows]
    return torch.tensor(ids, dtype=torch.long, device=device)


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
