"""The backend `openai` against a server on loopback that serves a tiny real model."""

from __future__ import annotations

import json
import logging
import re
import traceback
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra 'hf' is not installed")
pytest.importorskip("transformers", reason="the extra 'hf' is not installed")

from lmaas_tune_adapters.hf import HFBackend  # noqa: E402
from lmaas_tune_adapters.http import RefusedError  # noqa: E402
from lmaas_tune_adapters.openai import OpenAIBackend  # noqa: E402
from lmaas_tune_adapters.openai.endpoints import Completions  # noqa: E402

from lmaas_tune import (  # noqa: E402
    Client,
    Price,
    Settings,
    Text,
    Tuner,
    load_backend,
)
from lmaas_tune.backend import ScoreRequest  # noqa: E402
from lmaas_tune.calls.retry import Retry  # noqa: E402
from lmaas_tune.errors import (  # noqa: E402
    InputError,
    LMaaSError,
    PermanentError,
    TransientError,
)
from lmaas_tune.prompts import SoftPrompt, TextPrompt  # noqa: E402
from lmaas_tune.task import Batch, Part, Slot  # noqa: E402
from lmaas_tune.testing import BackendConformance  # noqa: E402
from tests.support.openai_server import Change, OpenAIServer, Written, speaker  # noqa: E402

SECRET = "sk-0123456789-VERY-secret"
WORDS = ("good", "bad", "fine")
ONCE = Retry(attempts=1)
CHAT = "/v1/chat/completions"
NO_LOGPROBS = ("echo", "logprobs", "top_logprobs")

Serve = Callable[..., OpenAIServer]


@pytest.fixture(autouse=True)
def _no_key_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def backend(server: OpenAIServer, model: str = "tiny", **options: Any) -> OpenAIBackend:
    return OpenAIBackend(model, url=server.url, **{"retry": ONCE, **options})


def request(
    *texts: str,
    prompt: str = "Overall, the movie",
    words: tuple[str, ...] = WORDS,
    tail: str = " It was ",
) -> ScoreRequest:
    rows = [(f"{text} ", Slot.PROMPT, tail, Slot.LABEL) for text in texts]
    return ScoreRequest(TextPrompt(prompt), Batch(tuple(rows)), words)


def always(*words: str) -> Callable[[str, int], Written]:
    """A model whose likeliest tokens are always these, the first before the others."""

    def write(text: str, count: int) -> Written:
        read = text.split()
        row = torch.log_softmax(torch.arange(len(words), 0.0, -1.0), 0)
        return Written(
            words[0],
            [*read, words[0]],
            [row] * (len(read) + 1),
            [0] * (len(read) + 1),
            list(words),
            len(read),
        )

    return write


def says_a_word(text: str) -> str:
    """An answer that depends on the text alone."""
    return f"It is {WORDS[zlib.crc32(text.encode()) % len(WORDS)]}, I think."


# --- conformance


class _Suite(BackendConformance):
    """All checks of a text backend; here the server is one that repeats itself."""

    options: dict[str, Any] = {}  # noqa: RUF012

    def switches(self, subject: Any) -> dict[str, str | None]:
        return {**super().switches(subject), "deterministic": None}

    @pytest.fixture
    def server(self, serve: Serve) -> OpenAIServer:
        raise NotImplementedError

    @pytest.fixture
    def backend(self, server: OpenAIServer) -> OpenAIBackend:
        return backend(server, **self.options)

    @pytest.fixture
    def differing(self, server: OpenAIServer, serve: Serve) -> list[OpenAIBackend]:
        elsewhere = serve()
        return [
            backend(server, "other", **self.options),
            backend(server, seed=1, **self.options),
            backend(server, extra_body={"top_p": 0.5}, **self.options),
            backend(elsewhere, **self.options),
        ]


class TestEchoedCompletions(_Suite):
    @pytest.fixture
    def server(self, serve: Serve) -> OpenAIServer:
        return serve()


class TestCompletionsWithAllLogprobs(_Suite):
    options = {"scores": "logprobs", "top_logprobs": 420}  # noqa: RUF012

    @pytest.fixture
    def server(self, serve: Serve) -> OpenAIServer:
        return serve(most=420)

    @pytest.fixture
    def differing(self, server: OpenAIServer) -> list[OpenAIBackend]:
        return [backend(server, scores="logprobs", top_logprobs=5), backend(server)]


class TestCompletionsWithFiveLogprobs(_Suite):
    options = {"scores": "logprobs"}  # noqa: RUF012

    @pytest.fixture
    def server(self, serve: Serve) -> OpenAIServer:
        return serve(most=5, arrays=False)


class TestChatWithLogprobs(_Suite):
    options = {"endpoint": "chat"}  # noqa: RUF012

    @pytest.fixture
    def server(self, serve: Serve) -> OpenAIServer:
        return serve()

    @pytest.fixture
    def differing(self, server: OpenAIServer) -> list[OpenAIBackend]:
        return [
            backend(server, endpoint="chat", system="Be short."),
            backend(server, endpoint="chat", system="Be long."),
            backend(server, endpoint="chat", scores="text"),
            backend(server, endpoint="completions", scores="logprobs"),
        ]


