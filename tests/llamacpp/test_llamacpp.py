"""The backend `openai` on llama.cpp's own server, straight and through LiteLLM's proxy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import requests

pytest.importorskip("torch", reason="the extra 'hf' is not installed")

from lmaas_tune_adapters.hf import HFBackend
from lmaas_tune_adapters.hf.gguf import convert_gguf
from lmaas_tune_adapters.openai import OpenAIBackend

from lmaas_tune.backend import ScoreRequest
from lmaas_tune.demo_model import SMOLLM2, ready_model
from lmaas_tune.errors import InputError
from lmaas_tune.prompts import FloatArray, TextPrompt
from lmaas_tune.task import Batch, Slot

from .conftest import KEY

TEXTS = ("a gripping film from start to end", "the food was cold, and so was the waiter", "no")
WORDS = ("great", "terrible", "unwatchable", "underwhelming")  # of 1, 1, 3 and 3 tokens
MODES: tuple[dict[str, Any], ...] = (
    {},
    {"scores": "forced"},
    {"scores": "logprobs"},
    {"scores": "logprobs", "top_logprobs": 20},
    {"endpoint": "chat"},
    {"endpoint": "chat", "scores": "logprobs"},
    {"scores": "text"},
)


def asked(*texts: str, words: tuple[str, ...] = WORDS) -> ScoreRequest:
    rows = [(f"Review: {text}\n", Slot.PROMPT, " ", Slot.LABEL) for text in texts]
    return ScoreRequest(TextPrompt("It was"), Batch(tuple(rows)), words)


def post(url: str, path: str, **body: Any) -> Any:
    answer = requests.post(f"{url}{path}", json=body, timeout=120)
    answer.raise_for_status()
    return answer.json()


def tokens(url: str, text: str, *, special: bool) -> list[int]:
    found: list[int] = post(url, "/tokenize", content=text, add_special=special)["tokens"]
    return found


def distribution(url: str, ids: list[int]) -> dict[int, float]:
    """Log-probability of each token there is, after others."""
    everything = {"n_predict": 1, "temperature": 0, "n_probs": 1_000_000}
    (place,) = post(url, "/completion", prompt=ids, **everything)["completion_probabilities"]
    return {token["id"]: token["logprob"] for token in place["top_logprobs"]}


def full(url: str, texts: list[str], words: list[str]) -> FloatArray:
    """(texts, words) by the whole distribution after each token, by the server's own endpoint."""
    scores = np.zeros((len(texts), len(words)))
    for row, text in enumerate(texts):
        read = tokens(url, text, special=True)
        known: dict[tuple[int, ...], dict[int, float]] = {}
        for column, word in enumerate(words):
            own = tokens(url, word, special=False)
            for place, token in enumerate(own):
                before = tuple(own[:place])
                known[before] = known.get(before) or distribution(url, [*read, *before])
                scores[row, column] += known[before][token]
    return scores


@pytest.fixture(scope="module")
def exact(llamacpp: str) -> FloatArray:
    texts = [f"Review: {text}\nIt was" for text in TEXTS]
    return full(llamacpp, texts, [f" {word}" for word in WORDS])


@pytest.fixture
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def test_words_are_of_one_and_of_three_tokens(llamacpp: str) -> None:
    counts = [len(tokens(llamacpp, f" {word}", special=False)) for word in WORDS]
    assert counts == [1, 1, 3, 3]


def test_by_default_every_score_is_that_of_the_whole_distribution(
    llamacpp: str, exact: FloatArray
) -> None:
    (reply,) = OpenAIBackend("smollm2", url=llamacpp).score([asked(*TEXTS)])
    np.testing.assert_allclose(reply.logprobs, exact, atol=1e-3)
    assert reply.bounds == 0


@pytest.mark.usefixtures("_key")
def test_by_default_every_score_is_exact_through_a_proxy_too(
    litellm: str, exact: FloatArray
) -> None:
    (reply,) = OpenAIBackend("smollm2", url=litellm).score([asked(*TEXTS)])
    np.testing.assert_allclose(reply.logprobs, exact, atol=1e-3)
    assert reply.bounds == 0


def test_a_chat_is_exact_for_words_of_one_token_as_they_are_written(llamacpp: str) -> None:
    said = [{"role": "user", "content": f"Review: {TEXTS[0]}\nIt was"}]
    prompt = post(llamacpp, "/apply-template", messages=said)["prompt"]
    words = ("great", "breathtaking", "unwatchable")
    scored = OpenAIBackend("smollm2", url=llamacpp, endpoint="chat")
    (reply,) = scored.score([asked(TEXTS[0], words=words)])
    (exact,) = full(llamacpp, [prompt], list(words))
    np.testing.assert_allclose(reply.logprobs[0, 0], exact[0], atol=1e-3)
    off = reply.logprobs[0] - exact  # nothing stands before a later token of an answer
    assert (off > 1e-3).sum() == reply.bounds
    assert (off > -1e-3).all()


def test_words_that_the_likeliest_tokens_do_not_name_are_counted(
    llamacpp: str, exact: FloatArray
) -> None:
    few = OpenAIBackend("smollm2", url=llamacpp, scores="logprobs", top_logprobs=20)
    (reply,) = few.score([asked(*TEXTS)])
    assert reply.bounds >= reply.logprobs.size / 2
    assert (reply.logprobs >= exact - 1e-3).all()
    (more,) = OpenAIBackend("smollm2", url=llamacpp, scores="logprobs").score([asked(*TEXTS)])
    np.testing.assert_allclose(more.logprobs[:, :2], exact[:, :2], atol=1e-3)


def test_what_each_mode_takes_a_row(
    llamacpp: str, exact: FloatArray, capsys: pytest.CaptureFixture[str]
) -> None:
    """No claim but a table, for docs/providers/openai.md."""
    lines = ["", f"{len(WORDS)} label words, {len(TEXTS)} rows; a row takes, once they are known"]
    for options in MODES:
        scored = OpenAIBackend("smollm2", url=llamacpp, **options)
        scored.score([asked(*TEXTS)])
        (reply,) = scored.score([asked(*TEXTS)])
        used = reply.usage
        chat_or_text = options.get("endpoint") == "chat" or options.get("scores") == "text"
        off = "" if chat_or_text else f", off by {np.abs(reply.logprobs - exact).max():.4f}"
        lines.append(
            f"  {scored.identity.partition('endpoint=')[2]:<40} {used.requests / 3:4.1f} requests, "
            f"{used.bytes_up / 3:6.0f} bytes up, {used.bytes_down / 3:9,.0f} down, "
            f"{reply.bounds / reply.logprobs.size:4.0%} bounds{off}"
        )
    with capsys.disabled():
        print("\n".join(lines))


def test_the_file_read_as_float32_is_near_what_llama_cpp_computes(
    llamacpp: str, exact: FloatArray, capsys: pytest.CaptureFixture[str]
) -> None:
    (local,) = HFBackend(ready_model(SMOLLM2, convert_gguf), device="cpu").score([asked(*TEXTS)])
    off = np.abs(local.logprobs - exact).max()
    with capsys.disabled():
        print(f"\nthe .gguf read as float32 lies up to {off:.2f} from llama.cpp's own scores")
    assert off < 0.5


def test_a_proxy_that_fails_without_a_key_is_asked_for_none_but_twice(
    litellm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(InputError, match="no key was given, by api_key_file or in OPENAI_API_KEY"):
        OpenAIBackend("smollm2", url=litellm)
