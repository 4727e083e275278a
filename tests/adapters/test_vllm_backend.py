"""The backend `vllm` against a stand-in; `tests/vllm` has the same against a real server."""

from __future__ import annotations

import json
import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is there: no test may reach a network

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra 'vllm' is not installed")
pytest.importorskip("transformers", reason="the extra 'vllm' is not installed")

from lmaas_tune_adapters.hf import HFBackend  # noqa: E402
from lmaas_tune_adapters.vllm import VLLMBackend  # noqa: E402

from lmaas_tune import (  # noqa: E402
    Settings,
    Soft,
    Task,
    Template,
    TunedPrompt,
    Tuner,
    Verbalizer,
)
from lmaas_tune.backend import ScoreRequest  # noqa: E402
from lmaas_tune.calls.retry import Retry  # noqa: E402
from lmaas_tune.cli import main  # noqa: E402
from lmaas_tune.errors import (  # noqa: E402
    BackendError,
    InputError,
    PermanentError,
    TransientError,
)
from lmaas_tune.prompts import FloatArray, Prompt, SoftPrompt, TextPrompt  # noqa: E402
from lmaas_tune.settings import with_fields  # noqa: E402
from lmaas_tune.testing import BackendConformance  # noqa: E402
from tests.hf.test_exact import CANDIDATES, LABEL_LAST, batch_of, soft  # noqa: E402
from tests.support import models, reference  # noqa: E402
from tests.support.vllm_server import Refusal, StandIn  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices gain nothing from threads and lose much where cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """folder(name): where the tiny model of that name is saved."""
    return cache(lambda name: models.build(name, tmp_path_factory.mktemp("models") / name))


@pytest.fixture
def server(folder: Callable[[str], Path]) -> Iterator[StandIn]:
    with StandIn(folder("llama")) as server:
        yield server


@pytest.fixture(scope="module")
def local(folder: Callable[[str], Path]) -> HFBackend:
    return HFBackend(folder("llama"), device="cpu")


@pytest.fixture
def remote(server: StandIn) -> VLLMBackend:
    backend = VLLMBackend(server.url, server.folder)
    server.asked.clear()
    return backend


