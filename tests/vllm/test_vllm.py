"""The backend `vllm` against a real server: `make test-vllm`."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lmaas_tune_adapters.hf import HFBackend
from lmaas_tune_adapters.vllm import VLLMBackend

from lmaas_tune import Client, Pace, ScoreRequest, Settings, Soft, TunedPrompt, Tuner
from lmaas_tune.calls.retry import Retry
from lmaas_tune.errors import InputError, PermanentError
from lmaas_tune.prompts import FloatArray, Prompt, SoftPrompt, TextPrompt
from lmaas_tune.testing import BackendConformance
from tests.hf.test_exact import CANDIDATES, LABEL_LAST, batch_of, soft
from tests.support import reference

from .conftest import tiny_llama
from .server import MAX_MODEL_LEN, VLLMServer

WORDS = ("great", "bad")
"""Of one token each."""


@pytest.fixture(scope="session")
def local(vllm_server: VLLMServer) -> HFBackend:
    return HFBackend(vllm_server.model, device="cpu")


@pytest.fixture(scope="session")
def remote(vllm_server: VLLMServer) -> VLLMBackend:
    return opened(vllm_server)


def opened(server: VLLMServer, **options: Any) -> VLLMBackend:
    options = {"url": server.url, "model": server.model, "api_key_file": server.key_file} | options
    return VLLMBackend(**options)


def logprobs(backend: Any, request: ScoreRequest) -> FloatArray:
    return backend.score([request])[0].logprobs


class TestVLLM(BackendConformance):
    """The public suite."""

    @pytest.fixture
    def backend(self, remote: VLLMBackend) -> VLLMBackend:
        return remote

    @pytest.fixture
    def differing(self, vllm_server: VLLMServer) -> list[VLLMBackend]:
        return [opened(vllm_server, wire_dtype="bfloat16")]


@pytest.mark.parametrize("template", LABEL_LAST)
def test_scores_are_those_of_a_plain_forward_of_transformers(
    template: str, local: HFBackend, remote: VLLMBackend
) -> None:
    batch = batch_of(template)
    prompts: list[Prompt] = [*soft(local, 2), *soft(local, 1, insertion="add")]
    prompts += [TextPrompt(""), TextPrompt("overall , the")]
    for prompt in prompts:
        request = ScoreRequest(prompt, batch, CANDIDATES)
        expected = reference.logprobs(local, request)
        np.testing.assert_allclose(logprobs(remote, request), expected, atol=1e-4, rtol=0)


def test_words_and_their_embeddings_are_the_local_backend_s(
    local: HFBackend, remote: VLLMBackend
) -> None:
    ids = remote.tokenize(" overall , naïve 電影")
    assert ids == local.tokenize(" overall , naïve 電影")
    np.testing.assert_array_equal(remote.embed(ids), local.embed(ids))
    assert remote.embedding_std == pytest.approx(local.embedding_std, rel=1e-6)


def test_requests_with_other_label_words_at_the_same_time_are_not_mixed_up(
    remote: VLLMBackend, local: HFBackend
) -> None:
    words = [("great", "bad"), CANDIDATES, ("fine", "good", "dull"), tuple("abcdefghijklmnop")]
    batch = batch_of(LABEL_LAST[0])
    requests = [ScoreRequest(prompt, batch, w) for prompt in soft(local, 4) for w in words]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda request: logprobs(remote, request), requests))
    for request, values in zip(requests, found, strict=True):
        np.testing.assert_allclose(values, logprobs(local, request), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("wire", "rough"), [("bfloat16", 0.5), ("float16", 0.05)])
def test_half_precision_on_the_wire_is_near(
    wire: str, rough: float, vllm_server: VLLMServer, local: HFBackend
) -> None:
    request = ScoreRequest(soft(local, 1)[0], batch_of(LABEL_LAST[0]), WORDS)
    found = logprobs(opened(vllm_server, wire_dtype=wire), request)
    difference = np.abs(found - logprobs(local, request)).max()
    assert 1e-5 < difference < rough


def test_what_is_counted_is_what_the_server_says_it_read(
    remote: VLLMBackend, local: HFBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    read = type(remote._completions)._read

    def listening(self: Any, content: Any, *others: Any) -> FloatArray:
        told.append(content["usage"]["prompt_tokens"])
        return read(self, content, *others)

    monkeypatch.setattr(type(remote._completions), "_read", listening)
    request = ScoreRequest(soft(local, 1)[0], batch_of(LABEL_LAST[0]), CANDIDATES)
    (reply,) = remote.score([request])
    assert reply.usage.tokens == sum(told)
    assert reply.usage.requests == len(told)


def test_the_longest_row_that_is_claimed_is_scored(remote: VLLMBackend) -> None:
    longest = remote.capabilities.max_tokens
    assert longest == MAX_MODEL_LEN - 1
    start = len(remote.tokenize("a It was")) + 1  # the start token
    batch = batch_of("{text}{prompt} It was {label}", ("a" + " a" * (longest - start),))
    (reply,) = remote.score([ScoreRequest(TextPrompt(""), batch, WORDS)])
    assert reply.usage.tokens == longest
    assert np.isfinite(reply.logprobs).all()


def test_only_prompts_that_the_model_overflows_on_have_no_scores(remote: VLLMBackend) -> None:
    ids = remote.tokenize("a gripping film")
    good = remote._rows.words(ids)
    bad = remote._rows.soft(ids, 0, np.full((1, 128), np.nan, dtype=np.float32), adds=False)
    found, usage = remote._completions.logprobs([good, bad, good, good, bad], [5, 6])
    np.testing.assert_array_equal(np.isnan(found), [[n] * 2 for n in (0, 1, 0, 0, 1)])
    np.testing.assert_allclose(found[0], found[2], atol=1e-5)
    assert usage.requests > 1


def test_a_run_is_the_run_of_the_local_backend_and_its_prompt_predicts_there(
    remote: VLLMBackend, local: HFBackend, tmp_path: Path
) -> None:
    train = [
        ("a gripping film that stays with you", "great"),
        ("the story is told well", "great"),
        ("two hours that i will not get back", "bad"),
        ("a dull and lifeless affair", "bad"),
    ]

    def run(backend: Any) -> Any:
        client = Client(backend, pace=Pace(workers=4))
        soft = Soft(intrinsic_dim=8, prompt_init="overall , it was")
        settings = Settings(prompt=soft, head="words", head_words=100)
        return Tuner(client, "cma", settings=settings, budget="calls=41", seed=3, callbacks=()).fit(
            train
        )

    there, here = run(remote), run(local)
    for column in ("train_loss", "best_loss"):
        np.testing.assert_allclose(there.history[column], here.history[column], atol=1e-3)
    assert there.spent.bytes_up > 0
    assert there.spent.sequences == here.spent.sequences
    there.save(tmp_path / "prompt")
    tuned = TunedPrompt.load(tmp_path / "prompt")
    texts = [text for text, _ in train]
    with pytest.warns(UserWarning, match="was tuned for vllm"):
        assert tuned.predict(remote, texts) == tuned.predict(local, texts)


# --- what ends a run, each before anything is paid


def test_a_wrong_key_is_told_and_not_shown(vllm_server: VLLMServer, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("not-the-key")
    with pytest.raises(PermanentError, match=r"401: Unauthorized; check the key") as caught:
        opened(vllm_server, api_key_file=file)
    assert "not-the-key" not in str(caught.value)


def test_no_key_is_told(vllm_server: VLLMServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    with pytest.raises(PermanentError, match="check the key"):
        opened(vllm_server, api_key_file=None)


def test_a_model_that_is_not_served_is_told(vllm_server: VLLMServer) -> None:
    with pytest.raises(InputError, match="no model 'tony'; did you mean 'tiny'"):
        opened(vllm_server, served_model="tony")


def test_a_model_that_is_gone_during_a_run_ends_it(
    vllm_server: VLLMServer, local: HFBackend
) -> None:
    backend = opened(vllm_server)
    object.__setattr__(backend._completions, "served_model", "gone")
    with pytest.raises(PermanentError, match=r"404: The model `gone` does not exist"):
        backend.score([ScoreRequest(soft(local, 1)[0], batch_of(LABEL_LAST[0]), WORDS)])


def test_a_place_that_is_no_server_s_is_told(vllm_server: VLLMServer) -> None:
    with pytest.raises(PermanentError, match="404: Not Found; check the URL"):
        opened(vllm_server, url=f"{vllm_server.url}/elsewhere")


def test_a_model_of_another_width_is_told_with_both(
    vllm_server: VLLMServer, tmp_path: Path
) -> None:
    narrow = tiny_llama(tmp_path / "narrow", hidden_size=64)
    with pytest.raises(PermanentError, match=r"64 wide, and those of the server's model 128"):
        opened(vllm_server, model=narrow)


def test_another_model_of_the_same_width_is_found_out(
    vllm_server: VLLMServer, tmp_path: Path
) -> None:
    with pytest.raises(PermanentError, match="the model 'tiny' there has other embeddings"):
        opened(vllm_server, model=tiny_llama(tmp_path / "other", seed=1))


def test_a_server_that_is_not_there_is_told(vllm_server: VLLMServer) -> None:
    with pytest.raises(PermanentError, match=r"no answer after 1 attempt .* cannot be reached"):
        opened(vllm_server, url="http://127.0.0.1:9", retry=Retry(attempts=1))


def test_the_example_ends_with_equal_losses_here_by_our_service_and_by_vllm(
    vllm_server: VLLMServer,
) -> None:
    example = Path(__file__).parents[2] / "examples" / "remote.py"
    flags = ["--model", str(vllm_server.model), "--vllm", vllm_server.url]
    flags += ["--vllm-key-file", str(vllm_server.key_file)]
    done = subprocess.run(
        [sys.executable, str(example), *flags],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[1:4]] == [
        "local",
        "service",
        "vllm",
    ]


def test_the_server_is_well_after_all_this(remote: VLLMBackend, local: HFBackend) -> None:
    huge = SoftPrompt(np.full((3, 128), 3e38))
    for prompt in (huge, soft(local, 1)[0]):
        request = ScoreRequest(prompt, batch_of(LABEL_LAST[0]), WORDS)
        values = logprobs(remote, request)
        assert values.shape == (6, 2)
    np.testing.assert_allclose(values, logprobs(local, request), atol=1e-4, rtol=0)
