"""Export of a tuned prompt as a prompt-tuning adapter of the library peft."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import safetensors.numpy

from lmaas_tune.artifact import TunedPrompt
from lmaas_tune.errors import InputError, StorageError
from lmaas_tune.peft import CONFIG, START_TOKENS, WEIGHTS
from lmaas_tune.prompts import FloatArray
from lmaas_tune.prompts.soft import VECTORS_KEY
from lmaas_tune.task import Slot
from lmaas_tune_adapters.hf.request_encoder import parts_of


def export_peft(
    tuned: TunedPrompt, folder: str | os.PathLike[str], *, base_model: str, start: FloatArray
) -> Path:
    """Write the folder that ``peft.PeftModel.from_pretrained`` loads.

    peft puts its vectors before everything, so the template must begin with ``{prompt}``. A
    prompt that is inserted by ``prepend`` is written as it is: give the model the ids of the text
    behind it, with the special tokens of the tokenizer. Before one of ``concat`` go the start
    tokens that the tokenizer adds: give the model the ids without special tokens.

    Args:
        tuned: A soft prompt.
        folder: Created, or overwritten.
        base_model: Hub name or folder of the model.
        start: (tokens, H) embeddings of the start tokens.

    Raises:
        InputError: peft does not support the prompt.
        StorageError: The folder cannot be written.
    """
    parts = parts_of(tuned.prompt)
    prompt = parts.soft
    if prompt is None or parts.above is not None or prompt.insertion == "add":
        raise InputError(
            "peft's prompt tuning takes a soft prompt inserted by 'concat' or 'prepend' only"
        )
    if tuned.task.template.parts[0] is not Slot.PROMPT:
        raise InputError(
            "peft puts a prompt before everything, and the template "
            f"{tuned.task.template.text!r} does not begin with {{prompt}}: tune with one that does"
        )
    metadata, vectors = {"format": "pt"}, prompt.vectors
    if prompt.insertion == "concat":
        metadata[START_TOKENS] = str(len(start))
        vectors = np.concatenate([start, vectors]).astype(np.float32)
    config = {
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": len(vectors),
        "peft_type": "PROMPT_TUNING",
        "prompt_tuning_init": "RANDOM",
        "task_type": "CAUSAL_LM",
        "token_dim": prompt.width,
    }
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / WEIGHTS).write_bytes(safetensors.numpy.save({VECTORS_KEY: vectors}, metadata))
        (path / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path}: the adapter cannot be written ({error})") from error
    return path
