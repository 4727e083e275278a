"""Models on a vLLM server, with soft and text prompts, sent as embeddings."""

from lmaas_tune.errors import MissingExtraError

try:
    import ml_dtypes  # noqa: F401
    import transformers  # noqa: F401
except ModuleNotFoundError as error:
    package = (error.name or "transformers").partition(".")[0]
    raise MissingExtraError("the backend 'vllm'", package=package, extra="vllm") from error

from lmaas_tune_adapters.vllm.backend import VLLMBackend

__all__ = ["VLLMBackend"]
