"""OpenAI-compatible servers: text prompts, by completions or chat."""

from lmaas_tune_adapters.openai.backend import OpenAIBackend

__all__ = ["OpenAIBackend"]
