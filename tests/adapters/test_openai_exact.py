"""The backend `openai` where label words are not among the likeliest tokens."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra 'hf' is not installed")
pytest.importorskip("transformers", reason="the extra 'hf' is not installed")

from lmaas_tune_adapters.hf import HFBackend  # noqa: E402
from lmaas_tune_adapters.http import RefusedError  # noqa: E402
from lmaas_tune_adapters.openai import OpenAIBackend  # noqa: E402

from lmaas_tune import Tuner  # noqa: E402
from lmaas_tune.calls.retry import Retry  # noqa: E402
from lmaas_tune.errors import InputError, PermanentError, TransientError  # noqa: E402
from tests.support.openai_server import Change, OpenAIServer, TinyModel  # noqa: E402
from tests.support.server import Server, json_handler  # noqa: E402

from .test_openai import (  # noqa: E402
    CHAT,
    NO_LOGPROBS,
    ROWS,
    Serve,
    _no_key_of_the_user,  # noqa: F401
    _Suite,
    backend,
    request,
)

WORDS = ("good", "great", "wonderful", "technologically", "very bad")
ONE_TOKEN = ("great", "the")  # each to the tiny model
NO_ECHO: dict[str, Any] = {"ignores": ("echo",)}
LLAMA_CPP: dict[str, Any] = {**NO_ECHO, "bias": "chosen by", "keys": True, "entries": True}
HOSTED: dict[str, Any] = {**NO_ECHO, "bias": "chosen by"}
BIASED: dict[str, Any] = {**NO_ECHO, "bias": "told"}


@pytest.fixture(scope="module")
def own(folder: Path) -> HFBackend:
    return HFBackend(folder, device="cpu")


def ids_of(tiny: TinyModel, *words: str) -> dict[str, list[int]]:
    return {word: tiny.tokens(f" {word}") for word in words}


class TestForced(_Suite):
    @pytest.fixture
    def server(self, serve: Serve) -> OpenAIServer:
        return serve(**LLAMA_CPP, tokenizer=True)


class TestMargins(_Suite):
    deviations = {  # noqa: RUF012
        "test_a_candidate_does_not_depend_on_the_others": "what words have together is lost"
    }

    @pytest.fixture
    def backend(self, serve: Serve, tiny: TinyModel) -> OpenAIBackend:
        server = serve(**BIASED, tokenizer=True)
        return backend(server, scores="margins", token_ids=ids_of(tiny, *ONE_TOKEN))

    @pytest.fixture
    def differing(self, serve: Serve, tiny: TinyModel) -> list[OpenAIBackend]:
        ids = ids_of(tiny, *ONE_TOKEN)
        server = serve(**BIASED, tokenizer=True)
        return [backend(server, scores="margins", token_ids=ids, seed=s) for s in (1, 2)]


# --- forced


@pytest.mark.parametrize("tail", [" It was ", ":\n"], ids=repr)
@pytest.mark.parametrize("poor", [{**LLAMA_CPP, "tokenizer": True}, {**HOSTED, "tokenizer": True}])
def test_forced_words_have_the_models_own_scores(
    serve: Serve, own: HFBackend, poor: dict[str, Any], tail: str
) -> None:
    asked = request(*ROWS, words=WORDS, tail=tail)
    (exact,) = own.score([asked])
    scored = backend(serve(**poor))
    assert "scores=forced" in scored.identity
    for _ in range(2):  # while it learns, and later
        (reply,) = scored.score([asked])
        np.testing.assert_allclose(reply.logprobs, exact.logprobs, atol=1e-4)
        assert reply.bounds == 0


def test_a_server_that_takes_words_apart_itself_needs_no_tokenizer(
    serve: Serve, own: HFBackend
) -> None:
    asked = request(*ROWS, words=WORDS)
    (exact,) = own.score([asked])
    (reply,) = backend(serve(**LLAMA_CPP)).score([asked])
    off = np.abs(reply.logprobs - exact.logprobs) > 1e-4
    assert off.sum() == reply.bounds <= 1  # no score is wrong without being counted
    assert (reply.logprobs >= exact.logprobs - 1e-4).all()


def test_ids_that_the_user_gives_force_a_word_too(
    serve: Serve, own: HFBackend, tiny: TinyModel
) -> None:
    asked = request(*ROWS, words=WORDS)
    (exact,) = own.score([asked])
    ids = ids_of(tiny, *WORDS)
    scored = backend(serve(**HOSTED), token_ids=ids)
    assert "scores=forced" in scored.identity
    assert "scores=logprobs" in backend(serve(**HOSTED)).identity
    (reply,) = scored.score([asked])
    np.testing.assert_allclose(reply.logprobs, exact.logprobs, atol=1e-4)


UNTOKENIZED: list[Any] = [(502, {"error": "bad gateway"}), {"error": "loading"}, {"tokens": []}]


def untokenized(answer: Any, times: int) -> Change:
    """A server whose tokenizer answers so as often."""
    left = [times]

    def change(path: str, body: dict[str, Any], reply: Any) -> Any:
        if path != "/tokenize" or not left[0]:
            return reply
        left[0] -= 1
        return answer

    return change


@pytest.mark.parametrize("answer", UNTOKENIZED, ids=str)
def test_a_tokenizer_that_fails_once_at_the_start_is_asked_again(serve: Serve, answer: Any) -> None:
    server = serve(untokenized(answer, 1), **HOSTED, tokenizer=True)
    scored = backend(server, retry=Retry(attempts=2, first_wait=0.0))
    assert "endpoint=completions scores=forced" in scored.identity


@pytest.mark.parametrize("answer", UNTOKENIZED, ids=str)
def test_a_tokenizer_that_only_fails_is_none(serve: Serve, answer: Any) -> None:
    server = serve(untokenized(answer, 99), **LLAMA_CPP, tokenizer=True)
    scored = backend(server, retry=Retry(attempts=2, first_wait=0.0))
    assert "endpoint=completions scores=forced" in scored.identity


@pytest.mark.parametrize("answer", [*UNTOKENIZED, (404, {"detail": "not found"})], ids=str)
@pytest.mark.parametrize("before", [0, 1])
def test_a_tokenizer_that_fails_once_in_the_run_leaves_nothing_behind(
    serve: Serve, own: HFBackend, answer: Any, before: int
) -> None:
    asked = request(*ROWS, words=WORDS)
    (exact,) = own.score([asked])
    server = serve(**HOSTED, tokenizer=True)
    scored = backend(server)
    fails, count = untokenized(answer, 1), [0]

    def change(path: str, body: dict[str, Any], reply: Any) -> Any:
        count[0] += path == "/tokenize"
        return fails(path, body, reply) if count[0] > before else reply

    server.changed = change
    with pytest.raises(TransientError):
        scored.score([asked])
    (reply,) = scored.score([asked])
    np.testing.assert_allclose(reply.logprobs, exact.logprobs, atol=1e-4)


def test_a_word_of_one_token_takes_one_small_request_a_row(serve: Serve) -> None:
    server = serve(**LLAMA_CPP, tokenizer=True)
    scored = backend(server)
    asked = request(*ROWS, words=ONE_TOKEN)
    scored.score([asked])
    server.heard.clear()
    (reply,) = scored.score([asked])
    assert reply.usage.requests == len(server.heard) == len(ONE_TOKEN)  # all rows in each
    assert {body["max_tokens"] for _, body in server.heard} == {1}
    assert {body["logprobs"] for _, body in server.heard} == {1}


def test_words_among_the_likeliest_are_not_forced(serve: Serve) -> None:
    server = serve(**HOSTED, most=420, tokenizer=True)
    scored = backend(server, scores="forced", top_logprobs=420)
    server.heard.clear()
    scored.score([request(*ROWS, words=ONE_TOKEN)])
    assert len(server.heard) == 1


def test_a_chat_forces_what_the_answer_begins_with(serve: Serve, tiny: TinyModel) -> None:
    words = [word for word in ("great", "on", "it", "is") if len(tiny.tokens(word)) == 1][:2]
    ids = {word: tiny.tokens(word) for word in (*words, "bad")}
    scored = backend(
        serve(**HOSTED, tokenizer=True),
        endpoint="chat",
        token_ids={word: ids[word] for word in words},
    )
    assert "endpoint=chat scores=forced" in scored.identity
    (reply,) = scored.score([request(*ROWS, words=tuple(ids))])
    for row, text in enumerate(ROWS):
        told = tiny(f"{text} Overall, the movie It was", 1).logprobs[-1]
        first = [float(told[own[0]]) for own in ids.values()]
        np.testing.assert_allclose(reply.logprobs[row], first, atol=1e-4)
    assert reply.bounds == len(ROWS)  # of the word of several tokens, its first one


@pytest.mark.parametrize("poor", [NO_ECHO, BIASED], ids=["ignores it", "counts it in"])
def test_a_bias_that_does_not_do_what_it_should_is_not_trusted(
    serve: Serve, tiny: TinyModel, poor: dict[str, Any]
) -> None:
    server = serve(**poor, tokenizer=True)
    with pytest.raises(PermanentError, match="logit_bias"):
        backend(server, scores="forced", token_ids=ids_of(tiny, *ONE_TOKEN))


def test_words_raised_together_differ_as_they_should(
    serve: Serve, own: HFBackend, tiny: TinyModel
) -> None:
    asked = request(*ROWS, words=ONE_TOKEN)
    (exact,) = own.score([asked])
    server = serve(**BIASED)
    scored = backend(server, token_ids=ids_of(tiny, *ONE_TOKEN))
    assert "scores=margins" in scored.identity
    server.heard.clear()
    (reply,) = scored.score([asked])
    assert len(server.heard) == 1
    assert reply.bounds == 0
    np.testing.assert_allclose(
        np.diff(reply.logprobs, axis=1), np.diff(exact.logprobs, axis=1), atol=1e-4
    )


def test_a_word_of_several_tokens_that_is_raised_is_counted_as_a_bound(
    serve: Serve, tiny: TinyModel
) -> None:
    ids = ids_of(tiny, *ONE_TOKEN)
    scored = backend(serve(**BIASED, tokenizer=True), token_ids=ids)
    (reply,) = scored.score([request(*ROWS, words=(*ONE_TOKEN, "technologically"))])
    assert reply.bounds == len(ROWS)


def test_filler_among_raised_words_is_no_score(serve: Serve, tiny: TinyModel) -> None:
    server = serve(**BIASED)
    scored = backend(server, scores="margins", token_ids=ids_of(tiny, *ONE_TOKEN))
    server.changed = likeliest({" great": -0.6, " the": -9999.0}, {})
    with pytest.raises(TransientError, match="filler"):
        scored.score([request("a film", words=ONE_TOKEN)])


def test_a_word_whose_ids_were_not_given_is_asked_for(serve: Serve, tiny: TinyModel) -> None:
    scored = backend(serve(**HOSTED), token_ids=ids_of(tiny, *ONE_TOKEN))
    with pytest.raises(InputError, match="token_ids does not have 'wonderful'"):
        scored.score([request("a film", words=("great", "wonderful"))])


@pytest.mark.parametrize("ids", [{"good": 3}, {"good": []}, {"good": ["a"]}, {"good": [-1]}])
def test_ids_that_are_none_are_refused(serve: Serve, ids: Any) -> None:
    with pytest.raises(InputError, match="token_ids of 'good'"):
        backend(serve(), token_ids=ids)


# --- more of the likeliest


def test_where_words_are_missing_more_tokens_are_asked_for(serve: Serve, own: HFBackend) -> None:
    asked = request(*ROWS, words=ONE_TOKEN)
    (exact,) = own.score([asked])
    server = serve(**NO_ECHO, most=10_000)
    scored = backend(server)
    server.heard.clear()
    (reply,) = scored.score([asked])
    assert [body["logprobs"] for _, body in server.heard if "logprobs" in body][:3] == [
        20, 100, 1000
    ]  # fmt: skip
    np.testing.assert_allclose(reply.logprobs, exact.logprobs, atol=1e-4)
    assert reply.bounds == 0
    server.heard.clear()
    scored.score([asked])
    assert [body["logprobs"] for _, body in server.heard] == [1000]


@pytest.mark.parametrize(("failures", "bounds"), [(1, 0), (9, 8)])
def test_a_failure_of_the_server_is_no_refusal_of_more_tokens(
    serve: Serve, failures: int, bounds: int
) -> None:
    server = serve(**NO_ECHO, most=10_000)
    scored = backend(server)
    left = [failures]

    def failing(path: str, body: dict[str, Any], reply: Any) -> Any:
        if body.get("logprobs", 0) <= 20 or not left[0]:
            return reply
        left[0] -= 1
        return 502, {"error": {"message": "Bad Gateway"}}

    server.changed = failing
    server.heard.clear()
    asked = request(*ROWS, words=ONE_TOKEN)
    requests = 0
    for _ in range(2):  # as often as it is taken for a failure
        try:
            (reply,) = scored.score([asked])
            break
        except TransientError as error:
            assert error.usage is not None
            requests += error.usage.requests
    else:
        (reply,) = scored.score([asked])
    assert reply.bounds == bounds
    assert requests + reply.usage.requests == len(server.heard)
    server.changed = None
    assert scored.score([asked])[0].bounds == 0


def once_larger(spoilt: Any, times: int = 1) -> Change:
    """A server that spoils its first answers to requests for more than 20 tokens."""
    left = [times]

    def change(path: str, body: dict[str, Any], reply: Any) -> Any:
        if body.get("logprobs", 0) <= 20 or not left[0]:
            return reply
        left[0] -= 1
        return spoilt(reply)

    return change


def cut(reply: Any) -> Any:
    """Only five of the likeliest tokens."""
    for choice in reply["choices"]:
        tops = choice["logprobs"]["top_logprobs"]
        tops[:] = [dict(list(top.items())[:5]) for top in tops]
    return reply


def without(reply: Any) -> Any:
    """No likeliest tokens beside the written one."""
    for choice in reply["choices"]:
        choice["logprobs"]["top_logprobs"] = None
    return reply


def filtered(reply: Any) -> Any:
    """Answers that a filter removed."""
    for choice in reply["choices"]:
        choice.update(text="", logprobs=None, finish_reason="content_filter")
    return reply


@pytest.mark.parametrize("spoilt", [cut, without, filtered])
def test_fewer_tokens_than_before_replace_nothing_and_are_not_taken_for_all(
    serve: Serve, spoilt: Any
) -> None:
    asked = request(*ROWS, words=ONE_TOKEN)
    server = serve(**NO_ECHO, most=10_000)
    (few,) = backend(server, scores="logprobs", top_logprobs=20).score([asked])
    scored = backend(server, endpoint="completions")
    server.changed = once_larger(spoilt)
    (reply,) = scored.score([asked])
    assert np.array_equal(reply.logprobs, few.logprobs)
    assert reply.bounds == few.bounds > 0
    assert scored.score([asked])[0].bounds == 0


def test_a_server_that_returns_fewer_tokens_twice_is_not_asked_for_more(serve: Serve) -> None:
    asked = request(*ROWS, words=ONE_TOKEN)
    server = serve(once_larger(cut, 99), **NO_ECHO, most=10_000)
    scored = backend(server, endpoint="completions")
    server.heard.clear()
    for _ in range(3):
        scored.score([asked])
    assert [body["logprobs"] for _, body in server.heard if "logprobs" in body] == [
        20, 100, 20, 100, 20
    ]  # fmt: skip


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_of_the_user_is_none_of_more_tokens(serve: Serve, status: int) -> None:
    asked = request(*ROWS, words=ONE_TOKEN)
    server = serve(**NO_ECHO, most=10_000)
    scored = backend(server, endpoint="completions")
    server.changed = once_larger(lambda reply: (status, {"error": "not now"}))
    with pytest.raises(RefusedError, match="not now"):
        scored.score([asked])
    assert scored.score([asked])[0].bounds == 0


@pytest.mark.parametrize("silent", [False, True], ids=["refused", "names no more"])
def test_where_no_more_are_named_the_bounds_are_counted(
    serve: Serve, own: HFBackend, silent: bool
) -> None:
    def names_20(path: str, body: dict[str, Any], reply: Any) -> Any:
        for choice in reply["choices"]:
            if choice["logprobs"]:
                tops = choice["logprobs"]["top_logprobs"]
                tops[:] = [dict(list(top.items())[:20]) for top in tops]
        return reply

    asked = request(*ROWS, words=ONE_TOKEN)
    (exact,) = own.score([asked])
    server = serve(names_20 if silent else None, **NO_ECHO, most=10_000 if silent else 20)
    scored = backend(server, endpoint="completions")
    (reply,) = scored.score([asked])
    assert reply.bounds == (np.abs(reply.logprobs - exact.logprobs) > 1e-6).sum() > 0
    server.heard.clear()
    (again,) = scored.score([asked])
    assert len(server.heard) == 1  # it does not try again
    assert again.bounds == reply.bounds


def likeliest(top: Mapping[str, Any], counts: Mapping[str, int]) -> Change:
    """A server that always names these, and counts so many tokens of a text that ends so."""

    def change(path: str, body: dict[str, Any], reply: Any) -> Any:
        prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
        best = max(top, key=lambda piece: top[piece] if top[piece] is not None else -math.inf)
        logprobs = {"tokens": [best], "token_logprobs": [top[best]], "top_logprobs": [dict(top)]}
        choices = [{"index": i, "text": best, "logprobs": logprobs} for i in range(len(prompts))]
        read = sum(5 + counts.get(prompt.split()[-1], 0) for prompt in prompts)
        return {"choices": choices, "usage": {"prompt_tokens": read}}

    return change


@pytest.mark.parametrize(("tokens", "score", "bounds"), [(1, -9.88, 1), (2, -9.41, 0)])
def test_a_beginning_stands_for_a_word_only_if_the_word_has_several_tokens(
    serve: Serve, tokens: int, score: float, bounds: int
) -> None:
    top = {" great": -1.0, " te": -9.41, " x": -9.88}
    server = serve(likeliest(top, {"terrible": tokens, "great": 1}), **NO_ECHO)
    scored = backend(server, scores="logprobs", endpoint="completions")
    (reply,) = scored.score([request("a film", words=("great", "terrible"))])
    assert reply.logprobs.tolist() == [[-1.0, score]]
    assert reply.bounds == bounds


@pytest.mark.parametrize(("untold", "tokens", "bounds"), [(1, 1, 1), (2, 2, 0)])
def test_a_count_that_is_missing_once_says_nothing_about_a_word(
    serve: Serve, untold: int, tokens: int, bounds: int
) -> None:
    top = {" great": -1.0, " te": -9.41, " x": -9.88}
    server = serve(likeliest(top, {"terrible": tokens}), **NO_ECHO)
    scored = backend(server, scores="logprobs", endpoint="completions")
    counts = [0]

    def change(path: str, body: dict[str, Any], reply: Any) -> Any:
        counts[0] += "logprobs" not in body
        usage = {"usage": None} if counts[0] == untold and "logprobs" not in body else {}
        return {**likeliest(top, {"terrible": tokens})(path, body, reply), **usage}

    server.changed = change
    asked = request("a film", words=("great", "terrible"))
    assert [scored.score([asked])[0].bounds for _ in range(2)] == [1, bounds]


# --- what servers answer


@pytest.mark.parametrize("lowest", [-9999.0, -3.4028234663852886e38, None, -math.inf])
def test_a_likeliest_token_without_probability_is_a_floor(serve: Serve, lowest: Any) -> None:
    tail = {" x": lowest, " y": lowest}
    server = serve(likeliest({" great": -1.0, " bad": -2.0} | tail, {}), **NO_ECHO)
    scored = backend(server, scores="logprobs", endpoint="completions")
    (named,) = scored.score([request("a film", words=("great", "bad"))])
    assert named.logprobs.tolist() == [[-1.0, -2.0]]
    server.changed = likeliest({" great": 0.0} | tail, {})
    (missing,) = scored.score([request("a film", words=("great", "bad"))])
    assert missing.logprobs[0] == pytest.approx([0.0, math.log(1e-6)])
    assert missing.bounds == 1


@pytest.mark.parametrize("index", [None, 0, "none"])
def test_choices_that_do_not_tell_their_prompt_make_it_one_prompt_a_request(
    serve: Serve, index: Any
) -> None:
    def change(path: str, body: dict[str, Any], reply: Any) -> Any:
        for choice in reply["choices"]:
            choice["index"] = index
            if index == "none":
                del choice["index"]
        return reply

    server = serve(change, **NO_ECHO)
    scored = backend(server, endpoint="completions")
    assert scored.capabilities.rows_per_call == 1
    (reply,) = scored.score([request("a film", "a book")])
    whole = backend(serve(**NO_ECHO), endpoint="completions").score([request("a film", "a book")])
    np.testing.assert_allclose(reply.logprobs, whole[0].logprobs)


@pytest.mark.parametrize("logprobs", [True, False])
def test_a_model_that_thinks_first_is_told_with_what_switches_it_off(
    serve: Serve, logprobs: bool
) -> None:
    def thinking(path: str, body: dict[str, Any], reply: Any) -> Any:
        reply["choices"][0]["message"]["content"] = "<think>\nLet me see"
        if reply["choices"][0]["logprobs"]:
            entry = {"token": "<think>", "logprob": -0.0001}
            top = [entry, {"token": "good", "logprob": -9.5}]
            reply["choices"][0]["logprobs"]["content"] = [{**entry, "top_logprobs": top}]
        return reply

    server = serve(thinking, paths=(CHAT,), ignores=() if logprobs else NO_LOGPROBS)
    with pytest.raises(PermanentError, match=r"thinks before it answers.*enable_thinking"):
        backend(server)


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_thoughts_in_a_field_of_their_own_are_no_answer(serve: Serve, name: str) -> None:
    def thinking(path: str, body: dict[str, Any], reply: Any) -> Any:
        reply["choices"][0]["message"] = {"content": None, name: "Okay"}
        return reply

    with pytest.raises(PermanentError, match="thinks before it answers"):
        backend(serve(thinking, paths=(CHAT,)))


def test_an_answer_counts_from_the_end_of_its_thoughts_and_one_without_a_label_is_counted(
    serve: Serve,
) -> None:
    def answer(path: str, body: dict[str, Any], reply: Any) -> Any:
        good = "film" in json.dumps(body["messages"])
        said = "<think>good?</think> bad" if good else "I cannot say"
        reply["choices"][0]["message"]["content"] = said
        return reply

    server = serve(answer, paths=(CHAT,), ignores=NO_LOGPROBS)
    server.changed = None
    scored = backend(server, scores="text")
    server.changed = answer
    (reply,) = scored.score([request("a film", "a book", words=("good", "bad"))])
    np.testing.assert_allclose(np.exp(reply.logprobs), [[0.1, 0.9], [0.5, 0.5]])
    assert reply.bounds == 2


# --- what is blamed


def test_a_refused_way_of_scoring_is_not_blamed_on_the_models_name(serve: Serve) -> None:
    """llama.cpp answers to any name, and lists its file's."""
    server = serve(ignores=("echo",), models=("tiny", "unlisted"))
    object.__setattr__(server._poor, "models", Listed(("tiny",)))
    with pytest.raises(PermanentError, match="the model and the URL are right, as it answers"):
        backend(server, "unlisted", scores="echo")


