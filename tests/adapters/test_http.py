"""The endpoint that all adapters share, against servers with prepared answers."""

from __future__ import annotations

import copy
import email.utils
import gzip
import html
import json
import logging
import os
import pickle
import re
import socket
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from lmaas_tune_adapters.http import Answer, BusyError, Endpoint, Key, RefusedError, retry_after
from tblib import pickling_support

from lmaas_tune.backend import Usage
from lmaas_tune.errors import InputError, LMaaSError, PermanentError, TransientError
from tests.support.server import RawServer, Say, reply
from tests.support.waiting import until

SECRET = "sk-0123456789-VERY/secret+key=="


def failure(server: RawServer, *, key: Key | None = None, timeout: float = 5.0) -> LMaaSError:
    """What a request to the server ends with."""
    with pytest.raises(LMaaSError) as caught:
        Endpoint(server.url, key=key, timeout=timeout).post("/v1/x", content={})
    return caught.value


# -- answers ---------------------------------------------------------------------------------


def test_an_answer_is_its_body_its_headers_and_what_it_took() -> None:
    with RawServer(reply(b'{"a": [1, 2.5]}', headers={"X-Tokens": "7"})) as server:
        answer = Endpoint(server.url + "/").post("/v1/score", content={"z": [1.0, None]})
    assert answer.json() == {"a": [1, 2.5]}
    assert answer.headers["x-tokens"] == "7"
    assert answer.url == f"{server.url}/v1/score"
    assert answer.usage.requests == 1
    assert server.heard[0].startswith(b"POST /v1/score HTTP/1.1\r\n")
    assert server.heard[0].endswith(b'\r\n\r\n{"z":[1.0,null]}')
    assert b"Content-Type: application/json\r\n" in server.heard[0]
    assert b"Authorization" not in server.heard[0]


def test_a_body_is_sent_as_it_is_under_the_headers_given() -> None:
    body = bytes(range(256)) * 300
    with RawServer(reply()) as server:
        kind = {"Content-Type": "application/octet-stream"}
        answer = Endpoint(server.url, key=Key(SECRET)).post("/x?y=1", body=body, headers=kind)
        Endpoint(server.url).get("/health", headers={"Request-Id": "5"})
    assert answer.content == b""
    assert server.heard[0].endswith(b"\r\n\r\n" + body)
    assert server.heard[0].startswith(b"POST /x?y=1 HTTP/1.1\r\n")
    assert f"\r\nAuthorization: Bearer {SECRET}\r\n".encode() in server.heard[0]
    assert b"\r\nContent-Type: application/octet-stream\r\n" in server.heard[0]
    assert server.heard[1].startswith(b"GET /health HTTP/1.1\r\n")
    assert b"\r\nRequest-Id: 5\r\n" in server.heard[1]


@pytest.mark.parametrize("key", [None, Key(SECRET)])
@pytest.mark.parametrize("body", [b"", b"x", b"\x00" * 70_000])
@pytest.mark.parametrize(
    "said",
    [
        reply(),
        reply(b"y" * 1000, headers={"Tokens": "5"}),
        reply(gzip.compress(b"z" * 5000), headers={"Content-Encoding": "gzip"}),
        b"HTTP/1.1 201 Created\r\nX-A: 1\r\nX-A: 2\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 204 No Content\r\n\r\n",
    ],
)
def test_bytes_are_counted_as_the_server_counts_them(
    said: bytes, body: bytes, key: Key | None
) -> None:
    with RawServer(said) as server:
        endpoint = Endpoint(server.url, key=key)
        answers = [endpoint.post("/v1/score/a?b=c", body=body), endpoint.get("/v1/model")]
        for answer, heard in zip(answers, server.heard, strict=True):
            assert answer.usage.bytes_up == len(heard)
            assert answer.usage.bytes_down == len(said)


