"""The public conformance suite on tiny models of each family, behind our own service."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is there: no test may reach a network

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")
pytest.importorskip("torch", reason="the extra 'hf' is not installed")
pytest.importorskip("transformers", reason="the extra 'hf' is not installed")

import torch
from lmaas_tune_adapters.hf import HFBackend
from lmaas_tune_adapters.lmaas import LMaaSBackend

from lmaas_tune import Budget, Settings, Text, Tuner
from lmaas_tune.backend import ScoreRequest
from lmaas_tune.prompts import PointPrompt, Prompt, SoftPrompt, Subspace, TextPrompt
from lmaas_tune.service.server_limits import ServerLimits
from lmaas_tune.task import Batch, Slot
from lmaas_tune.testing import BackendConformance
from tests.support import models
from tests.support.service import ALICE, running

FAMILIES = ("llama", "roberta", "t5")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices gain nothing from threads and lose much where cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Pair:
    """A tiny model here, the same behind a service, and another behind another."""

    local: HFBackend
    remote: LMaaSBackend
    other: LMaaSBackend


@pytest.fixture(scope="module", params=FAMILIES)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp(request.param)
    key = folder / "alice.key"
    key.write_text(ALICE)
    with ExitStack() as stack:
        backends = []
        for seed in (0, 1):
            place = folder / str(seed)
            place.mkdir()
            local = HFBackend(models.build(request.param, place / "model", seed=seed), device="cpu")
            site = stack.enter_context(running(local, folder=place))
            backends.append((local, LMaaSBackend(site.url, api_key_file=key)))
        (local, remote), (_, other) = backends
        yield Pair(local, remote, other)


class TestConformance(BackendConformance):
    """The tolerance of the suite; most checks are met to the last bit."""

    @pytest.fixture
    def backend(self, pair: Pair) -> LMaaSBackend:
        return pair.remote

    @pytest.fixture
    def differing(self, pair: Pair) -> list[LMaaSBackend]:
        return [pair.other]


def prompts(local: HFBackend) -> list[Prompt]:
    """One of every kind that the model takes."""
    rng = np.random.default_rng(0)
    width = local.capabilities.soft_prompt_width or 0
    found: list[Prompt] = [TextPrompt("overall")]
    for insertion in sorted(local.capabilities.insertions):
        anchor = (5, 6, 7) if insertion == "add" else ()
        found.append(SoftPrompt(rng.standard_normal((3, width)) / 10, insertion, anchor))
        subspace = Subspace(
            start="words",
            words="overall the movie is",
            insertion=insertion,
            dim=8,
            projection="vocabulary",
            alpha=1.0,
            seed=1,
        )
        found.append(PointPrompt(subspace, rng.standard_normal(8)))
    return found


def test_answers_are_the_models_own(pair: Pair) -> None:
    rows = Batch(tuple((Slot.PROMPT, f" a film of {n} hours, it was ", Slot.LABEL) for n in "23"))
    for prompt in prompts(pair.local):
        there, here = (
            ScoreRequest(wanted, rows, ("great", "bad"))
            for wanted in (prompt, prompt.for_model(pair.local))
        )
        (remote,), (local,) = pair.remote.score([there]), pair.local.score([here])
        assert np.abs(remote.logprobs - local.logprobs).max() < 1e-5, prompt
        assert remote.usage.tokens == local.usage.tokens
        told, own = pair.remote.inspect(there), pair.local.inspect(here)
        assert (told.notes, told.usage.tokens) == (own.notes, own.usage.tokens)


def test_a_run_with_a_head_of_words_is_that_of_the_model_itself(pair: Pair) -> None:
    words = pair.local.one_token_words()
    assert list(pair.remote.one_token_words()) == list(words)
    assert pair.remote.capabilities.words_per_request == ServerLimits().candidates
    train = [(f"a {word} film of {n} hours", word) for word in ("great", "bad") for n in range(8)]
    runs = [
        Tuner(
            backend,
            settings=Settings(
                prompt=Text(prompt_init=("it was", "so it is", "a")),
                head="words",
                head_words=40,
                budget=Budget(calls=23),
            ),
            optimizer="random",
            template="{text} {prompt} {label}",
            callbacks=(),
        )
        for backend in (pair.local, pair.remote)
    ]
    here, there = (run.fit(train) for run in runs)
    assert len(here.prompt.words) == min(40, len(words))
    losses = [[e.loss for step in run.steps for e in step.evaluations] for run in (here, there)]
    np.testing.assert_allclose(losses[1], losses[0], atol=1e-5)
    np.testing.assert_allclose(there.predict_proba(train), here.predict_proba(train), atol=1e-4)
