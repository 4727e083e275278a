"""A prompt of peft, served by a real vLLM server: `make test-vllm`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from lmaas_tune_adapters.hf import HFBackend
from lmaas_tune_adapters.vllm import VLLMBackend

from lmaas_tune import PeftPrompt, Settings, Soft, TunedPrompt, Tuner

from .server import VLLMServer

peft = pytest.importorskip("peft")

TEMPLATE, LABELS = "{prompt}the film was {text} and {label}", {"0": "bad", "1": "good"}
TEXTS = ["slow", "told well", "so dull that it was terrible"]


@pytest.fixture(scope="module")
def adapter(vllm_server: VLLMServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random prompt for the served model, saved by peft."""
    folder = tmp_path_factory.mktemp("adapter")
    network = transformers.AutoModelForCausalLM.from_pretrained(vllm_server.model)
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=6)
    torch.manual_seed(0)
    peft.get_peft_model(network, config).save_pretrained(folder)
    return folder


def opened(server: VLLMServer) -> VLLMBackend:
    return VLLMBackend(server.url, server.model, api_key_file=server.key_file)


def test_vllm_scores_a_prompt_of_peft_as_peft_and_the_local_backend_do(
    vllm_server: VLLMServer, adapter: Path
) -> None:
    tuned = TunedPrompt.from_peft(adapter, template=TEMPLATE, labels=LABELS)
    served = tuned.scores(opened(vllm_server), TEXTS)
    local = tuned.scores(HFBackend(vllm_server.model, device="cpu"), TEXTS)
    np.testing.assert_allclose(served, local, atol=1e-4, rtol=0)
    base: Any = transformers.AutoModelForCausalLM.from_pretrained(vllm_server.model).eval()
    adapted = peft.PeftModel.from_pretrained(base, adapter)
    tokenizer = transformers.AutoTokenizer.from_pretrained(vllm_server.model)
    columns = [
        tokenizer(f" {w}", add_special_tokens=False)["input_ids"][0] for w in ("bad", "good")
    ]
    for text, found in zip(TEXTS, served, strict=True):
        ids = tokenizer(f"the film was {text} and", return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            own = adapted(input_ids=ids).logits[0, -1].log_softmax(-1)[columns].numpy()
        np.testing.assert_allclose(found, own, atol=1e-4, rtol=0)


def test_the_commands_of_the_page_work_without_torch(
    vllm_server: VLLMServer, adapter: Path
) -> None:
    code = "import sys; sys.modules['torch'] = None; from lmaas_tune.cli import main; main()"
    command = ["predict", "--backend", "vllm", "--url", vllm_server.url]
    command += ["--model", str(vllm_server.model), "--api-key-file", str(vllm_server.key_file)]
    command += ["--prompt", str(adapter), "--template", TEMPLATE, "--labels", json.dumps(LABELS)]
    done = subprocess.run(
        [sys.executable, "-c", code, *command, "--text", TEXTS[0], "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)["predictions"][0]["probabilities"]
    tuned = TunedPrompt.from_peft(adapter, template=TEMPLATE, labels=LABELS)
    (expected,) = tuned.predict_proba(HFBackend(vllm_server.model, device="cpu"), TEXTS[:1])
    assert [found["0"], found["1"]] == pytest.approx(expected, abs=1e-4)


def test_a_search_on_vllm_starts_from_a_prompt_of_peft(
    vllm_server: VLLMServer, adapter: Path, tmp_path: Path
) -> None:
    remote = opened(vllm_server)
    result = Tuner(
        remote,
        settings=Settings(prompt=Soft(intrinsic_dim=4), head="none"),
        template=TEMPLATE,
        labels=LABELS,
        start=PeftPrompt.load(adapter),
        budget="calls=10",
        callbacks=(),
        on_note=lambda note: None,
    ).fit([(text, label) for text in TEXTS for label in LABELS])
    local = HFBackend(vllm_server.model, device="cpu")
    np.testing.assert_allclose(
        result.start.scores(remote, TEXTS), result.start.scores(local, TEXTS), atol=1e-4, rtol=0
    )
    local.export_peft(result.prompt, tmp_path)
    assert PeftPrompt.load(tmp_path).prompt.digest == result.prompt.prompt.digest
