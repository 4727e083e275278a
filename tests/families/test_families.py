"""Architectures of all families, each exact or refused at load; `make test-families` tries all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from lmaas_tune_adapters.hf import HFBackend
from lmaas_tune_adapters.hf.causal import CausalScorer

from lmaas_tune.backend import ScoreRequest
from lmaas_tune.errors import InputError
from lmaas_tune.prompts import TextPrompt
from lmaas_tune.task import Example, Template
from tests.support import models

from . import architectures, sweep

EXACT = [
    ("causal", "bloom"),
    ("causal", "ctrl"),
    ("causal", "deepseek_v3"),
    ("causal", "falcon-alibi"),
    ("causal", "gemma3_text"),
    ("causal", "gpt_neo"),
    ("causal", "gpt_neox"),
    ("causal", "llama4_text"),
    ("causal", "mamba"),
    ("causal", "modernbert-decoder"),
    ("causal", "mpt"),
    ("causal", "qwen2-windows"),
    ("masked", "albert"),
    ("masked", "flaubert"),
    ("masked", "modernbert"),
    ("masked", "xlm"),
    ("seq2seq", "mt5"),
    ("seq2seq", "prophetnet"),
    ("seq2seq", "switch_transformers"),
]
REFUSED = [
    ("causal", "bert", "its tokens see later ones"),
    ("causal", "gemma4_text", "does not take a prompt as embeddings"),
    ("causal", "xlnet", "its tokens see later ones"),
    ("masked", "perceiver", "does not take a prompt as embeddings"),
    ("seq2seq", "mbart-without-start", "set decoder_start_token_id"),
    ("seq2seq", "qwen2_audio", "does not answer as a seq2seq model"),
]


@pytest.mark.parametrize(("family", "name"), EXACT)
def test_an_architecture_scores_as_a_plain_forward_does(family: str, name: str) -> None:
    outcome = sweep.try_architecture(name, family)
    assert outcome.difference is not None, outcome.refusal
    assert outcome.difference <= sweep.CLOSE


@pytest.mark.parametrize(("family", "name", "reason"), REFUSED)
def test_an_architecture_that_cannot_be_scored_is_refused_at_load(
    family: str, name: str, reason: str
) -> None:
    outcome = sweep.try_architecture(name, family)
    assert reason in outcome.refusal


def test_every_architecture_of_transformers_is_tried_or_has_a_reason_why_not() -> None:
    known = {(family, kind) for family, kinds in architectures.MAPPINGS.items() for kind in kinds}
    assert known - set(architectures.names()) <= set(architectures.NOT_BUILT)


def saved(name: str, family: str, folder: Path) -> Path:
    tokenizer = sweep.tokenizer_for(name, family)
    vocabulary = {"vocab_size": len(tokenizer), **sweep.special_ids(tokenizer, family)}
    return models.save(folder, architectures.network(name, family, vocabulary), tokenizer)


def test_a_word_has_the_same_score_in_any_company_where_a_decoder_sees_later_tokens(
    tmp_path: Path,
) -> None:
    model = HFBackend(saved("prophetnet", "seq2seq", tmp_path), device="cpu")
    batch = Template("{prompt} {text} It was {label}").batch([Example({"text": "a film"})])
    alone, beside = (
        model.score([ScoreRequest(TextPrompt("so"), batch, words)])[0].logprobs[:, :2]
        for words in (("great", "bad"), ("great", "bad", "wonderfully told"))
    )
    np.testing.assert_allclose(alone, beside, atol=1e-5, rtol=0)


def test_a_model_whose_scores_are_not_a_plain_forwards_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved("gpt_neox", "causal", tmp_path)
    scores = CausalScorer.scores
    monkeypatch.setattr(CausalScorer, "scores", lambda self, batch: scores(self, batch) + 0.1)
    with pytest.raises(InputError, match="gives other scores than a plain forward"):
        HFBackend(folder, device="cpu")


@pytest.mark.parametrize(
    ("name", "said", "family"),
    [
        ("xlm", "XLMWithLMHeadModel", "masked"),
        ("flaubert", "FlaubertWithLMHeadModel", "masked"),
        ("roberta", "RobertaForMaskedLM", "masked"),
        ("bart", "BartForConditionalGeneration", "seq2seq"),
    ],
)
def test_a_model_is_read_as_what_it_is_saved_as(
    name: str, said: str, family: str, tmp_path: Path
) -> None:
    folder = saved(name, family, tmp_path)
    assert json.loads((folder / "config.json").read_text())["architectures"] == [said]
    assert HFBackend(folder, device="cpu").family == family


def test_a_decoder_that_is_saved_alone_is_read_as_a_causal_model(tmp_path: Path) -> None:
    assert HFBackend(saved("bart", "causal", tmp_path), device="cpu").family == "causal"
