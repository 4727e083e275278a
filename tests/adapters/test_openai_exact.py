"""The backend `openai` where a few likeliest tokens do not name the label words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra 'hf' is not installed")
pytest.importorskip("transformers", reason="the extra 'hf' is not installed")

from hf import models  # noqa: E402
from lmaas_tune_adapters.hf import HFBackend  # noqa: E402

from .openai_server import OpenAIServer, Poor, TinyModel  # noqa: E402
from .test_openai import ROWS, Serve, backend, request  # noqa: E402

WORDS = ("good", "great", "wonderful", "technologically", "very bad")
NO_ECHO: dict[str, Any] = {"ignores": ("echo",)}
LLAMA_CPP: dict[str, Any] = {**NO_ECHO, "bias": "chosen by", "keys": True, "entries": True}
HOSTED: dict[str, Any] = {**NO_ECHO, "bias": "chosen by"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.build("llama", tmp_path_factory.mktemp("exact") / "llama")


@pytest.fixture(scope="module")
def tiny(folder: Path) -> TinyModel:
    torch.set_num_threads(1)
    return TinyModel(folder)


@pytest.fixture
def serve(tiny: TinyModel) -> Iterator[Serve]:
    with ExitStack() as stack:
        yield lambda change=None, model=tiny, **poor: stack.enter_context(
            OpenAIServer(model, Poor(**poor), change)
        )


@pytest.fixture(scope="module")
def own(folder: Path) -> HFBackend:
    return HFBackend(folder, device="cpu")


def test_print(serve: Serve, own: HFBackend) -> None:
    for tail in (" It was ", ":\n"):
        asked = request(*ROWS, words=WORDS, tail=tail)
        (truth,) = own.score([asked])
        for poor in (
            {**LLAMA_CPP},
            {**LLAMA_CPP, "tokenizer": True},
            {**HOSTED, "tokenizer": True},
        ):
            scored = backend(serve(**poor))
            (reply,) = scored.score([asked])
            print(tail, poor, scored.identity, reply.bounds, reply.usage.requests)
            print(np.round(reply.logprobs - truth.logprobs, 3))
    scored = backend(serve(**{**NO_ECHO, "bias": "told", "tokenizer": True}))
    (reply,) = scored.score([asked])
    print(scored.identity, reply.bounds)
    print(reply.logprobs - truth.logprobs)
