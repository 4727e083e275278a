"""A backend whose model is a rule: a label word fits a row that holds it."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from lmaas_tune import Capabilities, InputError, ScoreReply, ScoreRequest, SoftPrompt, Usage

WIDTH = 4


class NeighbourBackend:
    """Reads the better, the nearer the prompt's mean is to 1.

    Args:
        sharpness: How sure it is at best.
    """

    def __init__(self, *, sharpness: float = 4.0) -> None:
        self._sharpness = sharpness
        self.identity = f"neighbour sharpness={sharpness}"
        self.capabilities = Capabilities(
            soft_prompt_width=WIDTH, text_prompts=False, label_anywhere=True
        )

    def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
        return [self._score(request) for request in requests]

    def _score(self, request: ScoreRequest) -> ScoreReply:
        prompt = request.prompt
        if not isinstance(prompt, SoftPrompt) or (prompt.width, prompt.insertion) != (
            WIDTH,
            "concat",
        ):
            raise InputError(f"neighbour takes soft prompts of width {WIDTH} by 'concat'")
        gain = self._sharpness / (1.0 + (float(prompt.vectors.mean()) - 1.0) ** 2)
        texts = [" ".join(p for p in row if isinstance(p, str)) for row in request.batch.rows]
        fits = [[_fit(text, word.strip()) for word in request.candidates] for text in texts]
        logprobs = -np.logaddexp(0.0, -gain * np.array(fits).reshape(len(texts), -1))
        tokens = sum(len(text.split()) + prompt.length for text in texts)
        return ScoreReply(logprobs, Usage(requests=1, sequences=len(texts), tokens=tokens))


def _fit(text: str, word: str) -> float:
    """1 for a word that stands in the text, else a number of its own a little below 0."""
    if word in text.split():
        return 1.0
    return -(zlib.crc32(f"{text} {word}".encode()) % 1000) / 1000
