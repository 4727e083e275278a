"""Adapters of peft: ours loaded by peft itself, and those of peft loaded here."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from lmaas_tune_adapters.hf import HFBackend

from lmaas_tune import (
    InputError,
    PeftPrompt,
    ScoreRequest,
    Settings,
    Soft,
    SoftPrompt,
    Task,
    Template,
    TunedPrompt,
    Tuner,
    Verbalizer,
)
from lmaas_tune.cli import main
from lmaas_tune.data import read_examples
from lmaas_tune.peft import CONVERT
from lmaas_tune.prompts import FloatArray

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


# The other way


TEMPLATE, LABELS = "{prompt}the film was {text} and {label}", {"good": "good", "bad": "bad"}
TEXTS = ["slow", "told well", "so dull that it was terrible"]


def saved_by_peft(base: Path, folder: Path, config: Any = None, **options: Any) -> Any:
    """The model of a folder under a random adapter, which is saved."""
    torch.manual_seed(0)
    network = transformers.AutoModelForCausalLM.from_pretrained(base)
    config = config or peft.PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=4,
        token_dim=network.get_input_embeddings().weight.shape[1],  # peft guesses wrong for OPT
    )
    adapted = peft.get_peft_model(network, config).eval()
    adapted.save_pretrained(folder, **options)
    return adapted


def peft_s_own(adapted: Any, base: Path) -> FloatArray:
    """(texts, labels) log-probabilities by the forward of peft, for ids as its tokenizer gives."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    columns = [tokenizer(f" {w}", add_special_tokens=False)["input_ids"][0] for w in LABELS]
    found = []
    for text in TEXTS:
        ids = tokenizer(f"the film was {text} and", return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            found.append(adapted(input_ids=ids).logits[0, -1].log_softmax(-1)[columns].numpy())
    return np.stack(found)


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2", "opt"])
def test_a_prompt_of_peft_scores_as_in_peft(
    name: str, folder: Callable[[str], Path], load: Callable[[str], HFBackend], tmp_path: Path
) -> None:
    expected = peft_s_own(saved_by_peft(folder(name), tmp_path), folder(name))
    tuned = TunedPrompt.from_peft(tmp_path, template=TEMPLATE, labels=LABELS)
    np.testing.assert_allclose(tuned.scores(load(name), TEXTS), expected, atol=1e-5, rtol=0)


def test_a_search_starts_from_a_prompt_of_peft(
    folder: Callable[[str], Path], load: Callable[[str], HFBackend], tmp_path: Path
) -> None:
    own = peft_s_own(saved_by_peft(folder("llama"), tmp_path), folder("llama"))
    result = Tuner(
        load("llama"),
        settings=Settings(prompt=Soft(intrinsic_dim=4), head="none"),
        template=TEMPLATE,
        labels=LABELS,
        start=PeftPrompt.load(tmp_path),
        budget="calls=30",
        callbacks=(),
        on_note=lambda note: None,
    ).fit([(text, label) for text in TEXTS for label in LABELS])
    start = result.start.scores(load("llama"), TEXTS)
    np.testing.assert_allclose(start, own, atol=1e-5, rtol=0)
    assert result.prompt.prompt.digest != result.start.prompt.digest


def test_what_was_exported_comes_back_as_it_was(
    load: Callable[[str], HFBackend], tmp_path: Path
) -> None:
    model = load("llama")
    assert model.tokenize("a") != (row := model._tokenizer("a")["input_ids"]), row  # it has a start
    first = tuned(model)
    before = SoftPrompt(first.prompt.to_files()[1]["prompt_embeddings"], "prepend")
    for prompt in (first.prompt, before):
        model.export_peft(TunedPrompt.without_head(prompt, first.task), tmp_path)
        assert PeftPrompt.load(tmp_path).prompt.digest == prompt.digest


def test_an_exported_prompt_before_the_start_token_has_peft_s_logits(
    folder: Callable[[str], Path], load: Callable[[str], HFBackend], tmp_path: Path
) -> None:
    model = load("llama")
    vectors = tuned(model).prompt.to_files()[1]["prompt_embeddings"]
    ours = TunedPrompt.without_head(SoftPrompt(vectors, "prepend"), tuned(model).task)
    model.export_peft(ours, tmp_path)
    base = transformers.AutoModelForCausalLM.from_pretrained(folder("llama")).eval()
    expected = peft_s_own(peft.PeftModel.from_pretrained(base, tmp_path), folder("llama"))
    np.testing.assert_allclose(ours.scores(model, TEXTS), expected, atol=1e-5, rtol=0)


def test_vectors_in_half_precision_are_read(folder: Callable[[str], Path], tmp_path: Path) -> None:
    adapted = saved_by_peft(folder("llama"), tmp_path)
    for dtype in (torch.bfloat16, torch.float16):
        adapted.to(dtype).save_pretrained(tmp_path)
        expected = adapted.get_prompt_embedding_to_save("default").float().numpy()
        np.testing.assert_array_equal(PeftPrompt.load(tmp_path).prompt.vectors, expected)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (peft.LoraConfig(task_type="CAUSAL_LM"), "LORA"),
        (peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2), "PREFIX_TUNING"),
        (
            peft.PromptEncoderConfig(
                task_type="CAUSAL_LM", num_virtual_tokens=2, encoder_hidden_size=4
            ),
            "P_TUNING",
        ),
    ],
)
def test_other_kinds_of_adapters_are_refused_by_name(
    config: Any, said: str, folder: Callable[[str], Path], tmp_path: Path
) -> None:
    saved_by_peft(folder("llama"), tmp_path, config)
    with pytest.raises(InputError, match=rf"of type {said} is .* PROMPT_TUNING can be loaded"):
        PeftPrompt.load(tmp_path)