class TestChatWithoutLogprobs(_Suite):
    deviations = {  # noqa: RUF012
        "test_a_candidate_does_not_depend_on_the_others": "stated probabilities add up to 1"
    }

    @pytest.fixture
    def server(self, serve: Serve) -> OpenAIServer:
        return serve(model=speaker(says_a_word), ignores=NO_LOGPROBS)

    @pytest.fixture
    def differing(self, server: OpenAIServer) -> list[OpenAIBackend]:
        return [
            backend(server, answer_tokens=3),
            backend(server, endpoint="completions"),
            backend(server, "other"),
        ]


# --- exactness


ONE_TOKEN = ("great", "the")  # each to the tiny model
ROWS = ("a gripping film", "naïve café — 電影很好看 🎬", "dull   and\nlifeless\t", "no")


@pytest.mark.parametrize("tail", [" It was ", " Sentiment:\n", "\n\n"], ids=repr)
@pytest.mark.parametrize("prompt", ["Overall, the movie", ""], ids=repr)
def test_echoed_scores_are_the_models_own(
    serve: Serve, folder: Path, tail: str, prompt: str
) -> None:
    words = ("good", "wonderful", "technologically", "好", "very bad")
    asked = request(*ROWS, prompt=prompt, words=words, tail=tail)
    (own,) = HFBackend(folder, device="cpu").score([asked])
    (reply,) = backend(serve()).score([asked])
    assert np.abs(reply.logprobs - own.logprobs).max() < 1e-4


@pytest.mark.parametrize("entries", [False, True], ids=["as OpenAI", "as llama.cpp"])
def test_a_word_of_one_token_among_the_likeliest_has_the_models_own_score(
    serve: Serve, folder: Path, entries: bool
) -> None:
    asked = request(*ROWS, words=ONE_TOKEN)
    (own,) = HFBackend(folder, device="cpu").score([asked])
    server = serve(most=420, entries=entries, ignores=("echo",))
    (reply,) = backend(server, endpoint="completions", top_logprobs=420).score([asked])
    assert np.abs(reply.logprobs - own.logprobs).max() < 1e-4


def test_a_chat_adds_up_the_ways_to_write_a_word(serve: Serve, folder: Path) -> None:
    rows = [(f"{text} ", Slot.PROMPT, " It was", Slot.LABEL) for text in ROWS]
    own = HFBackend(folder, device="cpu")
    asked = request(*ROWS, words=ONE_TOKEN)
    (spaced,) = own.score([asked])
    (bare,) = own.score([ScoreRequest(asked.prompt, Batch(tuple(rows)), ONE_TOKEN)])
    (reply,) = backend(serve(most=420), endpoint="chat", top_logprobs=420).score([asked])
    assert (reply.logprobs > spaced.logprobs + 1e-3).all()
    assert (reply.logprobs <= np.logaddexp(spaced.logprobs, bare.logprobs) + 1e-4).all()


def test_a_word_outside_the_likeliest_gets_no_less_than_its_own_score(
    serve: Serve, folder: Path
) -> None:
    asked = request(*ROWS, words=ONE_TOKEN)
    (own,) = HFBackend(folder, device="cpu").score([asked])
    server = serve()
    for k in (1, 2, 5, 20):
        (few,) = backend(server, scores="logprobs", top_logprobs=k).score([asked])
        assert (few.logprobs >= own.logprobs - 1e-4).all()


def test_words_are_learnt_once_then_each_row_is_sent_once_a_word(serve: Serve) -> None:
    server = serve()
    scored = backend(server)
    server.heard.clear()
    scored.score([request("a", "b"), request("c", "d")])
    first, second = (body["prompt"] for _, body in server.heard)
    assert len(first) == 2 * (1 + len(WORDS))
    assert len(second) == 2 * len(WORDS)
    assert second[0] == "c Overall, the movie It was good"


@pytest.mark.parametrize("learnt", [False, True])
def test_a_word_that_runs_together_with_the_text_is_refused(serve: Serve, learnt: bool) -> None:
    words = ("bad", "ing")
    scored = backend(serve())
    if learnt:
        scored.score([request("a film", words=words, tail=":\n")])
    with pytest.raises(InputError, match=r"'ing' runs together .* space or a line break"):
        scored.score([request("a film", words=words, tail=" It was gripp")])


def echoing(tokens: str) -> Change:
    """A server that echoes texts in tokens of this pattern."""

    def change(path: str, body: dict[str, Any], reply: Any) -> Any:
        prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
        for choice in reply["choices"]:
            found = [*re.findall(tokens, prompts[choice["index"]]), "."]
            choice["text"] = "".join(found)
            choice["logprobs"] = {"tokens": found, "token_logprobs": [None] + [-1.5] * len(found)}
            choice["logprobs"]["token_logprobs"].pop()
        return reply

    return change


@pytest.mark.parametrize(
    ("tokens", "kind"),
    [("^$", TransientError), (r" ?\S{1,4}", TransientError), (r" was \S+| ?\S+", InputError)],
    ids=["no echo", "another tokenizer", "a word in one token with the text"],
)
def test_an_echo_that_does_not_end_with_the_words_tokens_is_no_score(
    serve: Serve, tokens: str, kind: type[LMaaSError]
) -> None:
    server = serve(echoing(r" ?\S+"))
    scored = backend(server, scores="echo")
    asked = request("a film", words=("terrible", "terrific"))
    assert scored.score([asked])[0].logprobs.tolist() == [[-1.5, -1.5]]
    server.changed = echoing(tokens)
    with pytest.raises(kind):
        scored.score([asked])


