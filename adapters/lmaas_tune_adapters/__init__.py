"""The backends of lmaas_tune: local models, our service, vLLM, OpenAI-compatible servers."""