def test_of_a_chunked_answer_only_the_framing_is_not_counted() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    with RawServer(head + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n") as server:
        answer = Endpoint(server.url).get("/")
    assert answer.content == b"abcde"
    assert answer.usage.bytes_down == len(head) + 5


def test_a_compressed_answer_is_read() -> None:
    said = reply(gzip.compress(b'{"a": 1}'), headers={"Content-Encoding": "gzip"})
    with RawServer(said) as server:
        assert Endpoint(server.url).get("/").json() == {"a": 1}


def test_requests_after_one_another_share_a_connection_refused_ones_too() -> None:
    with RawServer(
        lambda r: Say(reply(b"no", status="404 Not Found") if b"/b" in r else reply(b"1"))
    ) as server:
        endpoint = Endpoint(server.url)
        endpoint.get("/a")
        with pytest.raises(RefusedError):
            endpoint.get("/b")
        endpoint.post("/c", body=b"d")
    assert server.connections == 1


def test_threads_get_their_own_answers_over_no_more_connections_than_agreed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lmaas_tune_adapters.http.endpoint.CONNECTIONS", 3)
    with RawServer(lambda r: Say(reply(r.split(b"\r\n\r\n", 1)[1]))) as server:
        endpoint = Endpoint(server.url)
        bodies = [f"body {i}".encode() for i in range(60)]
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda body: endpoint.post("/", body=body), bodies))
    assert [answer.content for answer in answers] == bodies
    assert server.connections <= 3


def test_a_large_body_may_take_longer_than_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmaas_tune_adapters.http.endpoint._CONNECT", 1.0)
    body = bytes(10 * 2**20)
    with RawServer(reply(b"got it"), unhurried=0.008) as server:
        began = time.monotonic()
        assert Endpoint(server.url).post("/", body=body).content == b"got it"
        assert time.monotonic() - began > 1.0
    assert len(server.heard[0]) > len(body)


# -- what is no answer -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b'{"a": NaN}', b'{"a": -Infinity}', b"\xff\xfe\xfd", b"[" * 100_000, b"<html>"],
)
def test_what_is_not_json_may_pass(body: bytes) -> None:
    with RawServer(reply(body)) as server, pytest.raises(TransientError) as caught:
        Endpoint(server.url).get("/v1/model").json()
    assert "/v1/model sent an answer that is not JSON" in str(caught.value)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "say",
    {
        "short of its length": Say(HEAD + b"1234", "close"),
        "reset in its middle": Say(HEAD + b"1234", "reset"),
        "chunk cut": Say(CHUNKED + b"5\r\nab", "close"),
        "no last chunk": Say(CHUNKED + b"2\r\nab\r\n", "close"),
        "chunk of no length": Say(CHUNKED + b"zz\r\nab\r\n", "close"),
        "no head": Say(b"\x00\x01 what\r\n\r\n", "close"),
        "nothing": Say(b"", "close"),
        "reset at once": Say(b"", "reset"),
        "gzip of nothing": Say(reply(b"plain", headers={"Content-Encoding": "gzip"}), "close"),
        "length of nothing": Say(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nab", "silence"),
        "two lengths": Say(reply(b"ab", headers={"content-length": "3"}), "close"),
    }.items(),
    ids=lambda item: item[0],
)
def test_half_an_answer_may_pass(say: tuple[str, Say]) -> None:
    with RawServer(say[1]) as server:
        error = failure(server, timeout=0.5)
    assert type(error) is TransientError
    assert error.retry_after is None
    assert (error.usage, error.usage_unknown) == (Usage(requests=1), True)
    assert str(error).startswith(f"{server.url}/v1/x ")


