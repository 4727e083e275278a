"""How soft prompts enter, against stock transformers (checks C9-C11, C13-C16)."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from lmaas_tune_adapters.hf import HFBackend

from lmaas_tune.backend import ScoreRequest
from lmaas_tune.errors import InputError
from lmaas_tune.prompts import FloatArray, SoftPrompt, TextPrompt
from lmaas_tune.task import Batch, Slot, Template
from tests.support import models, reference

from .test_exact import CANDIDATES, LABEL_LAST, TEXTS, batch_of, soft

POST_NORM = ("roberta", "bert", "distilbert")
MASKED_TEMPLATE = "{prompt} {text} It was {label} ."


def masked_logprobs(
    backend: HFBackend,
    request: ScoreRequest,
    enter: Callable[[Any, list[Any]], tuple[Any, Any, int]],
) -> FloatArray:
    """(rows, one-token candidates), `enter` saying what goes in, the hook, the mask's place."""
    network, tokenizer = backend._model, backend._tokenizer
    start, end = reference.around(tokenizer)
    table = []
    for row in request.batch.rows:
        body = reference.pieces(tokenizer, row, request.prompt)
        mask = [tokenizer.mask_token_id]
        parts = [start, *(mask if part is Slot.LABEL else part for part in body), end]
        inputs, hook, at = enter(network, parts)
        handle = network.base_model.embeddings.register_forward_hook(hook) if hook else None
        with torch.inference_mode():
            logits = network(**inputs).logits[0, at].double().log_softmax(-1)
        if handle:
            handle.remove()
        ids = [reference.word_ids(tokenizer, row, word) for word in request.candidates]
        table.append([float(logits[word[0]]) for word in ids])
    return np.array(table)


def flatten(parts: list[Any], anchor: tuple[int, ...] = ()) -> list[int]:
    return [i for part in parts for i in (anchor if part is Slot.PROMPT else part)]


@pytest.mark.parametrize("name", POST_NORM)
def test_c9_an_added_prompt_enters_bert_and_roberta_after_the_embedding_layernorm(
    name: str, load: Callable[[str], HFBackend]
) -> None:
    model = load(name)
    (prompt,) = soft(model, 1, insertion="add")
    request = ScoreRequest(prompt, batch_of(MASKED_TEMPLATE), CANDIDATES[:2])
    mask = model._tokenizer.mask_token_id

    def behind(network: Any, parts: list[Any]) -> tuple[Any, Any, int]:
        ids = flatten(parts, prompt.anchor)

        def add(_module: Any, _inputs: Any, output: Any) -> Any:
            changed = output.clone()
            changed[0, 1 : 1 + prompt.length] += torch.tensor(prompt.vectors)  # behind the CLS
            return changed

        return {"input_ids": torch.tensor([ids])}, add, ids.index(mask)

    def before(network: Any, parts: list[Any]) -> tuple[Any, Any, int]:
        ids = flatten(parts, prompt.anchor)
        return {"inputs_embeds": reference.embed(network, parts, prompt)}, None, ids.index(mask)

    (reply,) = model.score([request])
    np.testing.assert_allclose(
        reply.logprobs, masked_logprobs(model, request, behind), atol=1e-5, rtol=0
    )
    assert np.abs(reply.logprobs - masked_logprobs(model, request, before)).max() > 1e-2


@pytest.mark.parametrize("name", POST_NORM)
def test_c10_a_prepended_prompt_stands_before_cls_past_positions_and_layernorm(
    name: str, load: Callable[[str], HFBackend]
) -> None:
    model = load(name)
    (prompt,) = soft(model, 1, insertion="prepend")
    request = ScoreRequest(prompt, batch_of(MASKED_TEMPLATE), CANDIDATES[:2])
    without = ScoreRequest(prompt, batch_of("{text} It was {label} .{prompt}"), CANDIDATES[:2])

    def enter(network: Any, parts: list[Any]) -> tuple[Any, Any, int]:
        ids = flatten([part for part in parts if part is not Slot.PROMPT])

        def prepend(_module: Any, _inputs: Any, output: Any) -> Any:
            return torch.cat([torch.tensor(prompt.vectors)[None], output], dim=1)

        at = prompt.length + ids.index(model._tokenizer.mask_token_id)
        return {"input_ids": torch.tensor([ids])}, prepend, at

    (reply,) = model.score([request])
    np.testing.assert_allclose(
        reply.logprobs, masked_logprobs(model, without, enter), atol=1e-5, rtol=0
    )


