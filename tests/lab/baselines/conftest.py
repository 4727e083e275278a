"""Tiny models of every family, as they come and taught a task."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is there: no test may reach a network

from collections.abc import Callable
from functools import cache

import pytest

pytest.importorskip("peft", reason="the extra 'reproduce' is not installed")

from lmaas_tune_adapters.hf import HFBackend

from tests.hf.conftest import folder, load, one_thread  # noqa: F401
from tests.lab.baselines import planted
from tests.support import models


@pytest.fixture(scope="session")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], HFBackend]:
    """taught(name): the tiny model of that name that knows the planted task."""

    def make(name: str) -> HFBackend:
        path = models.build(name, tmp_path_factory.mktemp("taught") / name)
        return HFBackend(planted.teach(path), device="cpu")

    return cache(make)
