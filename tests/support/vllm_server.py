"""A stand-in for vLLM: answers of the recorded form of version 0.32.0, from a tiny model."""

from __future__ import annotations

import base64
import io
import json
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.support.server import Server, json_handler

NAN = "Out of range float values are not JSON compliant: nan"


class Refusal(Exception):  # noqa: N818  # a reply, and no error of the tests
    """An answer of another status than 200."""

    def __init__(self, status: int, message: str, kind: str = "BadRequestError") -> None:
        self.status = status
        self.content: Any = {
            "error": {"message": message, "type": kind, "param": None, "code": status}
        }


@dataclass
class StandIn:
    """Serves a folder's model on loopback within ``with``; a test may change its settings.

    Attributes:
        folder: Of the model that reads.
        key: The required API key.
        models: Names and `max_model_len`.
        takes_embeds: Whether it was started with --enable-prompt-embeds.
        knows_ids: Whether it is new enough for `logprob_token_ids`.
        is_dynamo: Whether it is NVIDIA Dynamo.
        queue: Most prompts in one request.
        body: Most bytes in one request.
        left_out: Number of next answers without one of the tokens.
        wrong: Value of a log-probability in the next answer.
        logits: Whether it was started with --logprobs-mode raw_logits.
        version: What it says it is; None if it does not say.
        fails: Whether it fails at every prompt.
        asked: The requests that were read: their fields, each prompt as a tensor.
    """

    folder: Path
    key: str | None = None
    models: dict[str, int | None] = field(default_factory=lambda: {"tiny": 256})
    takes_embeds: bool = True
    knows_ids: bool = True
    is_dynamo: bool = False
    queue: int | None = None
    body: int | None = None
    left_out: int = 0
    wrong: float | None = None
    logits: bool = False
    version: str | None = None
    fails: bool = False
    asked: list[dict[str, Any]] = field(default_factory=list)

    def __enter__(self) -> StandIn:
        self._network = transformers.AutoModelForCausalLM.from_pretrained(self.folder).eval()
        self._lock = threading.Lock()
        self._server = Server(json_handler(self._answer)).__enter__()
        self.url = self._server.url
        return self

    def __exit__(self, *error: object) -> None:
        self._server.__exit__(*error)

    def _answer(self, path: str, authorization: str, body: bytes) -> tuple[int, Any]:
        try:
            return 200, self._content(path, authorization, body)
        except Refusal as refusal:
            return refusal.status, refusal.content

    def _content(self, path: str, authorization: str, body: bytes) -> Any:
        if self.key and authorization != f"Bearer {self.key}":
            refusal = Refusal(401, "")
            refusal.content = {"error": "Unauthorized"}
            raise refusal
        if path == "/v1/models":
            listed = [{"id": name, "max_model_len": n} for name, n in self.models.items()]
            return {"object": "list", "data": listed}
        if path == "/version" and self.version is not None:
            return {"version": self.version}
        if path != "/v1/completions":
            refusal = Refusal(404, "")
            refusal.content = {"detail": "Not Found"}
            raise refusal
        if self.body is not None and len(body) > self.body:
            raise Refusal(413, "too large")
        return self._completions(json.loads(body))

    def _completions(self, fields: dict[str, Any]) -> Any:
        if self.fails:
            raise Refusal(500, "'SlowIncrementalDetokenizer' object has no attribute 'read_offset'")
        if fields["model"] not in self.models:
            name = fields["model"]
            raise Refusal(404, f"The model `{name}` does not exist.", "NotFoundError")
        prompts = self._prompts(fields)
        if self.queue is not None and len(prompts) > self.queue:
            raise Refusal(503, "The request queue is full.", "Service Unavailable")
        with self._lock, torch.inference_mode():
            self.asked.append(fields | {"prompt_embeds": prompts})
            read = [self._network(inputs_embeds=prompt[None]).logits[0, -1] for prompt in prompts]
            found = [row if self.logits else row.log_softmax(-1) for row in read]
        if any(row.isnan().any() for row in found):
            raise Refusal(400, NAN)
        return {
            "choices": [self._choice(i, row, fields) for i, row in enumerate(found)],
            "usage": {"prompt_tokens": sum(map(len, prompts))},
        }

    def _prompts(self, fields: dict[str, Any]) -> list[torch.Tensor]:
        embeds, text = fields["prompt_embeds"], fields.get("prompt")
        if not self.takes_embeds:
            raise Refusal(400, "You must set `--enable-prompt-embeds` to input `prompt_embeds`.")
        if self.is_dynamo != isinstance(embeds, str) or self.is_dynamo != (text == ""):
            raise Refusal(400, "The decoder prompt cannot be empty")
        prompts = [self._decoded(e) for e in ([embeds] if isinstance(embeds, str) else embeds)]
        if text:
            prompts.append(self._network.get_input_embeddings()(torch.tensor(text)).detach())
        return prompts

    def _decoded(self, prompt: str) -> torch.Tensor:
        data = base64.b64decode(prompt, validate=True)
        tensor = torch.load(io.BytesIO(data), weights_only=True)
        width = self._network.config.hidden_size
        if tensor.shape[1] != width:
            raise Refusal(
                400,
                f"`prompt_embeds` hidden_size {tensor.shape[1]} does not match the model's "
                f"hidden_size {width}.",
            )
        return tensor.float()

    def _choice(self, index: int, row: torch.Tensor, fields: dict[str, Any]) -> Any:
        best = int(row.argmax())
        told = {best, *(fields["logprob_token_ids"] if self.knows_ids else ())}
        if self.left_out:
            self.left_out -= 1
            told.discard(fields["logprob_token_ids"][0])
        top = {f"token_id:{token}": float(row[token]) for token in told}
        if self.wrong is not None:
            top[f"token_id:{fields['logprob_token_ids'][0]}"] = self.wrong
            self.wrong = None
        return {"index": index, "text": "", "logprobs": {"top_logprobs": [top]}}