class Listed(tuple[str, ...]):
    """Names that are listed, of a server that answers to others too."""

    def __contains__(self, name: object) -> bool:
        return True


def test_a_server_that_fails_without_a_key_is_asked_twice_and_the_key_is_named() -> None:
    asked = []

    def broken(path: str, authorization: str, content: bytes) -> tuple[int, Any]:
        asked.append(path)
        return 500, "Internal Server Error"

    with (
        Server(json_handler(broken)) as server,
        pytest.raises(InputError, match=r"no key was given, by api_key_file or in OPENAI_API_KEY"),
    ):
        OpenAIBackend("tiny", url=server.url, retry=Retry(attempts=10, first_wait=0.0))
    assert asked == ["/v1/completions", "/v1/models"]


def test_a_gateway_that_fails_without_a_key_is_asked_again() -> None:
    asked = []

    def broken(path: str, authorization: str, content: bytes) -> tuple[int, Any]:
        asked.append(path)
        return 502, "Bad Gateway"

    with Server(json_handler(broken)) as server, pytest.raises(PermanentError, match="502"):
        OpenAIBackend("tiny", url=server.url, retry=Retry(attempts=3, first_wait=0.0))
    assert asked[:3] == ["/v1/completions"] * 3


def test_a_key_that_is_refused_everywhere_is_to_be_checked(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-nobody")
    refused = {"error": {"message": "No connected db."}}  # LiteLLM, of a wrong key
    with (
        Server(json_handler(lambda *_: (400, refused))) as server,
        pytest.raises(PermanentError, match=r"/models is refused too .*: check the key$"),
    ):
        OpenAIBackend("tiny", url=server.url, retry=Retry(attempts=1))


@pytest.mark.filterwarnings("ignore:label words are looked for")
def test_a_run_on_a_server_that_names_no_label_word_is_refused(serve: Serve) -> None:
    scored = backend(serve(**NO_ECHO), endpoint="completions")
    train = [("a film", "technologically"), ("a book", "wonderful")] * 4
    with pytest.raises(PermanentError, match="100% of the scores are bounds"):
        Tuner(scored, budget="calls=40", callbacks=()).fit(train)
