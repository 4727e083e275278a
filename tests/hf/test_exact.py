"""Scores equal a plain, unbatched, unpadded forward pass of transformers, whatever is shared."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lmaas_tune_adapters.hf import HFBackend

from lmaas_tune.backend import ScoreRequest
from lmaas_tune.prompts import SoftPrompt, TextPrompt
from lmaas_tune.task import Example, Template
from tests.support import models, reference

TEXTS = (
    "a gripping film",
    "two hours that i will not get back",
    "",
    "naïve café 電影 🎬",
    "a gripping film",
    "the plot goes nowhere and the acting is terrible but the music is fine . overall it is told "
    "well and the story stays with you for days",
)
CANDIDATES = ("great", "bad", "wonderful", "wonderfully told", "lifeless nothing")
"""Of one token and of several, two that begin alike, two that do not."""

LABEL_LAST = (
    "{prompt} {text} It was {label}",
    "{text} {prompt} It was {label}",
    "{text} It was {prompt} {label}",
    "Review: {prompt} {text}\nAnswer:{label}",
    "{text}{prompt} so{label}",
)
LABEL_ANYWHERE = (
    *LABEL_LAST,
    "{label} {prompt} News: {text}",
    "{prompt} [ Category: {label} ] {text}",
    "{text} {label} . {prompt}",
)


def batch_of(template: str, texts: tuple[str, ...] = TEXTS) -> Any:
    return Template(template).batch([Example({"text": text}) for text in texts])


def soft(
    backend: HFBackend, count: int, *, length: int = 3, insertion: Any = "concat"
) -> list[Any]:
    rng = np.random.default_rng(length)
    shape = (count, length, backend.capabilities.soft_prompt_width)
    anchor = tuple(range(20, 20 + length)) if insertion == "add" else ()
    return [
        SoftPrompt(backend.embedding_std * vectors, insertion=insertion, anchor=anchor)
        for vectors in rng.standard_normal(shape)
    ]


def check(backend: HFBackend, requests: list[ScoreRequest]) -> None:
    for request, reply in zip(requests, backend.score(requests), strict=True):
        expected = reference.logprobs(backend, request)
        np.testing.assert_allclose(reply.logprobs, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("template", LABEL_LAST)
@pytest.mark.parametrize("name", models.CAUSAL)
def test_a_causal_model_scores_as_a_plain_forward_does(
    name: str, template: str, load: Callable[[str], HFBackend]
) -> None:
    model = load(name)
    batch = batch_of(template)
    prompts = [*soft(model, 3), *soft(model, 1, length=5), *soft(model, 2, insertion="add")]
    prompts += [TextPrompt(""), TextPrompt("overall , the"), TextPrompt("so")]
    check(model, [ScoreRequest(prompt, batch, CANDIDATES) for prompt in prompts])


@pytest.mark.parametrize("template", LABEL_ANYWHERE)
@pytest.mark.parametrize("name", [*models.MASKED, *models.SEQ2SEQ])
def test_other_models_score_as_a_plain_forward_does(
    name: str, template: str, load: Callable[[str], HFBackend]
) -> None:
    model = load(name)
    batch = batch_of(template)
    prompts = [*soft(model, 2), *soft(model, 1, length=5)]
    prompts += [TextPrompt(""), TextPrompt("overall , the")]
    if name in ("t5", "bart"):  # in the others, added prompts enter behind the LayerNorm
        prompts += soft(model, 2, insertion="add")
    check(model, [ScoreRequest(prompt, batch, CANDIDATES) for prompt in prompts])


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "roberta", "t5", "bart"])
def test_passes_of_a_few_tokens_give_the_same_scores(
    name: str, folder: Callable[[str], Path], load: Callable[[str], HFBackend]
) -> None:
    small = HFBackend(folder(name), device="cpu", max_tokens_per_pass=7, max_kept_bytes=0)
    for template in LABEL_LAST[:3]:
        requests = [ScoreRequest(p, batch_of(template), CANDIDATES) for p in soft(small, 3)]
        whole, cut = load(name).score(requests), small.score(requests)
        for one, other in zip(whole, cut, strict=True):
            np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4, rtol=0)
            assert one.usage == other.usage


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_a_soft_prompt_of_word_embeddings_scores_as_the_words_do(
    name: str, load: Callable[[str], HFBackend]
) -> None:
    model = load(name)
    batch = batch_of("{text} {prompt} It was {label}")
    vectors = model.embed(model.tokenize(" overall the movie is"))
    words, soft_words = model.score(
        [
            ScoreRequest(TextPrompt("overall the movie is"), batch, CANDIDATES),
            ScoreRequest(SoftPrompt(vectors), batch, CANDIDATES),
        ]
    )
    np.testing.assert_allclose(words.logprobs[:-1], soft_words.logprobs[:-1], atol=1e-4, rtol=0)
    assert words.usage == soft_words.usage


def test_requests_of_several_kinds_come_back_in_order(
    load: Callable[[str], HFBackend],
) -> None:
    model = load("llama")
    first, second = batch_of(LABEL_LAST[0]), batch_of(LABEL_LAST[1], TEXTS[:2])
    one, other = soft(model, 2)
    check(
        model,
        [
            ScoreRequest(one, first, CANDIDATES),
            ScoreRequest(one, second, CANDIDATES[:2]),
            ScoreRequest(TextPrompt("so"), first, CANDIDATES),
            ScoreRequest(other, first, CANDIDATES[::-1]),
            ScoreRequest(other, second, CANDIDATES[:2]),
        ],
    )


def test_a_batch_of_no_rows_gives_no_scores(load: Callable[[str], HFBackend]) -> None:
    model = load("llama")
    (reply,) = model.score(
        [ScoreRequest(soft(model, 1)[0], batch_of(LABEL_LAST[0], ()), ("a", "b"))]
    )
    assert reply.logprobs.shape == (0, 2)


def test_a_real_token_is_never_taken_for_a_place_of_the_prompt(
    load: Callable[[str], HFBackend],
) -> None:
    model = load("gpt2")
    assert model.tokenize("<s>") == (0,)  # the id that keeps a soft prompt's places
    batch = batch_of("{text}{prompt} so{label}", ("", "<s>" * 8))
    check(model, [ScoreRequest(soft(model, 1, length=8)[0], batch, CANDIDATES)])


def test_a_causal_model_reads_no_end_token_that_its_tokenizer_adds(
    folder: Callable[[str], Path], load: Callable[[str], HFBackend], tmp_path: Path
) -> None:
    copy = shutil.copytree(folder("llama"), tmp_path / "ending")
    models.byte_level(start="<s>", end="</s>", mask=None).save_pretrained(copy)
    ending = HFBackend(copy, device="cpu")
    assert ending._tokenizer("so")["input_ids"][-1] == 2
    request = ScoreRequest(soft(ending, 1)[0], batch_of(LABEL_LAST[1]), ("great", "bad"))
    one, other = (model.score([request])[0].logprobs for model in (ending, load("llama")))
    np.testing.assert_allclose(one, other, atol=1e-5, rtol=0)
