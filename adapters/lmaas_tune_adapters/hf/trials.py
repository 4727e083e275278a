"""A loaded model is tried before it is used: its scores must be those of a plain forward."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Any

import torch

from lmaas_tune.errors import InputError
from lmaas_tune_adapters.hf.answers import Word
from lmaas_tune_adapters.hf.cohort import Cohort, Scorer
from lmaas_tune_adapters.hf.encoding import EncodedRow
from lmaas_tune_adapters.hf.forward import close, placed, token_ids, usual_ids
from lmaas_tune_adapters.hf.loading import Family, LoadedModel, quiet
from lmaas_tune_adapters.hf.seq2seq import Seq2SeqScorer

_ROW_TOKENS, _PROMPT_TOKENS, _REQUESTS = 6, 2, 2


def tried(loaded: LoadedModel, make: Callable[[LoadedModel], Scorer]) -> Scorer:
    """A scorer of a model, its scores compared with plain forwards of a few made-up rows.

    Raises:
        InputError: The model cannot be scored, or its scores differ.
    """
    try:
        with quiet(), torch.inference_mode():
            scorer = make(loaded)
            cohort = _cohort(loaded.model, scorer)
            scores = scorer.scores(cohort)
            plain = torch.stack([_plain(loaded, scorer, cohort, w) for w in cohort.words], dim=-1)
    except InputError:
        raise
    except Exception as error:  # whatever a model raises that reads or answers otherwise
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 160, placeholder=" ...")
        raise InputError(
            f"the model {loaded.name!r} does not take a prompt as embeddings, or does not answer "
            f"as a {loaded.family} model ({reason}): choose another model"
        ) from error
    plain = plain.cpu().to(loaded.model.dtype)  # and so compared up to its rounding
    if plain.isfinite().all() and not close(scores, plain):
        raise InputError(
            f"the model {loaded.name!r} gives other scores than a plain forward of the same "
            f"{loaded.family} model does: choose another model"
        )
    return scorer


def _cohort(network: Any, scorer: Scorer) -> Cohort:
    """Two soft prompts in the middle of two rows, with label words of one and three tokens."""
    table = network.get_input_embeddings()
    numbers = torch.Generator().manual_seed(0)
    ids = usual_ids(network, (3, _ROW_TOKENS), numbers)
    word, *rows = ids.tolist()
    embedded = table(ids.to(network.device))
    vectors = torch.randn(_REQUESTS, _PROMPT_TOKENS, embedded.shape[-1], generator=numbers)
    return Cohort(
        rows=[[_row(tuple(one)) for one in rows]] * _REQUESTS,
        words=[tuple(word[:1]), tuple(word[1:4])],
        vectors=vectors.to(embedded) * embedded.float().std().to(embedded),
    )


def _row(ids: Word) -> EncodedRow:
    return EncodedRow(ids, prompt=2, label=len(ids), label_first=False, spaced=False)


def _plain(loaded: LoadedModel, scorer: Scorer, cohort: Cohort, word: Word) -> torch.Tensor:
    """(requests, rows) log-probabilities of a label word, by one forward of whole rows."""
    network = loaded.model
    requests, _, rows = zip(*cohort.items(), strict=True)
    masked = loaded.family == "masked"
    fills: dict[Family, Word] = {
        "causal": word[:-1],
        "masked": scorer.hole * len(word),
        "seq2seq": scorer.hole,
    }
    fill = fills[loaded.family]
    ids = token_ids([row.with_label(fill) for row in rows], network.device)
    inputs = {"inputs_embeds": network.get_input_embeddings()(ids)}
    if cohort.vectors is not None:
        vectors, starts = cohort.vectors[list(requests)], [row.prompt for row in rows]
        inputs["inputs_embeds"] = placed(inputs["inputs_embeds"], starts, vectors, "concat")
    first = rows[0].label - (not masked)
    if isinstance(scorer, Seq2SeqScorer):
        said = scorer.embed_said(rows, requests, cohort, word[:-1])
        inputs["decoder_inputs_embeds"], first = said, said.shape[1] - len(word)
    logits: torch.Tensor = network(**inputs).logits[:, first : first + len(word)].float()
    picked = logits.log_softmax(-1)[:, range(len(word)), word]
    return picked.sum(-1).view(len(cohort.rows), -1)
