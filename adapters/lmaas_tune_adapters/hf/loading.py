"""From a name, a folder or a GGUF file to a model ready to read, and to the name of what it is."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
import transformers
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from transformers.models.auto import modeling_auto

from lmaas_tune.backend import Speedup
from lmaas_tune.errors import InputError, MissingExtraError, did_you_mean
from lmaas_tune_adapters.hf.forward import failure, usual_ids
from lmaas_tune_adapters.hf.speedups import OTHER_SCORES, SWITCHED_OFF, processor_kernels

Family: TypeAlias = Literal["causal", "masked", "seq2seq"]

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "auto": "auto",
}
_EXTRA = ("torch", "transformers", "gguf", "accelerate")  # what the extra `hf` installs
AUTO_CLASSES: dict[Family, Any] = {
    "causal": transformers.AutoModelForCausalLM,
    "masked": transformers.AutoModelForMaskedLM,
    "seq2seq": transformers.AutoModelForSeq2SeqLM,
}
_CLASSES: dict[Family, Any] = {  # of each type of model; the first is taken of those it is saved as
    "seq2seq": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "masked": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "causal": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
}


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model that reads and nothing else: no gradients, no dropout.

    Attributes:
        model: The transformers model with its language-model head.
        tokenizer: Its tokenizer.
        family: How it answers.
        name: Hub name, or the last part of the path, with the revision where known.
        fingerprint: Hash of configuration, tokenizer and every weight as loaded.
        speedups: Whether its modules were made faster; none where that is not tried.
    """

    model: Any
    tokenizer: Any
    family: Family
    name: str
    fingerprint: str
    speedups: tuple[Speedup, ...] = ()


def load(
    model: str | Path, *, revision: str | None, device: str, dtype: str, pack: bool = True
) -> LoadedModel:
    """Load a model and its tokenizer; with `pack`, its modules are made faster to use.

    Raises:
        InputError: The model cannot be had, has no trained language-model head or no tokenizer,
            reads no vectors in place of tokens, or the device or dtype is unknown.
    """
    if dtype not in DTYPES:
        raise InputError(f"unknown dtype {dtype!r}; {did_you_mean(dtype, DTYPES)}")
    place = _device(device)
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
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # made up of no files at all
        raise InputError(
            f"the model {str(model)!r} comes without its tokenizer: save that beside its weights"
        )
    network.eval().requires_grad_(False).to(place)
    fingerprint = _fingerprint(network, tokenizer)
    _check_vectors(network, model)
    speedups = []
    if place.type == "cpu":
        reason, usable = _pack(network) if pack else (SWITCHED_OFF, True)
        speedups.append(processor_kernels(reason))
        if not usable:
            with quiet(), one_sentence(model):
                network = AUTO_CLASSES[family].from_pretrained(
                    source, dtype=DTYPES[dtype], **options
                )
            network.eval().requires_grad_(False).to(place)
    return LoadedModel(
        model=network,
        tokenizer=tokenizer,
        family=family,
        name=name_of(model, config, revision),
        fingerprint=fingerprint,
        speedups=tuple(speedups),
    )


def _check_vectors(network: Any, model: str | Path) -> None:
    """Refuse a model that does not say of embeddings what it says of their tokens."""
    by_tokens = _said(network)
    if by_tokens is None:
        return
    by_vectors = _said(network, vectors=True)
    if by_vectors is None or not _same(by_vectors, by_tokens):
        raise InputError(
            f"the model {str(model)!r} does not say of embeddings what it says of the tokens that "
            "they stand for, so a prompt in their place would be misread: choose another model"
        )


def _pack(network: Any) -> tuple[str, bool]:
    """Make a model faster, and see whether it says what it said: tried out, not assumed.

    Returns:
        What did not succeed, and whether the network is still of use.
    """
    before = _said(network)
    if before is None:
        return "it is read otherwise than by tokens alone", True
    try:
        from lmaas_tune_adapters.hf.packing import pack  # leans on private parts: it may not load
    except Exception as error:
        return failure(error), True
    with quiet():
        failures = pack(network)
    after = _said(network)
    if after is None or not _same(after, before):
        return OTHER_SCORES, False
    return "; ".join(failures), True


def _same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    rough = 1e-4 if theirs.dtype == torch.float32 else 0.1
    return bool((ours - theirs).abs().max() <= rough * theirs.abs().max())


