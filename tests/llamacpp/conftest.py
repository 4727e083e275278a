"""llama.cpp's server with SmolLM2, and LiteLLM's proxy before it; `make test-llamacpp` has both."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from lmaas_tune.demo_model import SMOLLM2, model_file
from tests.support.process import free_port, server_process, wait_until_up

KEY = "sk-of-these-tests-alone-0123456789abcdef"
_PATIENCE = 180  # seconds until a server answers


@contextmanager
def _running(command: Sequence[str], url: str, log: Path) -> Iterator[str]:
    """A process that answers at a URL within ``with``."""
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False"}
    environment = {**os.environ, **quiet, "PYTHONPATH": ""}
    with server_process(command, log, grace=10, env=environment) as process:
        wait_until_up(process, f"{url}/v1/models", log, seconds=_PATIENCE, headers=signed())
        yield url


def signed() -> dict[str, str]:
    """Headers with the proxy's key."""
    return {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="session")
def python() -> Path:
    """The interpreter of the environment that has both servers."""
    found = os.environ.get("LLAMACPP_PYTHON")
    if not found:
        pytest.skip("these need a llama.cpp server: `make test-llamacpp` sets one up")
    return Path(found)


@pytest.fixture(scope="session")
def gguf() -> Path:
    """The file that is served."""
    return model_file(SMOLLM2)


@pytest.fixture(scope="session")
def llamacpp(python: Path, gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of llama.cpp's server."""
    port = free_port()
    command = [str(python), str(Path(__file__).with_name("serve.py")), str(gguf), str(port)]
    log = tmp_path_factory.mktemp("llamacpp") / "log"
    with _running(command, f"http://127.0.0.1:{port}", log) as url:
        yield url


@pytest.fixture(scope="session")
def litellm(python: Path, llamacpp: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of LiteLLM's proxy before it."""
    folder, port = tmp_path_factory.mktemp("litellm"), free_port()
    config = folder / "config.yaml"
    config.write_text(
        "model_list:\n"
        "  - model_name: smollm2\n"
        "    litellm_params:\n"
        f"      {{model: openai/smollm2, api_base: '{llamacpp}/v1', api_key: none}}\n"
        f"general_settings: {{master_key: {KEY}}}\n"
    )
    place = ["--host", "127.0.0.1", "--port", str(port)]
    command = [str(python.with_name("litellm")), "--config", str(config), *place]
    with _running(command, f"http://127.0.0.1:{port}", folder / "log") as url:
        yield url
