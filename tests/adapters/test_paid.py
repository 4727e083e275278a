"""What a provider was paid is booked, by its own count, whatever its answers are worth."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from lmaas_tune_adapters.openai import OpenAIBackend

from lmaas_tune import Budget, Client, Pace, Price, Settings, Tuner, TuneResult
from lmaas_tune.backend import Backend, ScoreReply, ScoreRequest
from lmaas_tune.calls.retry import Retry
from lmaas_tune.testing.toy import ToyBackend
from tests.support.faulty_proxy import FaultyProxy
from tests.support.openai_server import OpenAIServer, speaker
from tests.support.small_models import changed

LONG, SHORT = " internationalisationalism", " a b c d e f g h i j k l m n o p"
TRAIN = [
    (word + SHORT * (n % 2) + LONG * (n % 3), word) for word in ("good", "bad") for n in range(8)
]
"""How long a text is says little about how many tokens it has."""
PRICE = Price(input=1.0, output=200.0)
RETRY = Retry(attempts=100, first_wait=0.001, longest_wait=0.01)
UNUSABLE = ("truncated", "wrong body", "a label missing", "NaN put in", "reset in its middle")
"""Faults of answers that the provider gave whole."""


@dataclass
class Count:
    """What a provider answered, as it counts itself."""

    rows: int = 0
    tokens: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def money(self) -> float:
        return (PRICE.input * self.tokens + PRICE.output * self.rows) / 1e6

    def add(self, rows: int, tokens: int) -> None:
        with self._lock:
            self.rows += rows
            self.tokens += tokens


Provider = tuple[Backend, FaultyProxy, Count]


def openai_provider(stack: ExitStack, tmp_path: Path) -> Provider:
    count, chance = Count(), random.Random(0)

    def change(path: str, body: dict[str, Any], reply: dict[str, Any]) -> dict[str, Any]:
        count.add(len(reply["choices"]), reply["usage"]["prompt_tokens"])
        bad = proxy.share > 0 and chance.random() < 0.1
        return {**reply, "choices": []} if bad else reply  # and its cost is told

    server = stack.enter_context(OpenAIServer(speaker(lambda _: "good"), change=change))
    proxy = stack.enter_context(FaultyProxy(server.url.removesuffix("/v1"), share=0.0))
    return OpenAIBackend("tiny", url=proxy.url, scores="text"), proxy, count


def lmaas_provider(stack: ExitStack, tmp_path: Path) -> Provider:
    pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")
    from lmaas_tune_adapters.lmaas import LMaaSBackend

    from tests.support.service import ALICE, running

    count = Count()

    class Counting(ToyBackend):
        def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
            replies = super().score(requests)
            for reply in replies:
                count.add(reply.usage.sequences, reply.usage.tokens)
            return replies

    key = tmp_path / "alice.key"
    key.write_text(ALICE)
    site = stack.enter_context(running(Counting(), folder=tmp_path))
    proxy = stack.enter_context(FaultyProxy(site.url, share=0.0))
    return LMaaSBackend(proxy.url, api_key_file=key), proxy, count


def vllm_provider(stack: ExitStack, tmp_path: Path) -> Provider:
    pytest.importorskip("torch", reason="the extra 'vllm' is not installed")
    from lmaas_tune_adapters.vllm import VLLMBackend

    from tests.support import models
    from tests.support.vllm_server import StandIn

    count = Count()

    class Counting(StandIn):
        def _completions(self, fields: dict[str, Any]) -> Any:
            reply = super()._completions(fields)
            count.add(len(reply["choices"]), reply["usage"]["prompt_tokens"])
            return reply

    server = stack.enter_context(Counting(models.build("llama", tmp_path / "llama")))
    proxy = stack.enter_context(FaultyProxy(server.url, share=0.0))
    return VLLMBackend(proxy.url, server.folder, rows_per_call=4), proxy, count


def fit(backend: Backend, budget: Budget) -> TuneResult:
    """A run with 16 workers."""
    prompt = "soft" if backend.capabilities.soft_prompt_width else "text"
    tuner = Tuner(
        Client(backend, pace=Pace(workers=16), price=PRICE, retry=RETRY),
        "cma",
        settings=changed(
            Settings(),
            prompt=prompt,
            prompt_init="so very",
            optimizer_options={"population": 5},
            budget=budget,
        ),
        template="{text} {prompt} {label}",
        callbacks=(),
        seed=3,
    )
    return tuner.fit(TRAIN)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("limit", ["sequences=500", "tokens=8000", "money=0.1"])
@pytest.mark.parametrize("made", [lmaas_provider, openai_provider, vllm_provider])
def test_no_budget_is_passed_though_a_third_of_the_answers_cannot_be_used(
    made: Callable[[ExitStack, Path], Provider],
    limit: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    budget = Budget.parse(limit)
    with ExitStack() as stack:
        backend, proxy, count = made(stack, tmp_path)
        proxy.share, proxy.kinds = 0.3, UNUSABLE
        count.rows = count.tokens = 0
        spent = fit(backend, budget).spent
    paid = {"sequences": count.rows, "tokens": count.tokens, "money": count.money}
    booked = {name: getattr(spent, name) for name in paid}
    with capsys.disabled():
        print(f"\n{made.__name__} {limit}: paid {paid}, booked {booked}")
    assert sum(proxy.met.values()) > 5
    for name, most in budget.limits.items():
        assert most / 4 < paid[name] <= booked[name] * (1 + 1e-9)
        assert paid[name] <= most
    assert all(paid[name] <= booked[name] * (1 + 1e-9) for name in paid)
