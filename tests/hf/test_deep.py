"""Deep prompts: hooks on stock layers equal the layers run by hand, with and without sharing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from lmaas_tune_adapters.hf import HFBackend
from lmaas_tune_adapters.hf import backend as backend_module
from lmaas_tune_adapters.hf.layer_hooks import clipped_std, find_layers

from lmaas_tune import TunedPrompt, Tuner, preset
from lmaas_tune.backend import ScoreRequest
from lmaas_tune.errors import InputError
from lmaas_tune.prompts import DeepPrompt, FloatArray, SoftPrompt
from lmaas_tune.task import Batch
from tests.support import models, reference
from tests.support.small_models import changed

from . import test_exact as exact
from .test_exact import CANDIDATES, LABEL_ANYWHERE, LABEL_LAST, batch_of, soft
from .test_sharing import TEXTS, tokens_read

LAYERS = 4
_DEPTH = {"gpt2": "n_layer", "distilbert": "n_layers", "t5": "num_layers", "bart": "encoder_layers"}


@pytest.fixture(scope="module")
def load(
    folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], HFBackend]:
    """load(name): the tiny model of that name, with four layers."""

    def build(name: str) -> HFBackend:
        path = folder(name)
        config = transformers.AutoConfig.from_pretrained(path)
        setattr(config, _DEPTH.get(name, "num_hidden_layers"), LAYERS)
        if kinds := getattr(config, "layer_types", None):
            config.layer_types = kinds[:1] * LAYERS
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = getattr(transformers, config.architectures[0])(config)
        if name != "t5":  # whose fresh weights are large enough
            network = models._spread(network)
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        deep = models.save(tmp_path_factory.mktemp("deep") / name, network, tokenizer)
        return HFBackend(deep, device="cpu")

    return cache(build)


def deep(model: HFBackend, count: int, *, length: int = 3, insertion: Any = "concat") -> list[Any]:
    rng = np.random.default_rng(length)
    return [
        DeepPrompt(first, rng.standard_normal((LAYERS - 1, length, first.width)))
        for first in soft(model, count, length=length, insertion=insertion)
    ]


class ByHand:
    """A stock model run layer by layer, vectors added to what enters each; no hooks."""

    def __init__(self, network: Any, prompt: DeepPrompt) -> None:
        self.network, self.prompt = network, prompt
        self.config, self.get_input_embeddings = network.config, network.get_input_embeddings
        self.entered: list[FloatArray] = []

    def __call__(self, inputs_embeds: Any, decoder_inputs_embeds: Any = None) -> Any:
        first = torch.tensor(self.prompt.first.vectors[0])
        self.start = next(i for i, v in enumerate(inputs_embeds[0]) if torch.equal(v, first))
        run = getattr(self, "_" + self.config.model_type)
        return SimpleNamespace(logits=run(inputs_embeds, decoder_inputs_embeds))

    def _entering(self, state: Any, layer: int) -> Any:
        self.entered.append(state[0].numpy())
        if layer == 0:
            return state
        own = torch.zeros_like(state)
        own[:, self.start : self.start + self.prompt.first.length] = torch.tensor(
            self.prompt.above[layer - 1]
        )
        return state + own

    def _llama(self, state: Any, _: Any) -> Any:
        body = self.network.model
        turns = body.rotary_emb(state, torch.arange(state.shape[1])[None])
        for i, layer in enumerate(body.layers):
            state = layer(self._entering(state, i), position_embeddings=turns)
        return self.network.lm_head(body.norm(state))

    def _gpt2(self, state: Any, _: Any) -> Any:
        body = self.network.transformer
        state = state + body.wpe(torch.arange(state.shape[1]))
        for i, layer in enumerate(body.h):
            state = _state(layer(self._entering(state, i)))
        return self.network.lm_head(body.ln_f(state))

    def _roberta(self, state: Any, _: Any) -> Any:
        body = self.network.roberta
        state = body.embeddings(inputs_embeds=state)
        for i, layer in enumerate(body.encoder.layer):
            state = _state(layer(self._entering(state, i)))
        return self.network.lm_head(state)

    def _bert(self, state: Any, _: Any) -> Any:
        body = self.network.bert
        state = body.embeddings(inputs_embeds=state)
        for i, layer in enumerate(body.encoder.layer):
            state = _state(layer(self._entering(state, i)))
        return self.network.cls(state)

    def _t5(self, state: Any, said: Any) -> Any:
        encoder, bias = self.network.get_encoder(), None
        for i, block in enumerate(encoder.block):
            state, bias, *_ = block(self._entering(state, i), None, bias)
        return self._said(encoder.final_layer_norm(state), said)

    def _bart(self, state: Any, said: Any) -> Any:
        encoder = self.network.get_encoder()
        state = encoder.layernorm_embedding(state + encoder.embed_positions(state[..., 0]))
        for i, layer in enumerate(encoder.layers):
            state = _state(layer(self._entering(state, i), None))
        return self._said(state, said)

    def _said(self, memory: Any, said: Any) -> Any:
        outputs = transformers.modeling_outputs.BaseModelOutput(last_hidden_state=memory)
        return self.network(encoder_outputs=outputs, decoder_inputs_embeds=said).logits


def _state(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output


def by_hand(model: HFBackend, request: ScoreRequest) -> FloatArray:
    network = ByHand(model._model, request.prompt)
    entering = replace(request, prompt=request.prompt.first)
    return reference.plain(network, model._tokenizer, model.family, entering)


@pytest.mark.parametrize("template", LABEL_ANYWHERE)
@pytest.mark.parametrize("name", ["llama", "gpt2", "roberta", "bert", "t5", "bart"])
def test_c12_deep_prompts_score_as_the_layers_run_by_hand_do(
    name: str, template: str, load: Callable[[str], HFBackend]
) -> None:
    if name in models.CAUSAL and template not in LABEL_LAST:
        pytest.skip("a causal model needs the label last")
    model = load(name)
    batch = batch_of(template)
    prompts = [*deep(model, 1), *deep(model, 1, length=5)]
    requests = [ScoreRequest(prompt, batch, CANDIDATES) for prompt in prompts]
    for request, reply in zip(requests, model.score(requests), strict=True):
        np.testing.assert_allclose(reply.logprobs, by_hand(model, request), atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("insertion", ["add", "prepend"])
def test_c12_in_roberta_every_insertion_goes_on_through_the_layers(
    insertion: Any, load: Callable[[str], HFBackend]
) -> None:
    model = load("roberta")
    network, tokenizer = model._model, model._tokenizer
    (prompt,) = deep(model, 1, length=12, insertion=insertion)  # longer than a row
    request = ScoreRequest(prompt, batch_of("{prompt}{text} It was{label}"), ("great", "bad"))
    (reply,) = model.score([request])
    before = prompt.first.length if insertion == "prepend" else 0
    for text, found in zip(exact.TEXTS, reply.logprobs, strict=True):
        read = f"{text} It was".removeprefix(" " if insertion == "prepend" else "")
        body = tokenizer(read, add_special_tokens=False)["input_ids"]
        for word, score in zip(request.candidates, found, strict=True):
            answer = tokenizer(word, add_special_tokens=False)["input_ids"]
            masks = [tokenizer.mask_token_id] * len(answer)
            ids = [0, *prompt.first.anchor, *body, *masks, 2]
            table = roberta_by_hand(network, ids, prompt)
            at = before + ids.index(tokenizer.mask_token_id)
            expected = sum(float(table[at + i, token]) for i, token in enumerate(answer))
            assert score == pytest.approx(expected, abs=1e-5, rel=1e-6)


@torch.inference_mode()
def roberta_by_hand(network: Any, ids: list[int], prompt: DeepPrompt) -> Any:
    """(length, vocabulary) with vectors added behind the start token, or put before everything."""
    state = network.roberta.embeddings(torch.tensor([ids]))
    first, start = torch.tensor(prompt.first.vectors), 1
    if prompt.first.insertion == "prepend":
        state, start = torch.cat([first[None], state], dim=1), 0
    else:
        state[:, 1 : 1 + len(first)] += first
    for layer, above in zip(network.roberta.encoder.layer, (None, *prompt.above), strict=True):
        if above is not None:
            state[:, start : start + len(first)] += torch.tensor(above)
        state = _state(layer(state))
    return network.lm_head(state)[0].double().log_softmax(-1)


FAMILIES = ["llama", "qwen2", "gpt2", "mistral", "roberta", "distilbert", "t5", "bart"]


@pytest.mark.parametrize("name", FAMILIES)
def test_zeros_above_leave_a_soft_prompt_as_it_is(
    name: str, load: Callable[[str], HFBackend]
) -> None:
    model = load(name)
    assert model.capabilities.deep_layers == LAYERS
    for insertion in sorted(model.capabilities.insertions):
        (first,) = soft(model, 1, insertion=insertion)
        above = [np.zeros_like(first.vectors)] * (LAYERS - 1)
        plain, zero = model.score(
            [
                ScoreRequest(p, batch_of(LABEL_LAST[0]), CANDIDATES)
                for p in (first, DeepPrompt(first, above))
            ]
        )
        np.testing.assert_allclose(zero.logprobs, plain.logprobs, atol=1e-5, rtol=1e-6)
        assert zero.usage == plain.usage


@pytest.mark.parametrize("name", FAMILIES)
def test_a_population_of_deep_prompts_scores_as_its_members_do_one_by_one(
    name: str, load: Callable[[str], HFBackend]
) -> None:
    model = load(name)
    chunked = HFBackend(model._source, device="cpu", max_tokens_per_pass=50, max_kept_bytes=0)
    one, other = deep(model, 2)
    prompts = [one, other, *deep(model, 1, length=5), one.first]
    prompts.append(replace(one, above=[one.above[0], other.above[1], one.above[2]]))  # shares two
    for template in LABEL_LAST[:3]:
        requests = [ScoreRequest(prompt, batch_of(template), CANDIDATES) for prompt in prompts]
        together, in_chunks = model.score(requests), chunked.score(requests)
        for request, reply, chunk in zip(requests, together, in_chunks, strict=True):
            (alone,) = model.score([request])
            np.testing.assert_allclose(reply.logprobs, alone.logprobs, atol=1e-5, rtol=1e-6)
            np.testing.assert_allclose(reply.logprobs, chunk.logprobs, atol=1e-5, rtol=1e-6)


# --- what causal models share


@pytest.mark.parametrize("template", ["{text} {prompt} It was {label}", LABEL_LAST[0]])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_what_is_shared_is_read_once_under_deep_prompts_too(
    name: str, template: str, load: Callable[[str], HFBackend]
) -> None:
    model = HFBackend(load(name)._source, device="cpu")
    batch = batch_of(template, TEXTS)
    counts: dict[str, list[int]] = {}
    for kind, prompts in (("soft", soft(model, 3)), ("deep", deep(model, 3))):
        for run in ("first", "again"):
            with tokens_read(model) as passes:
                model.score([ScoreRequest(p, batch, ("great", "bad")) for p in prompts])
            counts[f"{kind} {run}"] = passes
    # texts that stand first are kept from the soft prompts: no prompt is in their states
    assert counts["deep first"] == counts["deep again"] == counts["soft again"]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_texts_kept_under_one_deep_prompt_serve_another(
    name: str, load: Callable[[str], HFBackend]
) -> None:
    one, other = deep(load(name), 2)
    batch = batch_of("{text} {prompt} It was {label}")
    shared, fresh = (HFBackend(load(name)._source, device="cpu") for _ in range(2))
    shared.score([ScoreRequest(one, batch, CANDIDATES)])
    request = ScoreRequest(other, batch, CANDIDATES)
    np.testing.assert_array_equal(
        shared.score([request])[0].logprobs, fresh.score([request])[0].logprobs
    )


def test_the_models_layers_are_as_they_were_after_a_score(load: Callable[[str], HFBackend]) -> None:
    model = load("llama")
    model.score([ScoreRequest(deep(model, 1)[0], batch_of(LABEL_LAST[0]), CANDIDATES)])
    with pytest.raises(InputError):
        model.score([ScoreRequest(deep(model, 1, length=400)[0], batch_of(LABEL_LAST[0]), ("a",))])
    for layer in model._scorer.layers:
        assert not layer._forward_pre_hooks
        assert not layer._forward_hooks


# --- what is refused


def test_a_deep_prompt_of_another_depth_or_width_is_refused(
    load: Callable[[str], HFBackend],
) -> None:
    model, batch = load("llama"), batch_of(LABEL_LAST[0])
    (prompt,) = deep(model, 1)
    shallow = replace(prompt, above=prompt.above[:1])
    narrow = DeepPrompt(SoftPrompt(np.ones((2, 8))), [np.ones((2, 8))] * 3)
    for wrong, sentence in (
        (shallow, "takes deep prompts through 4 layers, and not .* through 2 layers"),
        (narrow, "embeddings are 32 wide, and the soft prompt 8"),
    ):
        with pytest.raises(InputError, match=sentence):
            model.score([ScoreRequest(wrong, batch, ("great", "bad"))])


def test_layers_of_another_width_than_the_embeddings_take_no_deep_prompt(
    load: Callable[[str], HFBackend],
) -> None:
    model, batch = load("opt"), batch_of(LABEL_LAST[0])  # embeddings of 16, layers of 32
    assert model.capabilities.deep_layers is None
    for ask in (model.score, lambda requests: model.measure(requests[0])):
        with pytest.raises(InputError, match="takes no deep prompts"):
            ask([ScoreRequest(deep(model, 1)[0], batch, ("great", "bad"))])


class Body(torch.nn.Module):
    """Runs its layers in a given order, and may touch what passes between them."""

    def __init__(self, order: Sequence[int], *, between: float = 0.0, inner: bool = False) -> None:
        super().__init__()
        layers = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(3))
        self.unused = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(3))
        self.layers = torch.nn.Sequential(*layers) if inner else layers
        self.order, self.between = order, between

    def forward(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
        state = inputs_embeds
        for number in self.order:
            state = self.layers[number](state) + self.between
        return state


def test_a_stack_is_what_hands_one_state_up_from_layer_to_layer() -> None:
    probe = torch.ones(1, 5, 4)
    with torch.inference_mode():
        body = Body((0, 1, 2))
        assert find_layers(body, probe) == tuple(body.layers)
        for order in ((0, 2, 1), (0, 1), (0, 1, 2, 0, 1, 2)):
            assert find_layers(Body(order), probe) == ()
        assert find_layers(Body((0, 1, 2), between=0.1), probe) == ()
        assert find_layers(Body((0, 1, 2), inner=True), probe) == ()


# --- what enters the layers


@pytest.mark.parametrize("name", ["llama", "roberta", "t5"])
def test_measuring_tells_the_spread_of_all_that_enters_each_layer(
    name: str, load: Callable[[str], HFBackend]
) -> None:
    model = load(name)
    (prompt,) = soft(model, 1)
    request = ScoreRequest(prompt, batch_of("{prompt} {text} It was {label}"), ("great", "bad"))
    spread = model.measure(request)
    first = DeepPrompt(prompt, [np.zeros_like(prompt.vectors)] * (LAYERS - 1))
    entered: list[list[FloatArray]] = [[] for _ in range(LAYERS)]
    for row in request.batch.rows:
        network = ByHand(model._model, first)
        alone = ScoreRequest(prompt, Batch((row,)), ("a",))
        reference.plain(network, model._tokenizer, model.family, alone)
        inner = len(reference.word_ids(model._tokenizer, row, "a")) - 1
        behind = -inner or None if name == "llama" else None  # a label word is not measured
        for states, state in zip(entered, network.entered, strict=True):
            states.append(state[:behind].ravel())
    for std, states in zip(spread.stds, entered[1:], strict=True):
        numbers = np.concatenate(states).astype(np.float64)
        for _ in range(5):
            mean, sigma = numbers.mean(), numbers.std()
            numbers = np.clip(numbers, mean - 3 * sigma, mean + 3 * sigma)
        assert std == pytest.approx(numbers.std(), rel=1e-5)
    assert spread.usage == model.score([request])[0].usage


def test_clipping_takes_what_a_few_numbers_add() -> None:
    rng = np.random.default_rng(0)
    numbers = rng.standard_normal(10_000)
    numbers[:10] = 300.0
    std = clipped_std([torch.tensor(numbers[:40]), torch.tensor(numbers[40:])])
    assert numbers.std() > 9
    assert 1.0 < std < 1.5


def test_measuring_reads_rows_from_all_of_the_batch_within_its_memory(
    load: Callable[[str], HFBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load("llama")
    batch = batch_of("{text} {prompt} It was {label}", ("one", "two", "six", "ten", "odd"))
    request = ScoreRequest(deep(model, 1)[0], batch, ("great", "bad"))
    longest = max(len(row.ids) for row in model._encoder.rows(request))
    a_row = 4 * 32 * (LAYERS - 1) * longest  # bytes
    for room, rows in ((5 * a_row, 5), (2 * a_row, 2), (1, 1)):
        monkeypatch.setattr(backend_module, "_MEASURED_BYTES", room)
        assert model.measure(request).usage.sequences == rows
    monkeypatch.setattr(backend_module, "_MEASURED_BYTES", 2 * a_row)
    half = replace(request, batch=Batch((batch.rows[0], batch.rows[2])))
    few = model.measure(half).stds  # 2 of 5 rows: the first and the third
    np.testing.assert_array_equal(model.measure(request).stds, few)
    with pytest.raises(InputError, match="no rows"):
        model.measure(replace(request, batch=Batch(())))


# --- a whole search


def test_a_search_through_a_models_layers_lowers_its_loss_and_can_be_used_again(
    load: Callable[[str], HFBackend], tmp_path: Path
) -> None:
    train = [("a gripping film", "great"), ("two hours that i will not get back", "bad")] * 2
    settings = changed(
        preset("bbtv2"),
        insertion="concat",
        start="words",
        prompt_length=None,
        prompt_init="it was",
        intrinsic_dim=8,
        optimizer_options={"population": 6},
        score_start=True,
        selection="lowest-loss",
    )
    model = load("gpt2")
    tuner = Tuner(
        model,
        settings=settings,
        template="{text} {prompt} {label}",
        budget="calls=122",
        out=tmp_path,
        callbacks=(),
    )
    result = tuner.fit(train)
    assert result.spent.calls == 1 + 1 + 5 * 6 * LAYERS
    saved = TunedPrompt.load(tmp_path)
    assert isinstance(saved.prompt, DeepPrompt)
    before, after = result.start.score(model, train), saved.score(model, train)
    assert after.loss == pytest.approx(result.best.evaluation.loss, abs=1e-4)
    assert after.loss < before.loss - 0.05


@pytest.mark.parametrize("name", ["roberta", "t5"])
def test_the_bbtv2_preset_runs_as_it_is_on_other_families(
    name: str, load: Callable[[str], HFBackend]
) -> None:
    rows = [("a gripping film", "great"), ("two hours", "bad")]
    settings = changed(preset("bbtv2"), intrinsic_dim=5, prompt_length=7)
    tuner = Tuner(load(name), settings=settings, budget="calls=161", callbacks=())
    result = tuner.fit(rows, rows)
    assert result.spent.calls == 1 + 2 * 20 * LAYERS
    assert result.best.prompt.first.insertion == "add"
    assert result.best.evaluation.loss < result.start.score(load(name), rows).loss
