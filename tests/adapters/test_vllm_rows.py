"""A model's word embeddings, read alone from its files, and rows of them as a server reads them."""

from __future__ import annotations

import base64
import io
import json
import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is there: no test may reach a network

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="the extra 'vllm' is not installed")
transformers = pytest.importorskip("transformers", reason="the extra 'vllm' is not installed")

from lmaas_tune_adapters.vllm.backend import WIRE_DTYPES  # noqa: E402
from lmaas_tune_adapters.vllm.rows import RowWriter  # noqa: E402
from lmaas_tune_adapters.vllm.vocabulary import (  # noqa: E402
    EmbeddingTable,
    find_table,
    load_vocabulary,
)
from safetensors.torch import load_file, save_file  # noqa: E402

from lmaas_tune.errors import InputError  # noqa: E402
from lmaas_tune.prompts import FloatArray  # noqa: E402
from tests.support import models  # noqa: E402

DTYPES = list(WIRE_DTYPES)


def table(width: int) -> EmbeddingTable:
    return EmbeddingTable(vectors(20, width, 0))


def writer(width: int = 5, dtype: str = "float32", kept: int = 1 << 20) -> RowWriter:
    return RowWriter(table(width), WIRE_DTYPES[dtype], max_kept_bytes=kept)


def read(row: bytes) -> Any:
    content = io.BytesIO(base64.b64decode(row, validate=True))
    return torch.load(content, weights_only=True)


def vectors(length: int, width: int, seed: int) -> FloatArray:
    return np.random.default_rng(seed).standard_normal((length, width), dtype=np.float32)


@st.composite
def rows(draw: st.DrawFn) -> tuple[tuple[int, ...], int, int]:
    """Token ids, where the prompt begins, and its length."""
    ids = tuple(draw(st.lists(st.integers(0, 19), min_size=1, max_size=300)))
    place = draw(st.integers(0, len(ids) - 1))
    return ids, place, draw(st.integers(1, len(ids) - place))


@given(
    row=rows(),
    width=st.integers(1, 9),
    dtype=st.sampled_from(DTYPES),
    adds=st.booleans(),
    kept=st.sampled_from([0, 2000, 1 << 20]),
)
def test_a_server_reads_the_words_with_the_prompt_in_its_place(
    row: tuple[tuple[int, ...], int, int], width: int, dtype: str, adds: bool, kept: int
) -> None:
    ids, place, length = row
    writes = writer(width, dtype, kept)
    for seed in (1, 2):  # the second is written with what was kept
        prompt = vectors(length, width, seed)
        expected = table(width).rows(ids)
        there = expected[place : place + length]
        there[:] = there + prompt if adds else prompt
        found = read(writes.soft(ids, place, prompt, adds=adds))
        rounded = torch.tensor(expected).to(getattr(torch, dtype))
        torch.testing.assert_close(found, rounded, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_server_reads_a_row_of_words(dtype: str) -> None:
    expected = torch.tensor(table(5).rows((3, 1, 2))).to(getattr(torch, dtype))
    found = read(writer(dtype=dtype).words((3, 1, 2)))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_what_the_prompt_leaves_as_it_is_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up = []
    stock = EmbeddingTable.rows

    def listening(self: EmbeddingTable, ids: Any) -> Any:
        looked_up.append(ids)
        return stock(self, ids)

    monkeypatch.setattr(EmbeddingTable, "rows", listening)
    writes = writer()
    for seed in range(3):
        for ids in ((1, 2, 3), (4, 5, 6)):
            writes.soft(ids, 1, vectors(1, 5, seed), adds=False)
    assert looked_up == [(1, 2, 3), (4, 5, 6)]


@pytest.mark.parametrize("kept", [0, 100, 5_000])
def test_no_more_is_kept_than_allowed(kept: int) -> None:
    writes = writer(kept=kept)
    for first in range(20):
        writes.soft((first, 1, 2, 3), 1, vectors(1, 5, 0), adds=False)
        held = sum(frame.nbytes for frame in writes._frames.values())
        assert held == writes._bytes <= kept
    assert bool(writes._frames) == (kept > 100)


def test_threads_do_not_mix_rows_up() -> None:
    writes = writer(kept=5_000)  # of the twenty rows, about half
    jobs = [((first, 1, 2, 3), seed) for seed in range(20) for first in range(20)]

    def write(job: tuple[tuple[int, ...], int]) -> bytes:
        ids, seed = job
        return writes.soft(ids, 1, vectors(2, 5, seed), adds=False)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(write, jobs))
    alone = writer(kept=0)
    for (ids, seed), row in zip(jobs, found, strict=True):
        assert row == alone.soft(ids, 1, vectors(2, 5, seed), adds=False)
    assert writes._bytes == sum(frame.nbytes for frame in writes._frames.values())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """folder(name): where the tiny model of that name is saved."""
    return cache(lambda name: models.build(name, tmp_path_factory.mktemp("models") / name))