class TestVLLM(BackendConformance):
    """The public suite."""

    @pytest.fixture
    def backend(self, remote: VLLMBackend) -> VLLMBackend:
        return remote

    @pytest.fixture
    def differing(
        self, server: StandIn, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[list[VLLMBackend]]:
        server.models = {"tiny": 256, "other": 256}
        folder = models.build("llama", tmp_path_factory.mktemp("other") / "llama", seed=1)
        with StandIn(folder) as other:
            yield [
                VLLMBackend(server.url, server.folder, served_model="other"),
                VLLMBackend(server.url, server.folder, served_model="tiny", wire_dtype="bfloat16"),
                VLLMBackend(other.url, folder),
            ]


def request_of(prompt: Prompt, template: str = LABEL_LAST[1], **words: Any) -> ScoreRequest:
    return ScoreRequest(prompt, batch_of(template), words.get("candidates", CANDIDATES))


def logprobs(backend: Any, request: ScoreRequest) -> FloatArray:
    return backend.score([request])[0].logprobs


@pytest.mark.parametrize("template", LABEL_LAST)
def test_scores_are_the_local_backend_s_for_words_of_one_token_and_of_several(
    template: str, local: HFBackend, remote: VLLMBackend
) -> None:
    prompts: list[Prompt] = [*soft(local, 1), *soft(local, 1, insertion="add")]
    prompts += [TextPrompt(""), TextPrompt("overall , the")]
    for prompt in prompts:
        request = request_of(prompt, template)
        expected = reference.logprobs(local, request)
        np.testing.assert_allclose(logprobs(remote, request), expected, atol=1e-4, rtol=0)


def test_the_words_of_a_head_leave_room_for_long_label_words(remote: VLLMBackend) -> None:
    characters = [chr(code) for code in range(0x21, 0x7F)]
    labels = {str(n): "".join(characters[n::4]) for n in range(4)}  # of some 95 tokens together
    train = [(f"film {row} of {label}", label) for row in range(2) for label in labels]
    settings = with_fields(Settings(), {"prompt_init": ("it is",), "head": "words"})
    tuner = Tuner(remote, settings=settings, labels=labels, budget="calls=6", callbacks=())
    assert tuner.fit(train).spent.calls == 6


@pytest.mark.parametrize("name", ["gpt2", "qwen2"])
def test_other_families_are_embedded_as_well(name: str, folder: Callable[[str], Path]) -> None:
    local = HFBackend(folder(name), device="cpu")
    with StandIn(folder(name)) as server:
        remote = VLLMBackend(server.url, folder(name))
        request = request_of(soft(local, 1)[0])
        np.testing.assert_allclose(
            logprobs(remote, request), logprobs(local, request), atol=1e-4, rtol=0
        )


def test_tokens_and_embeddings_are_the_local_backend_s(
    local: HFBackend, remote: VLLMBackend
) -> None:
    ids = remote.tokenize(" overall , naïve 電影")
    assert ids == local.tokenize(" overall , naïve 電影")
    np.testing.assert_array_equal(remote.embed(ids), local.embed(ids))
    assert remote.embedding_std == pytest.approx(local.embedding_std, rel=1e-6)
    assert remote.vocabulary_size == local.vocabulary_size
    assert remote.capabilities.soft_prompt_width == local.capabilities.soft_prompt_width


def test_notes_are_the_local_backend_s_and_nothing_is_asked_for_them(
    local: HFBackend, remote: VLLMBackend, server: StandIn
) -> None:
    request = request_of(TextPrompt("so"))
    assert remote.inspect(request).notes == local.inspect(request).notes != ()
    assert server.asked == []


def test_a_request_says_all_that_could_otherwise_change_its_answer(
    remote: VLLMBackend, server: StandIn
) -> None:
    remote.score([request_of(TextPrompt("so"), candidates=("great", "bad"))])
    (fields,) = server.asked
    assert fields.pop("prompt_embeds")
    assert len(fields.pop("logprob_token_ids")) == 2
    assert fields == {
        "model": "tiny",
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": 1,
        "return_tokens_as_token_ids": True,
        "repetition_penalty": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0,
    }


def test_what_is_told_to_be_read_is_what_is_sent(remote: VLLMBackend, server: StandIn) -> None:
    request = request_of(TextPrompt("so"))
    (reply,) = remote.score([request])
    sent = [prompt for fields in server.asked for prompt in fields["prompt_embeds"]]
    assert reply.usage.tokens == sum(len(prompt) for prompt in sent)
    assert reply.usage.sequences == len(request.batch)
    assert reply.usage.requests == len(server.asked)
    assert reply.usage.bytes_up > sum(prompt.nbytes for prompt in sent)
    assert reply.usage.bytes_down > 0


def test_beginnings_that_label_words_share_are_read_once(
    remote: VLLMBackend, server: StandIn
) -> None:
    one, other = ("wonderful", "wonderfully told")
    alone = [remote.score([request_of(TextPrompt("so"), candidates=(w,))])[0] for w in (one, other)]
    (together,) = remote.score([request_of(TextPrompt("so"), candidates=(one, other))])
    assert together.usage.tokens < sum(reply.usage.tokens for reply in alone)
    np.testing.assert_allclose(
        together.logprobs, np.hstack([reply.logprobs for reply in alone]), atol=1e-5
    )


@pytest.mark.parametrize("wire", ["float32", "bfloat16", "float16"])
def test_embeddings_go_in_the_dtype_of_the_wire_and_nothing_goes_with_them(
    wire: str, server: StandIn, local: HFBackend
) -> None:
    remote = VLLMBackend(server.url, server.folder, wire_dtype=wire)
    server.asked.clear()
    request = request_of(soft(local, 1)[0], candidates=("great", "bad"))
    (reply,) = remote.score([request])
    (fields,) = server.asked
    size = getattr(torch, wire).itemsize
    wide = sum(p.numel() for p in fields["prompt_embeds"]) * size
    # a head of 2 kB, some bytes of torch's format a row, and base64's third
    assert reply.usage.bytes_up < 4 / 3 * (wide + 400 * len(request.batch)) + 2000
    expected = logprobs(local, request)
    rough = {"float32": 1e-4, "bfloat16": 0.3, "float16": 0.05}[wire]
    np.testing.assert_allclose(reply.logprobs, expected, atol=rough, rtol=0)


# --- lists that are too long


def rows_asked(server: StandIn) -> list[int]:
    return [len(fields["prompt_embeds"]) for fields in server.asked]


def test_a_list_has_at_most_so_many_rows(server: StandIn, local: HFBackend) -> None:
    remote = VLLMBackend(server.url, server.folder, rows_per_call=4)
    assert remote.capabilities.rows_per_call == 4
    server.asked.clear()
    remote.score([request_of(TextPrompt("so"), candidates=("great", "bad"))])
    assert rows_asked(server) == [4, 2]


def test_a_list_has_at_most_so_many_bytes(server: StandIn, local: HFBackend) -> None:
    remote = VLLMBackend(server.url, server.folder, max_body_bytes=12_000)
    server.asked.clear()
    request = request_of(TextPrompt("so"), candidates=("great", "bad"))
    (reply,) = remote.score([request])
    assert sum(rows_asked(server)) == len(request.batch)
    assert len(server.asked) > 2
    assert reply.usage.requests == len(server.asked)
    np.testing.assert_allclose(reply.logprobs, logprobs(local, request), atol=1e-4)


@pytest.mark.parametrize("limit", ["queue", "body"])
def test_a_list_that_the_server_has_no_room_for_goes_in_halves(
    limit: str, server: StandIn, remote: VLLMBackend, local: HFBackend
) -> None:
    server.queue, server.body = (2, None) if limit == "queue" else (None, 14_000)
    request = request_of(TextPrompt("so"), candidates=("great", "bad"))
    (reply,) = remote.score([request])
    assert len(server.asked) > 1
    assert sum(rows_asked(server)) == len(request.batch)
    assert reply.usage.requests > len(server.asked)  # those that were turned away count
    np.testing.assert_allclose(reply.logprobs, logprobs(local, request), atol=1e-4)


def test_a_server_with_no_room_for_one_row_is_overloaded(
    server: StandIn, remote: VLLMBackend
) -> None:
    server.queue = 0
    with pytest.raises(TransientError, match="503") as caught:
        remote.score([request_of(TextPrompt("so"))])
    assert caught.value.overloaded


def test_a_server_that_is_busy_at_the_start_is_asked_again(folder: Callable[[str], Path]) -> None:
    class BusyOnce(StandIn):
        busy = 1

        def _completions(self, fields: dict[str, Any]) -> Any:
            self.busy -= 1
            if self.busy >= 0:
                raise Refusal(503, "no room")
            return super()._completions(fields)

    with BusyOnce(folder("llama")) as server:
        VLLMBackend(server.url, server.folder, retry=Retry(attempts=2, first_wait=0))
        server.busy = 2
        with pytest.raises(PermanentError, match=r"no answer after 2 attempts.*503: no room"):
            VLLMBackend(server.url, server.folder, retry=Retry(attempts=2, first_wait=0))


@pytest.mark.parametrize("whole", [0, 1])
def test_what_a_call_took_before_it_failed_is_told(
    whole: int, folder: Callable[[str], Path]
) -> None:
    class FailsLater(StandIn):
        answers = 100

        def _completions(self, fields: dict[str, Any]) -> Any:
            self.answers -= 1
            if self.answers < 0:
                raise Refusal(500, "gone")
            return super()._completions(fields)

    with FailsLater(folder("llama")) as server:
        remote = VLLMBackend(server.url, server.folder, max_body_bytes=1)  # a row a request
        request = request_of(TextPrompt("so"))
        (reply,) = remote.score([request])
        server.answers = (whole + 1) * reply.usage.requests - 1
        with pytest.raises(TransientError, match="500: gone") as caught:
            remote.score([request] * (whole + 1))
    assert caught.value.usage is not None
    assert reply.usage.requests > len(request.batch)
    assert caught.value.usage.requests == (whole + 1) * reply.usage.requests
    assert whole < caught.value.usage.tokens / reply.usage.tokens < whole + 1


def test_a_row_that_is_too_large_alone_ends_it(server: StandIn, remote: VLLMBackend) -> None:
    server.body = 3_000
    with pytest.raises(PermanentError, match=r"413.*shorten"):
        remote.score([request_of(TextPrompt("so"))])


def test_only_the_rows_that_the_model_overflows_on_have_no_scores(
    server: StandIn, remote: VLLMBackend
) -> None:
    request = request_of(TextPrompt("so"), candidates=("great", "bad"))
    expected = logprobs(remote, request)
    lengths = [len(prompt) for prompt in server.asked[0]["prompt_embeds"]]
    read = server._network.forward

    def overflow(inputs_embeds: Any) -> Any:
        output = read(inputs_embeds=inputs_embeds)
        output.logits *= torch.nan if inputs_embeds.shape[1] == max(lengths) else 1
        return output

    server._network.forward = overflow
    expected[lengths.index(max(lengths))] = np.nan
    np.testing.assert_allclose(logprobs(remote, request), expected, atol=1e-4)


def test_a_prompt_that_half_precision_cannot_hold_has_no_scores(
    server: StandIn, local: HFBackend
) -> None:
    remote = VLLMBackend(server.url, server.folder, wire_dtype="float16")
    server.asked.clear()
    request = request_of(SoftPrompt(np.full((2, 32), 1e6)))
    assert np.isnan(logprobs(remote, request)).all()
    assert server.asked == []
    assert np.isfinite(logprobs(local, request)).all()


# --- what ends a run, before anything is paid


def refusal(server: StandIn, /, **options: Any) -> str:
    with pytest.raises((InputError, BackendError)) as caught:
        VLLMBackend(server.url, options.pop("model", server.folder), **options)
    assert not isinstance(caught.value, TransientError)
    return str(caught.value)


def test_a_server_without_the_flag_is_told_by_name(server: StandIn) -> None:
    server.takes_embeds = False
    assert "start the server again with --enable-prompt-embeds" in refusal(server)


@pytest.mark.parametrize(
    ("version", "known"), [("0.14.1+cpu", True), ("0.15", False), (None, False)]
)
def test_a_version_that_is_known_to_fail_is_named_where_it_fails(
    version: str | None, known: bool, server: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    server.version = version
    VLLMBackend(server.url, server.folder)  # a repaired copy of that version may work
    server.fails = True
    said = refusal(server, retry=Retry(attempts=1))
    assert "has no attribute 'read_offset'" in said
    assert ("vLLM 0.14.1 fails at every request with embeddings" in said) == known
    assert (
        said.endswith("take another version (https://github.com/vllm-project/vllm/issues/33294)")
        == known
    )
    if known:
        command = ["doctor", "--backend", "vllm", "--url", server.url]
        assert main([*command, "--model", str(server.folder)]) == 1
        assert "vLLM 0.14.1 fails" in capsys.readouterr().out


def test_a_server_that_ignores_label_ids_is_too_old(server: StandIn) -> None:
    server.knows_ids = False
    assert "needs a vLLM that knows logprob_token_ids" in refusal(server)


def test_one_damaged_answer_does_not_make_a_server_too_old(server: StandIn) -> None:
    server.left_out = 1
    VLLMBackend(server.url, server.folder)
    assert len(server.asked) == 2


def test_a_server_that_gives_logits_is_refused(server: StandIn) -> None:
    server.logits = True
    assert "without --logprobs-mode" in refusal(server)


def test_a_model_of_another_width_is_refused_with_both_widths(
    server: StandIn, folder: Callable[[str], Path]
) -> None:
    wide = refusal(server, model=folder("opt"))
    assert "16 wide" in wide
    assert "server's model 32" in wide


def test_another_model_of_the_same_width_is_found_out(server: StandIn, tmp_path: Path) -> None:
    other = models.build("llama", tmp_path / "other", seed=1)
    assert "the model 'tiny' there has other embeddings" in refusal(server, model=other)


@pytest.mark.parametrize("given", [None, "wrong"])
def test_a_missing_or_wrong_key_ends_it_and_is_not_shown(
    given: str | None, server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    server.key = "right"
    file = tmp_path / "key"
    file.write_text("wrong-key")
    said = refusal(server, api_key_file=None if given is None else file)
    assert "401" in said
    assert "check the key" in said
    assert "wrong-key" not in said


def test_the_key_comes_from_a_file_or_from_the_environment(
    server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.key = "right"
    monkeypatch.setenv("VLLM_API_KEY", "right")
    VLLMBackend(server.url, server.folder)
    monkeypatch.setenv("VLLM_API_KEY", "wrong")
    file = tmp_path / "key"
    file.write_text("right\n")
    backend = VLLMBackend(server.url, server.folder, api_key_file=file)
    assert "right" not in repr(vars(backend)) + backend.identity


def test_several_models_are_listed_and_one_has_to_be_named(server: StandIn) -> None:
    server.models = {"tiny": 256, "large": 512}
    assert "2 models ('large', 'tiny'): say which by served_model" in refusal(server)
    assert "no model 'tiney'; did you mean 'tiny'?" in refusal(server, served_model="tiney")
    named = VLLMBackend(server.url, server.folder, served_model="large")
    assert named.capabilities.max_tokens == 511


@pytest.mark.parametrize("models", [{"tiny": "256"}, {None: 256, "tiny": 256}, {5: 256}])
def test_a_list_of_something_else_than_models_is_told(models: Any, server: StandIn) -> None:
    server.models = models
    assert "/v1/models answers no list of models" in refusal(server)


def test_a_url_with_v1_and_one_without_are_the_same_place(server: StandIn) -> None:
    one, other = (VLLMBackend(server.url + end, server.folder) for end in ("", "/v1/"))
    assert one.identity == other.identity
    assert server.url not in one.identity


def test_a_url_of_something_else_is_told(server: StandIn) -> None:
    server.url += "/elsewhere"
    assert "404: Not Found; check the URL" in refusal(server)


@pytest.mark.parametrize("name", ["roberta", "t5"])
def test_a_model_that_is_not_causal_is_refused(
    name: str, server: StandIn, folder: Callable[[str], Path]
) -> None:
    assert "`lmaas-tune serve`" in refusal(server, model=folder(name))
    assert server.asked == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"wire_dtype": "float23"}, "did you mean 'float32'"),
        ({"server": "vlm"}, "did you mean 'vllm'"),
        ({"rows_per_call": 0}, "rows_per_call is 0"),
        ({"max_body_bytes": 0}, "max_body_bytes 0"),
        ({"max_kept_bytes": -1}, "max_kept_bytes is -1"),
    ],
)
def test_an_option_out_of_range_is_named(
    options: dict[str, Any], sentence: str, server: StandIn
) -> None:
    assert sentence in refusal(server, **options)


