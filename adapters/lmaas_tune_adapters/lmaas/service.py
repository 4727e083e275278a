"""What the service is asked, what it answers, and how a damaged answer is known."""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from lmaas_tune.backend import Capabilities, Inspection, ScoreReply, Usage
from lmaas_tune.errors import InputError, LMaaSError, PermanentError, TransientError
from lmaas_tune.prompts import FloatArray, SoftPrompt, Subspace, TextPrompt
from lmaas_tune.task import Batch, Slot
from lmaas_tune_adapters.http import Answer, Endpoint, RefusedError, paid

PROTOCOL = 1
"""Version of the paths and bodies that stand here."""

Shape: TypeAlias = tuple[int, int]
"""(rows, candidates) of an answer."""

Content: TypeAlias = Mapping[str, Any] | bytes | None
"""JSON, raw numbers, or nothing to send."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """What a service says of itself.

    Attributes:
        identity: Of the backend that it serves.
        capabilities: Of that backend too, with the service's own limit of rows a call.
        candidates: Most label words of one request; None if it does not say.
    """

    identity: str
    capabilities: Capabilities
    candidates: int | None


@dataclass(frozen=True)
class Registered:
    """What the service keeps for its client.

    Attributes:
        id: Its name for it.
        usage: What telling it took.
    """

    id: str
    usage: Usage


class Service:
    """The service's paths. An answer that is damaged, or another request's, is not believed.

    All methods raise `TransientError` where no whole answer came or it may come later,
    `InputError` where the model cannot do what is asked, and `RefusedError`, whose `code` says
    why, where the service will not answer.

    Args:
        endpoint: Where it is.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.url = endpoint.url
        self._endpoint = endpoint

    def model(self) -> Model:
        """What is served.

        Raises:
            PermanentError: It speaks another version of the protocol.
        """
        answer = self._ask("/v1/model")
        try:
            said = answer.json()
            if said["protocol"] != PROTOCOL:
                raise PermanentError(
                    f"{self.url} speaks version {said['protocol']!r:.40} of the protocol, and this "
                    f"client {PROTOCOL}: install the same lmaas-tune on both sides"
                )
            can, limits = said["capabilities"], said["limits"]
            rows, candidates = _count(limits["rows"]), limits.get("candidates")
            if not isinstance(said["identity"], str):
                raise TypeError("no model is described so")
            return Model(
                identity=said["identity"],
                capabilities=Capabilities(
                    soft_prompt_width=can["soft_prompt_width"],
                    insertions=frozenset(can["insertions"]),
                    text_prompts=can["text_prompts"],
                    point_prompts=can["point_prompts"],
                    label_anywhere=can["label_anywhere"],
                    deterministic=can["deterministic"],
                    max_tokens=can["max_tokens"],
                    rows_per_call=rows,
                ),
                candidates=None if candidates is None else _count(candidates),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise TransientError(
                f"{answer.url} describes no model: check that a service of lmaas-tune is there"
            ) from error

    def add_batch(self, batch: Batch, candidates: tuple[str, ...]) -> Registered:
        """Register rows and label words."""
        rows = [
            [{"slot": part.value} if isinstance(part, Slot) else part for part in row]
            for row in batch.rows
        ]
        return self._register("/v1/batches", {"rows": rows, "candidates": candidates})

    def add_subspace(self, subspace: Subspace) -> Registered:
        """Register what p0 and A are drawn from."""
        return self._register("/v1/subspaces", subspace.to_json())

    def score_point(
        self, batch: str, subspace: str, point: FloatArray, *, shape: Shape
    ) -> ScoreReply:
        """Score a registered batch under z, (d,) float32, of a registered subspace."""
        path = f"/v1/score/{batch}/{subspace}"
        return _reply(self._ask(path, point.astype("<f4").tobytes()), shape)

    def score(self, batch: str, prompt: SoftPrompt | TextPrompt, *, shape: Shape) -> ScoreReply:
        """Score a registered batch under a prompt."""
        path = f"/v1/score/{batch}"
        content: Content = _prompt(prompt)
        if isinstance(prompt, SoftPrompt) and not prompt.anchor:  # raw, which is shorter
            path += f"?length={prompt.length}&insertion={prompt.insertion}"
            content = prompt.vectors.astype("<f4").tobytes()
        return _reply(self._ask(path, content), shape)

    def inspect(
        self, batch: str, prompt: SoftPrompt | TextPrompt | None, *, subspace: str = ""
    ) -> Inspection:
        """Look at a registered batch under a prompt, or under any point of a subspace."""
        asked = {"kind": "point", "subspace": subspace} if prompt is None else _prompt(prompt)
        answer = self._ask(f"/v1/inspect/{batch}", asked)
        said = answer.json()
        try:
            usage = Usage(requests=1, sequences=said["sequences"], tokens=said["tokens"])
            return Inspection(tuple(said["notes"]), usage)
        except (KeyError, TypeError) as error:
            raise _damaged(answer, "lacks what it is to tell") from error

    def _register(self, path: str, content: Content) -> Registered:
        try:
            return _registered(self._ask(path, content))
        except LMaaSError as error:
            error.usage_unknown = False  # it is free
            raise

    def _ask(self, path: str, content: Content = None) -> Answer:
        name = secrets.token_hex(4)
        headers = {"Request-Id": name}
        try:
            if content is None:
                answer = self._endpoint.get(path, headers=headers)
            elif isinstance(content, bytes):
                headers["Content-Type"] = "application/octet-stream"
                answer = self._endpoint.post(path, body=content, headers=headers)
            else:
                answer = self._endpoint.post(path, content=content, headers=headers)
        except RefusedError as error:
            if error.status in (400, 422):
                raise InputError(error.reason) from error
            if error.status == 401:
                raise RefusedError(
                    f"{self.url} answers only who has one of its keys: give it in a file, with "
                    "--api-key-file (api_key_file=), or as LMAAS_API_KEY in the environment",
                    status=error.status,
                    reason=error.reason,
                    code=error.code,
                ) from error
            raise
        if answer.headers.get("request-id") != name:
            with paid(answer.usage):
                raise _damaged(answer, "is not the one to this request")
        return answer


def _count(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise TypeError("no limit is told so")
    return value


def _prompt(prompt: SoftPrompt | TextPrompt) -> Mapping[str, Any]:
    if isinstance(prompt, TextPrompt):
        return {"kind": "text", "text": prompt.text}
    return {
        "kind": "soft",
        "vectors": base64.b64encode(prompt.vectors.astype("<f4").tobytes()).decode(),
        "dtype": "float32",
        "length": prompt.length,
        "insertion": prompt.insertion,
        "anchor": prompt.anchor,
    }


def _registered(answer: Answer) -> Registered:
    try:
        return Registered(str(answer.json()["id"]), answer.usage)
    except (KeyError, TypeError) as error:
        raise _damaged(answer, "names no id") from error


def _reply(answer: Answer, shape: Shape) -> ScoreReply:
    digest = base64.b64encode(hashlib.sha256(answer.content).digest()).decode()
    tokens = answer.headers.get("tokens", "")
    told = tokens.isdecimal() and len(tokens) <= 18
    usage = replace(answer.usage, sequences=shape[0], tokens=int(tokens) if told else 0)
    with paid(usage):
        if answer.headers.get("content-digest") != f"sha-256=:{digest}:":
            raise _damaged(answer, "is not what its Content-Digest says")
        if len(answer.content) != 4 * shape[0] * shape[1]:
            raise _damaged(
                answer,
                f"has {len(answer.content)} bytes, and {shape[0]} x {shape[1]} scores have 4 each",
            )
        if not told:
            raise _damaged(answer, "does not tell its Tokens")
    logprobs = np.frombuffer(answer.content, "<f4").reshape(shape).astype(np.float64)
    return ScoreReply(logprobs, usage)


def _damaged(answer: Answer, how: str) -> TransientError:
    return TransientError(f"the answer of {answer.url} {how}: it was damaged on its way")
