"""The parts of a model that the client needs: tokenizer, name, and word embeddings.

The embeddings are read from the files of the model, without its other weights and without torch.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from ml_dtypes import bfloat16
from safetensors import safe_open
from transformers.utils.hub import cached_file

from lmaas_tune.errors import InputError
from lmaas_tune.prompts import FloatArray
from lmaas_tune_adapters.hf.identity import name_of, settings_hash
from lmaas_tune_adapters.hf.source import errors_translated, quiet, source_of

_NAMES = (
    "embed_tokens.weight",  # Llama, Qwen, Mistral, Gemma, Phi, OPT and most others
    "wte.weight",  # GPT-2, GPT-J, MPT
    "word_embeddings.weight",  # BLOOM, Falcon
    "embed_in.weight",  # GPT-NeoX, Pythia
    "tok_embeddings.weight",  # InternLM2
    "backbone.embeddings.weight",  # Mamba
)
"""Endings of the table's name in files of weights."""

_OTHER_TOWERS = ("vision", "visual", "audio", "encoder.", "mtp.", "per_layer")
"""Parts of the names of other tables than the language model's word embeddings."""

_SCALED = {"gemma", "gemma2", "gemma3_text"}
"""Model types whose embeddings are their table's rows times the square root of H."""

_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_CHUNK = 1 << 20  # numbers at once, where the whole table is read