def test_c10_a_prepended_prompt_must_be_first_in_the_template(
    load: Callable[[str], HFBackend],
) -> None:
    model = load("roberta")
    (prompt,) = soft(model, 1, insertion="prepend")
    request = ScoreRequest(prompt, batch_of("{text} {prompt} It was {label}"), CANDIDATES)
    with pytest.raises(InputError, match="first in the template"):
        model.score([request])


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_c11_an_added_prompt_enters_gpt2_and_t5_as_inputs_embeds(
    name: str, load: Callable[[str], HFBackend]
) -> None:
    model = load(name)
    (prompt,) = soft(model, 1, insertion="add")
    joint = SoftPrompt(prompt.vectors + model.embed(prompt.anchor))
    batch = batch_of(LABEL_LAST[0])
    added, concatenated = model.score([ScoreRequest(p, batch, CANDIDATES) for p in (prompt, joint)])
    np.testing.assert_allclose(added.logprobs, concatenated.logprobs, atol=1e-5, rtol=0)
    expected = reference.logprobs(model, ScoreRequest(prompt, batch, CANDIDATES))
    np.testing.assert_allclose(added.logprobs, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("insertion", ["concat", "add", "prepend"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "roberta", "bert", "t5", "bart"])
def test_c13_a_population_scores_as_its_members_do_one_by_one(
    name: str, insertion: Any, folder: Callable[[str], Path], load: Callable[[str], HFBackend]
) -> None:
    model = load(name)
    if insertion not in model.capabilities.insertions:
        return
    chunked = HFBackend(folder(name), device="cpu", max_tokens_per_pass=50)
    requests = [
        ScoreRequest(prompt, batch_of(LABEL_LAST[0]), CANDIDATES)
        for prompt in soft(model, 6, insertion=insertion)
    ]
    together = model.score(requests)
    in_chunks = chunked.score(requests)
    for request, reply, chunk in zip(requests, together, in_chunks, strict=True):
        (alone,) = model.score([request])
        np.testing.assert_allclose(reply.logprobs, alone.logprobs, atol=1e-5, rtol=0)
        np.testing.assert_allclose(reply.logprobs, chunk.logprobs, atol=1e-5, rtol=0)


def test_c14_gpt2_is_read_at_the_last_real_token_of_each_row(
    load: Callable[[str], HFBackend],
) -> None:
    model = load("gpt2")
    network, tokenizer = model._model, model._tokenizer
    request = ScoreRequest(
        TextPrompt(""), batch_of("{text}{prompt} It was {label}"), ("bad", "great")
    )
    (reply,) = model.score([request])
    for text, found in zip(TEXTS, reply.logprobs, strict=True):
        with torch.inference_mode():
            ids = tokenizer(f"{text} It was", return_tensors="pt")["input_ids"]
            table = network(input_ids=ids).logits[0, -1].double().log_softmax(-1)
        words = [tokenizer(f" {w}")["input_ids"] for w in ("bad", "great")]
        np.testing.assert_allclose(found, [float(table[w[0]]) for w in words], atol=1e-4, rtol=0)


def test_c15_t5_needs_no_more_of_the_decoder_than_its_first_two_tokens(
    load: Callable[[str], HFBackend],
) -> None:
    model = load("t5")
    network, tokenizer = model._model, model._tokenizer
    batch = batch_of("{text}{prompt} It was {label} .")
    word = max(tokenizer.get_vocab(), key=lambda piece: (piece.startswith("▁"), len(piece)))[1:]
    (reply,) = model.score([ScoreRequest(TextPrompt(""), batch, (word, "great"))])
    for text, found in zip(TEXTS, reply.logprobs, strict=True):
        ids = tokenizer(f"{text} It was<extra_id_0> .", return_tensors="pt")["input_ids"]
        sentinel = tokenizer.convert_tokens_to_ids("<extra_id_0>")
        (answer,) = tokenizer(word, add_special_tokens=False)["input_ids"]
        said = torch.tensor([[0, sentinel, answer, 1, 0, 0, 0, 0]])  # <pad> X word </s>, padded
        with torch.inference_mode():
            logits = network(input_ids=ids, decoder_input_ids=said).logits[0, 1]
        assert found[0] == pytest.approx(float(logits.log_softmax(-1)[answer]), abs=1e-4)


@pytest.mark.parametrize("name", ["llama", "roberta", "bart"])
def test_c16_a_text_shorter_than_the_prompt_is_scored(
    name: str, load: Callable[[str], HFBackend]
) -> None:
    model = load(name)
    for insertion in sorted(model.capabilities.insertions):
        (prompt,) = soft(model, 1, length=50, insertion=insertion)
        request = ScoreRequest(prompt, batch_of("{prompt} {text}{label}", ("", "a")), CANDIDATES)
        (reply,) = model.score([request])
        assert np.isfinite(reply.logprobs).all()
        assert (reply.logprobs <= 0).all()


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "roberta", "bert", "bart"])
def test_c16_a_row_longer_than_the_model_reads_is_refused_by_its_number(
    name: str, load: Callable[[str], HFBackend]
) -> None:
    model = load(name)
    assert model.capabilities.max_tokens == 256
    batch = batch_of(LABEL_LAST[0], ("a", "it was " * 200))
    with pytest.raises(InputError, match=r"row 2 has \d+ tokens .* 256"):
        model.score([ScoreRequest(soft(model, 1)[0], batch, ("great", "bad"))])
    with pytest.raises(InputError, match="row 2"):
        model.inspect(ScoreRequest(soft(model, 1)[0], batch, ("great", "bad")))


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "roberta", "bert", "bart"])
def test_c16_the_longest_row_is_scored_and_one_token_more_is_not(
    name: str, load: Callable[[str], HFBackend]
) -> None:
    model = load(name)
    batch = batch_of("{text} {prompt}{label}", ("it",))

    def score(length: int) -> Any:
        (prompt,) = soft(model, 1, length=length)
        return model.score([ScoreRequest(prompt, batch, ("great", "bad"))])[0]

    with pytest.raises(InputError) as refusal:
        score(300)
    said = int(re.search(r"has (\d+) tokens", str(refusal.value)).group(1))
    fits = 300 - (said - 256)
    assert np.isfinite(score(fits).logprobs).all()
    with pytest.raises(InputError):
        score(fits + 1)