@pytest.mark.parametrize(
    "say",
    [
        Say(b"", "silence"),
        Say(b"HTTP/1.1 200 OK\r\nConte", "silence"),
        Say(HEAD + b"12", "silence"),
        Say(CHUNKED + b"2\r\nab\r\n", "silence"),
        Say(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", "trickle"),
    ],
    ids=["nothing", "half a head", "half a body", "half the chunks", "drop by drop"],
)
def test_a_server_that_falls_silent_is_overloaded(say: Say) -> None:
    with RawServer(say) as server:
        began = time.monotonic()
        error = failure(server, timeout=0.2)
        took = time.monotonic() - began
    assert isinstance(error, TransientError)
    assert error.overloaded
    assert str(error) == f"{server.url}/v1/x did not answer within 0.2 s"
    assert took < 5.0


def test_nobody_there_may_pass() -> None:
    with RawServer(reply()) as server:
        pass
    error = failure(server)
    assert isinstance(error, TransientError)
    assert str(error).startswith(f"{server.url}/v1/x cannot be reached: ")
    assert "refused" in str(error)
    assert " object at 0x" not in str(error)


def test_a_server_without_tls_is_not_asked_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as threads:
        asking = threads.submit(Endpoint(f"https://127.0.0.1:{listener.getsockname()[1]}").get, "/")
        connection, _ = listener.accept()
        with connection:
            connection.sendall(reply(status="400 Bad Request"))
            with pytest.raises(PermanentError, match="no safe connection"):
                asking.result(10)


def test_missing_certificates_are_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere/ca.pem")
    with RawServer(reply()) as server, pytest.raises(PermanentError, match=r"/nowhere/ca\.pem"):
        Endpoint(server.url.replace("http:", "https:")).get("/")


def test_an_answer_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmaas_tune_adapters.http.endpoint._MAX_REPLY", 2**20)
    with RawServer(
        Say(CHUNKED + (b"10000\r\n" + bytes(65536) + b"\r\n") * 40, "silence")
    ) as server:
        error = failure(server)
    assert isinstance(error, PermanentError)
    assert "more than 1 MB" in str(error)


# -- statuses --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "status", [408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 524, 529]
)
def test_these_statuses_may_pass(status: int) -> None:
    with RawServer(reply(b'{"error":{"message":"Busy."}}', status=f"{status} X")) as server:
        error = failure(server)
    assert isinstance(error, TransientError)
    assert str(error) == f"{server.url}/v1/x answered {status}: Busy"
    assert error.overloaded == (status in (408, 429, 503, 504, 524, 529))
    assert isinstance(error, BusyError) == (status == 503)


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 405, 410, 413, 422, 451, 501, 505])
def test_these_statuses_do_not_pass(status: int) -> None:
    with RawServer(reply(b'{"error":{"message":"No."}}', status=f"{status} X")) as server:
        error = failure(server)
    assert isinstance(error, RefusedError)
    assert (error.status, error.reason) == (status, "No.")
    assert str(error).startswith(f"{server.url}/v1/x answered {status}: No")


@pytest.mark.parametrize(
    ("status", "remedy"),
    [(401, "the key"), (403, "this key"), (404, "the URL"), (405, "the URL"), (413, "shorten")],
)
def test_a_refusal_says_what_to_change(status: int, remedy: str) -> None:
    with RawServer(reply(status=f"{status} Nope")) as server:
        assert remedy in str(failure(server)).split("Nope;")[1]


def test_an_empty_account_does_not_pass_although_its_status_could() -> None:
    body = b'{"error":{"message":"You exceeded your quota.","code":"insufficient_quota"}}'
    with RawServer(reply(body, status="429 Too Many")) as server:
        error = failure(server)
    assert isinstance(error, RefusedError)
    assert error.code == "insufficient_quota"


