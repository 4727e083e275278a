"""`PeftPrompt`: a prompt that the library peft trained, read without peft and torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from lmaas_tune.errors import InputError
from lmaas_tune.files import read_limited, read_object, reading
from lmaas_tune.prompts import FloatArray, SoftPrompt
from lmaas_tune.prompts.soft import VECTORS_KEY
from lmaas_tune.typed_json import checked

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"

START_TOKENS = "lmaas_tune.start_tokens"
"""Key in the metadata of `WEIGHTS`: how many of the vectors are embeddings of start tokens."""

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}


@dataclass(frozen=True, eq=False)
class PeftPrompt:
    """A prompt of peft's prompt tuning, for a causal model.

    Attributes:
        prompt: The vectors, inserted as peft does: by ``prepend``, before the start token. Those
            that `HFBackend.export_peft` wrote for ``concat`` come back as they were.
        base_model: Name or folder of the model that they were trained for; empty if unknown.
    """

    prompt: SoftPrompt
    base_model: str

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> PeftPrompt:
        """Read the folder that ``save_pretrained`` of peft wrote.

        Raises:
            InputError: There is no adapter, or none of prompt tuning for a causal model.
            StorageError: The files are damaged.
        """
        path = Path(folder)
        try:
            with reading(path, "the adapter of peft"):
                config: _Config = checked(_Config, read_object(path / CONFIG), CONFIG)
            _check_kind(config, path)
            with reading(path, "the adapter of peft"):
                prompt = _prompt(path / WEIGHTS)
                _check_shape(prompt, config)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise InputError(
                f"{path}: no adapter of peft there ({error.filename} is missing)"
            ) from None
        return cls(prompt, config.base_model_name_or_path or "")


def is_adapter(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds an adapter of peft, of any kind."""
    return (Path(folder) / CONFIG).exists()


def other_base(base_model: str, identity: str) -> str | None:
    """A note for the user if a backend's identity names another model; None if it is the same.

    Models are compared by the last part of their name, as folders have no owner.
    """
    name = _last_part(base_model)
    if not name or name in {_last_part(word.partition("@")[0]) for word in identity.split()}:
        return None
    return (
        f"the adapter of peft was trained for {base_model} and is used with {identity}, which may "
        "answer differently"
    )


def _last_part(name: str) -> str:
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2]


@dataclass(frozen=True, kw_only=True)
class _Config:
    """The fields of ``adapter_config.json`` that are read."""

    peft_type: str
    task_type: str | None = None
    base_model_name_or_path: str | None = None
    num_virtual_tokens: int | None = None
    token_dim: int | None = None


def _check_kind(config: _Config, path: Path) -> None:
    if config.peft_type != "PROMPT_TUNING":
        raise InputError(
            f"{path}: an adapter of type {config.peft_type} is not a prompt of vectors before the "
            "text: only those of type PROMPT_TUNING can be loaded"
        )
    if config.task_type not in (None, "CAUSAL_LM"):
        raise InputError(
            f"{path}: the adapter is for the task {config.task_type}, where peft puts its prompt "
            "elsewhere: only those for CAUSAL_LM can be loaded"
        )
    if (path / PICKLE).exists() and not (path / WEIGHTS).exists():
        raise InputError(
            f"{path}: the vectors are in {PICKLE}, a pickle, which may run code when it is read. "
            f"If you trust it, convert it in its folder: {CONVERT}"
        )


CONVERT = (
    'python -c "import torch, safetensors.torch as s; '
    f"s.save_file(torch.load('{PICKLE}', weights_only=True), '{WEIGHTS}')\""
)
"""A command that writes `WEIGHTS` from `PICKLE`."""


def _prompt(path: Path) -> SoftPrompt:
    data = read_limited(path)
    try:
        tensors = dict(safetensors.deserialize(data))  # type: ignore[no-untyped-call]
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise InputError(f"{path.name}: {error}") from error
    if VECTORS_KEY not in tensors:
        raise InputError(f"{path.name} has no array {VECTORS_KEY!r}")
    vectors = _floats(tensors[VECTORS_KEY])
    if START_TOKENS not in metadata:
        return SoftPrompt(vectors, "prepend")
    return SoftPrompt(vectors[int(metadata[START_TOKENS]) :], "concat")


def _floats(tensor: Mapping[str, Any]) -> FloatArray:
    """A tensor of safetensors as float32."""
    dtype, data = tensor["dtype"], tensor["data"]
    if dtype == "BF16":  # the upper half of float32, which numpy has no type for
        numbers = (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    elif dtype in _DTYPES:
        numbers = np.frombuffer(data, _DTYPES[dtype]).astype(np.float32)
    else:
        raise InputError(f"the array {VECTORS_KEY!r} is of type {dtype}, no floating-point numbers")
    return numbers.reshape(tensor["shape"])


def _check_shape(prompt: SoftPrompt, config: _Config) -> None:
    width = config.token_dim
    if width is not None and width != prompt.width:
        raise InputError(f"{CONFIG} has token_dim {width}, and {WEIGHTS} has width {prompt.width}")
