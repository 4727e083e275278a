"""What a server is asked before a run: which model it serves, and whether it can do what is meant.

Costs two small requests, which are in no ledger.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from lmaas_tune.errors import InputError, PermanentError, did_you_mean
from lmaas_tune_adapters.hf.label_tokens import Word
from lmaas_tune_adapters.http import Endpoint, RefusedError
from lmaas_tune_adapters.vllm.completions import Completions, UnfitAnswerError
from lmaas_tune_adapters.vllm.rows import RowWriter
from lmaas_tune_adapters.vllm.table import EmbeddingTable

_APART = 0.5
"""Log-probabilities of one text, sent as ids and as embeddings, are equal in float32 and within
0.2 in half precision; a table of another model or scale is off by several units."""

_OTHER_WIDTH = re.compile(r"hidden_size \d+ does not match the model's hidden_size (\d+)")


@dataclass(frozen=True, kw_only=True)
class Served:
    """A model of a server.

    Attributes:
        name: What requests call it.
        max_tokens: The longest prompt with its answer; None where the server does not say.
    """

    name: str
    max_tokens: int | None


def find_model(endpoint: Endpoint, wanted: str | None) -> Served:
    """The model that a server serves, or the one of its models that is wanted.

    Raises:
        InputError: It serves several and none is named, or not the one that is.
        PermanentError: It serves no models at all.
        TransientError: No answer.
    """
    answer = endpoint.get("/v1/models")
    content = answer.json()
    try:
        lengths = {model["id"]: model.get("max_model_len") for model in content["data"]}
    except (KeyError, TypeError, AttributeError) as error:
        raise PermanentError(
            f"{answer.url} answers no list of models: check that the URL is a vLLM server's"
        ) from error
    if wanted is None and len(lengths) != 1:
        raise InputError(
            f"{answer.url} lists {len(lengths)} models ({', '.join(map(repr, sorted(lengths)))}): "
            "say which by served_model"
        )
    name = next(iter(lengths)) if wanted is None else wanted
    if name not in lengths:
        raise InputError(f"{answer.url} serves no model {name!r}; {did_you_mean(name, lengths)}")
    return Served(name=name, max_tokens=lengths[name])


def check_server(completions: Completions, rows: RowWriter, token_ids: Word, model: str) -> None:
    """Send one short prompt, as embeddings and as ids, and compare the answers.

    Args:
        completions: How requests are made.
        rows: How they are written, with the embeddings to judge.
        token_ids: The prompt, and the tokens to ask for.
        model: Where the embeddings are from.

    Raises:
        PermanentError: The server cannot do what it is asked, or has another model; the message
            says what to change.
        TransientError: No answer.
    """
    url, name = completions.endpoint.url, completions.served_model
    wanted = list(dict.fromkeys(token_ids))[:16]
    beside = () if completions.for_dynamo else token_ids
    try:
        values, _ = completions.ask([rows.words(token_ids)], wanted, beside=beside)
    except UnfitAnswerError as error:
        raise PermanentError(
            f"{url} does not give the log-probabilities of the tokens it is asked for ({error}): "
            "it needs a vLLM that knows logprob_token_ids (0.32 does), without --logprobs-mode"
        ) from error
    except RefusedError as error:
        raise _explained(error, rows.table, model) from error
    if beside and np.abs(values[0] - values[1]).max() > _APART:
        raise PermanentError(
            f"{url} answers otherwise to the embeddings of {model!r} than to the words they stand "
            f"for: the model {name!r} there has others, or scales them in a way unknown here; give "
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
