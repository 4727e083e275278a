"""The request to vLLM: from prompts as embeddings to log-probabilities of given tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmaas_tune.backend import Usage
from lmaas_tune.errors import TransientError
from lmaas_tune.prompts import FloatArray
from lmaas_tune_adapters.http import (
    Answer,
    BusyError,
    Endpoint,
    RefusedError,
    joined,
    paid,
    quoted,
    tokens_read,
)

PATH = "/v1/completions"

MOST_TOKENS = 128
"""Most tokens whose log-probabilities vLLM returns in one answer, for any --max-logprobs."""

_OVERFLOW = "Out of range float values"
"""vLLM's message where a log-probability is NaN; it does not name the prompt."""

_ROUNDING = 1e-3  # in half precision a server's log-probability can be this far above 0

_NO_VALUE = -9999.0
"""Stands for no log-probability in vLLM: for masked tokens, and for token 0 while a request with
more tokens is answered."""


class UnfitAnswerError(TransientError):
    """An answer lacks the log-probability of a requested token."""


@dataclass(frozen=True, kw_only=True)
class Completions:
    """Asks a server for log-probabilities of next tokens. May be used from several threads.

    Attributes:
        endpoint: The server.
        served_model: The model's name there.
        most_prompts: Most prompts in one HTTP request.
        max_body_bytes: Most bytes of them; a longer prompt is sent alone.
        for_dynamo: Whether the server is NVIDIA Dynamo, which needs an empty `prompt` beside the
            embeddings (vLLM refuses one), and takes no list of them.
    """

    endpoint: Endpoint
    served_model: str
    most_prompts: int
    max_body_bytes: int
    for_dynamo: bool = False

    def logprobs(
        self, prompts: Iterable[bytes], token_ids: Sequence[int]
    ) -> tuple[FloatArray, Usage]:
        """Score tokens as the next one behind each prompt.

        Args:
            prompts: As `lmaas_tune_adapters.vllm.rows` writes them, finite; taken one by one.
            token_ids: At most `MOST_TOKENS`, all different.

        Returns:
            (prompts, token ids) float64, NaN for a prompt on which the model overflows; and the
            usage.

        Raises:
            TransientError: No answer, or an unfit one.
            RefusedError: The server refuses the request.
        """
        found, usage = joined(self._answers(group, token_ids) for group in self._groups(prompts))
        return np.concatenate([np.zeros((0, len(token_ids))), *found]), usage

    def ask(
        self, prompts: Sequence[bytes], token_ids: Sequence[int], *, beside: Sequence[int] = ()
    ) -> tuple[FloatArray, Usage]:
        """Send one HTTP request.

        Args:
            prompts: See `logprobs`.
            token_ids: See `logprobs`.
            beside: Token ids of one more prompt, answered last.
        """
        fields: dict[str, Any] = {
            "model": self.served_model,
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": 1,
            "logprob_token_ids": list(token_ids),
            "return_tokens_as_token_ids": True,  # else tokens of equal text have one key
            # a model's files may set penalties that a request does not
            "repetition_penalty": 1,
            "presence_penalty": 0,
            "frequency_penalty": 0,
        }
        if self.for_dynamo:
            fields["prompt"] = ""
        elif beside:
            fields["prompt"] = list(beside)
        opening, end = (b'"', b'"}') if self.for_dynamo else (b'["', b'"]}')
        # base64 needs no escapes, and a JSON writer would take most of the time
        pieces = [json.dumps(fields).encode()[:-1], b',"prompt_embeds":', opening]
        for number, prompt in enumerate(prompts):
            pieces += [b'","', prompt] if number else [prompt]
        body = b"".join([*pieces, end])
        answer = self.endpoint.post(PATH, body=body, headers={"Content-Type": "application/json"})
        content = answer.json()
        read = tokens_read(content) or 0
        usage = answer.usage + Usage(sequences=len(prompts), tokens=read)
        with paid(usage):
            return self._read(content, answer, len(prompts) + bool(beside), token_ids), usage

    def _groups(self, prompts: Iterable[bytes]) -> Iterator[list[bytes]]:
        group: list[bytes] = []
        size = 0
        for prompt in prompts:
            if group and (
                len(group) == self.most_prompts or size + len(prompt) > self.max_body_bytes
            ):
                yield group
                group, size = [], 0
            group.append(prompt)
            size += len(prompt)
        if group:
            yield group

    def _answers(
        self, prompts: Sequence[bytes], token_ids: Sequence[int]
    ) -> tuple[FloatArray, Usage]:
        """Send prompts, and again in halves where the server may accept a shorter list."""
        try:
            return self.ask(prompts, token_ids)
        except BusyError as error:
            # each prompt takes a place in the queue, so a long list may never fit
            if len(prompts) == 1 or error.retry_after is not None:
                raise
        except RefusedError as error:
            overflow = error.status == 400 and _OVERFLOW in error.reason
            if overflow and len(prompts) == 1:
                return np.full((1, len(token_ids)), np.nan), Usage(requests=1)
            if len(prompts) == 1 or not (overflow or error.status == 413):
                raise
        half = len(prompts) // 2
        parts = (self._answers(part, token_ids) for part in (prompts[:half], prompts[half:]))
        found, usage = joined(parts, before=Usage(requests=1))
        return np.concatenate(found), usage

    def _read(
        self, content: Any, answer: Answer, count: int, token_ids: Sequence[int]
    ) -> FloatArray:
        try:
            found = {c["index"]: c["logprobs"]["top_logprobs"][0] for c in content["choices"]}
            if sorted(found) != list(range(count)) or len(content["choices"]) != count:
                raise ValueError(f"{len(content['choices'])} choices for {count} prompts")
            values = np.array(
                [[_number(found[i][f"token_id:{t}"]) for t in token_ids] for i in range(count)],
                dtype=np.float64,
            ).reshape(count, len(token_ids))
        except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
            raise UnfitAnswerError(
                f"{answer.url} left out a requested log-probability "
                f"({type(error).__name__}: {quoted(str(error), answer.key, most=200)})"
            ) from error
        wrong = values[(values > _ROUNDING) | (values <= _NO_VALUE)]
        if wrong.size:
            raise UnfitAnswerError(f"{answer.url} gave {wrong[0]:g} for a log-probability")
        return np.minimum(values, 0.0)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is no number")
    return float(value)
