"""Converting a GGUF file once into a folder that loads fast."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch

from lmaas_tune.errors import InputError, StorageError
from lmaas_tune_adapters.hf.loading import AUTO_CLASSES, load
from lmaas_tune_adapters.hf.source import quiet


def convert_gguf(gguf_file: str | Path, folder: str | Path) -> Path:
    """Write the model and tokenizer of a GGUF file as a safetensors folder, in float32.

    The folder appears whole or not at all. An existing one is left unchanged.

    Returns:
        The folder.

    Raises:
        InputError: The file is missing or cannot be read as a model.
        StorageError: The folder cannot be written.
    """
    target = Path(folder)
    if target.exists():
        return target
    if Path(gguf_file).suffix != ".gguf":
        raise InputError(f"{str(gguf_file)!r} is not a .gguf file")
    loaded = load(gguf_file, revision=None, device="cpu", dtype="float32")
    with quiet():
        # transformers treats a model from GGUF as quantised and refuses to save it
        config = loaded.model.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        plain = AUTO_CLASSES[loaded.family].from_config(config, dtype=torch.float32)
        plain.load_state_dict(loaded.model.state_dict())
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        except OSError as error:
            raise StorageError(f"cannot write the folder {str(target)!r}: {error}") from error
        try:
            plain.save_pretrained(draft)
            loaded.tokenizer.save_pretrained(draft)
            draft.chmod(0o755)  # a temporary folder is private to its owner
            draft.rename(target)
        except OSError as error:
            if not target.exists():  # else another process wrote it
                raise StorageError(f"cannot write the folder {str(target)!r}: {error}") from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return target