def table_of(folder: Path) -> EmbeddingTable:
    return find_table(str(folder), transformers.AutoConfig.from_pretrained(folder))


def embeddings_of(folder: Path) -> FloatArray:
    """The whole table, as the model itself gives it."""
    network = transformers.AutoModelForCausalLM.from_pretrained(folder)
    module = network.get_input_embeddings()
    with torch.inference_mode():
        return module(torch.arange(module.weight.shape[0])).float().numpy()


def check(folder: Path) -> None:
    table, expected = table_of(folder), embeddings_of(folder)
    np.testing.assert_array_equal(table.rows(range(len(expected))), expected)
    assert table.std == pytest.approx(float(expected.std(dtype=np.float64, ddof=1)), rel=1e-6)


def rewritten(source: Path, target: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A copy of a model's folder whose tensors are what `change` makes of them."""
    shutil.copytree(source, target)
    file = target / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})
    return target


@pytest.mark.parametrize("name", models.CAUSAL)
def test_a_table_is_what_the_model_embeds_with(name: str, folder: Callable[[str], Path]) -> None:
    check(folder(name))


@pytest.mark.parametrize("kind", ["Gemma", "Gemma2", "Gemma3Text"])
def test_gemma_s_factor_is_part_of_its_embeddings(kind: str, tmp_path: Path) -> None:
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        intermediate_size=16,
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    assert table_of(tmp_path).scale == pytest.approx(32**0.5)
    check(tmp_path)


