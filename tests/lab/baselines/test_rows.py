"""Each row of the table: what it counts, what it learns, what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from lmaas_tune_adapters.hf import HFBackend
from lmaas_tune_adapters.hf.gradient import LabelScorer
from lmaas_tune_adapters.hf.whitebox import WhiteBox

from lmaas_tune import SoftPrompt, TextPrompt
from lmaas_tune.backend import ScoreRequest
from lmaas_tune.errors import InputError
from lmaas_tune.lab.baselines import (
    BASELINES,
    FeatureSettings,
    FittedBaseline,
    LoraSettings,
    ModelTuningSettings,
    PrefixTuningSettings,
    PromptTuningSettings,
    fit_baseline,
)
from lmaas_tune.lab.baselines.prefix_tuning import with_prefix
from lmaas_tune.objectives import log_softmax
from tests.lab.baselines import planted

Load = Callable[[str], HFBackend]

# tiny models learn at rates that would break a real one
SETTINGS: dict[str, Any] = {
    "feature-mlp": FeatureSettings(width=16, epochs=30, learning_rate=1e-2),
    "feature-bilstm": FeatureSettings(width=16, epochs=12, learning_rate=1e-2),
    "prompt-tuning": PromptTuningSettings(epochs=25, batch_size=16, learning_rate=0.1),
    "p-tuning-v2": PrefixTuningSettings(length=4, epochs=15, batch_size=16, learning_rate=0.1),
    "lora": LoraSettings(rank=4, epochs=10, learning_rate=1e-2),
    "model-tuning": ModelTuningSettings(epochs=8, learning_rate=3e-3),
}
LAYERS, WIDTH, LABELS = 2, 32, 2  # of the tiny models, and of the task


def fitted(backend: HFBackend, name: str, **changes: Any) -> FittedBaseline:
    settings = SETTINGS.get(name, BASELINES[name].settings())
    return fit_baseline(
        name,
        backend,
        planted.task(backend.family),
        planted.TRAIN,
        planted.VALIDATION,
        seed=0,
        words=planted.UNASKED,
        settings=replace(settings, **changes),
    )


def accuracy(backend: HFBackend, row: FittedBaseline) -> float:
    targets = planted.task(backend.family).verbalizer.targets(planted.TEST)
    return float((row.scores(planted.TEST).argmax(axis=1) == targets).mean())


@pytest.mark.parametrize("model", ["llama", "roberta", "t5"])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_row_with_a_gradient_learns_the_planted_task(taught: Load, name: str, model: str) -> None:
    backend = taught(model)
    row = fitted(backend, name)
    assert accuracy(backend, row) >= 0.75
    assert row.steps > 0
    assert row.seconds > 0
    assert row.validation_loss is not None
    assert row.validation_loss < 0.6


@pytest.mark.parametrize("name", ["tfidf", "mean-states"])
def test_a_probe_learns_the_planted_task_from_all_labelled_rows(taught: Load, name: str) -> None:
    backend = taught("llama")
    assert accuracy(backend, fitted(backend, name)) >= 0.75
    job = {"task": planted.task(backend.family), "seed": 0, "words": ""}
    swapped = fit_baseline(name, backend, train=planted.VALIDATION, validation=planted.TRAIN, **job)
    once = fit_baseline(name, backend, train=planted.TRAIN, validation=[], **job)
    assert accuracy(backend, swapped) >= 0.75
    assert not np.allclose(swapped.scores(planted.TEST), once.scores(planted.TEST))


@pytest.mark.parametrize("name", ["tfidf", "mean-states"])
def test_a_probe_needs_two_rows_of_two_labels(taught: Load, name: str) -> None:
    backend = taught("llama")
    task = planted.task(backend.family)
    of_one_label = [row for row in planted.TRAIN if row.label == planted.TRAIN[0].label]
    for rows in (planted.TRAIN[:1], of_one_label):
        with pytest.raises(InputError, match="two labelled rows of each"):
            fit_baseline(name, backend, task, rows, [], seed=0, words="")


@pytest.mark.parametrize("name", ["manual", "prompt-tuning", "p-tuning-v2", "lora"])
def test_rows_that_read_words_score_further_words_for_a_head(taught: Load, name: str) -> None:
    backend = taught("llama")
    row = fitted(backend, name, **({"epochs": 1} if name in SETTINGS else {}))
    assert row.score_words is not None
    words = backend.one_token_words()[:5]
    more = row.score_words(planted.TEST, words)
    assert more.shape == (len(planted.TEST), LABELS + 5)
    np.testing.assert_allclose(more[:, :LABELS], row.score(planted.TEST), atol=1e-5)


@pytest.mark.parametrize("name", SETTINGS)
def test_without_steps_that_lead_somewhere_it_learns_nothing(taught: Load, name: str) -> None:
    backend = taught("llama")
    assert accuracy(backend, fitted(backend, name, learning_rate=0.0, epochs=2)) <= 0.7


@pytest.mark.parametrize("model", ["llama", "roberta", "t5"])
def test_parameters_are_counted_by_the_formulas(load: Load, model: str) -> None:
    backend = load(model)
    kept = 2 * 8 if model == "llama" else WIDTH  # 2 heads of 8 for keys and values
    w = 16
    once = {"epochs": 1}
    counts = {name: fitted(backend, name, **once).parameters for name in SETTINGS}
    space = planted.task(backend.family).template.space_before_prompt
    tokens = len(backend.tokenize(space + planted.UNASKED))
    assert counts["prompt-tuning"] == tokens * WIDTH
    assert counts["p-tuning-v2"] == 4 * LAYERS * 2 * kept
    assert counts["lora"] == 4 * linear_ends(backend)
    assert counts["feature-mlp"] == (WIDTH + 1) * w + (w + 1) * w + (w + 1) * LABELS
    bilstm = 8 * w * (WIDTH + w + 2) + 8 * w * (3 * w + 2) + (2 * w + 1) * LABELS
    assert counts["feature-bilstm"] == bilstm
    assert counts["model-tuning"] == body_size(backend, model) + HEADS[model]
    for name in ("manual", "icl"):
        assert fitted(backend, name).parameters == 0
    assert fitted(backend, "mean-states").parameters == WIDTH + 1  # of two labels, one is enough


def linear_ends(backend: HFBackend) -> int:
    """Inputs and outputs of all linear layers but the head that says words."""
    network = backend.open_box().loaded.model
    return sum(
        layer.in_features + layer.out_features
        for layer in network.modules()
        if isinstance(layer, torch.nn.Linear) and layer is not network.get_output_embeddings()
    )


HEADS = {
    "llama": WIDTH * LABELS,
    "roberta": (WIDTH + 1) * WIDTH + (WIDTH + 1) * LABELS,
    "t5": (WIDTH + 1) * WIDTH + (WIDTH + 1) * LABELS,
}


def body_size(backend: HFBackend, model: str) -> int:
    """Parameters without the head that says words; each shared matrix once."""
    network = backend.open_box().loaded.model
    head = {id(weight) for weight in network.get_output_embeddings().parameters()}
    if model == "roberta":
        head |= {id(weight) for weight in network.lm_head.parameters()}
    head -= {id(weight) for weight in network.get_input_embeddings().parameters()}
    return sum(weight.numel() for weight in network.parameters() if id(weight) not in head)


@pytest.mark.parametrize("name", ["icl", *SETTINGS])
def test_a_seed_decides_all_and_leaves_the_global_generators_alone(taught: Load, name: str) -> None:
    backend = taught("llama")
    short = {"epochs": 2} if name in SETTINGS else {}
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    first = fitted(backend, name, **short).scores(planted.TEST)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()  # noqa: NPY002
    torch.manual_seed(8)
    np.testing.assert_array_equal(first, fitted(backend, name, **short).scores(planted.TEST))


@pytest.mark.parametrize("name", BASELINES)
def test_no_row_changes_the_backend_and_all_give_log_probabilities(taught: Load, name: str) -> None:
    backend = taught("llama")
    task = planted.task(backend.family)
    request = ScoreRequest(
        TextPrompt("so"), task.template.batch(planted.TEST), task.verbalizer.candidates
    )
    before = backend.score([request])[0].logprobs
    scores = fitted(backend, name, **({"epochs": 2} if name in SETTINGS else {})).scores(
        planted.TEST
    )
    np.testing.assert_array_equal(before, backend.score([request])[0].logprobs)
    assert scores.shape == (len(planted.TEST), LABELS)
    np.testing.assert_allclose(np.exp(scores).sum(axis=1), 1.0, atol=1e-6)


def test_the_manual_row_is_the_words_in_their_place(taught: Load) -> None:
    backend = taught("llama")
    task = planted.task(backend.family)
    batch = task.template.batch(planted.TEST)
    request = ScoreRequest(TextPrompt(planted.UNASKED), batch, task.verbalizer.candidates)
    row = fitted(backend, "manual")
    said = log_softmax(backend.score([request])[0].logprobs)
    np.testing.assert_allclose(row.scores(planted.TEST), said)
    assert row.steps == 0


def test_prompt_tuning_gives_a_prompt_that_a_search_could_have_found(taught: Load) -> None:
    backend = taught("llama")
    row = fitted(backend, "prompt-tuning")
    assert isinstance(row.prompt, SoftPrompt)
    task = planted.task(backend.family)
    batch = task.template.batch(planted.TEST)
    request = ScoreRequest(row.prompt, batch, task.verbalizer.candidates)
    said = log_softmax(backend.score([request])[0].logprobs)
    np.testing.assert_allclose(row.scores(planted.TEST), said)


def test_a_pretrained_prompt_is_where_prompt_tuning_goes_on_from(taught: Load) -> None:
    backend = taught("llama")
    task = planted.task(backend.family)
    report = fit_baseline(
        "prompt-tuning",
        backend,
        task,
        planted.TRAIN,
        planted.VALIDATION,
        words=planted.UNASKED,
        seed=0,
        settings=SETTINGS["prompt-tuning"],
    )
    prompt = report.prompt
    assert isinstance(prompt, SoftPrompt)
    still = PromptTuningSettings(epochs=1, learning_rate=0.0)
    row = fit_baseline(
        "prompt-tuning",
        backend,
        task,
        planted.TRAIN,
        planted.VALIDATION,
        seed=1,
        words="",
        settings=still,
        start=prompt,
    )
    assert isinstance(row.prompt, SoftPrompt)
    np.testing.assert_array_equal(row.prompt.vectors, prompt.vectors)
    assert row.validation_loss == pytest.approx(report.validation_loss, abs=1e-4)


def test_without_words_a_soft_prompt_starts_from_the_vocabulary(load: Load) -> None:
    backend = load("llama")
    task = planted.task(backend.family)
    settings = PromptTuningSettings(epochs=1, learning_rate=0.0, length=5)
    rows = planted.TRAIN, planted.VALIDATION
    drawn = [
        fit_baseline("prompt-tuning", backend, task, *rows, seed=s, words="", settings=settings)
        for s in (0, 0, 1)
    ]
    prompts = [row.prompt.vectors for row in drawn if isinstance(row.prompt, SoftPrompt)]
    table = backend.embed(range(backend.vocabulary_size))
    assert all(any(np.array_equal(vector, word) for word in table) for vector in prompts[0])
    np.testing.assert_array_equal(prompts[0], prompts[1])
    assert not np.array_equal(prompts[0], prompts[2])


@pytest.mark.parametrize("name", SETTINGS)
def test_without_validation_rows_the_last_epoch_is_kept(taught: Load, name: str) -> None:
    backend = taught("llama")
    settings = replace(SETTINGS[name], epochs=2, patience=1)
    task = planted.task(backend.family)
    row = fit_baseline(
        name, backend, task, planted.TRAIN, [], seed=0, words="so", settings=settings
    )
    assert row.validation_loss is None
    assert row.steps == 2 * -(-len(planted.TRAIN) // settings.batch_size)


def test_a_prefix_enters_as_peft_puts_it(load: Load) -> None:
    box, request = prefixed(load("llama"))
    tuned = with_prefix(box, [5, 6, 7, 8])
    with torch.no_grad():
        tuned.prompt_encoder["default"].embedding.weight.normal_(
            generator=torch.Generator().manual_seed(0)
        )
        ours = LabelScorer(box, request, before=4)().numpy()
    box.loaded.model._forward_pre_hooks.clear()  # peft's forward puts it there itself
    box.loaded.model._forward_pre_hooks_with_kwargs.clear()
    for scores, row in zip(ours, box.encoder.rows(request), strict=True):
        ids = torch.tensor([row.ids])
        with torch.no_grad():
            logits = tuned(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1]
        words = [word[0] for word in box.encoder.words(request, row)]
        np.testing.assert_allclose(scores, logits.log_softmax(-1)[words].numpy(), atol=1e-5)


@pytest.mark.parametrize("model", ["llama", "gpt2", "qwen3"])
def test_a_prefix_starts_as_tokens_before_the_row(load: Load, model: str) -> None:
    box, request = prefixed(load(model))
    tokens = [5, 6, 7, 8]
    plain = load(model).open_box().loaded.model
    with_prefix(box, tokens)
    with torch.no_grad():
        ours = LabelScorer(box, request, before=4)().numpy()
    for scores, row in zip(ours, box.encoder.rows(request), strict=True):
        with torch.no_grad():
            logits = plain(torch.tensor([[*tokens, *row.ids]])).logits[0, -1]
        words = [word[0] for word in box.encoder.words(request, row)]
        np.testing.assert_allclose(scores, logits.log_softmax(-1)[words].numpy(), atol=1e-5)


def prefixed(backend: HFBackend) -> tuple[WhiteBox, ScoreRequest]:
    """A box to put a prefix in, and rows to read behind it."""
    task = planted.task(backend.family)
    batch = task.template.batch(planted.TEST[:3])
    return backend.open_box(), ScoreRequest(TextPrompt("so"), batch, task.verbalizer.candidates)