@pytest.mark.filterwarnings("ignore:a row is sent 2 times")
def test_the_same_text_is_found_as_with_the_local_model(serve: Serve, folder: Path) -> None:
    train = [(f"it was {word}", label) for label in ("good", "bad") for word in (label, "dull")]
    settings = Settings(prompt=Text(), optimizer="cma", optimizer_options={"population": 5})
    found = [
        Tuner(scored, settings=settings, budget="calls=15", seed=3, callbacks=()).fit(train)
        for scored in (backend(serve()), HFBackend(folder, device="cpu"))
    ]
    assert found[0].prompt.prompt == found[1].prompt.prompt
    losses = [result.history["best_loss"].iloc[-1] for result in found]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)
    assert found[0].spent.bytes_up > 0


# --- what is asked


def test_a_row_ends_before_the_label_and_its_space(serve: Serve) -> None:
    server = serve(model=always(" good", " bad", " fine", "good", "bad", "fine"))
    scored = backend(server, scores="logprobs")
    server.heard.clear()
    scored.score([request("a film"), request("a film", prompt=""), request("a film", tail=":\n")])
    assert [body["prompt"] for _, body in server.heard] == [
        "a film Overall, the movie It was",
        "a film It was",
        "a film Overall, the movie:\n",
    ]
    assert server.heard[0][1] == {
        "model": "tiny",
        "prompt": "a film Overall, the movie It was",
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": 20,
    }


def test_a_chat_says_the_row_after_the_system_message(serve: Serve) -> None:
    server = serve(model=always("good", "bad", "fine"))
    scored = backend(server, system="One word.", seed=3, extra_body={"top_p": 1})
    server.heard.clear()
    scored.score([request("a film")])
    assert server.heard == [
        (
            CHAT,
            {
                "model": "tiny",
                "messages": [
                    {"role": "system", "content": "One word."},
                    {"role": "user", "content": "a film Overall, the movie It was"},
                ],
                "max_tokens": 1,
                "temperature": 0,
                "logprobs": True,
                "top_logprobs": 20,
                "seed": 3,
                "top_p": 1,
            },
        )
    ]


@pytest.mark.parametrize(
    ("options", "rows"),
    [({}, 4), ({"scores": "logprobs"}, 16), ({"endpoint": "chat"}, 1)],
    ids=str,
)
def test_a_call_is_one_request_of_the_rows_that_the_capabilities_name(
    serve: Serve, options: dict[str, Any], rows: int
) -> None:
    scored = backend(serve(), **options)
    assert scored.capabilities.rows_per_call == rows
    texts = [str(i) for i in range(rows)]
    scored.score([request(*texts, "one more")])  # learns what it takes to find the words
    assert scored.score([request(*texts)])[0].usage.requests == 1
    assert scored.score([request(*texts, "one more")])[0].usage.requests == 2


def test_usage_is_what_the_server_says_it_read(serve: Serve) -> None:
    server = serve()
    scored = backend(server, scores="logprobs")
    (reply,) = scored.score([request("a film", "another film")])
    server.changed = lambda path, body, reply: {**reply, "usage": None}
    (untold,) = scored.score([request("a film", "another film")])
    assert reply.usage.tokens > 20
    assert reply.usage.sequences == untold.usage.sequences == 2
    assert untold.usage.tokens == 0
    assert min(reply.usage.bytes_up, reply.usage.bytes_down) > 200


def test_inspecting_counts_the_rows_and_says_how_words_are_scored(serve: Serve) -> None:
    server = serve()
    for options, word in (
        ({}, "3 times"),
        ({"scores": "logprobs"}, "20 likeliest"),
        ({"scores": "text"}, "0.9"),
    ):
        scored = backend(server, **options)
        server.heard.clear()
        found = scored.inspect(request("a", "b"))
        assert word in found.notes[0]
        assert found.usage.sequences == 2
        assert not server.heard


# --- finding out what a server does


@pytest.mark.parametrize(
    ("poor", "found"),
    [
        ({}, "endpoint=completions scores=echo"),
        ({"ignores": ("echo",)}, "endpoint=completions scores=logprobs k=20"),
        ({"refuses": {"echo": "no echo"}}, "endpoint=completions scores=logprobs k=20"),
        ({"ignores": ("echo",), "most": 5}, "endpoint=completions scores=logprobs k=5"),
        ({"ignores": ("echo",), "most": 1}, "endpoint=completions scores=logprobs k=1"),
        ({"ignores": ("echo",), "arrays": False}, "endpoint=completions scores=logprobs k=20"),
        ({"paths": (CHAT,)}, "endpoint=chat scores=logprobs k=20"),
        ({"paths": (CHAT,), "most": 8}, "endpoint=chat scores=logprobs k=5"),
        ({"ignores": NO_LOGPROBS}, "endpoint=chat scores=text write=16"),
        ({"refuses": {"logprobs": "logprobs are for others"}}, "endpoint=chat scores=text"),
        (
            {"paths": ("/v1/completions",), "ignores": NO_LOGPROBS},
            "endpoint=completions scores=text write=16",
        ),
    ],
    ids=str,
)
def test_the_best_way_that_a_server_goes_is_taken(
    serve: Serve, poor: dict[str, Any], found: str
) -> None:
    scored = backend(serve(**poor))
    assert found in scored.identity
    assert np.isfinite(scored.score([request("a film", "a book")])[0].logprobs).all()