def test_label_words_of_too_many_tokens_are_refused_for_nothing(
    remote: VLLMBackend, server: StandIn
) -> None:
    many = tuple(map(chr, [*range(33, 127), *range(0x4E00, 0x9000, 0x9F)]))
    for ask in (remote.inspect, lambda request: remote.score([request])):
        with pytest.raises(InputError, match=r"\d+ words to score have \d+ different tokens"):
            ask(request_of(TextPrompt("so"), candidates=many))
    assert server.asked == []


def test_a_row_as_long_as_the_server_takes_is_scored_and_a_longer_one_is_not(
    remote: VLLMBackend,
) -> None:
    longest = remote.capabilities.max_tokens
    assert longest == 255  # a place is left for what the server writes
    per_word = len(remote.tokenize(" a"))
    assert per_word == 1
    start = len(remote.tokenize("a It was")) + 1  # the start token
    for words, fits in ((longest - start, True), (longest - start + 1, False)):
        batch = batch_of("{text}{prompt} It was {label}", ("a" + " a" * words,))
        request = ScoreRequest(TextPrompt(""), batch, ("great", "bad"))
        if fits:
            assert remote.score([request])[0].usage.tokens == longest
        else:
            with pytest.raises(InputError, match="more than the 255"):
                remote.score([request])


