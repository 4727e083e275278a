"""Checks of a server before a run: its model, and whether it accepts embeddings.

They take two small requests, which count in no budget.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmaas_tune.errors import InputError, PermanentError, did_you_mean
from lmaas_tune.typed_json import checked
from lmaas_tune_adapters.hf.label_tokens import Word
from lmaas_tune_adapters.http import Endpoint, RefusedError, quoted
from lmaas_tune_adapters.vllm.completions import Completions, UnfitAnswerError
from lmaas_tune_adapters.vllm.rows import RowWriter
from lmaas_tune_adapters.vllm.vocabulary import EmbeddingTable

_APART = 0.5
"""Largest difference between log-probabilities of one text, sent as ids and as embeddings.

It is 0 in float32 and up to 0.2 in half precision; another model's table gives several units."""

_OTHER_WIDTH = re.compile(r"hidden_size \d+ does not match the model's hidden_size (\d+)")


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model of a server.

    Attributes:
        name: Its name in requests.
        max_tokens: The longest prompt with its answer; None where the server does not state it.
    """

    name: str
    max_tokens: int | None


@dataclass(frozen=True, kw_only=True)
class _Listed:
    """A model as a server lists it."""

    id: str
    max_model_len: int | None = None


@dataclass(frozen=True, kw_only=True)
class _ModelList:
    data: Sequence[_Listed]


def find_model(endpoint: Endpoint, wanted: str | None) -> ServedModel:
    """Find the model that a server serves, or the wanted one of several.

    Raises:
        InputError: The server has several and none is wanted, or lacks the wanted one.
        PermanentError: The server does not list models.
        TransientError: No answer.
    """
    answer = endpoint.get("/v1/models")
    try:
        found = checked(_ModelList, answer.json(), "it")
    except InputError as error:
        raise PermanentError(
            f"{answer.url} answers no list of models ({quoted(str(error), answer.key, most=200)}): "
            "check that the URL is a vLLM server's"
        ) from error
    lengths = {model.id: model.max_model_len for model in found.data}
    if wanted is None and len(lengths) != 1:
        raise InputError(
            f"{answer.url} lists {len(lengths)} models ({', '.join(map(repr, sorted(lengths)))}): "
            "say which by served_model"
        )
    name = next(iter(lengths)) if wanted is None else wanted
    if name not in lengths:
        raise InputError(f"{answer.url} serves no model {name!r}; {did_you_mean(name, lengths)}")
    return ServedModel(name=name, max_tokens=lengths[name])


def check_server(completions: Completions, rows: RowWriter, token_ids: Word, model: str) -> None:
    """Send one short prompt, as embeddings and as ids, and compare the answers.

    Args:
        completions: Sends the requests.
        rows: Writes the prompt, with the embeddings to check.
        token_ids: The prompt, and the tokens whose log-probabilities are compared.
        model: The model of the embeddings.

    Raises:
        PermanentError: The server does not return these log-probabilities, or has another model;
            the message names the setting to change.
        TransientError: No answer.
    """
    url, name = completions.endpoint.url, completions.served_model
    wanted = list(dict.fromkeys(token_ids))[:16]
    beside = () if completions.for_dynamo else token_ids
    prompts = [rows.words(token_ids)]
    try:
        try:
            values, _ = completions.ask(prompts, wanted, beside=beside)
        except UnfitAnswerError:  # one answer may be damaged; those of an unfit server all are
            values, _ = completions.ask(prompts, wanted, beside=beside)
    except UnfitAnswerError as error:
        raise PermanentError(
            f"{url} does not return the log-probabilities of the requested tokens ({error}): "
            "it needs a vLLM that knows logprob_token_ids (0.32 does), without --logprobs-mode"
        ) from error
    except RefusedError as error:
        raise _explained(error, rows.table, model) from error
    if beside and np.abs(values[0] - values[1]).max() > _APART:
        raise PermanentError(
            f"{url} gives other scores for the embeddings of {model!r} than for their words: the "
            f"model {name!r} there has other embeddings, or scales them in an unknown way; give "
            "the model that the server serves"
        )


def _explained(error: RefusedError, table: EmbeddingTable, model: str) -> PermanentError:
    if "enable-prompt-embeds" in error.reason:
        return PermanentError(
            f"{error}: start the server again with --enable-prompt-embeds; without it, vLLM takes "
            "text alone, which the backend 'openai' sends"
        )
    if match := _OTHER_WIDTH.search(error.reason):
        return PermanentError(
            f"the embeddings of {model!r} are {table.weight.shape[1]} wide, and those of the "
            f"server's model {match[1]}: give the model that the server serves"
        )
    return error
