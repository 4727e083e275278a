"""Passes side by side: the same scores, in order, and nothing of torch left changed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from lmaas_tune_adapters.hf import HFBackend
from lmaas_tune_adapters.hf.cpu import replicas
from lmaas_tune_adapters.hf.cpu.replicas import Replicas, replicate
from lmaas_tune_adapters.hf.forward_pass import CausalForwardPass
from lmaas_tune_adapters.hf.masked import MaskedForwardPass

from lmaas_tune.backend import ScoreRequest
from lmaas_tune.prompts import DeepPrompt, Prompt, TextPrompt
from tests.support import models

from .test_exact import CANDIDATES, LABEL_LAST, batch_of, check, soft

CORES = 4
HERE = torch.device("cpu")


@pytest.fixture(autouse=True)
def cores() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(CORES)
    yield
    assert torch.get_num_threads() == CORES
    torch.set_num_threads(before)


class Worker:
    """Notes who uses it, and waits until others are at work too."""

    def __init__(self, together: threading.Barrier) -> None:
        self.together = together
        self.users: set[int] = set()
        self.threads: set[int] = set()

    def work(self, item: int) -> int:
        self.users.add(threading.get_ident())
        self.threads.add(torch.get_num_threads())
        assert torch.is_inference_mode_enabled()
        if item < self.together.parties:
            self.together.wait(20)
        return item * item


@pytest.mark.parametrize(("most", "count", "threads"), [(2, 2, 2), (3, 3, 1), (100, CORES, 1)])
def test_replicas_work_at_the_same_time_and_answer_in_order(
    most: int, count: int, threads: int
) -> None:
    together = threading.Barrier(count)
    workers = [Worker(together) for _ in range(count)]
    others = iter(workers[1:])
    several = Replicas(workers[0], lambda: next(others), device=HERE)
    for _ in range(2):  # the workers stay
        assert several.map(Worker.work, range(9), most=most) == [n * n for n in range(9)]
    assert all(worker.threads == {threads} for worker in workers)
    assert all(len(worker.users) <= 2 for worker in workers)  # a thread of each map


@pytest.mark.parametrize(("most", "items"), [(1, 9), (0, 9), (9, 1), (9, 0)])
def test_where_there_is_one_replica_nothing_changes(most: int, items: int) -> None:
    def fail() -> int:
        raise AssertionError("nobody else is needed")

    def work(worker: int, item: int) -> tuple[int, int, int]:
        return worker, threading.get_ident(), torch.get_num_threads()

    here = (7, threading.get_ident(), CORES)
    with torch.inference_mode():
        assert Replicas(7, fail, device=HERE).map(work, range(items), most=most) == [here] * items


@pytest.mark.parametrize("where", [0, 1])
def test_after_a_failure_nobody_begins_another(where: int) -> None:
    together, begun = threading.Barrier(2), []

    def work(worker: int, item: int) -> None:
        begun.append(item)
        if item < 2:
            together.wait(20)
        if worker == where:
            raise ValueError("no")
        time.sleep(0.001)  # lets the other in

    with pytest.raises(ValueError, match="no"):
        Replicas(0, lambda: 1, device=HERE).map(work, range(1000), most=2)
    assert len(begun) < 1000


def test_replicas_are_for_much_work_on_a_processor_without_gradient() -> None:
    def count(tokens: int, device: torch.device = HERE) -> int:
        return Replicas(0, lambda: 1, device=device).count(tokens)

    with torch.inference_mode():
        assert [count(n) for n in (0, 256, 511, 512, 1023, 10**6)] == [1, 1, 1, 2, 3, CORES]
        assert count(10**6, torch.device("cuda")) == 1
    assert count(10**6) == 1


@pytest.mark.parametrize("name", [*models.CAUSAL, *models.MASKED])
def test_scores_side_by_side_are_a_plain_forward_s(
    name: str, load: Callable[[str], HFBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replicas, "_MIN_TOKENS", 1)
    users: set[int] = set()

    def noting(read: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def noted(*arguments: object) -> torch.Tensor:
            users.add(threading.get_ident())
            return read(*arguments)

        return noted

    for reads, method in ((CausalForwardPass, "read"), (MaskedForwardPass, "read")):
        monkeypatch.setattr(reads, method, noting(getattr(reads, method)))
    model = load(name)
    prompts = [*soft(model, 3), *soft(model, 1, length=5), TextPrompt("overall , the")]
    for template in LABEL_LAST[:3]:
        check(model, [ScoreRequest(prompt, batch_of(template), CANDIDATES) for prompt in prompts])
    assert len(users) > 1


@pytest.mark.parametrize("name", ["llama", "roberta"])
def test_prompts_of_every_kind_go_side_by_side(
    name: str, load: Callable[[str], HFBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(name)
    layers = model.capabilities.deep_layers
    assert layers is not None
    prompts: list[Prompt] = [
        DeepPrompt(
            first, (1 + n) * np.stack([prompt.vectors for prompt in soft(model, layers - 1)])
        )
        for n, first in enumerate(soft(model, 6))
    ]
    for insertion in sorted(model.capabilities.insertions):
        prompts += soft(model, 4, insertion=insertion)
    for template in LABEL_LAST[: 1 if "prepend" in model.capabilities.insertions else 3]:
        requests = [ScoreRequest(prompt, batch_of(template), CANDIDATES) for prompt in prompts]
        monkeypatch.setattr(replicas, "_MIN_TOKENS", 10**9)
        alone = model.score(requests)
        monkeypatch.setattr(replicas, "_MIN_TOKENS", 1)
        for _ in range(3):
            for one, other in zip(alone, model.score(requests), strict=True):
                np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5, rtol=0)


def test_a_replica_has_its_own_hooks_and_no_weights_of_its_own(
    load: Callable[[str], HFBackend],
) -> None:
    network = load("llama")._model
    other, found = replicate(network)
    pairs = list(zip(network.modules(), other.modules(), strict=True))
    assert all(type(one) is type(another) and one is not another for one, another in pairs)
    tensors = [
        (value, vars(another)[name])
        for one, another in pairs
        for name, value in vars(one).items()
        if isinstance(value, torch.Tensor)
    ]
    tensors += list(zip(network.parameters(), other.parameters(), strict=True))
    tensors += list(zip(network.buffers(), other.buffers(), strict=True))
    assert len(tensors) > 10
    assert all(found(one) is another for one, another in pairs)
    assert found(None) is None
    assert all(one is another for one, another in tensors)
    called = []
    hook = network.get_decoder().register_forward_hook(lambda *_: called.append(1))
    with torch.inference_mode():
        other(torch.tensor([[3, 5]]))
    hook.remove()
    assert not called
