"""The public conformance suite on a tiny model of each family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from lmaas_tune_adapters.hf import HFBackend

from lmaas_tune.testing import BackendConformance
from tests.support import models


class _Family(BackendConformance):
    name: str
    deviations: dict[str, str] = {}  # noqa: RUF012

    @pytest.fixture
    def backend(self, load: Callable[[str], HFBackend]) -> HFBackend:
        return load(self.name)

    @pytest.fixture
    def differing(
        self, folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
    ) -> list[HFBackend]:
        other = models.build(self.name, tmp_path_factory.mktemp("other") / self.name, seed=1)
        return [
            HFBackend(folder(self.name), device="cpu", dtype="bfloat16"),
            HFBackend(other, device="cpu"),
        ]


class TestLlama(_Family):
    name = "llama"


class TestGPT2(_Family):
    name = "gpt2"


class TestOPT(_Family):
    name = "opt"


class TestRoberta(_Family):
    name = "roberta"


class TestBert(_Family):
    name = "bert"


class TestT5(_Family):
    name = "t5"


class TestBart(_Family):
    name = "bart"
