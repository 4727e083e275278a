"""Real networks behind the service: causal, masked and sequence-to-sequence."""

from __future__ import annotations

import base64
import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is there: no test may reach a network

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra 'hf' is not installed")
pytest.importorskip("transformers", reason="the extra 'hf' is not installed")


from lmaas_tune.backend import ScoreRequest  # noqa: E402
from lmaas_tune.prompts import SoftPrompt, Subspace, TextPrompt  # noqa: E402
from lmaas_tune.prompts.soft import draw  # noqa: E402
from lmaas_tune.registry import load_backend  # noqa: E402
from lmaas_tune.task import Batch, Slot  # noqa: E402
from tests.support import models  # noqa: E402
from tests.support.service import (  # noqa: E402
    ALICE,
    BOB,
    KEYS,
    SUBSPACE,
    TEXTS,
    WORDS,
    Visitor,
    command,
    listening,
    raw,
    running,
    scores,
    text,
)

BATCH = Batch(tuple((Slot.PROMPT, " " + text, " It was", Slot.LABEL) for text in TEXTS))
ROWS = [[{"slot": "prompt"}, " " + text, " It was", {"slot": "label"}] for text in TEXTS]
POINT = np.random.default_rng(3).standard_normal(4).astype(np.float32)


@pytest.fixture(scope="module", params=["llama", "bert", "t5"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.build(request.param, tmp_path_factory.mktemp("models") / request.param)


@pytest.fixture(scope="module")
def backend(folder: Path) -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load_backend("hf")(model=folder, device="cpu")
    torch.set_num_threads(threads)


def prompts(backend: Any, insertion: str) -> list[SoftPrompt]:
    rng = np.random.default_rng(0)
    shape = (4, 3, backend.capabilities.soft_prompt_width)
    anchor = (7, 8, 9) if insertion == "add" else ()
    std = backend.embedding_std
    return [SoftPrompt(v, insertion, anchor) for v in std * rng.standard_normal(shape)]  # type: ignore[arg-type]


def own(backend: Any, prompt: Any) -> Any:
    """What the backend says itself."""
    (reply,) = backend.score([ScoreRequest(prompt, BATCH, WORDS)])
    return reply


def body(prompt: SoftPrompt) -> dict[str, Any]:
    return {
        "kind": "soft",
        "vectors": base64.b64encode(raw(prompt)).decode(),
        "length": prompt.length,
        "insertion": prompt.insertion,
        "anchor": list(prompt.anchor),
    }


def test_every_kind_of_prompt_is_scored_as_the_model_does(backend: Any, tmp_path: Path) -> None:
    with running(backend, folder=tmp_path) as site:
        alice = site.visitor()
        path = f"/v1/score/{alice.batch(ROWS)}"
        inspect = path.replace("score", "inspect")
        asked = [(TextPrompt("it was good"), text("it was good"))]
        for insertion in sorted(backend.capabilities.insertions):
            asked += [(prompt, body(prompt)) for prompt in prompts(backend, insertion)[:1]]
        for prompt, content in asked:
            reply, answer = own(backend, prompt), alice.post(path, content)
            np.testing.assert_array_equal(scores(answer), reply.logprobs.astype(np.float32))
            assert int(answer.headers["Tokens"]) == reply.usage.tokens
            told = alice.post(inspect, content).json()
            assert (told["tokens"], told["sequences"]) == (reply.usage.tokens, len(BATCH))


@pytest.mark.parametrize("start", ["words", "vocabulary", "zero"])
@pytest.mark.parametrize("projection", ["vocabulary", "normal"])
def test_a_point_is_the_prompt_that_the_models_words_give(
    backend: Any, tmp_path: Path, start: str, projection: str
) -> None:
    content = SUBSPACE | {"start": start, "words": " it was", "projection": projection}
    (prompt,) = draw([Subspace(**content)], backend).prompts(POINT[None])
    with running(backend, folder=tmp_path) as site:
        alice = site.visitor()
        path = f"/v1/score/{alice.batch(ROWS)}/{alice.subspace(**content)}"
        got = alice.score(path, POINT.astype("<f4").tobytes())
    np.testing.assert_array_equal(got, own(backend, prompt).logprobs.astype(np.float32))


def test_requests_that_share_passes_get_what_they_get_alone(backend: Any, tmp_path: Path) -> None:
    asked = prompts(backend, "concat") * 4
    with running(backend, folder=tmp_path) as site, ThreadPoolExecutor(len(asked)) as threads:
        visitors = [site.visitor(key) for key in (ALICE, BOB) * (len(asked) // 2)]
        batch = visitors[0].batch(ROWS)
        assert visitors[1].batch(ROWS) == batch
        answers = [
            threads.submit(visitor.score, f"/v1/score/{batch}?length=3", raw(prompt))
            for visitor, prompt in zip(visitors, asked, strict=True)
        ]
        for prompt, answer in zip(asked, answers, strict=True):
            np.testing.assert_allclose(
                answer.result(), own(backend, prompt).logprobs, atol=1e-4, rtol=0
            )


def test_what_the_model_says_of_label_words_is_told_when_they_are_registered(
    backend: Any, tmp_path: Path
) -> None:
    rows = [["it was ", {"slot": "label"}]]
    with running(backend, folder=tmp_path) as site:
        alice = site.visitor()
        answer = alice.post("/v1/batches", {"rows": rows, "candidates": ["good", "wonderfully"]})
        assert answer.status_code == 201 and any("wonderfully" in n for n in answer.json()["notes"])
        if backend.capabilities.max_tokens is None:
            return
        long = [["word " * backend.capabilities.max_tokens, {"slot": "label"}]]
        answer = alice.post("/v1/batches", {"rows": rows + long, "candidates": WORDS})
        assert answer.status_code == 422 and "row 2" in answer.json()["error"]["message"]


def test_the_command_serves_a_folder(tmp_path: Path) -> None:
    folder = models.build("t5", tmp_path / "small")
    (tmp_path / "keys").write_text(KEYS)
    flags = ("--model", str(folder), "--port", "0", "--api-key-file", str(tmp_path / "keys"))
    with command(*flags, "--json", log=tmp_path / "log") as process:
        content = listening(process)
        assert content["identity"].startswith("hf small weights=")  # and no path
        alice = Visitor(content["url"], ALICE)
        got = alice.score(f"/v1/score/{alice.batch(ROWS)}", text("it was"))
    backend = load_backend("hf")(model=folder, device="cpu")
    np.testing.assert_allclose(got, own(backend, TextPrompt("it was")).logprobs, atol=1e-5, rtol=0)
