"""An OpenAI-compatible server on loopback, with a tiny real model or a script behind it.

Each feature that some real servers lack can be switched off by a setting.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

from tests.support.server import Server, json_handler


@dataclass(frozen=True)
class Written:
    """The tokens of one text and its continuation, with their probabilities.

    Attributes:
        text: The continuation.
        tokens: Text of each token.
        logprobs: (tokens, vocabulary); of the first one None.
        own: Index in the vocabulary of each token.
        vocabulary: Text of each token of the model.
        read: Number of tokens of the text.
    """

    text: str
    tokens: list[str]
    logprobs: list[Any]
    own: list[int]
    vocabulary: list[str]
    read: int

    def entry(self, place: int, top: int) -> dict[str, Any]:
        """One token in the format of the chat endpoint."""
        row = self.logprobs[place]
        best = torch.topk(row, min(int(top), len(row)))
        likeliest = [
            {"token": self.vocabulary[i], "logprob": v}
            for v, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        own = float(row[self.own[place]])
        return {"token": self.tokens[place], "logprob": own, "top_logprobs": likeliest}


class TinyModel:
    """A model of `support.models` that decodes greedily."""

    def __init__(self, folder: Path) -> None:
        self._network = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self._vocabulary = [self._tokenizer.decode([i]) for i in range(len(self._tokenizer))]
        self._lock = threading.Lock()
        self._known: dict[tuple[Any, ...], Written] = {}

    def __call__(
        self, text: str, write: int, bias: Mapping[str, float] | None = None, told: bool = False
    ) -> Written:
        """Continue a text, with a bias on tokens by id or text, in its log-probabilities or not."""
        key = text, write, tuple((bias or {}).items()), told
        with self._lock:
            if key not in self._known:
                self._known[key] = self._written(text, write, bias or {}, told)
            return self._known[key]

    def tokens(self, text: str) -> list[int]:
        """Ids of a text's tokens, with no start token."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _raised(self, bias: Mapping[str, float]) -> dict[int, float]:
        keys = {key: [int(key)] if key.isdecimal() else self.tokens(key) for key in bias}
        return {i: bias[key] for key, ids in keys.items() for i in ids}

    def _written(self, text: str, write: int, bias: Mapping[str, float], told: bool) -> Written:
        raised = self._raised(bias)
        with torch.inference_mode():
            ids = self._tokenizer(text)["input_ids"]
            read = len(ids)
            while True:
                logits = self._network(torch.tensor([ids])).logits[0]
                chosen = logits.clone()
                for token, more in raised.items():
                    chosen[:, token] += more
                if len(ids) == read + write:
                    break
                ids = [*ids, int(chosen[-1].argmax())]
        logits = chosen if told else logits
        logprobs = torch.log_softmax(logits.float(), dim=-1)
        return Written(
            text=self._tokenizer.decode(ids[read:]),
            tokens=[self._vocabulary[i] for i in ids],
            logprobs=[None, *logprobs[:-1]],
            own=ids,
            vocabulary=self._vocabulary,
            read=read,
        )


def speaker(say: Callable[[str], str]) -> Callable[[str, int], Written]:
    """A model that answers by a function, without probabilities."""

    def speak(text: str, write: int) -> Written:
        words = text.split()
        return Written(say(text), words, [None] * len(words), [], [], len(words))

    return speak


@dataclass(frozen=True, kw_only=True)
class Poor:
    """The features of a server.

    Attributes:
        paths: Endpoints that it has.
        ignores: Fields that it ignores.
        refuses: Fields that it refuses with 400, each with its message.
        most: Largest number of likeliest tokens; it refuses a larger one.
        arrays: Whether it accepts several prompts in one request.
        key: The required API key, if any.
        models: Names of its models.
        entries: Whether completions return log-probabilities in the format of chats.
        longest: Most tokens of a text.
        bias: Use of `logit_bias`: none; for the choice of tokens; or in log-probabilities too.
        keys: Whether the keys of a bias may be texts, as with llama.cpp.
        tokenizer: Whether it has ``/tokenize``.
    """

    paths: tuple[str, ...] = ("/v1/completions", "/v1/chat/completions")
    ignores: tuple[str, ...] = ()
    refuses: dict[str, str] = field(default_factory=dict)
    most: int = 20
    arrays: bool = True
    key: str | None = None
    models: tuple[str, ...] = ("tiny", "other")
    entries: bool = False
    longest: int = 250
    bias: Literal["ignored", "chosen by", "told"] = "ignored"
    keys: bool = False
    tokenizer: bool = False