# --- during a run


def test_an_answer_that_leaves_out_a_label_may_pass(server: StandIn, remote: VLLMBackend) -> None:
    server.left_out = 1
    with pytest.raises(TransientError, match="left out a requested log-probability"):
        remote.score([request_of(TextPrompt("so"))])
    remote.score([request_of(TextPrompt("so"))])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (-9999.0, "gave -9999 for a log-probability"),
        (0.5, "gave 0.5 for a log-probability"),
        (-(10**400), "too large"),
    ],
    ids=["-9999", "0.5", "beyond a float"],
)
def test_a_number_that_is_no_log_probability_may_pass(
    wrong: float, words: str, server: StandIn, remote: VLLMBackend
) -> None:
    server.wrong = wrong
    with pytest.raises(TransientError, match=words):
        remote.score([request_of(TextPrompt("so"))])
    remote.score([request_of(TextPrompt("so"))])


def test_a_model_that_is_gone_ends_a_run(server: StandIn, remote: VLLMBackend) -> None:
    server.models = {"another": 256}
    with pytest.raises(PermanentError, match=r"404.*`tiny` does not exist"):
        remote.score([request_of(TextPrompt("so"))])


def test_threads_share_one_backend(remote: VLLMBackend, local: HFBackend) -> None:
    requests = [request_of(prompt) for prompt in soft(local, 6)]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda request: logprobs(remote, request), requests))
    for request, values in zip(requests, found, strict=True):
        np.testing.assert_allclose(values, logprobs(local, request), atol=1e-4, rtol=0)


