"""Words that a head reads: one token each, and scored beside label words as if they were some."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lmaas_tune_adapters.hf import HFBackend

from lmaas_tune import Settings, Text, TunedPrompt, Tuner
from lmaas_tune.backend import KnowsWords, ScoreRequest
from lmaas_tune.prompts import FloatArray, TextPrompt
from tests.support.small_models import TRAIN

from .test_exact import batch_of, soft

LABELS = ("good", "bad")
FAMILIES = ["llama", "gpt2", "roberta", "bert", "t5"]
TEMPLATE = "{text} {prompt} {label}"

Load = Callable[[str], HFBackend]


def scores(backend: HFBackend, words: tuple[str, ...], template: str = TEMPLATE) -> FloatArray:
    requests = [
        ScoreRequest(prompt, batch_of(template), words)
        for prompt in (TextPrompt("it is"), soft(backend, 1)[0])
    ]
    return np.stack([reply.logprobs for reply in backend.score(requests)])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_models_words_are_single_tokens_behind_a_space(load: Load, name: str) -> None:
    backend = load(name)
    assert isinstance(backend, KnowsWords)
    assert backend.capabilities.words_per_request is None
    words = backend.one_token_words()
    assert len(words) == len(set(words)) > 1
    assert all(word.isalpha() and len(word) >= 3 for word in words)
    encoded = backend._encoder._encoder.words(words, spaced=True)
    assert [len(ids) for ids in encoded] == [1] * len(words)
    tokens = [ids[0] for ids in encoded]
    assert tokens == sorted(set(tokens))  # in the order of the vocabulary
    assert list(backend.one_token_words()) == list(words)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_word_beside_the_label_words_has_the_score_of_a_label_word(load: Load, name: str) -> None:
    backend = load(name)
    words = tuple(word for word in backend.one_token_words() if word not in LABELS)[:12]
    beside = scores(backend, (*LABELS, *words))[:, :, len(LABELS) :]
    np.testing.assert_allclose(beside, scores(backend, words), atol=1e-5)
    each = np.concatenate([scores(backend, (word, LABELS[0]))[:, :, :1] for word in words], axis=2)
    np.testing.assert_allclose(beside, each, atol=1e-5)


@pytest.mark.parametrize("labels", [LABELS, ("goodness me", "badly so")], ids=["short", "long"])
@pytest.mark.parametrize("name", FAMILIES)
def test_more_words_do_not_change_the_label_words_scores(
    load: Load, name: str, labels: tuple[str, ...]
) -> None:
    backend = load(name)
    words = tuple(word for word in backend.one_token_words() if word not in labels)
    alone = scores(backend, labels)
    for count in (1, len(words)):
        more = scores(backend, (*labels, *words[:count]))
        np.testing.assert_allclose(more[:, :, : len(labels)], alone, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "roberta", "t5"])
def test_words_cost_no_token(load: Load, name: str) -> None:
    backend = load(name)
    words = tuple(word for word in backend.one_token_words() if word not in LABELS)
    few, many = (
        backend.inspect(ScoreRequest(TextPrompt("so"), batch_of(TEMPLATE), each)).usage
        for each in (LABELS, (*LABELS, *words))
    )
    assert few.tokens == many.tokens


def test_a_search_learns_a_head_of_the_models_words(load: Load, tmp_path: Path) -> None:
    backend = load("llama")
    settings = Settings(prompt=Text(prompt_init="it is", slots=1), head_words=20, averaged=1)
    tuner = Tuner(
        backend, settings=settings, budget="calls=20", template=TEMPLATE, callbacks=(), out=tmp_path
    )
    result = tuner.fit(TRAIN)
    train = result.best.train
    assert train is not None
    assert train.scores.shape == (len(TRAIN), 2 + 20)
    loaded = TunedPrompt.load(tmp_path)
    assert set(loaded.words) <= set(backend.one_token_words())
    assert loaded.score(backend, TRAIN) == result.score(TRAIN)
