"""A row has the tokens of its whole text, also where a tokenizer puts spaces before stretches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from lmaas_tune_adapters.hf import HFBackend
from lmaas_tune_adapters.hf.encoding import PromptParts, RowEncoder
from tokenizers import normalizers, pre_tokenizers, processors

from lmaas_tune.backend import ScoreRequest
from lmaas_tune.prompts import SoftPrompt, TextPrompt
from lmaas_tune.task import Example, Template
from tests.support import models

TEXTS = ("a gripping film", " begins with a space", "ends (", "it's told", "tab\there")
TEMPLATES = (
    "Review: {text}\n{prompt}\n{label}",
    "{text}{prompt}\n{label}",
    '{text}\n{prompt}\n"{label}',
    "{prompt}{text}\n{label}",
    "{text} {prompt}. So it was {label}",
    "{text}\n{prompt}'s word:{label}",
)
WORDS = ("great", "bad", "wonderful thing")


def _byte_level() -> Any:
    tokenizer = models.byte_level(start="<s>", end=None, mask=None)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


def _metaspace(**options: Any) -> Callable[[], Any]:
    def build() -> Any:
        tokenizer = models.sentence_piece()
        backend = tokenizer.backend_tokenizer
        backend.pre_tokenizer = pre_tokenizers.Metaspace(**options)
        backend.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
        return tokenizer

    return build


def _two_steps() -> Any:
    """XLM-R's and older T5's: words are split off before they get their space."""
    tokenizer = _metaspace(prepend_scheme="always")()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    return tokenizer


def _in_normalizer() -> Any:
    tokenizer = _metaspace(prepend_scheme="never")()
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return tokenizer


def _old_llama() -> Any:
    """What a Llama folder with ``legacy`` becomes."""
    pieces = ["<unk>", "<s>", "</s>", "▁", *sorted({c for line in models.LINES for c in line})]
    pieces += list("RASG:\n\t\"'.(")
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    return transformers.LlamaTokenizer(vocab=vocabulary, merges=[], legacy=True)


TOKENIZERS = {
    "byte level with prefix": _byte_level,
    "metaspace always": _metaspace(prepend_scheme="always"),
    "metaspace always, whole": _metaspace(prepend_scheme="always", split=False),
    "metaspace first": _metaspace(prepend_scheme="first"),
    "metaspace never": _metaspace(prepend_scheme="never"),
    "two steps": _two_steps,
    "normalizer": _in_normalizer,
    "old llama": _old_llama,
}


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_row_and_label_word_are_the_tokens_of_the_whole_text(name: str, template: str) -> None:
    tokenizer = TOKENIZERS[name]()
    encoder = RowEncoder(tokenizer, label_last=True, ends=False)
    batch = Template(template).batch([Example({"text": text}) for text in TEXTS])
    rows = encoder.rows(batch, PromptParts(text="it was"))
    compared = 0
    for text, row in zip(TEXTS, rows, strict=True):
        whole = template.format(text=text, prompt="it was", label="")
        head = tokenizer(whole.removesuffix(" "))["input_ids"]
        for word, ids in zip(WORDS, encoder.words(WORDS, spaced=row.spaced), strict=True):
            joined = tokenizer(whole + word)["input_ids"]
            if joined[: len(head)] == head:  # else the tokenizer itself joins word and text
                assert list(row.ids + ids) == joined
                compared += 1
    assert compared >= len(TEXTS)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_text_behind_a_soft_prompt_gains_no_space(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    encoder = RowEncoder(tokenizer, label_last=True, ends=False)
    prompt = PromptParts(soft=SoftPrompt(np.zeros((2, 4))))
    for template in ("the plot{prompt}\nit was {label}", "the plot{prompt}: bad {label}"):
        (row,) = encoder.rows(Template(template).batch([Example({"text": ""})]), prompt)
        text = template.replace("{prompt}", "").removesuffix(" {label}")
        ids = row.ids[: row.prompt] + row.ids[row.prompt + 2 :]
        assert list(ids) == tokenizer(text)["input_ids"]


def test_a_word_behind_a_line_break_is_scored_as_its_own_tokens(tmp_path: Path) -> None:
    tokenizer = TOKENIZERS["metaspace always"]()
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    network = models._spread(transformers.LlamaForCausalLM(config))
    model = HFBackend(models.save(tmp_path, network, tokenizer), device="cpu")
    batch = Template("{prompt} {text}\n{label}").batch([Example({"text": "film"})])
    (reply,) = model.score([ScoreRequest(TextPrompt("the"), batch, ("bad", "great"))])
    head = tokenizer("the film\n")["input_ids"]
    for word, score in zip(("bad", "great"), reply.logprobs[0], strict=True):
        ids = tokenizer("the film\n" + word)["input_ids"]
        assert ids[: len(head)] == head
        with torch.inference_mode():
            table = network(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        expected = sum(float(table[i - 1, ids[i]]) for i in range(len(head), len(ids)))
        assert score == pytest.approx(expected, abs=1e-4)


def test_an_answer_of_its_own_begins_as_a_text_does(tmp_path: Path) -> None:
    tokenizer = models.sentence_piece()
    words = [
        RowEncoder(tokenizer, label_last=False, ends=True, answers_apart=True).words(
            ("bad",), spaced=spaced
        )
        for spaced in (True, False)
    ]
    assert words[0] == words[1] == (tuple(tokenizer("bad", add_special_tokens=False)["input_ids"]),)
