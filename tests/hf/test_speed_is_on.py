"""What makes the backend fast is on for the model families that people use.

Losing it changes no score, so no other test would see it: a release of transformers or torch that
changes a part that we stand on fails here.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import transformers
from lmaas_tune_adapters.hf import HFBackend

from lmaas_tune.cli import main
from tests.support import models

_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_LLAMA = {**_SMALL, "intermediate_size": 48, "num_key_value_heads": 2}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": {**_LLAMA, "head_dim": 8},
    "gemma": {**_LLAMA, "head_dim": 8},
    "gemma2": {**_LLAMA, "head_dim": 8, "sliding_window": 64},
    "gpt2": _GPT2,
    "gpt_neox": {**_SMALL, "intermediate_size": 48},
    "opt": {**_SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "phi": _LLAMA,
    "mistral": {**_LLAMA, "sliding_window": 64},
    "olmo": _LLAMA,
    "granite": _LLAMA,
    "smollm3": _LLAMA,
    "arcee": _LLAMA,
    "seed_oss": {**_LLAMA, "head_dim": 8},
    "falcon": _SMALL,
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
}
KERNELS = {
    "llama": {"PackedLinear", "GatedUnit", "RotaryAttention", "RootNorm"},
    "qwen2": {"PackedLinear", "GatedUnit", "RotaryAttention", "RootNorm"},
    "gpt2": {"PackedLinear"},
}


def build(name: str, folder: Path) -> Path:
    """A tiny model of the family, saved."""
    tokenizer = models.byte_level(start=None, end=None, mask=None)
    config = transformers.CONFIG_MAPPING[name](
        vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=2, pad_token_id=1, **FAMILIES[name]
    )
    return models.save(folder, transformers.AutoModelForCausalLM.from_config(config), tokenizer)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_causal_model_shares_prefixes_and_computes_its_last_layer_in_part(
    name: str, tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        if name != "bloom":
            warnings.simplefilter("error")
        model = HFBackend(build(name, tmp_path / name), device="cpu")
    # ALiBi knows no positions but those of a padding mask
    off = {"joint passes": "it takes no positions"} if name == "bloom" else {}
    speedups = model.capabilities.speedups
    assert {one.name: one.reason for one in speedups if one.reason} == off
    assert {one.name for one in speedups} >= {"shared prefixes", "partial last layer"}


@pytest.mark.parametrize("name", KERNELS)
def test_modules_of_a_model_on_a_processor_are_the_fast_ones(name: str, tmp_path: Path) -> None:
    model = HFBackend(build(name, tmp_path / name), device="cpu")
    assert {type(module).__name__ for module in model._model.modules()} >= KERNELS[name]


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_a_masked_model_computes_its_last_layer_at_the_masks_alone(
    name: str, load: Any, recwarn: pytest.WarningsRecorder
) -> None:
    speedups = load(name).capabilities.speedups
    assert {one.name: one.reason for one in speedups} == {
        "processor kernels": "",
        "partial last layer": "",
        "parallel passes": "",
    }


def test_doctor_shows_what_is_on_and_what_is_off(
    folder: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    doctor = ["doctor", "--backend", "hf", "--model", str(folder("llama"))]
    assert main(doctor) == 0
    assert "speedup      shared prefixes is on" in capsys.readouterr().out
    assert main([*doctor, "--backend-options", "speedups=false", "--json"]) == 0
    speedups = json.loads(capsys.readouterr().out)["probe"]["capabilities"]["speedups"]
    assert speedups[0] == {
        "name": "processor kernels",
        "reason": "speedups=False",
        "cost": "the model's modules are the stock ones, which are slower on a processor",
    }
