"""A tiny model behind a server on loopback, for the tests of the backend `openai`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # the extra 'hf' may not be installed
    from tests.support.openai_server import TinyModel


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tiny model is saved."""
    from tests.support import models

    return models.build("llama", tmp_path_factory.mktemp("openai") / "llama")


@pytest.fixture(scope="session")
def tiny(folder: Path) -> TinyModel:
    import torch

    from tests.support.openai_server import TinyModel

    torch.set_num_threads(1)
    return TinyModel(folder)


@pytest.fixture
def serve(tiny: TinyModel) -> Iterator[Any]:
    """serve(change, **what it lacks): a server of the tiny model."""
    from tests.support.openai_server import OpenAIServer, Poor

    with ExitStack() as stack:
        yield lambda change=None, model=tiny, **poor: stack.enter_context(
            OpenAIServer(model, Poor(**poor), change)
        )
