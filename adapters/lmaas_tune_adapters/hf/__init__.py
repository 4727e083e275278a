"""Local Hugging Face models: causal, masked and sequence-to-sequence, soft and text prompts."""

from lmaas_tune.errors import MissingExtraError

try:
    import torch
    import transformers
except ImportError as error:
    raise MissingExtraError(
        "the backend 'hf'", package=(error.name or "torch").partition(".")[0], extra="hf"
    ) from error
del torch, transformers

from lmaas_tune_adapters.hf.backend import HFBackend
from lmaas_tune_adapters.hf.gguf import convert_gguf

__all__ = ["HFBackend", "convert_gguf"]