def test_a_server_that_takes_one_prompt_a_request_gets_one(serve: Serve) -> None:
    server = serve(arrays=False)
    scored = backend(server)
    assert scored.capabilities.rows_per_call == 1
    server.heard.clear()
    scored.score([request("a film")])
    assert all(isinstance(body["prompt"], str) for _, body in server.heard)


def test_a_server_that_answers_one_prompt_of_several_gets_one(serve: Serve) -> None:
    def first_only(path: str, body: dict[str, Any], reply: Any) -> Any:
        return {**reply, "choices": reply["choices"][-1:]}

    scored = backend(serve(first_only), endpoint="completions")
    assert scored.capabilities.rows_per_call == 1
    assert "scores=echo" in scored.identity


def test_a_server_that_counts_one_prompt_of_several_gets_one(serve: Serve) -> None:
    def counts_first(path: str, body: dict[str, Any], reply: Any) -> Any:
        several = isinstance(body["prompt"], list)
        return {**reply, "usage": {"prompt_tokens": 5}} if several else reply

    scored = backend(serve(counts_first, ignores=("echo",)), endpoint="completions")
    assert scored.capabilities.rows_per_call == 1
    assert scored.score([request("a film", "a book")])[0].usage.tokens > 20


@pytest.mark.parametrize("ignores", [(), ("echo",)], ids=str)
def test_a_server_whose_tokens_are_not_those_it_read_is_not_taken_to_echo(
    serve: Serve, ignores: tuple[str, ...]
) -> None:
    def other_tokens(path: str, body: dict[str, Any], reply: Any) -> Any:
        for choice in reply["choices"]:
            tokens = [f"{choice['index']}"] if "echo" not in ignores else []
            tokens += ["a"] * (1 + choice["index"])
            choice["logprobs"] = {"tokens": tokens, "token_logprobs": [-1.0] * len(tokens)}
        return reply

    server = serve(other_tokens, paths=("/v1/completions",), ignores=ignores)
    assert "scores=logprobs" in backend(server).identity


def test_a_server_that_ends_without_a_token_is_not_taken_to_echo(serve: Serve) -> None:
    def nothing(path: str, body: dict[str, Any], reply: Any) -> Any:
        if path.endswith("/v1/completions"):
            ended = {"text": "", "finish_reason": "stop", "logprobs": None}
            reply["choices"] = [{**choice, **ended} for choice in reply["choices"]]
        return reply

    assert "endpoint=chat" in backend(serve(nothing)).identity


def test_the_fields_that_newer_models_refuse_are_changed(serve: Serve) -> None:
    server = serve(
        paths=(CHAT,),
        refuses={
            "max_tokens": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens'.",
            "temperature": "Unsupported value: 'temperature' does not support 0.",
            "logprobs": "You are not allowed to request logprobs from this model.",
        },
    )
    scored = backend(server)
    server.heard.clear()
    scored.score([request("a film")])
    ((_, body),) = server.heard
    assert body["max_completion_tokens"] == 16
    assert not {"max_tokens", "temperature", "logprobs"} & set(body)


def test_a_number_of_logprobs_that_was_asked_for_is_not_lowered(serve: Serve) -> None:
    with pytest.raises(PermanentError, match="maximum is 5, got 7"):
        backend(serve(most=5), scores="logprobs", top_logprobs=7)


def test_a_model_that_thinks_until_its_tokens_end_is_told_apart(serve: Serve) -> None:
    silent = serve(model=speaker(lambda text: ""), ignores=NO_LOGPROBS)
    with pytest.raises(PermanentError, match=r"wrote nothing in 16 tokens.*answer_tokens"):
        backend(silent)


def test_an_empty_answer_later_makes_all_labels_equal(serve: Serve) -> None:
    server = serve(model=speaker(lambda text: "good" if "One and" in text else ""))
    scored = backend(server, scores="text")
    (reply,) = scored.score([request("a film")])
    assert np.exp(reply.logprobs) == pytest.approx(np.full((1, 3), 1 / 3))


def test_a_passing_failure_at_the_start_is_tried_again(serve: Serve) -> None:
    failures = iter([(503, {"error": {"message": "loading"}}), (429, {"error": "slow down"})])
    server = serve(lambda path, body, reply: next(failures, reply))
    patient = Retry(attempts=3, first_wait=0.0, jitter=0.0)
    assert "scores=echo" in backend(server, endpoint="completions", retry=patient).identity


@pytest.mark.parametrize("part", ["logprobs", "choices"])
def test_an_answer_that_lacks_something_once_changes_no_mode(serve: Serve, part: str) -> None:
    def lacking(path: str, body: dict[str, Any], reply: Any) -> Any:
        if len(server.heard) == 1:
            reply["choices"][0]["logprobs"] = None
            del reply["choices"][: part == "choices"]
        return reply

    server = serve(lacking)
    scored = backend(server)
    assert "scores=echo" in scored.identity
    assert scored.capabilities.rows_per_call == 4


def test_a_server_that_stays_down_is_said_so() -> None:
    with pytest.raises(PermanentError, match=r"no answer after 1 attempt.*cannot be reached"):
        OpenAIBackend("tiny", url="http://127.0.0.1:9/v1", retry=ONCE)


# --- errors


