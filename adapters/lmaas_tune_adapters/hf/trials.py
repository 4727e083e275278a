"""All trials of a loaded model: whether it can be scored, what it supports, what is faster.

The scores that a backend gives must be those of a plain forward pass of the stock model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from lmaas_tune.backend import Speedup
from lmaas_tune.errors import InputError
from lmaas_tune_adapters.hf.abilities import find_abilities
from lmaas_tune_adapters.hf.causal import CausalScorer
from lmaas_tune_adapters.hf.cpu import find_speedups
from lmaas_tune_adapters.hf.encoding import EncodedRow
from lmaas_tune_adapters.hf.forward_pass import CausalForwardPass
from lmaas_tune_adapters.hf.label_tokens import Word
from lmaas_tune_adapters.hf.layer_hooks import find_layers
from lmaas_tune_adapters.hf.loading import Family, LoadedModel
from lmaas_tune_adapters.hf.logits import find_body, insert_vectors, pad_ids
from lmaas_tune_adapters.hf.masked import MaskedScorer
from lmaas_tune_adapters.hf.probe import (
    close,
    probe_embeddings,
    probe_logits,
    random_ids,
    sees_later_tokens,
)
from lmaas_tune_adapters.hf.request_batch import RequestBatch, Scorer
from lmaas_tune_adapters.hf.seq2seq import Answer, Seq2SeqScorer
from lmaas_tune_adapters.hf.source import failure, quiet
from lmaas_tune_adapters.hf.speedups import Speedups

_ROW_TOKENS, _PROMPT_TOKENS, _REQUESTS = 6, 2, 2

LEAST_TOKENS = 4096
"""Tokens of a pass below which an accelerator waits for its next command more than it computes."""


@dataclass(frozen=True, kw_only=True)
class ScorerOptions:
    """How a model is run.

    Attributes:
        max_tokens_per_pass: Most tokens in one pass; None for the default of the device.
        max_kept_bytes: Most memory for keys and values that a causal model caches between calls.
        answer: See `Seq2SeqScorer`.
        speedups: Whether faster code with the same scores may replace parts of the model.
    """

    max_tokens_per_pass: int | None
    max_kept_bytes: int
    answer: Answer
    speedups: bool


@dataclass(frozen=True)
class ReadyModel:
    """A model that passed its trials.

    Attributes:
        loaded: The model; its modules may have been replaced by faster ones.
        scorer: Scores label words with it.
        speedups: Each way to save work, on or off.
    """

    loaded: LoadedModel
    scorer: Scorer
    speedups: tuple[Speedup, ...]


def prepare(load: Callable[[], LoadedModel], options: ScorerOptions) -> ReadyModel:
    """Load a model and try it: embeddings, faster modules, its family's scorer, scores.

    Args:
        load: Called again where faster modules spoil the first copy.
        options: How the model is run.

    Raises:
        InputError: The model cannot be loaded or scored, or its scores differ from those of a
            plain forward pass.
    """
    loaded = load()
    logits = check_embeddings(loaded)
    speedups = find_speedups(on=options.speedups)
    if loaded.model.device.type == "cpu":
        with quiet():
            usable = speedups.install_kernels(loaded.model, logits)
        loaded = loaded if usable else load()
    try:
        with quiet(), torch.inference_mode():
            scorer = make_scorer(loaded, options, speedups)
            check_scores(loaded, scorer)
    except InputError:
        raise
    except Exception as error:  # foreign model code raises any exception
        raise InputError(
            f"the model {loaded.name!r} does not take a prompt as embeddings, or does not answer "
            f"as a {loaded.family} model ({failure(error)}): choose another model"
        ) from error
    return ReadyModel(loaded, scorer, tuple(speedups.reports))


def check_embeddings(loaded: LoadedModel) -> torch.Tensor | None:
    """Refuse a model that gives other logits for embeddings than for their tokens.

    Returns:
        The logits of the tokens; None where the model cannot be tried like this.
    """
    with quiet():
        by_tokens = probe_logits(loaded.model)
        if by_tokens is None:
            return None
        by_embeddings = probe_logits(loaded.model, as_embeddings=True)
    if by_embeddings is None or not close(by_embeddings, by_tokens, single=1e-4, half=0.1):
        raise InputError(
            f"the model {loaded.name!r} gives other scores for embeddings than for the tokens "
            "that they stand for, so it would misread a prompt: choose another model"
        )
    return by_tokens


def make_scorer(loaded: LoadedModel, options: ScorerOptions, speedups: Speedups) -> Scorer:
    """Make the scorer of a model's family, with the abilities of the model."""
    on_cpu = loaded.model.device.type == "cpu"
    most = options.max_tokens_per_pass or (2048 if on_cpu else 16384)
    if loaded.family == "masked":
        return MaskedScorer(loaded, max_tokens_per_pass=most, speedups=speedups)
    if loaded.family == "seq2seq":
        return Seq2SeqScorer(loaded, max_tokens_per_pass=most, answer=options.answer)
    network = loaded.model
    _check_order(loaded)
    embeddings = probe_embeddings(network)
    body = find_body(network, inputs_embeds=embeddings, use_cache=False)
    abilities = find_abilities(network, body, speedups)
    forward_pass = CausalForwardPass(network, body, abilities, find_layers(body, embeddings))
    return CausalScorer(
        forward_pass,
        speedups.workers(forward_pass, network, forward_pass.on_copy),
        max_tokens_per_pass=most,
        max_kept_bytes=options.max_kept_bytes,
        least_tokens=0 if network.device.type == "cpu" else LEAST_TOKENS,
    )