@dataclass(frozen=True, eq=False)
class EmbeddingTable:
    """Word embeddings, mapped from their file: only the rows that are looked up are read.

    Attributes:
        weight: (vocabulary, H) as stored.
        scale: Factor by which the model multiplies a row.

    Raises:
        InputError: The weights are no table of finite floating-point numbers.
    """

    weight: FloatArray
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.weight.ndim != 2 or self.weight.dtype not in _DTYPES.values():
            raise InputError(_no_table(self.weight.dtype, self.weight.shape))

    def rows(self, token_ids: Sequence[int]) -> FloatArray:
        """(tokens, H) float32."""
        rows = self.weight[np.array(token_ids, dtype=np.int64)].astype(np.float32)
        return rows if self.scale == 1.0 else rows * np.float32(self.scale)

    @cached_property
    def std(self) -> float:
        """Standard deviation of all entries, as the model reads them."""
        total = squares = 0.0
        for chunk in self._chunks():
            numbers = chunk.astype(np.float64)
            total += float(numbers.sum())
            squares += float(np.square(numbers).sum())
        n = self.weight.size
        variance = (squares - total**2 / n) / max(1, n - 1)
        if not math.isfinite(variance):
            raise InputError("the word embeddings hold NaN or infinity: their file is damaged")
        return self.scale * math.sqrt(variance)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the whole table."""
        sha = hashlib.sha256(f"{self.weight.shape}{self.weight.dtype}{self.scale}".encode())
        for chunk in self._chunks():
            sha.update(chunk.tobytes())
        return sha.hexdigest()

    def _chunks(self) -> Iterator[FloatArray]:
        rows = max(1, _CHUNK // self.weight.shape[1])
        return (self.weight[first : first + rows] for first in range(0, len(self.weight), rows))


def find_table(source: str, config: Any, **options: Any) -> EmbeddingTable:
    """Find the table of a model in a folder or on the hub; only its own shard is downloaded.

    Args:
        source: Folder or name.
        config: The model's configuration in transformers.
        **options: Options of `transformers.utils.cached_file`: the revision.

    Raises:
        InputError: There are no safetensors, or they do not hold exactly one table.
    """
    text = config.get_text_config()
    single = cached_file(source, _FILE, _raise_exceptions_for_missing_entries=False, **options)
    if single is not None:
        with safe_open(single, framework="numpy") as tensors:
            files = dict.fromkeys(tensors.keys(), _FILE)
    else:
        index = cached_file(source, _INDEX, _raise_exceptions_for_missing_entries=False, **options)
        if index is None:
            raise InputError(
                f"the model {source!r} has neither {_FILE} nor {_INDEX}: write it again with "
                "save_pretrained, or give a model that has one"
            )
        files = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
    name = _table_name(files, tied=text.tie_word_embeddings, source=source)
    weight = _mapped(Path(str(cached_file(source, files[name], **options))), name)
    scaled = text.model_type in _SCALED
    return EmbeddingTable(weight, float(weight.shape[-1]) ** 0.5 if scaled else 1.0)


_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(bfloat16),
}
"""Types of tables by their names in safetensors."""


def _mapped(file: Path, name: str) -> FloatArray:
    """A tensor of a file of safetensors, mapped; the library itself copies tensors for numpy.

    Raises:
        InputError: The tensor is of another type than those of `_DTYPES`.
    """
    with safe_open(file, framework="numpy") as tensors:  # checks the file
        if (dtype := tensors.get_slice(name).get_dtype()) not in _DTYPES:
            raise InputError(_no_table(dtype, tuple(tensors.get_slice(name).get_shape())))
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        entry = json.loads(stream.read(size))[name]
    start = 8 + size + entry["data_offsets"][0]
    return np.memmap(file, _DTYPES[dtype], "r", offset=start, shape=tuple(entry["shape"]))


def _no_table(dtype: object, shape: tuple[int, ...]) -> str:
    return (
        f"the word embeddings are {dtype} of shape {shape}, which is no table of floating-point "
        "numbers: give the folder of the model before it was quantised"
    )


def _table_name(files: dict[str, str], *, tied: bool, source: str) -> str:
    found = [
        name
        for name in files
        if f".{name}".endswith(tuple(f".{ending}" for ending in _NAMES))
        and not any(tower in name for tower in _OTHER_TOWERS)
    ]
    if not found and tied and "lm_head.weight" in files:  # the same table under this name
        return "lm_head.weight"
    if len(found) != 1:
        raise InputError(
            f"the files of the model {source!r} hold {len(found)} tables of word embeddings "
            f"({', '.join(sorted(found)[:4]) or 'none of the known names'}) and not one: this "
            "backend cannot embed text for it"
        )
    return found[0]


@dataclass(frozen=True)
class Vocabulary:
    """A causal language model without its layers.

    Attributes:
        tokenizer: The model's, of transformers.
        table: Its word embeddings.
        name: Its name, with the commit if it comes from the hub.
        fingerprint: Hash of configuration, tokenizer and table.
        max_tokens: The longest row that it has positions for; None if it sets no limit.
    """

    tokenizer: Any
    table: EmbeddingTable
    name: str
    fingerprint: str
    max_tokens: int | None


def load_vocabulary(model: str | Path, *, revision: str | None) -> Vocabulary:
    """Load tokenizer, configuration and word embeddings of a model, without its other weights.

    Raises:
        InputError: The model cannot be loaded, is not causal, or has no readable table.
    """
    source, options = source_of(model, revision)
    if "gguf_file" in options:
        raise InputError(
            f"the word embeddings of {str(model)!r} cannot be read alone: give the folder that "
            "HFBackend.convert_gguf writes for it"
        )
    with quiet(), errors_translated(model):
        config = transformers.AutoConfig.from_pretrained(source, **options)
        if config.is_encoder_decoder or any("ForMaskedLM" in n for n in config.architectures or ()):
            raise InputError(
                f"the model {str(model)!r} is not causal, and vLLM does not serve it for text: "
                "run it with the backend 'hf', or behind `lmaas-tune serve`"
            )
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
        table = find_table(source, config, **options)
        sha = settings_hash(config, tokenizer)
        sha.update(table.digest.encode())
    return Vocabulary(
        tokenizer=tokenizer,
        table=table,
        name=name_of(model, config, revision),
        fingerprint=sha.hexdigest()[:16],
        max_tokens=getattr(config.get_text_config(), "max_position_embeddings", None),
    )
