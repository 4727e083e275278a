"""Small inputs to try a model with when it is loaded, and comparisons of its outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lmaas_tune_adapters.hf.source import failure

OTHER_SCORES = "it changes the scores"


class TrialFailedError(Exception):
    """A model does not pass a trial; the message is the reason."""


def failure_reason(trial: Callable[[], None]) -> str:
    """Run a trial that raises where the model does not pass.

    Returns:
        The reason why it fails; empty if it passes.
    """
    try:
        trial()
    except TrialFailedError as error:
        return str(error)
    except Exception as error:  # foreign model code raises any exception
        return failure(error)
    return ""


def probe_embeddings(network: Any) -> torch.Tensor:
    """Embed five tokens of a model: (1, 5, H)."""
    table = network.get_input_embeddings()
    # spread over the vocabulary: special tokens alone say little in low precision
    ids = torch.arange(1, 6, device=network.device)[None] * (len(table.weight) // 7)
    embeddings: torch.Tensor = table(ids)
    return embeddings


def random_ids(network: Any, shape: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """Draw token ids without padding, which some models give no position."""
    padding = getattr(network.config, "pad_token_id", None)
    ids = torch.randint(len(network.get_input_embeddings().weight) - 1, shape, generator=generator)
    return ids if padding is None else ids + (ids >= padding)


def probe_logits(network: Any, *, as_embeddings: bool = False) -> torch.Tensor | None:
    """Compute logits of (2, 24) random tokens, given as ids or as their embeddings.

    Returns:
        (2, 24, vocabulary); None where the model needs other inputs.
    """
    try:
        with torch.inference_mode():
            ids = random_ids(network, (2, 24), torch.Generator().manual_seed(0)).to(network.device)
            if as_embeddings:
                given, name = network.get_input_embeddings()(ids), "inputs_embeds"
            else:
                given, name = ids, "input_ids"
            inputs = {name: given}
            if network.config.is_encoder_decoder:
                inputs[f"decoder_{name}"] = given
            logits: torch.Tensor = network(**inputs).logits
    except Exception:  # foreign model code raises any exception
        return None
    return logits


def close(
    ours: torch.Tensor, theirs: torch.Tensor, *, single: float = 1e-3, half: float = 0.08
) -> bool:
    """Compare two results up to rounding.

    Args:
        ours: Any shape.
        theirs: The reference; its dtype decides the tolerance.
        single: Largest difference in float32, relative to the largest number of the reference.
        half: The same in bfloat16 and float16.
    """
    rough = single if theirs.dtype in (torch.float32, torch.float64) else half
    return bool((ours - theirs).abs().max() <= rough * theirs.abs().max())


def sees_later_tokens(logits: Callable[[torch.Tensor], torch.Tensor], network: Any) -> bool:
    """Find out whether later tokens change the logits of earlier ones.

    Args:
        logits: From embeddings (1, length, H) to (1, length, vocabulary).
        network: Provides the embeddings.
    """
    ids = random_ids(network, (1, 48), torch.Generator().manual_seed(0)).to(network.device)
    whole = network.get_input_embeddings()(ids)
    start = whole[:, :24].clone()  # some models scale their input in place
    return not close(logits(whole)[:, :24], logits(start))