@pytest.mark.parametrize(
    ("body", "code", "reason"),
    [
        (b'{"error":{"message":"too wide","type":"BadRequestError","code":400}}', None, "too wide"),
        (b'{"error":{"code":"unknown_batch","message":"gone"}}', "unknown_batch", "gone"),
        (b'{"error":"Unauthorized"}', None, "Unauthorized"),
        (b'{"detail":"Not Found"}', None, "Not Found"),
        (
            b'{"detail":[{"loc":["body","rows",3],"msg":"no list"},{"loc":["x"],"msg":"no"}]}',
            None,
            "body.rows.3: no list; x: no",
        ),
        (b'{"detail":[{"loc":null,"msg":"overloaded"}]}', None, ": overloaded"),
        (b'{"detail":[{"loc":7,"msg":"overloaded"}]}', None, "7: overloaded"),
        (b'{"message":"stop it","code":"halt"}', "halt", "stop it"),
        (b'{"error":null,"message":"yes"}', None, "yes"),
        (b'{"error":["a",{"msg":"b"}]}', None, "a; : b"),
        (b"<h1>Bad\n  gateway\x1b[31m</h1>", None, "<h1>Bad gateway [31m</h1>"),
        (b"\xff\xfe", None, "��"),
        (b"", None, "Teapot"),
        (b'"words"', None, "words"),
        (b"[" * 3000, None, "[" * 300),
    ],
)
def test_reasons_are_found_in_every_shape_that_servers_use(
    body: bytes, code: str | None, reason: str
) -> None:
    with RawServer(reply(body, status="418 Teapot")) as server:
        error = failure(server)
    assert isinstance(error, RefusedError)
    assert (error.code, error.reason) == (code, reason)


def test_a_redirect_is_told_and_not_followed() -> None:
    with RawServer(reply(b"here")) as elsewhere:
        where = {"Location": f"{elsewhere.url}/v2"}
        with RawServer(reply(status="307 Moved", headers=where)) as server:
            error = failure(server, key=Key(SECRET))
        assert isinstance(error, RefusedError)
        assert f"{elsewhere.url}/v2" in str(error)
        assert elsewhere.heard == []


@pytest.mark.parametrize("where", ["http://[::1", "/caf\xe9", "http://\xff/"])
def test_an_odd_redirect_is_told_too_and_leaves_its_connection_free(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmaas_tune_adapters.http.endpoint.CONNECTIONS", 1)
    said = reply(b"body", status="307 Moved", headers={"Location": where})
    with RawServer(said) as server:
        endpoint = Endpoint(server.url)
        for _ in range(2):
            with pytest.raises(RefusedError, match="has moved it to " + re.escape(where)):
                endpoint.get("/")
    assert server.connections == 1


def test_the_body_of_a_redirect_is_limited_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmaas_tune_adapters.http.endpoint._MAX_REPLY", 2**20)
    headers = {"Location": "/v2", "Content-Encoding": "gzip"}
    said = reply(gzip.compress(bytes(2**21)), status="307 Moved", headers=headers)
    with RawServer(said) as server:
        assert "more than 1 MB" in str(failure(server))


# -- Retry-After -----------------------------------------------------------------------------

DATE = "Mon, 23 Nov 2026 06:00:00 GMT"
LATER = "Mon, 23 Nov 2026 06:00:07 GMT"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "3"}, 3.0),
        ({"Retry-After": "0.25"}, 0.25),
        ({"Retry-After-Ms": "250"}, 0.25),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "1"}, 1.0),
        ({"Retry-After": LATER, "Date": DATE}, 7.0),
        ({"Retry-After": DATE, "Date": LATER}, 0.0),
        ({"Retry-After": "-1"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "a while"}, None),
        ({"Retry-After": ""}, None),
        ({}, None),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_the_wait_that_a_server_asks_for_is_heard(
    headers: dict[str, str], seconds: float | None, status: int
) -> None:
    with RawServer(reply(status=f"{status} Later", headers=headers)) as server:
        error = failure(server)
    assert isinstance(error, TransientError)
    assert error.retry_after == seconds


def test_a_date_without_the_servers_clock_is_measured_by_ours() -> None:
    in_an_hour = email.utils.formatdate(time.time() + 3600, usegmt=True)
    seconds = retry_after({"retry-after": in_an_hour})
    assert seconds is not None
    assert 3500 < seconds <= 3600


