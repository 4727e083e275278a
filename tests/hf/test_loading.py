"""Loading: failures are one sentence, equal identities are equal models, nothing is printed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from lmaas_tune_adapters.hf import HFBackend, convert_gguf
from lmaas_tune_adapters.hf.loading import max_tokens
from tokenizers import normalizers

from lmaas_tune.backend import Backend, Embeds, Inspects, ScoreRequest
from lmaas_tune.errors import InputError
from lmaas_tune.prompts import SoftPrompt
from tests.support import models

from .test_exact import CANDIDATES, LABEL_LAST, batch_of, soft


def test_a_backend_embeds_and_inspects(load: Callable[[str], HFBackend]) -> None:
    model = load("llama")
    backend: Backend = model
    assert isinstance(backend, Embeds)
    assert isinstance(backend, Inspects)
    weight = model._model.get_input_embeddings().weight
    assert model.embedding_std == pytest.approx(float(weight.std()), rel=1e-5)
    np.testing.assert_array_equal(model.embed([3, 5]), weight[[3, 5]].numpy())


def test_bart_embeds_words_as_it_takes_them_scaled(load: Callable[[str], HFBackend]) -> None:
    model = load("bart")
    weight = model._model.get_input_embeddings().weight
    np.testing.assert_allclose(model.embed([7])[0], weight[7].numpy() * 32**0.5, rtol=1e-6)
    assert model.embedding_std == pytest.approx(float(weight.std()) * 32**0.5, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "no/such-model-anywhere"}, "cannot load the model 'no/such-model-anywhere'"),
        ({"model": "no such name"}, "there is no folder 'no such name'"),
        ({"model": "/no/such/folder"}, "there is no folder '/no/such/folder'"),
        ({"model": "missing.gguf"}, "no GGUF file 'missing.gguf'"),
        ({"device": "tpu"}, "unknown device 'tpu'; known: auto, cpu"),
        ({"device": "mps"}, "the device 'mps' is not available"),
        ({"dtype": "float31"}, "unknown dtype 'float31'; did you mean"),
        ({"answer": "sentinels"}, "unknown answer 'sentinels'; did you mean 'sentinel'"),
        ({"max_tokens_per_pass": 0}, "max_tokens_per_pass is 0"),
        ({"max_kept_bytes": -1}, "max_kept_bytes is -1"),
    ],
)
def test_what_cannot_work_is_one_sentence(
    options: dict[str, Any], message: str, folder: Callable[[str], Path]
) -> None:
    if options.get("device") == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has the device")
    with pytest.raises(InputError, match=message) as caught:
        HFBackend(**{"model": folder("llama"), **options})
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no model: it has no config\.json"):
        HFBackend(tmp_path)


def test_a_folder_with_damaged_weights_is_refused(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    copy = shutil.copytree(folder("gpt2"), tmp_path / "copy")
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot load the model"):
        HFBackend(copy)


def test_a_model_without_a_language_model_head_is_refused(tmp_path: Path) -> None:
    config = transformers.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="type 'vit', which has no language-model head"):
        HFBackend(tmp_path)


def test_a_model_saved_without_its_head_is_refused(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    copy = shutil.copytree(folder("bert"), tmp_path / "copy")
    network = transformers.AutoModelForMaskedLM.from_pretrained(copy)
    network.bert.save_pretrained(copy)
    with pytest.raises(InputError, match=r"lacks .* weights of a masked language model"):
        HFBackend(copy)


def test_a_model_that_reads_embeddings_otherwise_than_their_tokens_is_refused(
    tmp_path: Path,
) -> None:
    tokenizer = models.byte_level(start="<s>", end="</s>", mask="<mask>")
    config = transformers.PegasusConfig(
        vocab_size=len(tokenizer),
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        scale_embedding=True,  # of ids alone
    )
    network = transformers.PegasusForConditionalGeneration(config)
    with pytest.raises(InputError, match="gives other scores for embeddings than for the tokens"):
        HFBackend(models.save(tmp_path, network, tokenizer), device="cpu")


def test_a_model_without_its_tokenizer_is_refused(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    copy = shutil.copytree(folder("bert"), tmp_path / "copy")
    for file in copy.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(InputError, match="comes without its tokenizer"):
        HFBackend(copy)


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (transformers.RobertaConfig(max_position_embeddings=66, pad_token_id=1), 64),
        (transformers.RobertaConfig(max_position_embeddings=66, pad_token_id=0), 65),
        (transformers.LEDConfig(max_encoder_position_embeddings=64), 64),
        (transformers.MptConfig(max_seq_len=64), 64),
        (transformers.T5Config(), None),
        (
            transformers.LlamaConfig(
                max_position_embeddings=128,
                head_dim=8,
                rope_parameters={
                    "rope_type": "longrope",
                    "rope_theta": 1e4,
                    "factor": 2.0,
                    "original_max_position_embeddings": 64,
                    "short_factor": [1.0] * 4,
                    "long_factor": [2.0] * 4,
                },
            ),
            64,
        ),
    ],
    ids=["roberta", "roberta from 0", "led", "mpt", "t5", "longrope"],
)
def test_as_many_tokens_fit_as_the_model_has_places_for(config: Any, limit: int | None) -> None:
    with torch.device("meta"):
        network = transformers.AutoModel.from_config(config)
    assert max_tokens(network) == limit


def test_answers_that_a_model_has_no_token_for_are_refused(folder: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match="no token for answer='infill'"):
        HFBackend(folder("t5"), answer="infill")


def test_direct_answers_come_from_the_decoders_start(folder: Callable[[str], Path]) -> None:
    model = HFBackend(folder("t5"), device="cpu", answer="direct")
    assert "answer=direct" in model.identity
    assert not model.capabilities.label_anywhere
    tokenizer, network = model._tokenizer, model._model
    batch = batch_of("{text}{prompt} Was it good ? {label}", ("a film",))
    (reply,) = model.score([ScoreRequest(soft(model, 1)[0], batch, ("great", "bad"))])
    (prompt,) = soft(model, 1)
    table = network.get_input_embeddings()
    before, after = (
        tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in ("a film", " Was it good ?")
    )
    embedded = torch.cat(
        [
            table(torch.tensor(before)),
            torch.tensor(prompt.vectors),
            table(torch.tensor([*after, 1])),
        ]
    )[None]
    word = tokenizer("great", add_special_tokens=False)["input_ids"]
    logits = network(inputs_embeds=embedded, decoder_input_ids=torch.tensor([[0, *word]])).logits
    scores = logits[0].double().log_softmax(-1)
    expected = sum(float(scores[i, token]) for i, token in enumerate(word))
    assert reply.logprobs[0, 0] == pytest.approx(expected, abs=1e-4)


def test_a_moved_folder_is_the_same_model_and_one_changed_weight_another(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    original = HFBackend(folder("llama"), device="cpu")
    copy = shutil.copytree(folder("llama"), tmp_path / "elsewhere" / "llama")
    assert HFBackend(copy, device="cpu").identity == original.identity
    network = transformers.AutoModelForCausalLM.from_pretrained(copy)
    with torch.no_grad():
        network.model.layers[1].mlp.up_proj.weight[3, 4] += 1e-3
    network.save_pretrained(copy)
    assert HFBackend(copy, device="cpu").identity != original.identity


def test_c20_the_same_weights_with_another_tokenizer_are_another_model(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    original = HFBackend(folder("llama"), device="cpu")
    copy = shutil.copytree(folder("llama"), tmp_path / "llama")
    tokenizer = transformers.AutoTokenizer.from_pretrained(copy)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.save_pretrained(copy)
    assert HFBackend(copy, device="cpu").identity != original.identity


def test_c20_a_masked_model_that_is_asked_at_another_token_is_another_model(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    copy = shutil.copytree(folder("bert"), tmp_path / "bert")
    tokenizer = transformers.AutoTokenizer.from_pretrained(copy)
    tokenizer.mask_token = "[UNK]"
    tokenizer.save_pretrained(copy)
    assert HFBackend(copy).identity != HFBackend(folder("bert")).identity


def test_identity_names_the_dtype_and_no_path_of_this_machine(
    folder: Callable[[str], Path],
) -> None:
    full, half = (HFBackend(folder("llama"), dtype=d) for d in ("float32", "bfloat16"))
    assert "dtype=float32" in full.identity
    assert "dtype=bfloat16" in half.identity
    assert str(folder("llama").parent) not in full.identity


def test_a_prompt_too_far_out_for_half_precision_gives_nan_and_spoils_no_other(
    folder: Callable[[str], Path],
) -> None:
    model = HFBackend(folder("gpt2"), device="cpu", dtype="float16")
    prompt = SoftPrompt(np.full((2, 32), 1e30))
    requests = [
        ScoreRequest(p, batch_of(LABEL_LAST[0]), CANDIDATES) for p in (*soft(model, 1), prompt)
    ]
    fine, spoilt = model.score(requests)
    assert np.isfinite(fine.logprobs).all()
    assert np.isnan(spoilt.logprobs).all()


def test_loading_and_scoring_say_nothing(
    folder: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    path = folder("roberta")
    capfd.readouterr()  # what building the model said
    model = HFBackend(path, device="cpu")
    model.score([ScoreRequest(soft(model, 1)[0], batch_of(LABEL_LAST[0]), CANDIDATES)])
    with pytest.raises(InputError):
        model.score(
            [ScoreRequest(soft(model, 1)[0], batch_of(LABEL_LAST[0], ("a " * 600,)), ("a",))]
        )
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")


def test_without_torch_importing_the_adapter_says_what_to_install() -> None:
    code = """
