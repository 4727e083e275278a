"""A model's word embeddings, read from its files without the other weights."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from transformers.utils.hub import cached_file

from lmaas_tune.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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

    weight: torch.Tensor
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.weight.dim() != 2 or not self.weight.is_floating_point():
            raise InputError(
                f"the word embeddings are {self.weight.dtype} of shape {tuple(self.weight.shape)}, "
                "which is no table of floating-point numbers: give the folder of the model before "
                "it was quantised"
            )

    def rows(self, token_ids: Sequence[int]) -> torch.Tensor:
        """(tokens, H) float32."""
        rows = self.weight[torch.tensor(token_ids, dtype=torch.long)].float()
        return rows if self.scale == 1.0 else rows * self.scale

    @cached_property
    def std(self) -> float:
        """Standard deviation of all entries, as the model reads them."""
        total = squares = 0.0
        for chunk in self._chunks():
            total += float(chunk.sum(dtype=torch.float64))
            squares += float(chunk.float().square().sum(dtype=torch.float64))
        n = self.weight.numel()
        variance = (squares - total**2 / n) / max(1, n - 1)
        if not math.isfinite(variance):
            raise InputError("the word embeddings hold NaN or infinity: their file is damaged")
        return self.scale * math.sqrt(variance)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the whole table."""
        sha = hashlib.sha256(f"{tuple(self.weight.shape)}{self.weight.dtype}{self.scale}".encode())
        for chunk in self._chunks():
            sha.update(chunk.contiguous().view(torch.uint8).numpy().data)
        return sha.hexdigest()

    def _chunks(self) -> Iterator[torch.Tensor]:
        return iter(torch.split(self.weight, max(1, _CHUNK // self.weight.shape[1])))


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
        with safe_open(single, framework="pt") as tensors:
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
    with safe_open(cached_file(source, files[name], **options), framework="pt") as tensors:
        weight = tensors.get_tensor(name)  # a view of the mapped file
    scaled = text.model_type in _SCALED
    return EmbeddingTable(weight, float(weight.shape[-1]) ** 0.5 if scaled else 1.0)


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