@given(
    st.dictionaries(
        st.sampled_from(["retry-after", "retry-after-ms", "date"]),
        st.text(max_size=40)
        | st.floats().map(str)
        | st.tuples(
            st.sampled_from(["Mon, ", ""]), st.text("0123456789 :+-JanGMT", max_size=30)
        ).map("".join)
        | st.datetimes().map(lambda moment: moment.strftime("%a, %d %b %Y %H:%M:%S -0000")),
    )
)
def test_a_wait_is_seconds_or_unknown_whatever_is_said(headers: dict[str, str]) -> None:
    seconds = retry_after(headers)
    assert seconds is None or 0 <= seconds < float("inf")


# -- the key ---------------------------------------------------------------------------------


def echo(request: bytes) -> bytes:
    """The key that a request was signed with, as a careless server quotes it."""
    line = next(line for line in request.split(b"\r\n") if line.startswith(b"Authorization"))
    return line.split()[-1]


CARELESS = {
    "reason": lambda k: reply(json.dumps({"error": f"bad key {k}"}).encode(), status="401 No"),
    "text": lambda k: reply(f"<h1>{k}</h1>".encode(), status="500 Oops"),
    "cut": lambda k: reply(("x" * 290 + k).encode(), status="400 Bad"),
    "phrase": lambda k: reply(status=f"403 {k} is bad"),
    "location": lambda k: reply(status="302 Found", headers={"Location": f"/?k={k}"}),
    "no head": lambda k: f"{k}\r\n\r\n".encode(),
    "chunk": lambda k: CHUNKED + f"{k}\r\n".encode(),
    "detail": lambda k: reply(json.dumps({"detail": [{"msg": k}]}).encode(), status="422 X"),
    "part": lambda k: reply(f"<p>{k[2:-2]}...</p>".encode(), status="401 No"),
    "JSON": lambda k: reply(
        k.replace("/", r"\/").replace("+", r"\u002B").replace("=", r"\\u003d").encode(),
        status="401 No",
    ),
    "HTML": lambda k: reply(
        k.replace("/", "&#x2F;").replace("+", "&#43;").replace("=", "&equals;").encode(),
        status="403 No",
    ),
    "URL": lambda k: reply(status="302 Found", headers={"Location": f"/?k={quote(k, safe='')}"}),
}


