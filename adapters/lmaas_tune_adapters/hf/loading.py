"""Loading a model and its tokenizer from the hub, a folder or a GGUF file."""

from __future__ import annotations

import contextlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
import transformers
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from transformers.models.auto import modeling_auto

from lmaas_tune.errors import InputError, MissingExtraError, did_you_mean
from lmaas_tune_adapters.hf.identity import fingerprint_of, name_of
from lmaas_tune_adapters.hf.probe import failure

if TYPE_CHECKING:
    from collections.abc import Iterator

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
_EXTRA = ("torch", "transformers", "gguf", "accelerate")  # the packages of the extra `hf`
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
    with quiet(), one_sentence(model):
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


def source_of(model: str | Path, revision: str | None) -> tuple[str, dict[str, Any]]:
    """Turn a model's name or path into the arguments of `from_pretrained`.

    Returns:
        A folder or hub name, and options.

    Raises:
        InputError: The file or folder is no model.
    """
    path = Path(model)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise InputError(f"there is no GGUF file {str(path)!r}: check the path")
        return str(path.parent), {"gguf_file": path.name}
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(
                f"the folder {str(path)!r} holds no model: it has no config.json; give a folder "
                "that save_pretrained wrote"
            )
        return str(path), {}
    try:
        validate_repo_id(str(model))
    except HFValidationError as error:
        raise InputError(
            f"there is no folder {str(model)!r}, and it is not a valid name on the hub"
        ) from error
    return str(model), {"revision": revision} if revision else {}


@contextlib.contextmanager
def one_sentence(model: str | Path) -> Iterator[None]:
    """Turn every failure of transformers and the hub into one sentence that names the model."""
    try:
        yield
    except InputError:
        raise
    except ImportError as error:
        if error.name in _EXTRA:
            raise MissingExtraError(
                f"loading the model {str(model)!r}", package=error.name, extra="hf"
            ) from error
        raise InputError(
            f"loading the model {str(model)!r} needs a package that is not installed: "
            f"{error.name or failure(error)}"
        ) from error
    except Exception as error:  # parsers of damaged files raise any exception
        raise InputError(
            f"cannot load the model {str(model)!r} ({failure(error)}): check the name, the "
            "folder, or the network"
        ) from error


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


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Switch off progress bars and logs of transformers, and restore them afterwards."""
    log: Any = transformers.utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        # the progress bar of GGUF files has no switch
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()
