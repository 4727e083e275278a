"""The one request this backend makes: prompts as embeddings in, log-probabilities of tokens out."""

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
"""Most tokens whose log-probabilities vLLM gives in one answer, whatever its --max-logprobs."""

_OVERFLOW = "Out of range float values"
"""What vLLM says where a log-probability came out as NaN, and not where in the list."""

_ROUNDING = 1e-3  # a log-probability of a server in half precision may come out this far above 0

_NOTHING = -9999.0
"""What vLLM says for no log-probability: of a token that it masks; and of token 0, should a request
with more tokens be answered at the same time."""


class UnfitAnswerError(TransientError):
    """An answer without a log-probability for every token that was asked for."""


@dataclass(frozen=True, kw_only=True)
class Completions:
    """Asks a server what comes next after prompts. May be used from several threads.

    Attributes:
        endpoint: The server.
        served_model: The model's name there.
        most_prompts: Most prompts in one HTTP request.
        max_body_bytes: Most bytes of them; one prompt that is longer goes alone.
        for_dynamo: Whether the server is NVIDIA Dynamo, which wants an empty `prompt` beside the
            embeddings (vLLM refuses one), and no list of them.
    """

    endpoint: Endpoint
    served_model: str
    most_prompts: int
    max_body_bytes: int
    for_dynamo: bool = False

    def logprobs(
        self, prompts: Iterable[bytes], token_ids: Sequence[int]
    ) -> tuple[FloatArray, Usage]:
        """What the model gives each token as the next one.

        Args:
            prompts: As `lmaas_tune_adapters.vllm.rows` writes them, finite; taken one by one.
            token_ids: At most `MOST_TOKENS`, all different.

        Returns:
            (prompts, token ids) float64, NaN for a prompt that the model overflows on; and what
            was sent and received.

        Raises:
            TransientError: No answer, or none that fits.
            RefusedError: The server will not have it.
        """
        found, usage = joined(self._answers(group, token_ids) for group in self._groups(prompts))
        return np.concatenate([np.zeros((0, len(token_ids))), *found]), usage

    def ask(
        self, prompts: Sequence[bytes], token_ids: Sequence[int], *, beside: Sequence[int] = ()
    ) -> tuple[FloatArray, Usage]:
        """One HTTP request.

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
            "return_tokens_as_token_ids": True,  # else different tokens of one text are one key
            # the model's own files may set a penalty where a request does not
            "repetition_penalty": 1,
            "presence_penalty": 0,
            "frequency_penalty": 0,
        }
        if self.for_dynamo:
            fields["prompt"] = ""
        elif beside:
            fields["prompt"] = list(beside)
        opening, end = (b'"', b'"}') if self.for_dynamo else (b'["', b'"]}')
        # base64 has nothing to escape, and a JSON writer would take longer than all the rest
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
        """Ask, and ask again in halves where a shorter list may do."""
        try:
            return self.ask(prompts, token_ids)
        except BusyError as error:
            # each prompt takes a place in the queue: a long list may never get in
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
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise UnfitAnswerError(
                f"{answer.url} left out a log-probability that was asked for "
                f"({type(error).__name__}: {quoted(str(error), answer.key, most=200)})"
            ) from error
        wrong = values[(values > _ROUNDING) | (values <= _NOTHING)]
        if wrong.size:
            raise UnfitAnswerError(f"{answer.url} gave {wrong[0]:g} for a log-probability")
        return np.minimum(values, 0.0)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is no number")
    return float(value)