@pytest.mark.parametrize("way", CARELESS)
def test_a_key_that_the_server_quotes_does_not_show(
    way: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with RawServer(lambda r: Say(CARELESS[way](echo(r).decode()), "close")) as server:
        error = failure(server, key=Key(SECRET))
    assert SECRET.encode() in server.heard[0]
    shown = "".join(traceback.format_exception(error)) + repr(error) + caplog.text
    shown += "".join(map(repr, vars(error).values()))
    assert "***" in str(error)
    for length in range(8, len(SECRET)):
        assert SECRET[:length] not in shown
    assert "VERY" not in shown
    assert "secret" not in shown


@pytest.mark.parametrize(
    "text", ["", "\\", "sk-01234567 is no secret+key", "100% &amp; &#1; %2B %zz \\u002b \\n \\/"]
)
def test_of_other_texts_nothing_is_hidden(text: str) -> None:
    assert Key(SECRET).hidden(text) == text


@given(st.from_regex(r"[\w.~+/=:'-]+", fullmatch=True, alphabet=st.characters(codec="ascii")))
def test_a_key_is_hidden_whatever_characters_it_has(text: str) -> None:
    json_text = json.dumps(text)[1:-1].replace("/", r"\/")
    for written in (text, json_text, quote(text, safe=""), html.escape(text)):
        assert Key(text).hidden(f" {written} ") == " *** "


def test_a_key_in_an_answer_does_not_show() -> None:
    with RawServer(
        lambda r: Say(reply(b"x" * 50 + echo(r), headers={"X-Key": echo(r).decode()}))
    ) as server:
        answer = Endpoint(server.url, key=Key(SECRET)).get("/")
    with pytest.raises(TransientError) as caught:
        answer.json()
    for text in (repr(answer), str(answer), str(caught.value)):
        assert SECRET[:8] not in text


def test_a_key_does_not_show_in_what_holds_it() -> None:
    key = Key(f" {SECRET}\n")
    endpoint = Endpoint("http://127.0.0.1:1", key=key)
    with pytest.raises(TransientError) as caught:
        endpoint.get("/")
    assert isinstance(caught.value.__cause__, requests.ConnectionError)
    signed = key(requests.Request("GET", "http://127.0.0.1:1").prepare())
    for thing in (key, [key], {"k": key}, endpoint, signed.headers, vars(signed)):
        assert SECRET not in f"{thing!r}{thing}"
    for thing in (key, endpoint, Answer("u", {}, b"", Usage(), key)):
        with pytest.raises(TypeError, match="not written down"):
            pickle.dumps(thing)
        with pytest.raises(TypeError, match="not written down"):
            copy.deepcopy(thing)
    assert SECRET.encode() not in pickle.dumps(caught.value)
    # as workers of a cluster send errors home: with their causes
    pickling_support.install(caught.value)
    with_causes = pickle.dumps(caught.value)
    assert b"ConnectionError" in with_causes
    assert SECRET.encode() not in with_causes


def test_a_key_comes_from_a_file_else_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "key"
    file.write_text(f"{SECRET}\n")
    monkeypatch.setenv("SOME_KEY", "from-the-environment")
    for where, sent in (
        ({"file": file, "variable": "SOME_KEY"}, SECRET),
        ({"file": None, "variable": "SOME_KEY"}, "from-the-environment"),
    ):
        with RawServer(reply()) as server:
            Endpoint(server.url, key=Key.find(**where)).get("/")
        assert f"Bearer {sent}\r\n".encode() in server.heard[0]
    assert Key.find(file=None, variable="NO_SUCH_KEY") is None
    assert Key.find(file=None, variable=None) is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        *((content, "holds what no key has") for content in (b"two\nlines", b"two words")),
        *((content, "holds what no key has") for content in ("clé".encode(), b"a\x00b")),
        *((content, "the API key is empty") for content in (b"", b" \n")),
        (b"\xff", "no UTF-8 text"),
    ],
)
def test_a_file_that_holds_no_key_is_refused(content: bytes, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    with pytest.raises(InputError, match=reason) as caught:
        Key.find(file=file, variable=None)
    assert str(file) in str(caught.value)
    assert "two" not in str(caught.value)


def test_a_variable_that_holds_no_key_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "two words")
    with pytest.raises(InputError, match="the variable SOME_KEY: the API key") as caught:
        Key.find(file=None, variable="SOME_KEY")
    assert "two words" not in str(caught.value)


def test_a_file_of_a_key_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(SECRET, encoding="utf-8-sig")
    with RawServer(reply()) as server:
        Endpoint(server.url, key=Key.find(file=file, variable=None)).get("/")
    assert f"Bearer {SECRET}\r\n".encode() in server.heard[0]


def test_a_missing_file_of_a_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no-such-file"):
        Key.find(file=tmp_path / "no-such-file", variable=None)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork there")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_has_connections_of_its_own() -> None:
    with RawServer(lambda heard: Say(reply(heard.split(b" ")[1]))) as server:
        endpoint = Endpoint(server.url)
        endpoint.get("/parent")
        child = os.fork()
        if not child:
            try:
                os._exit(endpoint.get("/child").content != b"/child")
            finally:  # nothing of the test's may go on in the child
                os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
        assert endpoint.get("/parent").content == b"/parent"
    assert server.connections == 2


def test_a_failure_says_nothing_of_what_the_caller_was_at() -> None:
    try:
        raise KeyError("a secret of the caller")
    except KeyError:
        with pytest.raises(TransientError) as caught:
            Endpoint("http://127.0.0.1:9").get("/")
    assert "secret" not in str(caught.value)


def test_a_key_that_a_long_refusal_quotes_is_hidden_before_it_is_cut() -> None:
    page = " " * 1990 + SECRET
    refusal = reply(page.encode(), status="400 Bad Request")
    with RawServer(refusal) as server, pytest.raises(RefusedError) as caught:
        Endpoint(server.url, key=Key(SECRET)).get("/")
    assert SECRET[:6] not in str(caught.value)


