"""A vLLM server on this machine's processor, for as long as a test session."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.process import free_port, server_process, wait_until_up

STARTS_WITHIN = 300.0  # seconds; 75 to 150 on two cores
STOPS_WITHIN = 30.0
MAX_MODEL_LEN = 256

_QUIET = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GB
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
}


@dataclass(frozen=True, kw_only=True)
class VLLMServer:
    """A running server.

    Attributes:
        url: Up to where ``/v1`` begins.
        key_file: Holds its key.
        model: Folder of the model that it serves.
        served_model: The model's name there.
    """

    url: str
    key_file: Path
    model: Path
    served_model: str


@contextlib.contextmanager
def running(python: str, model: Path, folder: Path, *options: str) -> Iterator[VLLMServer]:
    """Start a server, wait until it answers, and stop it whatever happens.

    Args:
        python: The interpreter of an environment with vLLM.
        model: Folder of a model.
        folder: Where the server's key and log are written.
        *options: More of the server's own.
    """
    key_file, log = folder / "key", folder / "log"
    key_file.write_text("a-key-of-the-tests\n")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [
        *(python, "-m", "vllm.entrypoints.launchers.api_server.entry"),
        *("--model", str(model), "--served-model-name", "tiny"),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--dtype", "float32", "--enforce-eager", "--max-model-len", str(MAX_MODEL_LEN)),
        *("--enable-prompt-embeds", "--api-key", key_file.read_text().strip()),
        *options,
    ]
    environment = os.environ | _QUIET
    with server_process(
        command, log, grace=STOPS_WITHIN, stdin=subprocess.DEVNULL, cwd=folder, env=environment
    ) as process:
        wait_until_up(process, f"{url}/health", log, seconds=STARTS_WITHIN)
        yield VLLMServer(url=url, key_file=key_file, model=model, served_model="tiny")