def test_a_table_in_half_precision_comes_out_in_float32(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    network = transformers.AutoModelForCausalLM.from_pretrained(folder("llama"))
    network.to(torch.bfloat16).save_pretrained(tmp_path)
    assert table_of(tmp_path).weight.dtype == "bfloat16"
    assert table_of(tmp_path).rows([1, 2]).dtype == np.float32
    check(tmp_path)


def test_of_several_shards_only_the_one_with_the_table_is_opened(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    network = transformers.AutoModelForCausalLM.from_pretrained(folder("llama"))
    network.save_pretrained(tmp_path, max_shard_size="20KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    expected = embeddings_of(tmp_path)
    others = {tmp_path / name for name in index.values()}
    others.remove(tmp_path / index["model.embed_tokens.weight"])
    assert others
    for other in others:
        other.unlink()
    np.testing.assert_array_equal(table_of(tmp_path).rows([7, 3]), expected[[7, 3]])


def test_rows_are_read_from_the_file_and_the_rest_of_it_is_not(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    resource = pytest.importorskip("resource")
    shutil.copy(folder("llama") / "config.json", tmp_path)
    shape, size = [1 << 24, 32], 4 * 32 << 24
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}
    head = json.dumps({"model.embed_tokens.weight": entry}).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        file.truncate(8 + len(head) + size)  # 2 GB that take no room on the disk
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert not table_of(tmp_path).rows([0, shape[0] - 1]).any()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_gpt2_of_the_hub_leaves_out_the_first_part_of_its_names(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    bare = rewritten(
        folder("gpt2"),
        tmp_path / "bare",
        lambda tensors: {k.removeprefix("transformer."): v for k, v in tensors.items()},
    )
    check(bare)


def test_a_tied_table_may_lie_under_the_head_s_name(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    def renamed(tensors: dict[str, Any]) -> dict[str, Any]:
        return {"lm_head.weight": tensors["model.embed_tokens.weight"]}

    tied = rewritten(folder("qwen2"), tmp_path / "tied", renamed)
    expected = embeddings_of(folder("qwen2"))
    np.testing.assert_array_equal(table_of(tied).rows([5]), expected[[5]])
    untied = rewritten(folder("llama"), tmp_path / "untied", renamed)
    with pytest.raises(InputError, match="0 tables"):
        table_of(untied)


def test_several_tables_are_told(folder: Callable[[str], Path], tmp_path: Path) -> None:
    two = rewritten(
        folder("llama"),
        tmp_path / "two",
        lambda t: t | {"other.embed_tokens.weight": t["model.embed_tokens.weight"].clone()},
    )
    with pytest.raises(InputError, match=r"2 tables.*\(model\.embed_tokens.*other\.embed_tokens"):
        table_of(two)


def test_a_picture_s_tower_is_not_taken_for_words(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    both = rewritten(
        folder("llama"),
        tmp_path / "both",
        lambda t: t | {"vision_tower.embed_tokens.weight": torch.zeros(3, 3)},
    )
    check(both)


def test_a_model_without_safetensors_is_told(folder: Callable[[str], Path], tmp_path: Path) -> None:
    copy = shutil.copytree(folder("llama"), tmp_path / "copy")
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"neither model\.safetensors nor.*save_pretrained"):
        load_vocabulary(copy, revision=None)


def test_a_quantised_table_is_refused() -> None:
    with pytest.raises(InputError, match="before it was quantised"):
        EmbeddingTable(np.zeros((4, 2), dtype=np.int8))  # type: ignore[arg-type]


def test_a_damaged_table_is_told() -> None:
    table = EmbeddingTable(np.array([[1.0, np.nan]]))
    with pytest.raises(InputError, match="NaN or infinity"):
        _ = table.std


def test_a_damaged_file_is_one_sentence(folder: Callable[[str], Path], tmp_path: Path) -> None:
    copy = shutil.copytree(folder("llama"), tmp_path / "copy")
    (copy / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(InputError, match="cannot load the model"):
        load_vocabulary(copy, revision=None)


def test_a_gguf_file_is_refused_with_what_would_do(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(InputError, match=r"HFBackend\.convert_gguf"):
        load_vocabulary(file, revision=None)


def test_the_fingerprint_changes_with_the_table_and_the_tokenizer_and_nothing_else_of_the_model(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    def changed(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
        return lambda t: {k: v + (k == name) for k, v in t.items()}

    first = load_vocabulary(folder("llama"), revision=None).fingerprint
    head = rewritten(folder("llama"), tmp_path / "head", changed("lm_head.weight"))
    table = rewritten(folder("llama"), tmp_path / "t", changed("model.embed_tokens.weight"))
    words = shutil.copytree(folder("llama"), tmp_path / "words")
    models.byte_level(start=None, end=None, mask=None).save_pretrained(words)
    assert load_vocabulary(head, revision=None).fingerprint == first
    assert load_vocabulary(table, revision=None).fingerprint != first
    assert load_vocabulary(words, revision=None).fingerprint != first


def test_a_model_of_the_hub_is_read_from_its_cache(
    folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    home = tmp_path / "models--someone--tiny"
    shutil.copytree(folder("llama"), home / "snapshots" / commit)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = load_vocabulary("someone/tiny", revision=None)
    assert found.name == "someone/tiny"
    assert found.max_tokens == 256
    np.testing.assert_array_equal(found.table.rows([1]), embeddings_of(folder("llama"))[[1]])
