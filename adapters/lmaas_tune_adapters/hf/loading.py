"""Loading a model and its tokenizer from the hub, a folder or a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
import transformers
from transformers.models.auto import modeling_auto

from lmaas_tune.errors import InputError, did_you_mean
from lmaas_tune_adapters.hf.identity import name_of, settings_hash
from lmaas_tune_adapters.hf.source import errors_translated, failure, quiet, source_of

Family: TypeAlias = Literal["causal", "masked", "seq2seq"]

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "auto": "auto",
}
AUTO_CLASSES: dict[Family, Any] = {
    "causal": transformers.AutoModelForCausalLM,
    "masked": transformers.AutoModelForMaskedLM,
    "seq2seq": transformers.AutoModelForSeq2SeqLM,
}
_CLASSES: dict[Family, Any] = {  # in order of preference for a model that is saved as none
    "seq2seq": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "masked": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "causal": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
}
_LENGTHS = ("max_position_embeddings", "max_encoder_position_embeddings", "max_seq_len")
"""Names of the number of positions in configurations; the second is LED's, the third MPT's."""


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model for inference: no gradients, no dropout.

    Attributes:
        model: The transformers model with its language-model head.
        tokenizer: The model's.
        family: How the model answers.
        name: Hub name, or the last part of the path, with the revision where known.
        fingerprint: Hash of configuration, tokenizer and every weight as loaded.
    """

    model: Any
    tokenizer: Any
    family: Family
    name: str
    fingerprint: str


def load(model: str | Path, *, revision: str | None, device: str, dtype: str) -> LoadedModel:
    """Load a model and its tokenizer; the modules are transformers' own.

    Raises:
        InputError: The model cannot be loaded, has no trained language-model head or no
            tokenizer, or the device or dtype is unknown.
    """
    if dtype not in DTYPES:
        raise InputError(f"unknown dtype {dtype!r}; {did_you_mean(dtype, DTYPES)}")
    target = _device(device)
    source, options = source_of(model, revision)
    with quiet(), errors_translated(model):
        config = transformers.AutoConfig.from_pretrained(source, **options)
        family = family_of(config, model)
        network, report = AUTO_CLASSES[family].from_pretrained(
            source, dtype=DTYPES[dtype], output_loading_info=True, **options
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise InputError(
            f"the model {str(model)!r} lacks {len(missing)} weights of a {family} language model "
            f"(the first is {missing[0]!r}): choose one that was trained with its head"
        )
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers made it without files
        raise InputError(
            f"the model {str(model)!r} comes without its tokenizer: save that beside its weights"
        )
    network.eval().requires_grad_(False).to(target)
    return LoadedModel(
        model=network,
        tokenizer=tokenizer,
        family=family,
        name=name_of(model, config, revision),
        fingerprint=fingerprint_of(network, tokenizer),
    )


def _device(name: str) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind = name.partition(":")[0]
    if kind not in ("cpu", "cuda", "mps"):
        raise InputError(f"unknown device {name!r}; known: auto, cpu, cuda, cuda:N, mps")
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not present[kind]:
        raise InputError(f"the device {name!r} is not available on this machine: use 'cpu'")
    try:
        return torch.empty(0, device=name).device
    except RuntimeError as error:
        raise InputError(f"the device {name!r} cannot be used: {failure(error)}") from error


def family_of(config: Any, model: str | Path) -> Family:
    """Find the family of a model's architecture.

    Raises:
        InputError: It is in none of them.
    """
    kind, saved = config.model_type, config.architectures or ()
    known: list[Family] = [family for family, names in _CLASSES.items() if kind in names]
    named: list[Family] = [family for family in known if _CLASSES[family][kind] in saved]
    if named == ["masked", "causal"]:  # one class of XLM is both; its configuration decides
        return "causal" if config.causal else "masked"
    if known:
        return (named or known)[0]
    raise InputError(
        f"the model {str(model)!r} is of type {kind!r}, which has no language-model "
        "head: choose a causal, masked or sequence-to-sequence language model"
    )


def max_tokens(network: Any) -> int | None:
    """Return the number of positions that a model was trained on; None if it has no limit."""
    config = network.config
    limit = next(filter(None, (getattr(config, name, None) for name in _LENGTHS)), None)
    if limit is None or limit < 1:  # XLNet's -1: no limit
        return None
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":  # one longer row would change the angles of all rows
        limit = rope.get("original_max_position_embeddings", limit)
    for name, module in network.named_modules():
        # RoBERTa's first position comes after its padding index
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding is not None:
            return int(limit - padding - 1)
    return int(limit)


def fingerprint_of(network: Any, tokenizer: Any) -> str:
    """Hash configuration, tokenizer and every weight: 16 hexadecimal digits."""
    sha = settings_hash(network.config, tokenizer)
    for name, weight in network.state_dict().items():
        sha.update(f"{name}{tuple(weight.shape)}{weight.dtype}".encode())
        sha.update(_checksums(weight))
    return sha.hexdigest()[:16]


def _checksums(weight: torch.Tensor) -> bytes:
    """Sum a tensor's bits over the first axis as integers: exact, and equal on every device."""
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    if not weight.numel():
        return b""
    bits = weight.contiguous().reshape(len(weight) if weight.dim() else 1, -1)
    if bits.dtype == torch.bool:
        bits = bits.to(torch.int8)
    bits = bits.view(whole[bits.element_size()])
    return bits.sum(dim=0, dtype=torch.int64).cpu().numpy().tobytes()