def failing(scored: OpenAIBackend, server: OpenAIServer, change: Change) -> LMaaSError:
    """What scoring two rows ends with on a changed server."""
    server.changed = change
    with pytest.raises(LMaaSError) as caught:
        scored.score([request("a film", "a book")])
    return caught.value


WRONG: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
    ("a choice too few", lambda r: {**r, "choices": r["choices"][1:]}),
    ("a choice too many", lambda r: {**r, "choices": r["choices"] * 2}),
    ("an index twice", lambda r: {**r, "choices": [{**c, "index": 0} for c in r["choices"]]}),
    ("no index", lambda r: {**r, "choices": [{**c, "index": None} for c in r["choices"]]}),
    ("no choices", lambda r: {"id": "1"}),
    ("an error in a good reply", lambda r: {"error": {"message": "upstream"}}),
    ("choices of another kind", lambda r: {"choices": ["a", "b"]}),
    ("no logprobs", lambda r: {**r, "choices": [{**c, "logprobs": None} for c in r["choices"]]}),
    (
        "a number of bytes",
        lambda r: told({"content": [{"token": "a", "bytes": 2**60, "logprob": -1.0}]})("", {}, r),
    ),
    ("a list", lambda r: [r]),
    ("a number", lambda r: 5),
    ("usage in words", lambda r: {**r, "usage": {"prompt_tokens": "many"}}),
]


@pytest.mark.parametrize("wrong", [w for _, w in WRONG], ids=[name for name, _ in WRONG])
def test_a_reply_that_does_not_fit_is_tried_again(
    serve: Serve, wrong: Callable[[dict[str, Any]], Any]
) -> None:
    server = serve()
    scored = backend(server, scores="logprobs")
    error = failing(scored, server, lambda path, body, reply: wrong(reply))
    assert isinstance(error, TransientError)
    assert server.url in str(error)


@pytest.mark.parametrize("several", [True, False], ids=["one request", "a request a row"])
def test_a_reply_of_no_use_is_paid_all_the_same(serve: Serve, several: bool) -> None:
    def spoilt(path: str, body: dict[str, Any], reply: Any) -> Any:
        first = several or "film" in body["prompt"]
        return reply if not several and first else {**reply, "choices": []}

    server = serve()
    scored = backend(server, scores="logprobs")
    asked = request("a film", "a book")
    (whole,) = scored.score([asked])
    scorer = scored._scorer
    assert isinstance(scorer.endpoint, Completions)
    scorer.endpoint.request_format = replace(scorer.endpoint.request_format, batched=several)
    server.changed = spoilt
    client = Client(scored, retry=Retry(attempts=1), price=Price(input=1e6))
    with pytest.raises(PermanentError, match="gave 0 choices"):
        client.score([asked])
    assert client.spent.tokens == client.spent.money == whole.usage.tokens
    assert client.spent.requests == (1 if several else 2)


def test_an_error_has_the_usage_of_the_requests_before_it(serve: Serve) -> None:
    server = serve()
    scored = backend(server, scores="logprobs", top_logprobs=20)
    (whole,) = scored.score([request("a film")])

    def second(path: str, body: dict[str, Any], reply: Any) -> Any:
        return (500, {"error": "down"}) if "book" in body["prompt"] else reply

    server.changed = second
    with pytest.raises(TransientError) as caught:
        scored.score([request("a film"), request("a book")])
    assert caught.value.usage is not None
    assert caught.value.usage.tokens == whole.usage.tokens > 0
    assert caught.value.usage.requests == 2


def test_a_model_that_ends_where_it_reads_loses_no_token(serve: Serve) -> None:
    def ended(path: str, body: dict[str, Any], reply: Any) -> Any:
        prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
        for choice in reply["choices"]:
            choice["text"] = prompts[choice["index"]]
            for told in (choice["logprobs"] or {}).values():
                told[-1:] = []
        return reply

    server = serve()
    asked = request("a film", words=("good", "technologically"))
    scored = backend(server, scores="echo")
    (whole,) = scored.score([asked])
    server.changed = ended
    (reply,) = backend(server, scores="echo").score([asked])
    np.testing.assert_allclose(reply.logprobs, whole.logprobs)


@pytest.mark.parametrize("value", [None, "x", False, 0.7, -(10**400)], ids=repr)
def test_a_logprob_that_is_none_is_tried_again(serve: Serve, value: Any) -> None:
    def change(path: str, body: dict[str, Any], reply: Any) -> Any:
        for choice in reply["choices"]:
            choice["logprobs"]["token_logprobs"][-2:] = [value, value]
        return reply

    server = serve()
    assert isinstance(failing(backend(server), server, change), TransientError)


def told(logprobs: Any) -> Change:
    """A server that returns these log-probabilities for every row."""

    def change(path: str, body: dict[str, Any], reply: Any) -> Any:
        return {**reply, "choices": [{**c, "logprobs": logprobs} for c in reply["choices"]]}

    return change


def likeliest(**top: float) -> Change:
    """A server that names these as the likeliest first tokens, each after a space."""
    tops = {" it": -0.5} | {f" {word}": v for word, v in top.items()}
    return told({"tokens": [" it"], "token_logprobs": [-0.5], "top_logprobs": [tops]})


def listed(written: str, *tops: tuple[str, float]) -> Any:
    """The log-probabilities of one written token and the likeliest ones, as a list."""
    top = [{"token": token, "logprob": logprob} for token, logprob in tops]
    return {"content": [{"token": written, "logprob": dict(tops)[written], "top_logprobs": top}]}


