"""One vLLM server with a tiny model for all tests here; `make test-vllm` says where vLLM is."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is there: no test may reach a network

from collections.abc import Iterator
from pathlib import Path

import pytest

from .server import VLLMServer, running

torch = pytest.importorskip("torch", reason="the extra 'vllm' is not installed")
transformers = pytest.importorskip("transformers", reason="the extra 'vllm' is not installed")

from tests.support import models  # noqa: E402

CHAT = "{% for message in messages %}{{ message.content }}\n{% endfor %}"


def tiny_llama(folder: Path, *, hidden_size: int = 128, seed: int = 0) -> Path:
    """Random weights, a chat template, and heads as wide as vLLM's processor kernels need."""
    tokenizer = models.byte_level(start="<s>", end=None, mask=None)
    tokenizer.chat_template = CHAT
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        num_hidden_layers=2,
        num_attention_heads=hidden_size // 32,
        num_key_value_heads=2,
        intermediate_size=192,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = transformers.LlamaForCausalLM(config)
    with torch.no_grad():  # fresh models say nearly the same everywhere
        for weight in network.parameters():
            if weight.dim() > 1:
                weight.mul_(4)
    return models.save(folder, network, tokenizer)


@pytest.fixture(scope="session")
def vllm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMServer]:
    """A server with `tiny_llama`."""
    python = os.environ.get("VLLM_PYTHON")
    if not python:
        pytest.skip("these need a vLLM server: `make test-vllm` sets one up")
    model = tiny_llama(tmp_path_factory.mktemp("vllm") / "model")
    torch.set_num_threads(1)
    with running(python, model, tmp_path_factory.mktemp("server")) as server:
        yield server
