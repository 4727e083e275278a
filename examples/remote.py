"""One task on three backends: a model in this process, behind our service, and on vLLM.

    python examples/remote.py [--model HUB_NAME_OR_FOLDER] [--vllm URL --vllm-key-file FILE]

The program starts the service on loopback. The service draws the prompts from its embeddings, and
the client sends only z. A vLLM server is used if its URL is given (`docs/providers/vllm.md` shows
how to start one). All three end with the same losses.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lmaas_tune import Backend, Settings, Soft, Tuner, load_backend
from lmaas_tune.demo import demo_rows
from lmaas_tune.demo_model import SMOLLM2, ready_model

SETTINGS = Settings(
    prompt=Soft(intrinsic_dim=10),
    head_words=100,  # vLLM scores at most 128 tokens in a request
    optimizer_options={"population": 6},
)


@contextlib.contextmanager
def service(model: str, key_file: Path) -> Iterator[str]:
    """The URL of a service that runs until the block ends."""
    key_file.write_text("an-example-key-of-many-characters-0123456789\n")
    command = [sys.executable, "-m", "lmaas_tune", "serve", "--json", "--model", model]
    command += ["--port", "0", "--api-key-file", str(key_file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]
        process.terminate()


def tune(name: str, backend: Backend) -> list[float]:
    """The lowest training loss of each generation."""
    train = demo_rows("train")
    result = Tuner(backend, settings=SETTINGS, budget="calls=23", seed=1).fit(train[::4])
    losses = [step.loss for step in result.steps]
    spent = result.spent
    print(
        f"{name:8} {' '.join(f'{loss:.4f}' for loss in losses)}   "
        f"{spent.requests} requests, {spent.bytes_up / spent.requests:,.0f} bytes up and "
        f"{spent.bytes_down / spent.requests:,.0f} down each"
    )
    return losses


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
parser.add_argument("--model")
parser.add_argument("--vllm", metavar="URL")
parser.add_argument("--vllm-key-file", metavar="FILE")
arguments = parser.parse_args()

local = load_backend("hf")
model = arguments.model or str(ready_model(SMOLLM2, local.convert_gguf, say=print))  # type: ignore[attr-defined]
print("lowest loss of the start and of each generation:")
runs = [tune("local", local(model))]
with tempfile.TemporaryDirectory() as folder:
    key_file = Path(folder) / "key"
    with service(model, key_file) as url:
        runs.append(tune("service", load_backend("lmaas")(url, api_key_file=key_file)))
if arguments.vllm:
    vllm = load_backend("vllm")(arguments.vllm, model, api_key_file=arguments.vllm_key_file)
    runs.append(tune("vllm", vllm))

difference = max(float(np.abs(np.subtract(runs[0], run)).max()) for run in runs)
print(f"largest difference: {difference:.1g}")
if difference > 1e-3:
    sys.exit("the losses differ")