@pytest.mark.parametrize(
    ("logprobs", "score"),
    [
        (listed(" good", (" good", -3.0), (" bad", -2.0), (" good", -0.3)), -0.23496),
        (listed(" good", (" good", -0.3), (" bad", -2.0), (" good", -0.3)), -0.3),
        (
            {
                "tokens": [" good"],
                "token_logprobs": [-0.3],
                "top_logprobs": [{" good": -9.0, " bad": -2.0}],
            },
            -0.3,
        ),
    ],
    ids=["added up", "one token twice", "the last kept by the server"],
)
def test_of_tokens_with_one_text_none_is_lost(serve: Serve, logprobs: Any, score: float) -> None:
    server = serve()
    scored = backend(server, scores="logprobs", top_logprobs=20)
    server.changed = told(logprobs)
    (reply,) = scored.score([request("a film", words=("good", "bad"))])
    assert reply.logprobs[0] == pytest.approx([score, -2.0], abs=1e-4)
    assert reply.bounds == 0


@pytest.mark.parametrize("top", [{"good": 0.0, "bad": 0.0}, {"good": -0.4, "x": -0.2}], ids=str)
def test_probabilities_of_more_than_1_are_no_scores(serve: Serve, top: dict[str, float]) -> None:
    server = serve()
    error = failing(backend(server, scores="logprobs"), server, likeliest(**top))
    assert isinstance(error, TransientError)
    assert "add up to" in str(error)


def test_a_little_more_than_1_is_coarse_rounding_and_bounds_a_missing_word(serve: Serve) -> None:
    server = serve()
    scored = backend(server, scores="logprobs", top_logprobs=20)
    server.changed = likeliest(good=-0.6)
    (reply,) = scored.score([request("a film", words=("good", "bad"))])
    excess = np.exp(-0.5) + np.exp(-0.6) - 1
    assert reply.logprobs[0] == pytest.approx([-0.6, np.log(excess)], abs=1e-4)


@pytest.mark.parametrize(
    "top",
    [{"good": -2.0, "nothing": -9999.0}, {"good": -2.0, "bad": -3.0, "fine": -9999.0}],
    ids=str,
)
def test_likeliest_tokens_that_were_replaced_by_filler_are_asked_for_again(
    serve: Serve, top: dict[str, float]
) -> None:
    server = serve()
    scored = backend(server, scores="logprobs", top_logprobs=20)
    whole = likeliest(good=-2.0, bad=-3.0, fine=-4.0)
    server.heard.clear()
    server.changed = lambda *args: (likeliest(**top) if len(server.heard) == 1 else whole)(*args)
    (reply,) = scored.score([request("a film")])
    assert reply.logprobs.tolist() == [[-2.0, -3.0, -4.0]]
    assert reply.usage.requests == 2


def test_filler_in_every_answer_is_no_score(serve: Serve) -> None:
    server = serve()
    scored = backend(server, scores="logprobs", top_logprobs=20)
    error = failing(scored, server, likeliest(good=-2.0, nothing=-9999.0))
    assert isinstance(error, TransientError)
    assert "filler in place of the likeliest tokens 5 times" in str(error)
    assert error.usage is not None
    assert error.usage.requests == 5


def test_filler_does_not_hide_that_the_server_returns_more_tokens_when_asked(serve: Serve) -> None:
    def change(path: str, body: dict[str, Any], reply: Any) -> Any:
        if body.get("logprobs") != 100:
            return likeliest(good=-2.0)(path, body, reply)
        again = sum(asked.get("logprobs") == 100 for _, asked in server.heard) > 1
        return likeliest(**({"bad": -3.0} if again else {"nothing": -9999.0}))(path, body, reply)

    server = serve(most=100)
    scored = backend(server, scores="logprobs")
    server.changed = change
    (reply,) = scored.score([request("a film", words=("it", "bad"))])
    assert reply.logprobs.tolist() == [[-0.5, -3.0]]


def test_a_server_that_tells_of_the_written_token_alone_is_taken_at_that(serve: Serve) -> None:
    server = serve()
    scored = backend(server, scores="logprobs")
    server.changed = told({"tokens": [" bad"], "token_logprobs": [-0.5], "top_logprobs": None})
    (reply,) = scored.score([request("a film")])
    left = np.log1p(-np.exp(-0.5))
    assert reply.logprobs[0] == pytest.approx([left, -0.5, left], abs=1e-4)


def test_filler_does_no_harm_where_every_label_word_is_named(serve: Serve) -> None:
    server = serve()
    scored = backend(server, scores="logprobs")
    server.changed = likeliest(good=-2.0, bad=-3.0, fine=-500.0, nothing=-9999.0)
    (reply,) = scored.score([request("a film")])
    assert reply.logprobs.tolist() == [[-2.0, -3.0, -100.0]]


def test_an_empty_account_ends_the_run_at_once(serve: Serve) -> None:
    broke = {"message": "You exceeded your current quota.", "code": "insufficient_quota"}
    server = serve()
    error = failing(backend(server), server, lambda *_: (429, {"error": broke}))
    assert isinstance(error, RefusedError)
    assert "exceeded your current quota" in str(error)


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 413, 422])
def test_a_refusal_ends_the_start_and_the_run_at_once(serve: Serve, status: int) -> None:
    refused = (status, {"error": {"message": "not for you"}})
    server = serve()
    error = failing(backend(server), server, lambda *_: refused)
    assert isinstance(error, RefusedError)
    assert "not for you" in str(error)
    with pytest.raises(PermanentError, match="not for you"):
        backend(server)


