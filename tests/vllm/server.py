"""A vLLM server on this machine's processor, for as long as a test session."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [
        *(python, "-m", "vllm.entrypoints.launchers.api_server.entry"),
        *("--model", str(model), "--served-model-name", "tiny"),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--dtype", "float32", "--enforce-eager", "--max-model-len", str(MAX_MODEL_LEN)),
        *("--enable-prompt-embeds", "--api-key", key_file.read_text().strip()),
        *options,
    ]
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=folder,
            env=os.environ | _QUIET,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
        try:
            _wait_until_up(process, url, log)
            yield VLLMServer(url=url, key_file=key_file, model=model, served_model="tiny")
        finally:
            _stop(process)


def _end_with_parent() -> None:
    """Linux ends the server, should the tests be killed before they can."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _wait_until_up(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + STARTS_WITHIN
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(URLError, OSError), urlopen(f"{url}/health", timeout=5):
            return
        time.sleep(0.5)  # the server's start is what is waited for, and it tells nobody
    raise RuntimeError(f"vLLM did not start; the end of its log:\n{log.read_text()[-4000:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOPS_WITHIN)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # its group has its own number
    process.wait()
