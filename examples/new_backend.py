"""A new backend in under 40 lines, and the conformance suite that checks it.

pytest examples/new_backend.py      runs the suite on it
python examples/new_backend.py      tunes a prompt for it
"""

import zlib
from collections.abc import Sequence

import numpy as np
import pytest

from lmaas_tune import Backend, Capabilities, InputError, ScoreReply, ScoreRequest, Tuner, Usage
from lmaas_tune.prompts import FloatArray, SoftPrompt, TextPrompt
from lmaas_tune.testing import BackendConformance


class EchoBackend:
    """Repeats words of the row: a word is likely if its vector is near the mean of the row."""

    identity = "echo v1"
    capabilities = Capabilities(soft_prompt_width=8, label_anywhere=True)
    embedding_std, vocabulary_size = 1.0, 1000

    def tokenize(self, text: str, /) -> tuple[int, ...]:
        words = text.encode("utf-8", "surrogatepass").split()
        return tuple(zlib.crc32(word) % self.vocabulary_size for word in words)

    def embed(self, token_ids: Sequence[int], /) -> FloatArray:
        table = np.random.default_rng(0).standard_normal((self.vocabulary_size, 8))
        return np.asarray(table[list(token_ids)].reshape(-1, 8), dtype=np.float32)

    def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
        return [self._score(request) for request in requests]

    def _score(self, request: ScoreRequest) -> ScoreReply:
        prompt = request.prompt
        if isinstance(prompt, TextPrompt):
            vectors = self.embed(self.tokenize(prompt.text))
        elif isinstance(prompt, SoftPrompt) and (prompt.width, prompt.insertion) == (8, "concat"):
            vectors = prompt.vectors
        else:
            raise InputError(f"echo takes soft prompts of width 8 by 'concat', not {prompt}")
        texts = [" ".join(p for p in row if isinstance(p, str)) for row in request.batch.rows]
        rows = [np.concatenate([vectors, self.embed(self.tokenize(text))]) for text in texts]
        means = np.array([row.mean(axis=0) if len(row) else np.zeros(8) for row in rows])
        logits = means @ self.embed(range(self.vocabulary_size)).T
        logprobs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        columns = [self.tokenize(word)[0] for word in request.candidates]
        usage = Usage(requests=1, sequences=len(rows), tokens=sum(map(len, rows)))
        return ScoreReply(logprobs[:, columns].astype(np.float64), usage)


class TestEcho(BackendConformance):
    """Runs the whole suite on the backend above."""

    deviations = {"test_other_settings_have_another_identity": "it has no settings"}  # noqa: RUF012

    @pytest.fixture
    def backend(self) -> Backend:
        return EchoBackend()


if __name__ == "__main__":
    things = ("fun", "plot", "cast", "end")
    train = [(f"{word} {thing}", word) for thing in things for word in ("great", "poor")]
    result = Tuner(EchoBackend(), "cma", budget="calls=101", callbacks=[]).fit(train)
    comparison = result.compare(train)
    print(f"loss {comparison.baseline.loss:.3f} -> {comparison.tuned.loss:.3f}")