@pytest.mark.parametrize("name", [*models.CAUSAL, *models.MASKED, *models.SEQ2SEQ])
def test_a_soft_prompt_without_a_slot_is_refused(
    name: str, load: Callable[[str], HFBackend]
) -> None:
    model = load(name)
    batch = Batch((("it was ", Slot.LABEL),))
    with pytest.raises(InputError, match=r"row 1 has no \{prompt\} slot"):
        model.score([ScoreRequest(soft(model, 1)[0], batch, ("great", "bad"))])
    (reply,) = model.score([ScoreRequest(TextPrompt(""), batch, ("great", "bad"))])
    assert np.isfinite(reply.logprobs).all()


def test_an_anchor_outside_the_vocabulary_is_refused(
    load: Callable[[str], HFBackend],
) -> None:
    model = load("llama")
    vectors = np.zeros((2, 32))
    prompt = SoftPrompt(vectors, insertion="add", anchor=(3, 10_000))
    with pytest.raises(InputError, match="anchor token 10000"):
        model.score([ScoreRequest(prompt, batch_of(LABEL_LAST[0]), CANDIDATES)])


def test_a_label_before_the_end_is_refused_by_a_causal_model(
    load: Callable[[str], HFBackend],
) -> None:
    model = load("llama")
    batch = Template("{prompt} {label} News").batch([])
    assert model.score([ScoreRequest(TextPrompt(""), batch, CANDIDATES)])[0].logprobs.shape[0] == 0
    batch = batch_of("{prompt} {label} News: {text}")
    with pytest.raises(InputError, match=r"label.* last in the template"):
        model.score([ScoreRequest(soft(model, 1)[0], batch, CANDIDATES)])


@pytest.mark.parametrize(
    ("kind", "insertions"),
    [
        ("deberta-v2", {"concat", "add"}),  # its mask counts tokens before any is prepended
        ("longformer", {"concat", "add"}),  # its embeddings see padding too
        ("electra", {"concat", "add", "prepend"}),
    ],
)
def test_what_a_masked_model_says_it_takes_it_takes(
    kind: str, insertions: set[str], tmp_path: Path
) -> None:
    tokenizer = models.word_piece()
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.CONFIG_MAPPING[kind](
        vocab_size=len(tokenizer),
        intermediate_size=48,
        max_position_embeddings=256,
        pad_token_id=0,
        **({"attention_window": 64} if kind == "longformer" else {}),
        **sizes,
    )
    network = transformers.AutoModelForMaskedLM.from_config(config)
    backend = HFBackend(models.save(tmp_path, network, tokenizer), device="cpu")
    assert backend.capabilities.insertions == insertions
    for insertion in insertions:
        (prompt,) = soft(backend, 1, insertion=insertion)
        slots = "{prompt} {text}" if insertion == "prepend" else "{text} {prompt}"
        (reply,) = backend.score(
            [ScoreRequest(prompt, batch_of(slots + " so {label}"), ("great", "bad"))]
        )
        assert np.isfinite(reply.logprobs).all()