def test_a_search_through_the_server_is_the_search_on_this_machine(
    remote: VLLMBackend, local: HFBackend
) -> None:
    train = [("a gripping film", "great"), ("a dull and lifeless affair", "bad")] * 2
    settings = Settings(prompt=Soft(intrinsic_dim=5, prompt_init="overall , it was"))
    histories = [
        tuner.fit(train).history
        for backend in (remote, local)
        for tuner in [Tuner(backend, settings=settings, budget="calls=31", seed=3, callbacks=())]
    ]
    np.testing.assert_allclose(histories[0]["train_loss"], histories[1]["train_loss"], atol=1e-3)


def test_dynamo_gets_an_empty_prompt_and_one_row_at_a_time(
    server: StandIn, local: HFBackend
) -> None:
    server.is_dynamo = True
    server.models = {"tiny": None}
    remote = VLLMBackend(server.url, server.folder, server="dynamo")
    assert remote.capabilities.rows_per_call == 1
    assert remote.capabilities.max_tokens == 255  # of the model's own configuration
    request = request_of(soft(local, 1)[0])
    np.testing.assert_allclose(
        logprobs(remote, request), logprobs(local, request), atol=1e-4, rtol=0
    )
    assert all(fields["prompt"] == "" for fields in server.asked)


def test_the_body_is_json_whatever_the_name_of_the_model(server: StandIn) -> None:
    name = 'a "model" \\ of 電影'
    server.models = {name: 256}
    remote = VLLMBackend(server.url, server.folder)
    remote.score([request_of(TextPrompt("so"))])
    assert server.asked[-1]["model"] == name
    assert json.loads(json.dumps(name)) == name


def test_the_client_needs_no_torch(server: StandIn, local: HFBackend, tmp_path: Path) -> None:
    prompt = soft(local, 1)[0]
    task = Task(Template("{prompt}{text} It was {label}"), Verbalizer({"g": "great", "b": "bad"}))
    tuned = TunedPrompt.without_head(prompt, task)
    tuned.save(tmp_path)
    command = ["predict", "--backend", "vllm", "--url", server.url, "--model", str(server.folder)]
    command += ["--prompt", str(tmp_path), "--text", "a gripping film", "--json"]
    code = "import sys; sys.modules['torch'] = None; from lmaas_tune.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)["predictions"][0]["probabilities"]
    expected = tuned.predict_proba(local, ["a gripping film"])[0]
    assert [found["g"], found["b"]] == pytest.approx(expected, abs=1e-5)
