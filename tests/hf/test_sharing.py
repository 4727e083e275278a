"""Shared prefixes are computed once: the tokens that go through the model are counted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lmaas_tune_adapters.hf import HFBackend

from lmaas_tune.backend import ScoreRequest
from lmaas_tune.prompts import TextPrompt

from .test_exact import CANDIDATES, LABEL_LAST, batch_of, soft

TEXTS = ("a gripping film", "two hours that i will not get back", "fine", "so it was bad")


@contextlib.contextmanager
def tokens_read(backend: HFBackend) -> Iterator[list[int]]:
    """Grows by one number a pass: the tokens that went through the decoder."""
    passes: list[int] = []

    def count(_module: Any, _inputs: Any, options: dict[str, Any]) -> None:
        rows, length, _ = options["inputs_embeds"].shape
        passes.append(rows * length)

    body = backend._model.get_decoder()
    hook = body.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield passes
    finally:
        hook.remove()


def lengths(backend: HFBackend, template: str) -> list[int]:
    """Tokens of each row without its prompt."""
    tokenizer = backend._tokenizer
    return [
        len(tokenizer(template.format(text=text, prompt="", label="").rstrip(" "))["input_ids"])
        for text in TEXTS
    ]


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "qwen2"])
def test_a_prompt_that_comes_first_is_read_once_for_all_rows(
    name: str, load: Callable[[str], HFBackend]
) -> None:
    model = load(name)
    batch = batch_of("{prompt} {text} It was {label}", TEXTS)
    requests = [ScoreRequest(p, batch, ("great", "bad")) for p in soft(model, 3, length=20)]
    with tokens_read(model) as passes:
        replies = model.score(requests)
    rows = sum(lengths(model, " {text} It was"))
    start = len(model._tokenizer("")["input_ids"])
    assert sum(passes) == 3 * (start + 20 + rows - start * len(TEXTS))
    assert replies[0].usage.tokens == rows + 20 * len(TEXTS)  # the bill shares nothing


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "qwen2"])
def test_texts_that_come_first_are_read_once_a_run(
    name: str, folder: Callable[[str], Path]
) -> None:
    model = HFBackend(folder(name), device="cpu")
    batch = batch_of("{text} {prompt} It was {label}", TEXTS)
    requests = [ScoreRequest(p, batch, ("great", "bad")) for p in soft(model, 3)]
    behind = 3 + len(model._tokenizer(" It was", add_special_tokens=False)["input_ids"])
    with tokens_read(model) as first:
        model.score(requests)
    with tokens_read(model) as again:
        model.score(requests)
    assert sum(again) == 3 * len(TEXTS) * behind
    assert sum(first) == sum(again) + sum(lengths(model, "{text}"))


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "qwen2"])
def test_texts_of_all_lengths_go_on_in_one_pass(
    name: str, load: Callable[[str], HFBackend]
) -> None:
    model = load(name)
    batch = batch_of("{text} {prompt} It was {label}", TEXTS)
    assert len(set(lengths(model, "{text}"))) > 1
    requests = [ScoreRequest(p, batch, ("great", "bad")) for p in soft(model, 3)]
    model.score(requests)
    with tokens_read(model) as passes:
        model.score(requests)
    assert len(passes) == 1


def test_one_long_text_does_not_part_the_short_ones(folder: Callable[[str], Path]) -> None:
    model = HFBackend(folder("llama"), device="cpu", max_tokens_per_pass=256)
    counts = []
    for texts in (TEXTS * 4, (*TEXTS * 4, "so it was bad " * 16)):
        batch = batch_of("{text} {prompt} It was {label}", texts)
        requests = [ScoreRequest(p, batch, ("great", "bad")) for p in soft(model, 3)]
        model.score(requests)
        with tokens_read(model) as passes:
            model.score(requests)
        counts.append(len(passes))
    assert counts[1] <= counts[0] + 3  # a pass for each prompt


def test_without_room_to_keep_them_texts_are_read_again(folder: Callable[[str], Path]) -> None:
    model = HFBackend(folder("llama"), device="cpu", max_kept_bytes=0)
    batch = batch_of("{text} {prompt} It was {label}", TEXTS)
    requests = [ScoreRequest(p, batch, ("great", "bad")) for p in soft(model, 3)]
    counts = []
    for _ in range(2):
        with tokens_read(model) as passes:
            model.score(requests)
        counts.append(sum(passes))
    assert counts[0] == counts[1]


def test_what_is_kept_stays_within_its_bound(folder: Callable[[str], Path]) -> None:
    bound = 20_000
    model = HFBackend(folder("llama"), device="cpu", max_kept_bytes=bound)
    for number in range(12):
        batch = batch_of("{text} {prompt} It was {label}", (f"text {number} so it is", "fine"))
        model.score([ScoreRequest(p, batch, ("great", "bad")) for p in soft(model, 2)])
        kept = model._scorer._store._states.values()
        assert sum(size for size, _ in kept) <= bound
    assert kept


def test_text_prompts_share_what_rows_have_in_common_too(
    load: Callable[[str], HFBackend],
) -> None:
    model = load("qwen2")
    batch = batch_of("{prompt} {text} It was {label}", TEXTS)
    long = "overall the movie is good and the story is told well"
    with tokens_read(model) as passes:
        (reply,) = model.score([ScoreRequest(TextPrompt(long), batch, ("great", "bad"))])
    prompt = len(model._tokenizer(long)["input_ids"])
    assert sum(passes) <= reply.usage.tokens - prompt * (len(TEXTS) - 1)


def test_label_words_of_several_tokens_cost_their_inner_tokens_only(
    load: Callable[[str], HFBackend],
) -> None:
    model = load("llama")
    batch = batch_of("{prompt} {text} It was {label}", TEXTS)
    (prompt,) = soft(model, 1, length=20)
    counts = []
    for words in (("great", "bad"), CANDIDATES):
        with tokens_read(model) as passes:
            model.score([ScoreRequest(prompt, batch, words)])
        counts.append(sum(passes))
    pieces = [
        model._tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in CANDIDATES
    ]
    inner = {tuple(ids[:end]) for ids in pieces for end in range(1, len(ids))}
    assert counts[1] - counts[0] == len(inner) * len(TEXTS)


def test_a_pass_holds_no_more_tokens_than_it_may(folder: Callable[[str], Path]) -> None:
    model = HFBackend(folder("llama"), device="cpu", max_tokens_per_pass=64)
    for template in ("{prompt} {text} It was {label}", "{text} {prompt} It was {label}"):
        requests = [
            ScoreRequest(p, batch_of(template, TEXTS * 3), ("great", "bad")) for p in soft(model, 8)
        ]
        with tokens_read(model) as passes:
            model.score(requests)
        assert max(passes) <= 64


@pytest.mark.parametrize("name", ["mistral", "gpt-neo"])
def test_rows_longer_than_the_window_of_a_model_are_read_whole(
    name: str, load: Callable[[str], HFBackend]
) -> None:
    model = load(name)
    batch = batch_of("{prompt} {text} It was {label}", TEXTS)
    with tokens_read(model) as passes:
        (reply,) = model.score([ScoreRequest(soft(model, 1)[0], batch, ("great", "bad"))])
    assert sum(passes) == reply.usage.tokens


@pytest.mark.parametrize("name", ["mistral", "gpt-neo"])
def test_rows_within_the_window_of_a_model_share_their_beginning(
    name: str, load: Callable[[str], HFBackend]
) -> None:
    model = load(name)  # its window is 8 tokens
    batch = batch_of("{prompt}{text}{label}", ("a", "it", "so it was bad but fine"))
    with tokens_read(model) as passes:
        (reply,) = model.score([ScoreRequest(soft(model, 1, length=5)[0], batch, ("g", "b"))])
    assert sum(passes) == reply.usage.tokens - 5


@pytest.mark.parametrize("template", LABEL_LAST)
@pytest.mark.parametrize("words", [("great", "bad"), CANDIDATES])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral", "gpt-neo"])
def test_small_passes_are_padded_together_with_the_same_scores(
    name: str,
    words: tuple[str, ...],
    template: str,
    load: Callable[[str], HFBackend],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on an accelerator, where a small pass costs as much as a large one."""
    model = load(name)
    batch = batch_of(template, TEXTS)
    requests = [ScoreRequest(p, batch, words) for p in [*soft(model, 3), TextPrompt("overall")]]
    with tokens_read(model) as apart:
        expected = model.score(requests)
    monkeypatch.setattr(model._scorer, "_least_tokens", 10_000)
    with tokens_read(model) as together:
        replies = model.score(requests)
    for reply, other in zip(replies, expected, strict=True):
        np.testing.assert_allclose(reply.logprobs, other.logprobs, atol=1e-4)
    assert len(together) <= len(apart)
    if len(words) == 2 and template.startswith("{prompt}"):  # suffixes of several lengths
        assert len(together) < len(apart)
