"""Tiny models, saved once a session and loaded by the backend's own code."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is there: no test may reach a network

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the extra 'hf' is not installed")
pytest.importorskip("transformers", reason="the extra 'hf' is not installed")

from lmaas_tune_adapters.hf import HFBackend  # noqa: E402

from tests.support import models  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices gain nothing from threads and lose much where cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """folder(name): where the tiny model of that name is saved."""
    return cache(lambda name: models.build(name, tmp_path_factory.mktemp("models") / name))


@pytest.fixture(scope="session")
def load(folder: Callable[[str], Path]) -> Callable[[str], HFBackend]:
    """load(name): the tiny model of that name, loaded."""
    return cache(lambda name: HFBackend(folder(name), device="cpu"))
