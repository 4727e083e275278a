"""Local Hugging Face models: causal, masked and sequence-to-sequence, soft and text prompts.

The backend is imported when it is used: `vllm/` shares modules here that need no torch.
"""

from typing import TYPE_CHECKING, Any

from lmaas_tune.errors import MissingExtraError
from lmaas_tune.progress import in_notebook, tqdm_of_notebook

if in_notebook():
    tqdm_of_notebook()  # before transformers imports it, and warns

if TYPE_CHECKING:
    from lmaas_tune_adapters.hf.backend import HFBackend
    from lmaas_tune_adapters.hf.gguf import convert_gguf

__all__ = ["HFBackend", "convert_gguf"]


def __getattr__(name: str) -> Any:
    """A name of `__all__`."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from lmaas_tune_adapters.hf import backend, gguf
    except ModuleNotFoundError as error:
        package = (error.name or "torch").partition(".")[0]
        raise MissingExtraError("the backend 'hf'", package=package, extra="hf") from error
    return {"HFBackend": backend.HFBackend, "convert_gguf": gguf.convert_gguf}[name]