def _check_order(loaded: LoadedModel) -> None:
    """Refuse a model that is saved as a causal one and attends to later tokens."""
    network = loaded.model
    if sees_later_tokens(lambda x: network(inputs_embeds=x, use_cache=False).logits, network):
        raise InputError(
            f"the model {loaded.name!r} is saved as a causal language model, and its tokens see "
            "later ones: choose another model; an encoder such as BERT needs is_decoder=true in "
            "its config.json"
        )


def check_scores(loaded: LoadedModel, scorer: Scorer) -> None:
    """Compare a scorer with plain forward passes of two rows under two soft prompts.

    Raises:
        InputError: The scores differ.
    """
    batch = _probe_batch(loaded.model)
    scores = scorer.scores(batch)
    plain = torch.stack([_plain_scores(loaded, scorer, batch, w) for w in batch.words], dim=-1)
    plain = plain.cpu().to(loaded.model.dtype)  # compared up to the model's rounding
    if plain.isfinite().all() and not close(scores, plain):
        raise InputError(
            f"the model {loaded.name!r} gives other scores than a plain forward of the same "
            f"{loaded.family} model does: choose another model"
        )


def _probe_batch(network: Any) -> RequestBatch:
    """Two soft prompts in the middle of two rows, with label words of one and three tokens."""
    table = network.get_input_embeddings()
    generator = torch.Generator().manual_seed(0)
    ids = random_ids(network, (3, _ROW_TOKENS), generator)
    word, *rows = ids.tolist()
    embedded = table(ids.to(network.device))
    vectors = torch.randn(_REQUESTS, _PROMPT_TOKENS, embedded.shape[-1], generator=generator)
    return RequestBatch(
        rows=[[_row(tuple(one)) for one in rows]] * _REQUESTS,
        words=[tuple(word[:1]), tuple(word[1:4])],
        vectors=vectors.to(embedded) * embedded.float().std().to(embedded),
    )


def _row(ids: Word) -> EncodedRow:
    return EncodedRow(ids, prompt=2, label=len(ids), label_first=False, spaced=False)


def _plain_scores(
    loaded: LoadedModel, scorer: Scorer, batch: RequestBatch, word: Word
) -> torch.Tensor:
    """(requests, rows) log-probabilities of a label word, by one forward pass of whole rows."""
    network = loaded.model
    requests, _, rows = zip(*batch.items(), strict=True)
    fills: dict[Family, Word] = {
        "causal": word[:-1],
        "masked": scorer.mask_token * len(word),
        "seq2seq": scorer.mask_token,
    }
    ids = pad_ids([row.with_label(fills[loaded.family]) for row in rows], network.device)
    inputs = {"inputs_embeds": network.get_input_embeddings()(ids)}
    if batch.vectors is not None:
        vectors, starts = batch.vectors[list(requests)], [row.prompt for row in rows]
        embeddings = insert_vectors(inputs["inputs_embeds"], starts, vectors, "concat")
        inputs["inputs_embeds"] = embeddings
    first = rows[0].label - (loaded.family != "masked")
    if isinstance(scorer, Seq2SeqScorer):
        written = scorer.embed_written(rows, requests, batch, word[:-1])
        inputs["decoder_inputs_embeds"], first = written, written.shape[1] - len(word)
    logits: torch.Tensor = network(**inputs).logits[:, first : first + len(word)].float()
    picked = logits.log_softmax(-1)[:, range(len(word)), word]
    return picked.sum(-1).view(len(batch.rows), -1)