def _said(network: Any, *, vectors: bool = False) -> torch.Tensor | None:
    """Logits of some tokens, or of their embeddings; None where the model is asked otherwise."""
    try:
        with quiet(), torch.inference_mode():
            table = network.get_input_embeddings()
            ids = usual_ids(network, (2, 24), torch.Generator().manual_seed(0)).to(network.device)
            given, name = (table(ids), "inputs_embeds") if vectors else (ids, "input_ids")
            inputs = {name: given}
            if network.config.is_encoder_decoder:
                inputs[f"decoder_{name}"] = given
            logits: torch.Tensor = network(**inputs).logits
    except Exception:
        return None
    return logits


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
        raise InputError(f"the device {name!r} is not to be had on this machine: use 'cpu'")
    try:
        return torch.empty(0, device=name).device
    except RuntimeError as error:
        raise InputError(f"the device {name!r} cannot be used: {_first_line(error)}") from error


def source_of(model: str | Path, revision: str | None) -> tuple[str, dict[str, Any]]:
    """What `from_pretrained` takes for a model: a folder or name, and options.

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
            f"there is no folder {str(model)!r}, and it is not a name that the hub could have"
        ) from error
    return str(model), {"revision": revision} if revision else {}


@contextlib.contextmanager
def one_sentence(model: str | Path) -> Iterator[None]:
    """Say every failure of transformers and the hub in one sentence that names the model."""
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
            f"{error.name or _first_line(error)}"
        ) from error
    except Exception as error:  # damaged files raise whatever their parser raises
        raise InputError(
            f"cannot load the model {str(model)!r} ({type(error).__name__}: "
            f"{_first_line(error)}): check the name, the folder, or the network"
        ) from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else "no reason given"


def name_of(model: str | Path, config: Any, revision: str | None) -> str:
    """What a model is called in an identity: never a whole path, and the commit if there is one."""
    commit = getattr(config, "_commit_hash", None) or revision
    name = Path(model).name if Path(model).exists() else str(model)
    return f"{name}@{commit[:12]}" if commit else name


def family_of(config: Any, model: str | Path) -> Family:
    """Which family a model's architecture belongs to.

    Raises:
        InputError: None of them.
    """
    kind, saved = config.model_type, config.architectures or ()
    known: list[Family] = [family for family, names in _CLASSES.items() if kind in names]
    named: list[Family] = [family for family in known if _CLASSES[family][kind] in saved]
    if named == ["masked", "causal"]:  # XLM's one class is both, as its configuration says
        return "causal" if config.causal else "masked"
    if known:
        return (named or known)[0]
    raise InputError(
        f"the model {str(model)!r} is of type {kind!r}, which has no language-model "
        "head: choose a causal, masked or sequence-to-sequence language model"
    )


def _fingerprint(network: Any, tokenizer: Any) -> str:
    sha = settings_hash(network.config, tokenizer)
    for name, weight in network.state_dict().items():
        sha.update(f"{name}{tuple(weight.shape)}{weight.dtype}".encode())
        sha.update(_checksums(weight))
    return sha.hexdigest()[:16]


def settings_hash(config: Any, tokenizer: Any) -> hashlib._Hash:
    """SHA-256 of all that a model is but its weights."""
    sha = hashlib.sha256()
    content = config.to_dict()
    for key in ("_name_or_path", "transformers_version", "dtype", "architectures"):
        content.pop(key, None)
    sha.update(json.dumps(content, sort_keys=True, default=str).encode())
    if tokenizer.is_fast:
        sha.update(tokenizer.backend_tokenizer.to_str().encode())
    else:
        sha.update(json.dumps(sorted(tokenizer.get_vocab().items())).encode())
    if tokenizer.mask_token_id is not None:  # what a masked model is asked at
        sha.update(f"mask={tokenizer.mask_token_id}".encode())
    return sha


def _checksums(weight: torch.Tensor) -> bytes:
    """Exact integer sums over the first axis: the same on every device, changed by every bit."""
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    if not weight.numel():
        return b""
    bits = weight.contiguous().reshape(len(weight) if weight.dim() else 1, -1)
    if bits.dtype == torch.bool:
        bits = bits.to(torch.int8)
    bits = bits.view(whole[bits.element_size()])
    return bits.sum(dim=0, dtype=torch.int64).cpu().numpy().tobytes()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No bars and no chatter from transformers; both are as before afterwards."""
    log: Any = transformers.utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        # the bar of a GGUF file has no switch
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()