def test_too_many_requests_are_made_again(serve: Serve) -> None:
    server = serve()
    busy = {"message": "Rate limit reached", "code": "rate_limit_exceeded"}
    error = failing(backend(server), server, lambda *_: (429, {"error": busy}))
    assert isinstance(error, TransientError)
    assert error.overloaded


def test_a_row_that_is_too_long_is_the_users_affair(serve: Serve) -> None:
    scored = backend(serve(longest=60))
    with pytest.raises(InputError, match=r"maximum context length is 60.*shorten"):
        scored.score([request("a very long film " * 20)])


def test_a_model_that_is_not_there_is_named_with_those_that_are(serve: Serve) -> None:
    with pytest.raises(InputError, match=r"no model 'tinny'; did you mean 'tiny'"):
        backend(serve(), "tinny")


def test_a_url_without_a_path_gets_v1_and_one_with_a_slash_does_not(serve: Serve) -> None:
    server = serve()
    host = server.url.removesuffix("/v1")
    assert OpenAIBackend("tiny", url=host, retry=ONCE).identity == backend(server).identity
    with pytest.raises(PermanentError, match=f"{host} does not score"):
        OpenAIBackend("tiny", url=f"{host}/", retry=ONCE)


def test_a_server_of_another_kind_is_told_with_what_it_said(serve: Serve) -> None:
    server = serve(paths=(), models=())
    with pytest.raises(PermanentError, match=r"no route /v1/completions.*as in /v1"):
        backend(server, "m")


def test_a_key_that_is_missing_is_asked_for(serve: Serve) -> None:
    with pytest.raises(RefusedError, match=r"none was given, by api_key_file or in OPENAI_API_KEY"):
        backend(serve(key=SECRET))


@pytest.mark.parametrize("scores", ["auto", "text"])
def test_a_wrong_key_ends_the_start_at_the_first_request(
    serve: Serve, tmp_path: Path, scores: Any
) -> None:
    (tmp_path / "key").write_text("sk-wrong-key-of-mine")
    server = serve(key=SECRET)
    with pytest.raises(RefusedError, match="check the key") as caught:
        backend(server, api_key_file=tmp_path / "key", scores=scores)
    assert "sk-wrong" not in str(caught.value)
    assert not server.heard


def test_a_queue_that_is_too_short_gets_smaller_requests(serve: Serve) -> None:
    def short_queue(path: str, body: dict[str, Any], reply: Any) -> Any:
        prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
        return (503, {"error": {"message": "queue is full"}}) if len(prompts) > 2 else reply

    asked = request(*ROWS)
    server = serve()
    scored = backend(server)
    (expected,) = scored.score([asked])
    server.changed = short_queue
    (reply,) = scored.score([asked])
    assert np.array_equal(reply.logprobs, expected.logprobs)
    server.changed = lambda *_: (503, {"error": "down"})
    with pytest.raises(TransientError, match="down"):
        scored.score([asked])


# --- rows and options


def test_it_is_found_by_its_name() -> None:
    assert load_backend("openai") is OpenAIBackend


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (("a film ", Slot.PROMPT), "row 2 has no {label} slot"),
        ((Slot.LABEL, " it was ", Slot.PROMPT), "row 2 continues after {label}"),
        (("a film ", Slot.LABEL), "row 2 has no {prompt} slot"),
        (("\ud800 ", Slot.PROMPT, " ", Slot.LABEL), "row 2 .*half a character"),
    ],
    ids=str,
)
def test_a_row_that_cannot_be_asked_is_refused_before_it_is_sent(
    serve: Serve, row: tuple[Part, ...], words: str
) -> None:
    server = serve()
    scored = backend(server)
    server.heard.clear()
    good: tuple[Part, ...] = ("a ", Slot.PROMPT, " ", Slot.LABEL)
    asked = ScoreRequest(TextPrompt("Well"), Batch((good, row)), WORDS)
    for action in (lambda: scored.score([asked]), lambda: scored.inspect(asked)):
        with pytest.raises(InputError, match=words):
            action()
    assert not server.heard


def test_a_row_of_nothing_is_refused(serve: Serve) -> None:
    asked = ScoreRequest(TextPrompt(""), Batch(((Slot.PROMPT, " ", Slot.LABEL),)), WORDS)
    with pytest.raises(InputError, match="row 1 is empty"):
        backend(serve()).score([asked])


def test_a_soft_prompt_is_refused_with_what_takes_it(serve: Serve) -> None:
    asked = ScoreRequest(SoftPrompt(np.zeros((2, 4))), request("a").batch, WORDS)
    with pytest.raises(InputError, match=r"text prompts, and not a soft prompt.*'vllm'"):
        backend(serve()).score([asked])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": ""}, "no name"),
        ({"endpoint": "chats"}, "did you mean 'chat'"),
        ({"scores": "logprob"}, "did you mean 'logprobs'"),
        ({"endpoint": "chat", "scores": "echo"}, "only completions echo"),
        ({"endpoint": "completions", "system": "Be brief."}, "only a chat has a system"),
        ({"system": 1}, "system=1: give the message as text"),
        ({"scores": "echo", "system": "Be brief."}, "only a chat has a system"),
        ({"top_logprobs": 0}, "top_logprobs is 0"),
        ({"answer_tokens": 0}, "answer_tokens is 0"),
        ({"extra_body": {"n": 2}}, "'n', which this backend sets itself"),
        ({"extra_body": {"a": {1, 2}}}, "cannot be sent as JSON"),
        ({"url": "tiny"}, "is no URL"),
        ({"api_key_file": "/no/such/file"}, "cannot be read"),
    ],
    ids=str,
)
def test_an_option_that_cannot_be_is_refused_before_anything_is_sent(
    serve: Serve, options: dict[str, Any], words: str
) -> None:
    server = serve()
    with pytest.raises(InputError, match=words):
        OpenAIBackend(**{"model": "tiny", "url": server.url, **options})
    assert not server.heard


