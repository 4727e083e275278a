"""The differentiable scorer says what the backend says, and its slope is right."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lmaas_tune_adapters.hf import HFBackend
from lmaas_tune_adapters.hf.gradient import CausalGradientScorer, LabelScorer
from lmaas_tune_adapters.hf.request_batch import RequestBatch
from lmaas_tune_adapters.hf.whitebox import read_hidden

from lmaas_tune import Example, InputError, SoftPrompt, Task, Template, TextPrompt, Verbalizer
from lmaas_tune.backend import ScoreRequest
from lmaas_tune.lab.baselines.prompt_tuning import PromptScorer
from lmaas_tune.prompts import Insertion, Prompt
from tests.support import models

Load = Callable[[str], HFBackend]

EXAMPLES = [
    Example({"text": text})
    for text in ("a dull film", "the story is told well and stays with you", "great", "bad bad")
]
WORDS = ("great", "terrible wonderful", "fine")  # one of several tokens
LENGTH = 3
PROMPT_FIRST = "{prompt} {text} It was {label}"
TEXT_FIRST = "Text: {text}\n{prompt} It was {label}"


def request(template: str, prompt: Prompt) -> ScoreRequest:
    return ScoreRequest(prompt, Template(template).batch(EXAMPLES), WORDS)


def soft(backend: HFBackend, insertion: Insertion = "concat", *, seed: int = 0) -> SoftPrompt:
    width = backend.capabilities.soft_prompt_width
    assert width is not None
    vectors = np.random.default_rng(seed).normal(size=(LENGTH, width))
    return SoftPrompt(vectors, insertion, (5, 6, 7) if insertion == "add" else ())


def tensor(prompt: SoftPrompt) -> torch.Tensor:
    return torch.tensor(prompt.vectors)


def scorer(backend: HFBackend, template: str, prompt: Prompt) -> LabelScorer:
    return LabelScorer(backend.open_box(), request(template, prompt))


@pytest.mark.parametrize("name", models.MODELS)
@pytest.mark.parametrize("template", [PROMPT_FIRST, TEXT_FIRST])
@pytest.mark.parametrize("insertion", ["concat", "add"])
def test_it_scores_a_soft_prompt_as_the_backend_does(
    load: Load, name: str, template: str, insertion: Insertion
) -> None:
    backend = load(name)
    prompt, other = soft(backend, insertion), soft(backend, insertion, seed=9)
    (reply,) = backend.score([request(template, prompt)])
    scored = scorer(backend, template, other)(tensor(prompt))
    np.testing.assert_allclose(scored.numpy(), reply.logprobs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["roberta", "bert"])
def test_it_scores_a_prompt_before_everything_as_the_backend_does(load: Load, name: str) -> None:
    backend = load(name)
    prompt = soft(backend, "prepend")
    (reply,) = backend.score([request(PROMPT_FIRST, prompt)])
    scored = scorer(backend, PROMPT_FIRST, prompt)()
    np.testing.assert_allclose(scored.numpy(), reply.logprobs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama", "roberta", "t5"])
def test_it_scores_a_text_prompt_as_the_backend_does(load: Load, name: str) -> None:
    backend, prompt = load(name), TextPrompt("the film")
    (reply,) = backend.score([request(TEXT_FIRST, prompt)])
    scored = scorer(backend, TEXT_FIRST, prompt)()
    np.testing.assert_allclose(scored.numpy(), reply.logprobs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama", "mistral", "roberta", "bart"])
def test_its_slope_is_that_of_the_backend_s_scores(load: Load, name: str) -> None:
    backend = load(name)
    prompt = soft(backend)
    vectors = tensor(prompt).requires_grad_()
    scorer(backend, TEXT_FIRST, prompt)(vectors).sum().backward()
    direction = soft(backend, seed=1).vectors
    step = np.float32(3e-3)
    ahead, behind = (
        backend.score([request(TEXT_FIRST, SoftPrompt(prompt.vectors + sign * step * direction))])
        for sign in (1, -1)
    )
    slope = (ahead[0].logprobs.sum() - behind[0].logprobs.sum()) / (2 * step)
    assert vectors.grad is not None
    assert float((vectors.grad.numpy() * direction).sum()) == pytest.approx(slope, rel=0.02)


def test_rows_may_be_chosen_and_come_in_any_order(load: Load) -> None:
    backend = load("llama")
    prompt = soft(backend)
    score = scorer(backend, TEXT_FIRST, prompt)
    all_rows = score(tensor(prompt))
    assert torch.allclose(score(tensor(prompt), [2, 0]), all_rows[[2, 0]], atol=1e-5)


def test_text_before_the_prompt_is_read_once(load: Load) -> None:
    backend = load("llama")
    prompt = soft(backend)
    box = backend.open_box()
    score = LabelScorer(box, request(TEXT_FIRST, prompt))
    read: list[int] = []

    def count(_module: Any, _args: Any, inputs: dict[str, Any]) -> None:
        rows, length, _ = inputs["inputs_embeds"].shape
        read.append(rows * length)

    box.loaded.model.get_decoder().register_forward_pre_hook(count, with_kwargs=True)
    score(tensor(prompt))
    first = sum(read)
    read.clear()
    score(tensor(prompt))
    before = {row.ids[: row.prompt] for row in box.encoder.rows(request(TEXT_FIRST, prompt))}
    assert first - sum(read) == sum(map(len, before))


@pytest.mark.parametrize("max_kept_bytes", [0, 1 << 13, 1 << 20])
def test_where_memory_ends_rows_are_read_whole_with_the_same_scores(
    load: Load, max_kept_bytes: int
) -> None:
    backend = load("llama")
    prompt, box = soft(backend), backend.open_box()
    asked = request(TEXT_FIRST, prompt)
    rows = box.encoder.rows(asked)
    score = CausalGradientScorer(box.loaded, max_tokens_per_pass=64, max_kept_bytes=max_kept_bytes)
    batch = RequestBatch(
        rows=[rows], words=box.encoder.words(asked, rows[0]), vectors=tensor(prompt)[None]
    )
    (reply,) = backend.score([asked])
    for _ in range(2):
        np.testing.assert_allclose(score.scores(batch)[0].numpy(), reply.logprobs, atol=1e-5)
    kept = sum(states.nbytes for states in score._kept.values())
    assert kept <= max_kept_bytes
    assert len(score._kept) == {0: 0, 1 << 13: 2, 1 << 20: 4}[max_kept_bytes]


def test_the_scorer_of_the_room_takes_a_task(load: Load) -> None:
    backend = load("llama")
    prompt = soft(backend)
    task = Task(Template(TEXT_FIRST), Verbalizer(dict(zip("abc", WORDS, strict=True))))
    score = PromptScorer(backend, task, EXAMPLES, prompt)
    (reply,) = backend.score([request(TEXT_FIRST, prompt)])
    assert len(score) == len(EXAMPLES)
    np.testing.assert_allclose(score(tensor(prompt)).numpy(), reply.logprobs, atol=1e-5)


def test_a_model_that_changed_on_disk_is_refused(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    path = shutil.copytree(folder("llama"), tmp_path / "model")
    backend = HFBackend(path, device="cpu")
    models.build("llama", path, seed=1)
    with pytest.raises(InputError, match="changed"):
        backend.open_box().loaded  # noqa: B018


@pytest.mark.parametrize("name", ["llama", "roberta", "t5"])
def test_hidden_states_are_those_that_the_model_reads_the_label_from(load: Load, name: str) -> None:
    backend = load(name)
    box = backend.open_box()
    rows = read_hidden(box, request(TEXT_FIRST, TextPrompt("the film")))
    network = box.loaded.model
    body = network.get_encoder() if name == "t5" else network.base_model
    encoded = box.encoder.rows(request(TEXT_FIRST, TextPrompt("the film")))
    for row, ids in zip(rows, encoded, strict=True):
        whole = torch.tensor([ids.with_label(box.mask_token).ids])
        with torch.no_grad():
            states = body(whole).last_hidden_state[0]
        assert torch.allclose(row.tokens, states, atol=1e-5)
        read_at = whole[0, row.label].item()
        assert read_at == (box.mask_token[0] if box.mask_token else ids.ids[-1])
