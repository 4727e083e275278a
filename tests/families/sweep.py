"""Loads a tiny model of one architecture and compares its scores with plain forwards."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lmaas_tune_adapters.hf import HFBackend

from lmaas_tune.backend import ScoreRequest
from lmaas_tune.errors import InputError
from lmaas_tune.prompts import SoftPrompt, TextPrompt
from lmaas_tune.task import Example, Template
from tests.support import models, reference

from . import architectures

TEXTS = (
    "a gripping film",
    "bad",
    "the plot goes nowhere and the acting is terrible but the music is fine",
)
WORDS = ("great", "bad", "wonderfully told", "wonderful")
MIDDLE, FIRST, LAST = (
    "{text} {prompt} It was {label}",
    "{prompt} {text} It was {label}",
    "{text} It was {prompt} {label}",
)
LABEL_FIRST = "{label} {prompt} News: {text}"
CLOSE = 1e-4
APART = 1e-2
"""Prompts must make at least this much of a difference, or the comparison would show nothing."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one architecture.

    Attributes:
        difference: The largest between a score and the plain forward's; None where refused.
        refusal: The sentence.
    """

    difference: float | None = None
    refusal: str = ""

    def __str__(self) -> str:
        if self.difference is None:
            return f"refused: {self.refusal}"
        return f"exact, {self.difference:.1e}"


def try_architecture(name: str, family: str, *, seed: int = 0) -> Outcome:
    """Build, load and score one.

    Raises:
        AssertionError: It was neither exact nor refused at load in one sentence.
    """
    tokenizer = tokenizer_for(name, family)
    vocabulary = {"vocab_size": len(tokenizer), **special_ids(tokenizer, family)}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / name
        network = architectures.network(name, family, vocabulary, seed=seed)
        models.save(folder, network, tokenizer)
        differences = []
        for answer in ("auto", "direct") if family == "seq2seq" else ("auto",):
            try:
                backend = HFBackend(folder, device="cpu", answer=answer)
            except InputError as refusal:
                sentence = str(refusal)
                assert "\n" not in sentence, sentence
                return Outcome(refusal=sentence.replace(str(folder), name))
            assert backend.family == family, f"read as a {backend.family} model"
            plain = plain_network(folder, family)
            differences.append(_difference(backend, plain, family, direct=answer == "direct"))
    worst = max(differences)
    assert worst <= CLOSE, f"scores differ from plain forwards by {worst:.1e}"
    return Outcome(difference=worst)


def _difference(backend: HFBackend, plain: Any, family: str, *, direct: bool) -> float:
    templates = [MIDDLE, FIRST, LAST]
    if not (direct or family == "causal"):
        templates.append(LABEL_FIRST)
    requests = [
        ScoreRequest(prompt, Template(template).batch([Example({"text": t}) for t in TEXTS]), WORDS)
        for template in templates
        for prompt in (*_soft(backend, 2), TextPrompt("overall , the"))
    ]
    replies = [reply.logprobs for reply in backend.score(requests)]
    expected = [
        reference.plain(plain, backend._tokenizer, family, request, direct=direct)
        for request in requests
    ]
    apart = min(
        np.abs(one - other).max() for one, other in zip(expected[::3], expected[1::3], strict=True)
    )
    assert apart >= APART, f"prompts make no difference: {apart:.1e}"
    return max(np.abs(a - b).max() for a, b in zip(replies, expected, strict=True))


def _soft(backend: HFBackend, count: int) -> list[SoftPrompt]:
    width = backend.capabilities.soft_prompt_width
    vectors = np.random.default_rng(0).standard_normal((count, 3, width))
    return [SoftPrompt(backend.embedding_std * one) for one in vectors]


def plain_network(folder: Path, family: str) -> Any:
    """The same model in float64, or in float32 where its code has that written into it."""
    for dtype in (torch.float64, torch.float32):
        auto = architectures.AUTO[family]
        network = auto.from_pretrained(folder, dtype=dtype).eval()
        ids = torch.arange(5, 17)[None]
        inputs = {"decoder_input_ids": ids} if network.config.is_encoder_decoder else {}
        try:
            with torch.inference_mode():
                network(input_ids=ids, **inputs)
                network(inputs_embeds=network.get_input_embeddings()(ids), **inputs)
        except RuntimeError:
            continue
        return network
    raise AssertionError("the plain model runs in no dtype")


def tokenizer_for(kind: str, family: str) -> Any:
    if family == "causal":
        return models.byte_level(start="<s>", end=None, mask=None)
    if "t5" in kind or kind == "switch_transformers":
        return models.sentence_piece()
    return models.byte_level(start="<s>", end="</s>", mask="<mask>")


def special_ids(tokenizer: Any, family: str) -> dict[str, int]:
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    special = {name: getattr(tokenizer, name) for name in names}
    special = {name: i for name, i in special.items() if i is not None}
    if family == "seq2seq":
        special["decoder_start_token_id"] = special.get("bos_token_id", special["pad_token_id"])
    return special
