"""Backends for the SDK: local models, our own service, vLLM, and OpenAI-compatible servers."""