def test_paths_make_other_identities_without_being_shown(serve: Serve) -> None:
    server = serve(paths=("/v1/acct-77/completions", "/v1/completions"))
    plain, other = backend(server), OpenAIBackend("tiny", url=f"{server.url}/acct-77", retry=ONCE)
    assert plain.identity != other.identity
    assert "acct-77" not in other.identity


# --- the key


@pytest.mark.parametrize("by", ["file", "environment"])
def test_the_key_is_sent_and_shown_nowhere(
    serve: Serve,
    by: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    options: dict[str, Any] = {}
    if by == "file":
        (tmp_path / "key").write_text(f"{SECRET}\n")
        options["api_key_file"] = tmp_path / "key"
    else:
        monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    server = serve(key=SECRET)
    scored = backend(server, **options)
    client = Client(scored, cache=tmp_path / "cache")
    client.score([request("a film")])
    shown = [repr(scored), str(vars(scored)), scored.identity, caplog.text]
    said = f"Bearer {SECRET} is a fine key"
    for status, reply in (
        (400, {"error": {"message": said}}),
        (429, {"error": said}),
        (200, said),
        (200, {"choices": said}),
        (200, {"choices": [{"index": i, "logprobs": said, "text": said} for i in (0, 1)]}),
        (200, {"choices": [], "usage": said}),
    ):
        error = failing(scored, server, lambda *_, s=status, r=reply: (s, r))
        shown += ["".join(traceback.format_exception(error)), repr(error)]
    shown += [
        p.read_bytes().decode("latin-1") for p in (tmp_path / "cache").rglob("*") if p.is_file()
    ]
    if (tmp_path / "cache").is_file():
        shown.append((tmp_path / "cache").read_bytes().decode("latin-1"))
    assert not any(SECRET in text for text in shown)


@pytest.mark.parametrize("reason", ["stop", "content_filter"])
def test_a_row_that_the_model_does_not_answer_says_nothing_for_any_label(
    serve: Serve, reason: str
) -> None:
    server = serve(paths=(CHAT,))
    scored = backend(server)

    def silent(path: str, body: Any, reply: Any) -> Any:
        if "dull" in json.dumps(body["messages"]):
            logprobs = {"content": []} if reason == "stop" else None
            message = {"role": "assistant", "content": None}
            reply["choices"] = [{"message": message, "logprobs": logprobs, "finish_reason": reason}]
        return reply

    plain = scored.score([request("a fine film")])[0].logprobs
    server.changed = silent
    (reply,) = scored.score([request("a fine film", "a dull film")])
    np.testing.assert_allclose(reply.logprobs, [plain[0], [-np.log(3)] * 3])
    assert reply.usage.requests == 2


def test_a_model_that_never_answers_is_told_at_the_start(serve: Serve) -> None:
    def silent(path: str, body: Any, reply: Any) -> Any:
        message = {"role": "assistant", "content": ""}
        reply["choices"] = [{"message": message, "logprobs": None, "finish_reason": "stop"}]
        return reply

    with pytest.raises(PermanentError, match="the model wrote nothing"):
        backend(serve(silent, paths=(CHAT,)))


ERROR = {"error": {"message": "Insufficient credits"}}


@pytest.mark.parametrize(
    ("failed", "reason"),
    [
        (lambda r: ERROR, "Insufficient credits"),
        (lambda r: {**r, **ERROR}, "Insufficient credits"),
        (lambda r: {**r, "choices": [{**r["choices"][0], **ERROR}]}, "Insufficient credits"),
        (
            lambda r: {**r, "choices": [{**r["choices"][0], "finish_reason": "error"}]},
            "no reason given",
        ),
    ],
    ids=["alone", "beside choices", "in a choice", "as the end of a choice"],
)
def test_an_error_under_a_status_of_success_is_told_in_the_servers_words(
    serve: Serve, failed: Callable[[Any], Any], reason: str
) -> None:
    server = serve(paths=(CHAT,))
    scored = backend(server, scores="text")
    server.changed = lambda path, body, reply: failed(reply)
    with pytest.raises(TransientError, match=f"answered with an error: {reason}"):
        scored.score([request("a fine film")])


def test_an_endpoint_that_only_fails_is_passed_over(serve: Serve) -> None:
    def failing(path: str, body: Any, reply: Any) -> Any:
        return reply if path == CHAT else (500, {"error": {"message": "not supported here"}})

    assert "endpoint=chat" in backend(serve(failing)).identity
    with pytest.raises(PermanentError, match=r"completions with echo, .*500: not supported here"):
        backend(serve(lambda *_: (500, {"error": {"message": "not supported here"}})))