import sys
sys.modules["torch"] = None  # as if it were not installed
try:
    from lmaas_tune_adapters.hf import HFBackend
except Exception as error:
    print(type(error).__name__, error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("MissingExtraError the backend 'hf' needs the package 'torch'")
    assert "pip install 'lmaas-tune[hf]'" in run.stdout


def gguf_file(folder: Path, target: Path) -> Path:
    """The tiny Llama of `folder` as a GGUF file with GPT-2-like vocabulary."""
    gguf = pytest.importorskip("gguf")
    network = transformers.AutoModelForCausalLM.from_pretrained(folder)
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]
    config = network.config
    writer = gguf.GGUFWriter(str(target), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    pieces = sorted(vocabulary["vocab"], key=vocabulary["vocab"].get)
    writer.add_token_list(pieces)
    writer.add_token_types([3 if piece.startswith("<") else 1 for piece in pieces])
    writer.add_token_merges([" ".join(merge) for merge in vocabulary["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in network.state_dict().items():
        values = weight.numpy()
        if name.endswith(("q_proj.weight", "k_proj.weight")):  # GGUF keeps rotary halves woven
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            rows, columns = values.shape
            halves = values.reshape(heads, 2, rows // heads // 2, columns)
            values = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, columns))
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def test_a_gguf_file_scores_as_the_folder_it_is_converted_to(
    folder: Callable[[str], Path], tmp_path: Path, load: Callable[[str], HFBackend]
) -> None:
    file = gguf_file(folder("llama"), tmp_path / "tiny.gguf")
    converted = convert_gguf(file, tmp_path / "cache" / "tiny")
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["tiny"]
    assert "quantization_config" not in json.loads((converted / "config.json").read_text())
    direct, fast, original = HFBackend(file), HFBackend(converted), load("llama")
    batch = batch_of("{prompt} {text} It was {label}")
    for one, other in ((direct, fast), (direct, original)):
        (prompt,) = soft(one, 1)
        scores = [
            model.score([ScoreRequest(prompt, batch, CANDIDATES)])[0].logprobs
            for model in (one, other)
        ]
        if other is original:  # its tokenizer adds a start token, which this file does not ask for
            assert scores[0].shape == scores[1].shape
            continue
        np.testing.assert_allclose(*scores, atol=1e-4, rtol=0)
    for name, weight in original._model.state_dict().items():
        np.testing.assert_allclose(weight, direct._model.state_dict()[name], atol=1e-6)


def test_converting_again_leaves_the_folder_as_it_is(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    kept = shutil.copytree(folder("llama"), tmp_path / "there")
    before = (kept / "config.json").stat().st_mtime_ns
    assert convert_gguf(tmp_path / "never-read.gguf", kept) == kept
    assert (kept / "config.json").stat().st_mtime_ns == before


def test_a_file_that_is_no_gguf_leaves_no_folder_behind(tmp_path: Path) -> None:
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF no more")
    with pytest.raises(InputError, match="cannot load the model"):
        convert_gguf(file, tmp_path / "cache" / "broken")
    assert [path.name for path in tmp_path.iterdir()] == ["broken.gguf"]


def test_every_family_is_built_here() -> None:
    assert set(models.MODELS) >= {"llama", "gpt2", "opt", "qwen2", "roberta", "bert", "t5", "bart"}


ROWS = [
    ("a gripping film", "good"),
    ("dull and awful", "bad"),
    ("a fine story", "good"),
    ("no", "bad"),
]
SEARCH = ["--budget", "calls=12", "--intrinsic-dim", "4", "--optimizer", "cma"]
SEARCH += ["--optimizer-options", "population=4"]


END = "-- end of a command --"
RUN = f"""
import json, sys
from lmaas_tune.cli import main
for argv in json.loads(sys.argv[1]):
    assert main(argv) == 0, argv
    print({END!r}, file=sys.stderr, flush=True)
"""


def lines_of(folder: Path, *commands: Sequence[str]) -> list[list[str]]:
    """What each command prints on standard error; one process runs them in turn."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(commands)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *texts, rest = done.stderr.split(f"{END}\n")
    assert rest == ""
    return [text.splitlines() for text in texts]


def test_no_library_speaks_while_a_prompt_is_searched_and_used(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    rows = [{"text": text, "label": label} for text, label in ROWS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    searches, uses = [], []
    for name in ("llama", "bert", "t5"):
        model = ["--backend", "hf", "--model", str(folder(name))]
        start = ["--prompt-init", "it was", "--out", name]
        searches.append(["tune", *model, "--train", "rows.jsonl", *SEARCH, *start])
        uses.append(["predict", *model, "--prompt", name, "--text", "a film"])
    llama = ["--backend", "hf", "--model", str(folder("llama"))]
    uses.append(["doctor", *llama])
    uses.append(["evaluate", *llama, "--prompt", "llama", "--test", "rows.jsonl"])
    said = lines_of(tmp_path, *searches, *uses)
    for lines in said[: len(searches)]:
        assert [line for line in lines if not line.startswith("note: ")] == []
    assert said[len(searches) :] == [[]] * len(uses)


def test_no_library_speaks_while_optimizers_are_compared(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    rows = [{"text": text, "label": label} for text, label in ROWS * 2]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    compare = [
        *("compare", "--backend", "hf", "--model", str(folder("llama")), "--train", "rows.jsonl"),
        *("--optimizers", "cma(population=6),random(population=6)", "--seeds", "1"),
        *("--jobs", "2", "--out", "runs"),
        *("--budget", "calls=40", "--intrinsic-dim", "4", "--prompt-init", "it was"),
    ]
    (said,) = lines_of(tmp_path, compare)
    assert [line for line in said if not line.endswith("of 2 runs") and "note: " not in line] == []