def test_a_pickle_is_refused_with_a_command_that_converts_it(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    adapted = saved_by_peft(folder("llama"), tmp_path)
    expected = PeftPrompt.load(tmp_path).prompt.digest
    (tmp_path / "adapter_model.safetensors").unlink()
    torch.save(peft.get_peft_model_state_dict(adapted), tmp_path / "adapter_model.bin")
    with pytest.raises(InputError, match="a pickle, which may run code") as caught:
        PeftPrompt.load(tmp_path)
    command = str(caught.value).partition("in its folder: ")[2]
    assert command == CONVERT
    _, *arguments = shlex.split(command)
    subprocess.run([sys.executable, *arguments], cwd=tmp_path, check=True)
    assert PeftPrompt.load(tmp_path).prompt.digest == expected


def test_a_model_of_another_width_is_refused_and_one_of_another_name_is_told(
    folder: Callable[[str], Path], load: Callable[[str], HFBackend], tmp_path: Path
) -> None:
    saved_by_peft(folder("llama"), tmp_path)
    ours = TunedPrompt.from_peft(tmp_path, template=TEMPLATE, labels=LABELS)
    with pytest.raises(InputError, match=r"width 32, and hf opt .*tuned for .*llama"):
        ours.predict(load("opt"), TEXTS)
    with pytest.warns(UserWarning, match="trained for"):
        tuner = Tuner(load("opt"), start=PeftPrompt.load(tmp_path), template=TEMPLATE)
    with pytest.raises(InputError, match="a soft one of width 16"):
        tuner.fit([("slow", "bad"), ("told well", "good")])
    with pytest.warns(UserWarning, match=r"trained for .*llama and is used with hf qwen2"):
        ours.predict(load("qwen2"), TEXTS)
    with pytest.warns(UserWarning, match=r"trained for .*llama and is used with hf qwen2"):
        Tuner(load("qwen2"), start=PeftPrompt.load(tmp_path))


def test_the_command_line_takes_the_task_of_an_adapter(
    folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved_by_peft(folder("llama"), tmp_path)
    common = ["predict", "--prompt", str(tmp_path), "--model", str(folder("llama"))]
    common += ["--text", TEXTS[0]]
    assert main(common) == 2
    assert "holds an adapter of peft" in capsys.readouterr().err
    assert main([*common, "--template", TEMPLATE, "--labels", '{"1": "good", "0": "bad"}']) == 0
    assert capsys.readouterr().out.split()[0] in ("0", "1")
    template = "{text} {prompt} {label}"
    assert main([*common, "--template", template, "--labels", '{"1": "good", "0": "bad"}']) == 2
    assert "does not begin with {prompt}" in capsys.readouterr().err