@pytest.mark.parametrize("key", [None, Key(SECRET)])
def test_passwords_that_lie_around_are_not_used(
    key: Key | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password hunter2\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with RawServer(reply()) as server:
        Endpoint(server.url, key=key).get("/")
    assert (b"Authorization" in server.heard[0]) == (key is not None)
    assert b"Basic" not in server.heard[0]


def test_cookies_are_not_kept() -> None:
    with RawServer(reply(headers={"Set-Cookie": "id=1; Path=/"})) as server:
        endpoint = Endpoint(server.url)
        endpoint.get("/")
        endpoint.get("/")
    assert b"cookie" not in server.heard[1].lower()


# -- the URL ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:8000",
        "localhost",
        "ftp://127.0.0.1",
        "http://",
        "http:///v1",
        "http://[::1",
        "http://127.0.0.1:80000",
        "http://127.0.0.1:port",
        "http://me:hunter2@127.0.0.1",
        "http://me:hunter2@127.0.0.1:0",
        "http://me:hunter2@[::1",
        "me:hunter2@127.0.0.1/v1",
        "127.0.0.1/v1?api_key=hunter2",
        "http://127.0.0.1/?key=hunter2",
        "http://127.0.0.1/#hunter2",
        "http://a..b",
        "http://127.0.0.1:0",
    ],
)
def test_what_is_no_url_is_refused_before_anything_is_sent(url: str) -> None:
    with pytest.raises(InputError) as caught:
        Endpoint(url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "proxy",
    [
        "http://bob:hunter2/x@proxy.corp:3128",
        "http://bob:hunter2@proxy.corp:port",
        "http://bob:hunter2[x@127.0.0.1:9",
        "bob:hunter2@:3128",
    ],
)
def test_a_proxy_that_is_no_url_is_told_without_its_password(
    monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("http_proxy", proxy)
    with pytest.raises(InputError, match="the address of its proxy is no valid URL") as caught:
        Endpoint("http://example.invalid").get("/x")
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_a_proxy_that_needs_a_package_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:9")
    with pytest.raises(PermanentError, match="SOCKS"):
        Endpoint("http://example.invalid").get("/x")


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_a_timeout_is_seconds(timeout: float) -> None:
    with pytest.raises(InputError, match="timeout"):
        Endpoint("http://127.0.0.1", timeout=timeout)


def test_ports_and_paths_before_the_path_are_kept() -> None:
    with RawServer(reply()) as server:
        Endpoint(f"{server.url}/proxy/").get("/v1/model")
        Endpoint(server.url.replace("127.0.0.1", "localhost")).get("/v1/model")
    assert server.heard[0].startswith(b"GET /proxy/v1/model HTTP/1.1\r\n")
    assert server.heard[1].startswith(b"GET /v1/model HTTP/1.1\r\n")


def test_many_threads_may_ask_at_once() -> None:
    ready = threading.Barrier(4)

    def together(_: bytes) -> Say:
        ready.wait(30)  # passes only if all four requests are under way
        return Say(reply(b"1"))

    with RawServer(together) as server:
        endpoint = Endpoint(server.url)
        with ThreadPoolExecutor(4) as threads:
            assert len(list(threads.map(lambda _: endpoint.get("/"), range(4)))) == 4
    assert server.most == 4


def test_a_connection_that_was_dropped_meanwhile_is_made_again() -> None:
    with RawServer(Say(reply(b"1"), "close")) as server:
        endpoint = Endpoint(server.url)
        for _ in range(3):
            assert endpoint.get("/").content == b"1"
            until(server.all_hung_up)
    assert server.connections == 3


def test_the_port_of_another_protocol_is_told_in_a_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(TransientError, match="did not answer within"):
            Endpoint(url, timeout=0.1).get("/")
