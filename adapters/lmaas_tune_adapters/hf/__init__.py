"""Local Hugging Face models: causal, masked and sequence-to-sequence, soft and text prompts."""

from lmaas_tune.errors import MissingExtraError

try:
    from lmaas_tune_adapters.hf.backend import HFBackend
    from lmaas_tune_adapters.hf.gguf import convert_gguf
except ModuleNotFoundError as error:
    package = (error.name or "torch").partition(".")[0]
    raise MissingExtraError("the backend 'hf'", package=package, extra="hf") from error

__all__ = ["HFBackend", "convert_gguf"]
