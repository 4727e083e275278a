"""The backend `openai` on a real vLLM server's own text endpoints."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from lmaas_tune_adapters.hf import HFBackend
from lmaas_tune_adapters.http import Endpoint, Key, RefusedError
from lmaas_tune_adapters.openai import OpenAIBackend

from lmaas_tune import Settings, Text, Tuner
from lmaas_tune.backend import ScoreRequest
from lmaas_tune.errors import InputError, PermanentError, TransientError
from lmaas_tune.prompts import TextPrompt
from lmaas_tune.task import Batch, Slot
from lmaas_tune.testing import BackendConformance

from .server import MAX_MODEL_LEN, VLLMServer

ROWS = ("a gripping film", "naïve café — 電影很好看 🎬", "dull   and\nlifeless\t", "no")
TRAIN = [(f"it was {word}", label) for label in ("good", "bad") for word in (label, "dull", "fine")]


def backend(server: VLLMServer, **options: Any) -> OpenAIBackend:
    options = {"api_key_file": server.key_file, **options}
    return OpenAIBackend(server.served_model, url=f"{server.url}/v1", **options)


def request(*texts: str, words: tuple[str, ...], tail: str = " It was ") -> ScoreRequest:
    rows = [(f"{text} ", Slot.PROMPT, tail, Slot.LABEL) for text in texts]
    return ScoreRequest(TextPrompt("Overall, the movie"), Batch(tuple(rows)), words)


class _Suite(BackendConformance):
    options: dict[str, Any] = {}  # noqa: RUF012

    def switches(self, subject: Any) -> dict[str, str | None]:
        return {**super().switches(subject), "deterministic": None}  # here it is

    @pytest.fixture
    def backend(self, vllm_server: VLLMServer) -> OpenAIBackend:
        return backend(vllm_server, **self.options)

    @pytest.fixture
    def differing(self, vllm_server: VLLMServer) -> list[OpenAIBackend]:
        return [
            backend(vllm_server, **{**self.options, **other})
            for other in ({"seed": 1}, {"extra_body": {"top_p": 0.5}})
        ]


class TestEcho(_Suite):
    def test_it_is_what_vllm_is_asked_for_first(self, backend: OpenAIBackend) -> None:
        assert "endpoint=completions scores=echo" in backend.identity


class TestLogprobs(_Suite):
    options = {"scores": "logprobs"}  # noqa: RUF012


class TestForced(_Suite):
    options = {"scores": "forced"}  # noqa: RUF012


class TestChatLogprobs(_Suite):
    options = {"endpoint": "chat", "scores": "logprobs"}  # noqa: RUF012


@pytest.mark.parametrize("tail", [" It was ", " Sentiment:\n"], ids=repr)
def test_echoed_scores_are_the_models_own(vllm_server: VLLMServer, tail: str) -> None:
    words = ("good", "wonderful", "technologically", "好", "very bad")
    asked = request(*ROWS, words=words, tail=tail)
    (own,) = HFBackend(vllm_server.model, device="cpu").score([asked])
    (reply,) = backend(vllm_server, scores="echo").score([asked])
    np.testing.assert_allclose(reply.logprobs, own.logprobs, atol=1e-4)
    assert reply.bounds == 0


def test_a_word_among_the_likeliest_has_its_own_score_and_others_no_less(
    vllm_server: VLLMServer,
) -> None:
    asked = request(*ROWS, words=("great", "the", "good", "a"))
    (own,) = HFBackend(vllm_server.model, device="cpu").score([asked])
    (reply,) = backend(vllm_server, scores="logprobs").score([asked])
    assert (reply.logprobs >= own.logprobs - 1e-4).all()


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_answers_are_taken_at_their_word(vllm_server: VLLMServer, endpoint: Any) -> None:
    scored = backend(vllm_server, scores="text", endpoint=endpoint)
    (reply,) = scored.score([request(*ROWS, words=("good", "bad"))])
    assert np.exp(reply.logprobs).sum(axis=1) == pytest.approx(np.ones(len(ROWS)))


@pytest.mark.filterwarnings("ignore:a row is sent 2 times")
def test_the_same_text_is_found_as_with_the_local_model(vllm_server: VLLMServer) -> None:
    settings = Settings(
        prompt=Text(), head="affine", optimizer="cma", optimizer_options={"population": 5}
    )
    found = [
        Tuner(scored, settings=settings, budget="calls=25", seed=3, callbacks=()).fit(TRAIN)
        for scored in (backend(vllm_server), HFBackend(vllm_server.model, device="cpu"))
    ]
    assert found[0].prompt.prompt == found[1].prompt.prompt
    losses = [result.history["best_loss"].iloc[-1] for result in found]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)


def test_neighbours_who_ask_for_tokens_by_id_spoil_no_score(vllm_server: VLLMServer) -> None:
    """While it answers them, vLLM 0.32.0 replaces others' likeliest tokens by filler."""
    scored = backend(vllm_server, scores="logprobs")
    asked = request(*ROWS, words=("great", "the", "good", "a"))
    (quiet,) = scored.score([asked])
    by_id = {"max_tokens": 1, "logprobs": 1, "logprob_token_ids": [30, 31], "prompt": ["a"] * 8}
    neighbour = Endpoint(vllm_server.url, key=Key(vllm_server.key_file.read_text()))
    with ThreadPoolExecutor(4) as threads:
        busy = [
            threads.submit(neighbour.post, "/v1/completions", content={"model": "tiny", **by_id})
            for _ in range(40)
        ]
        while not all(call.done() for call in busy):
            with suppress(TransientError):  # filler in each of its answers
                (reply,) = scored.score([asked])
                np.testing.assert_allclose(reply.logprobs, quiet.logprobs, atol=1e-4)


def test_refusals_say_what_to_change(vllm_server: VLLMServer) -> None:
    with pytest.raises(InputError, match="no model 'tinny'; did you mean 'tiny'"):
        OpenAIBackend("tinny", url=f"{vllm_server.url}/v1", api_key_file=vllm_server.key_file)
    with pytest.raises(PermanentError, match=r"Not Found.* as in /v1"):
        OpenAIBackend("tiny", url=f"{vllm_server.url}/", api_key_file=vllm_server.key_file)
    with pytest.raises(PermanentError, match="greater than max allowed: 20"):
        backend(vllm_server, top_logprobs=21, scores="logprobs")
    with pytest.raises(RefusedError, match="check the key"):
        backend(vllm_server, api_key_file=None)


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_a_row_that_is_too_long_is_the_users_affair(vllm_server: VLLMServer, endpoint: Any) -> None:
    scored = backend(vllm_server, endpoint=endpoint)
    for words in (MAX_MODEL_LEN // 2, MAX_MODEL_LEN, 2 * MAX_MODEL_LEN):
        asked = request("film " * words, words=("good", "bad"))
        with pytest.raises(InputError, match=r"shorten the texts .* or the prompt"):
            scored.score([asked])