class RefusalError(Exception):
    """The status and the message of an error."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


Change = Callable[[str, dict[str, Any], dict[str, Any]], Any]
"""Given path, body and reply: another reply, or ``(status, reply)``."""


class OpenAIServer(Server):
    """Answers `/v1/completions`, `/v1/chat/completions` and `/v1/models`.

    Args:
        model: Continues a text by a number of tokens.
        poor: Its features.
        change: Changes every answer before it is sent.

    Attributes:
        url: Ends in ``/v1``.
        heard: (path, body) of every POST but those to ``/tokenize``.
        changed: As given; may be set later.
    """

    def __init__(
        self,
        model: Callable[..., Written],
        poor: Poor | None = None,
        change: Change | None = None,
    ) -> None:
        super().__init__(json_handler(self._answer))
        self.url += "/v1"
        self._model, self._poor = model, poor or Poor()
        self.changed = change
        self.heard: list[tuple[str, dict[str, Any]]] = []

    def _answer(self, path: str, authorization: str, content: bytes) -> tuple[int, Any]:
        try:
            if self._poor.key is not None and authorization != f"Bearer {self._poor.key}":
                raise RefusalError(401, f"Incorrect API key provided: {authorization}")
            if not content:
                return 200, {"data": [{"id": name} for name in self._poor.models]}
            body = json.loads(content)
            if path == "/tokenize" and self._poor.tokenizer:
                assert isinstance(self._model, TinyModel)
                reply: Any = {"tokens": self._model.tokens(body["content"])}
            else:
                self.heard.append((path, body))
                reply = self._reply(path, self._taken(path, body))
        except RefusalError as error:
            content = {
                "message": error.message,
                "type": "invalid_request_error",
                "code": error.code,
            }
            return error.status, {"error": content}
        if self.changed is not None:
            reply = self.changed(path, body, reply)
        return reply if isinstance(reply, tuple) else (200, reply)

    def _taken(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if path not in self._poor.paths:
            raise RefusalError(404, f"no route {path}")
        if body["model"] not in self._poor.models:
            raise RefusalError(
                404, f"The model `{body['model']}` does not exist.", "model_not_found"
            )
        for name, words in self._poor.refuses.items():
            if name in body:
                raise RefusalError(400, words)
        if isinstance(body.get("prompt"), list) and not self._poor.arrays:
            raise RefusalError(400, "cannot unmarshal array into field prompt of type string")
        top = body.get("top_logprobs", body.get("logprobs", 0))
        if int(top) > self._poor.most and not {"logprobs"} & set(self._poor.ignores):
            raise RefusalError(400, f"logprobs: maximum is {self._poor.most}, got {top}")
        return {name: value for name, value in body.items() if name not in self._poor.ignores}

    def _reply(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if "messages" in body:
            prompts = ["\n".join(message["content"] for message in body["messages"])]
        else:
            prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
        write = body.get("max_tokens", body.get("max_completion_tokens", 16))
        written = [self._written(prompt, write, body) for prompt in prompts]
        read = sum(each.read for each in written)
        if max(each.read for each in written) > self._poor.longest:
            raise RefusalError(
                400,
                f"This model's maximum context length is {self._poor.longest} tokens.",
                "context_length_exceeded",
            )
        tell = self._of_chat if "messages" in body else self._of_completion
        choices = [
            {"index": i, **tell(each, {**body, "echo": prompt} if body.get("echo") else body)}
            for i, (each, prompt) in enumerate(zip(written, prompts, strict=True))
        ]
        usage = {"prompt_tokens": read, "completion_tokens": write * len(written)}
        return {"id": "1", "choices": choices[::-1], "usage": usage}  # in any order

    def _written(self, prompt: str, write: int, body: dict[str, Any]) -> Written:
        bias = body.get("logit_bias") or {}
        if not bias or self._poor.bias == "ignored":
            return self._model(prompt, write)
        if not self._poor.keys and not all(map(str.isdecimal, bias)):
            raise RefusalError(400, "Invalid key in 'logit_bias': it takes token ids")
        return self._model(prompt, write, bias, self._poor.bias == "told")

    def _of_chat(self, written: Written, body: dict[str, Any]) -> dict[str, Any]:
        message = {"role": "assistant", "content": written.text}
        if not body.get("logprobs"):
            return {"message": message, "logprobs": None}
        places = range(written.read, len(written.tokens))
        entries = [written.entry(place, body.get("top_logprobs", 0)) for place in places]
        return {"message": message, "logprobs": {"content": entries}}

    def _of_completion(self, written: Written, body: dict[str, Any]) -> dict[str, Any]:
        if body.get("logprobs") is None:
            return {"text": written.text, "logprobs": None}
        first = 0 if body.get("echo") else written.read
        entries = [
            written.entry(place, body["logprobs"])
            if place
            else {"token": written.tokens[0], "logprob": None, "top_logprobs": None}
            for place in range(first, len(written.tokens))
        ]
        text = body.get("echo", "") + written.text
        if self._poor.entries:
            return {"text": text, "logprobs": {"content": entries}}
        logprobs = {
            "tokens": [entry["token"] for entry in entries],
            "token_logprobs": [entry["logprob"] for entry in entries],
            "top_logprobs": [
                entry["top_logprobs"] and {t["token"]: t["logprob"] for t in entry["top_logprobs"]}
                for entry in entries
            ],
        }
        return {"text": text, "logprobs": logprobs}
