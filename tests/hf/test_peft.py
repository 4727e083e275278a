"""The adapter that `HFBackend.export_peft` writes, loaded by peft itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from lmaas_tune_adapters.hf import HFBackend

from lmaas_tune import InputError, ScoreRequest, SoftPrompt, Task, Template, TunedPrompt, Verbalizer
from lmaas_tune.data import read_examples

peft = pytest.importorskip("peft")

WORDS = Verbalizer({"good": "good", "bad": "bad"})


def tuned(
    model: HFBackend, template: str = "{prompt}the film was {text} and {label}"
) -> TunedPrompt:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((4, model.capabilities.soft_prompt_width or 0))
    prompt = SoftPrompt(vectors * model.embedding_std)
    return TunedPrompt.without_head(prompt, Task(Template(template), WORDS))


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2", "opt"])
def test_peft_gives_the_logits_that_the_backend_reads(
    name: str, folder: Callable[[str], Path], load: Callable[[str], HFBackend], tmp_path: Path
) -> None:
    model, text = load(name), "slow"
    prompt = tuned(model)
    model.export_peft(prompt, tmp_path)
    base = transformers.AutoModelForCausalLM.from_pretrained(folder(name)).eval()
    adapted = peft.PeftModel.from_pretrained(base, tmp_path)
    batch = prompt.task.template.batch(read_examples([text], labelled=False))
    (reply,) = model.score([ScoreRequest(prompt.prompt, batch, ("good", "bad"))])
    ids = model.tokenize(f"the film was {text} and")
    with torch.inference_mode():
        logits = adapted(input_ids=torch.tensor([ids])).logits[0, -1]
    columns = [model.tokenize(" good"), model.tokenize(" bad")]
    first = torch.log_softmax(logits, dim=-1)[[column[0] for column in columns]].numpy()
    assert all(len(column) == 1 for column in columns)
    assert np.abs(reply.logprobs[0] - first).max() < 1e-5


def test_the_adapter_names_its_base_model(
    folder: Callable[[str], Path], load: Callable[[str], HFBackend], tmp_path: Path
) -> None:
    load("llama").export_peft(tuned(load("llama")), tmp_path)
    config = peft.PromptTuningConfig.from_pretrained(tmp_path)
    assert config.base_model_name_or_path == str(folder("llama"))
    assert config.task_type == "CAUSAL_LM"


def test_a_prompt_behind_a_text_has_no_counterpart_in_peft(
    load: Callable[[str], HFBackend], tmp_path: Path
) -> None:
    model = load("gpt2")
    with pytest.raises(InputError, match=r"does not begin with \{prompt\}"):
        model.export_peft(tuned(model, "{text} {prompt} {label}"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_masked_model_has_no_counterpart_in_peft(
    load: Callable[[str], HFBackend], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="not one"):
        load("bert").export_peft(tuned(load("bert")), tmp_path)
