"""The client of our own service, against services that really run."""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")


from lmaas_tune_adapters.http import RefusedError
from lmaas_tune_adapters.lmaas import LMaaSBackend, backend

from lmaas_tune import Client
from lmaas_tune.backend import ScoreReply, ScoreRequest
from lmaas_tune.calls.retry import Retry
from lmaas_tune.errors import InputError, PermanentError, TransientError
from lmaas_tune.prompts import FloatArray, PointPrompt, Prompt, SoftPrompt, Subspace, TextPrompt
from lmaas_tune.task import Batch, Slot
from lmaas_tune.testing import BackendConformance
from lmaas_tune.testing.toy import ToyBackend
from tests.support.server import RawServer, Say, reply
from tests.support.service import ALICE, BOB, KEYS, Site, running
from tests.support.small_models import InspectingToy
from tests.support.waiting import until

WORDS = ("bad", "good")
BATCH = Batch(tuple((f"film {i} ", Slot.PROMPT, " It was ", Slot.LABEL) for i in range(5)))
SUBSPACE = Subspace(
    start="words", words=" so very", length=5, dim=6, projection="normal", alpha=1.0, seed=3
)


def subspace(**changes: Any) -> Subspace:
    return replace(SUBSPACE, **changes)


def point(seed: int = 0, of: Subspace = SUBSPACE) -> PointPrompt:
    return PointPrompt(of, np.random.default_rng(seed).standard_normal(of.dim))


def asked(prompt: Prompt, batch: Batch = BATCH, words: tuple[str, ...] = WORDS) -> ScoreRequest:
    return ScoreRequest(prompt, batch, words)


def visits(site: Site) -> Counter[str]:
    """How often each route was asked, by the service's own log.

    It is written after an answer is sent: stands still only when the service has ended.
    """
    return Counter(line["route"] for line in site.logged() if line["event"] == "request")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits long for what is not there."""
    monkeypatch.setattr(backend, "_FREE", Retry(attempts=3, first_wait=0.01))


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "alice.key"
    file.write_text(ALICE + "\n")
    return file


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A service of the toy model that nobody else asks."""
    with running(folder=tmp_path) as site:
        yield site


@pytest.fixture
def remote(sites: list[Site], key_file: Path) -> LMaaSBackend:
    """The toy model, somewhere."""
    return LMaaSBackend(sites[0].url, api_key_file=key_file)


# -- what every backend does -----------------------------------------------------------------


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Site]]:
    """Services of three toy models."""
    toys = (InspectingToy(), InspectingToy(seed=1), InspectingToy(width=8))
    with ExitStack() as stack:
        yield [
            stack.enter_context(running(toy, folder=tmp_path_factory.mktemp("site")))
            for toy in toys
        ]


class TestConformance(BackendConformance):
    """The public suite, the toy model behind a service."""

    @pytest.fixture
    def backend(self, remote: LMaaSBackend) -> LMaaSBackend:
        return remote

    @pytest.fixture
    def differing(self, sites: list[Site], key_file: Path) -> list[LMaaSBackend]:
        return [LMaaSBackend(site.url, api_key_file=key_file) for site in sites[1:]]


# -- answers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompt",
    [
        point(),
        point(of=subspace(projection="uniform", start="zero", words="", dim=3)),
        point(of=subspace(start=SoftPrompt(np.ones((2, 16))), words="", length=2)),
        SoftPrompt(np.random.default_rng(0).standard_normal((4, 16))),
        TextPrompt(" naïve — 電影 🎬"),
        TextPrompt(""),
    ],
    ids=["point", "point from zero", "point from vectors", "soft", "text", "empty text"],
)
def test_answers_are_the_models_own_to_the_last_float32(
    remote: LMaaSBackend, prompt: Prompt
) -> None:
    toy = ToyBackend()
    (there,) = remote.score([asked(prompt)])
    (here,) = toy.score([asked(prompt.for_model(toy))])
    assert np.array_equal(there.logprobs, here.logprobs.astype(np.float32))
    assert there.logprobs.dtype == np.float64
    assert there.usage.sequences == here.usage.sequences
    assert there.usage.tokens == here.usage.tokens


def test_identity_and_capabilities_are_the_models_and_not_the_places(
    remote: LMaaSBackend, site: Site, tmp_path: Path, key_file: Path
) -> None:
    with running(folder=tmp_path, rows=7) as other:
        again = LMaaSBackend(other.url, api_key_file=key_file)
    assert remote.identity == again.identity == f"lmaas {ToyBackend().identity}"
    assert (remote.capabilities.rows_per_call, again.capabilities.rows_per_call) == (1024, 7)
    can, own = vars(remote.capabilities), vars(ToyBackend().capabilities)
    assert {name for name in can if can[name] != own[name]} == {"point_prompts", "rows_per_call"}
    assert remote.capabilities.point_prompts


def test_a_call_of_a_search_is_as_small_as_promised(remote: LMaaSBackend) -> None:
    large = subspace(dim=500, length=50)
    rows = Batch(tuple((f"text {i} ", Slot.PROMPT, " ", Slot.LABEL) for i in range(32)))
    client = Client(remote)
    client.score([asked(point(of=large), rows)])
    before = client.spent
    calls = 20
    client.score([asked(point(i + 1, of=large), rows) for i in range(calls)])
    spent = client.spent
    assert spent.requests - before.requests == calls
    assert (spent.bytes_up - before.bytes_up) / calls <= 2500
    assert (spent.bytes_down - before.bytes_down) / calls <= 500


# The paper's Table 4 for RoBERTa-large, d = 500. Its kilobytes follow from the shapes: up goes the
# batch, at 3 bytes a position (a token id below 2^16 and its mask), with z; the scores come down.
PAPERS_QUERIES = [
    pytest.param(32, 47, ("terrible", "great"), 6, 0.25, id="sst2"),
    pytest.param(64, 107, ("World", "Sports", "Business", "Tech"), 22, 1, id="agnews"),
]


@pytest.mark.parametrize(("rows", "length", "words", "up", "down"), PAPERS_QUERIES)
def test_c22_a_call_carries_z_and_scores_as_the_papers_does_and_its_batch_but_once(
    rows: int, length: int, words: tuple[str, ...], up: float, down: float, remote: LMaaSBackend
) -> None:
    z, scores = 4 * 500, 4 * rows * len(words)
    assert round((3 * rows * length + z) / 1024) == up
    assert scores / 1024 == down
    space = subspace(dim=500, length=50)
    batch = Batch(
        tuple(("word " * (length - 2), Slot.PROMPT, f" {i} ", Slot.LABEL) for i in range(rows))
    )
    client = Client(remote)
    client.score([asked(point(of=space), batch, words)])
    registered, calls = client.spent, 5
    client.score([asked(point(i + 1, of=space), batch, words) for i in range(calls)])
    sent = (client.spent.bytes_up - registered.bytes_up) / calls
    received = (client.spent.bytes_down - registered.bytes_down) / calls
    headers = 450
    assert z < sent < z + headers
    assert scores < received < scores + headers
    assert registered.bytes_up > 5 * rows * length


def test_a_prompt_that_overflows_gives_nan(tmp_path: Path) -> None:
    class Overflowing(ToyBackend):
        def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
            replies = super().score(requests)
            replies[0].logprobs[1] = np.nan
            return replies

    with running(Overflowing(), keys=f"a {ALICE}", folder=tmp_path) as site:
        file = tmp_path / "key"
        file.write_text(ALICE)
        (answer,) = LMaaSBackend(site.url, api_key_file=file).score([asked(point())])
    assert np.isnan(answer.logprobs).tolist() == [[row == 1] * 2 for row in range(5)]


# -- what is registered ----------------------------------------------------------------------


def test_each_batch_and_subspace_is_registered_once_however_many_threads_come(
    site: Site, key_file: Path
) -> None:
    remote = LMaaSBackend(site.url, api_key_file=key_file)
    together = Barrier(8)

    def score(i: int) -> FloatArray:
        together.wait(30)
        return remote.score([asked(point(i % 2))])[0].logprobs

    with ThreadPoolExecutor(8) as threads:
        scores = list(threads.map(score, range(8)))
    assert all(np.array_equal(scores[i], scores[i % 2]) for i in range(8))
    until(lambda: visits(site)["/v1/score/{batch}/{subspace}"] == 8)
    assert visits(site)["/v1/batches"] == visits(site)["/v1/subspaces"] == 1


def test_registering_is_on_the_bill_of_who_did_it(remote: LMaaSBackend) -> None:
    first, second = (remote.score([asked(point())])[0].usage for _ in range(2))
    assert (first.requests, second.requests) == (3, 1)
    assert first.bytes_up > second.bytes_up + 500
    assert first.sequences == second.sequences == 5


def test_a_service_that_was_started_again_is_told_anew_once(key_file: Path, tmp_path: Path) -> None:
    with running(folder=tmp_path) as site:
        remote = LMaaSBackend(site.url, api_key_file=key_file)
        before = remote.score([asked(point(i)) for i in range(6)])
    port = urlsplit(site.url).port
    assert port is not None
    with running(folder=tmp_path, port=port) as again, ThreadPoolExecutor(6) as threads:
        after = list(threads.map(lambda i: remote.score([asked(point(i))])[0], range(6)))
    for one, other in zip(before, after, strict=True):
        assert np.array_equal(one.logprobs, other.logprobs)
    asked_for = visits(again)
    assert asked_for["/v1/batches"] == asked_for["/v1/subspaces"] == asked_for["/v1/model"] == 1


@pytest.mark.parametrize(
    ("rows", "registered"),
    [(BATCH, False), (Batch(BATCH.rows[:2]), False), (BATCH, True)],
    ids=["known rows", "new rows", "rows that another client registered"],
)
def test_a_service_that_was_started_with_another_model_is_not_believed(
    rows: Batch, registered: bool, key_file: Path, tmp_path: Path
) -> None:
    with running(folder=tmp_path) as site:
        remote = LMaaSBackend(site.url, api_key_file=key_file)
        remote.score([asked(TextPrompt("so"))])
    with running(ToyBackend(seed=1), folder=tmp_path, port=urlsplit(site.url).port or 0):
        if registered:
            LMaaSBackend(site.url, api_key_file=key_file).score([asked(TextPrompt("so"))])
        with pytest.raises(PermanentError, match=r"serves 'toy .*seed=1.* now, and 'toy .*seed=0"):
            remote.score([asked(TextPrompt("so"), rows)])


def test_what_a_small_service_forgets_is_told_anew(key_file: Path, tmp_path: Path) -> None:
    other = Batch(BATCH.rows[:2])
    with running(folder=tmp_path, batches=1, subspaces=1) as site:
        remote = LMaaSBackend(site.url, api_key_file=key_file)
        scores = [
            remote.score([asked(point(of=space), batch)])[0].logprobs
            for _ in range(2)
            for batch, space in ((BATCH, SUBSPACE), (other, subspace(seed=4)))
        ]
    assert np.array_equal(scores[0], scores[2])
    assert np.array_equal(scores[1], scores[3])
    assert visits(site)["/v1/batches"] == 4


def test_batches_of_two_keys_are_apart(key_file: Path, tmp_path: Path) -> None:
    bob = tmp_path / "bob.key"
    bob.write_text(BOB)
    with running(folder=tmp_path) as site:
        for file in (key_file, bob):
            LMaaSBackend(site.url, api_key_file=file).score([asked(point())])
    assert visits(site)["/v1/batches"] == 2


# -- looking before paying -------------------------------------------------------------------


def test_inspecting_scores_nothing_and_tells_the_rows(key_file: Path, tmp_path: Path) -> None:
    with running(folder=tmp_path) as site:
        remote = LMaaSBackend(site.url, api_key_file=key_file)
        for prompt in (point(), TextPrompt(" so"), SoftPrompt(np.ones((3, 16)))):
            assert remote.inspect(asked(prompt)).usage.sequences == 5
    asked_for = visits(site)
    assert asked_for["/v1/inspect/{batch}"] == 3
    assert not [route for route in asked_for if "score" in route]


def test_more_rows_than_a_call_takes_are_inspected_in_the_parts_they_are_scored_in(
    key_file: Path, tmp_path: Path
) -> None:
    with running(folder=tmp_path, rows=2) as site:
        remote = LMaaSBackend(site.url, api_key_file=key_file)
        usage = remote.inspect(asked(point())).usage
        assert (usage.sequences, usage.requests) == (5, 3)
        Client(remote).score([asked(point())])
        with pytest.raises(RefusedError, match=r"413.* rows: 5, and this service takes 2"):
            remote.score([asked(point())])
    assert visits(site)["/v1/batches"] == 3 + 1


def test_bad_rows_read_as_with_a_local_model(key_file: Path, tmp_path: Path) -> None:
    long = ("word " * 600, Slot.PROMPT, " ", Slot.LABEL)
    rows = Batch((*BATCH.rows[:3], long))
    with pytest.raises(InputError) as here:
        InspectingToy().inspect(asked(TextPrompt(""), rows))
    with running(InspectingToy(), folder=tmp_path) as site:
        remote = LMaaSBackend(site.url, api_key_file=key_file)
        with pytest.raises(InputError) as there:
            remote.inspect(asked(point(), rows))
        assert remote.inspect(asked(point())).notes == ("a word is odd",)
    assert str(there.value) == str(here.value)
    assert str(there.value).startswith("row 4: a row of 600 tokens")
    with running(InspectingToy(), folder=tmp_path, rows=3) as site:
        remote = LMaaSBackend(site.url, api_key_file=key_file)
        with pytest.raises(InputError, match=r"^of the rows after 3: row 1: a row of 600"):
            remote.inspect(asked(point(), rows))


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (SoftPrompt(np.zeros((2, 15))), "soft prompts of width 16"),
        (SoftPrompt(np.zeros((2, 16)), "add", (1, 2)), "inserted by 'concat'"),
        (SoftPrompt(np.zeros((2, 16)), "prepend"), "inserted by 'concat'"),
        (point(of=subspace(projection="sideways")), "projection"),
    ],
)
def test_what_the_model_cannot_do_is_an_error_of_input(
    remote: LMaaSBackend, prompt: Prompt, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        remote.score([asked(prompt)])


@pytest.mark.parametrize(
    ("bounds", "prompt", "words"),
    [
        ({"prompt_length": 4}, point(), "4"),
        ({"dimensions": 5}, point(), "dimensions: 6, and this service takes 5"),
        ({"body_bytes": 300}, SoftPrompt(np.zeros((5, 16))), "bytes of the body"),
    ],
)
def test_what_is_too_large_for_the_service_says_which_bound_it_passes(
    bounds: dict[str, int], prompt: Prompt, words: str, key_file: Path, tmp_path: Path
) -> None:
    with running(folder=tmp_path, **bounds) as site:
        remote = LMaaSBackend(site.url, api_key_file=key_file)
        with pytest.raises(RefusedError, match=words) as caught:
            remote.score([asked(prompt, Batch(BATCH.rows[:1]))])
    assert caught.value.status == 413


# -- keys ------------------------------------------------------------------------------------


def test_more_label_words_than_the_service_takes_are_refused_here(
    key_file: Path, tmp_path: Path
) -> None:
    with running(folder=tmp_path, candidates=2) as site:
        remote = LMaaSBackend(site.url, api_key_file=key_file)
        with pytest.raises(InputError, match="2 label words a request and these are 3: name fewer"):
            remote.score([asked(TextPrompt("so"), words=("bad", "good", "fine"))])
        assert "/v1/batches" not in visits(site)


def test_without_its_key_a_service_answers_nothing(
    sites: list[Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = tmp_path / "wrong.key"
    wrong.write_text("not-the-key-of-anybody-here")
    for file in (None, wrong):
        with pytest.raises(RefusedError, match=r"--api-key-file.*LMAAS_API_KEY") as caught:
            LMaaSBackend(sites[0].url, api_key_file=file)
        assert caught.value.status == 401
        assert ("the key that was given is none of them" in str(caught.value)) == bool(file)
        assert "not-the-key" not in str(caught.value)
    monkeypatch.setenv("LMAAS_API_KEY", ALICE)
    assert LMaaSBackend(sites[0].url).score([asked(point())])
    with pytest.raises(RefusedError):
        LMaaSBackend(sites[0].url, api_key_file=wrong)  # the file goes first


def test_a_key_that_is_taken_away_ends_it(key_file: Path, tmp_path: Path) -> None:
    with running(folder=tmp_path) as site:
        remote = LMaaSBackend(site.url, api_key_file=key_file)
        remote.score([asked(point())])
    port = urlsplit(site.url).port or 0
    with (
        running(folder=tmp_path, port=port, keys=KEYS.replace(ALICE, ALICE[::-1])),
        pytest.raises(RefusedError, match="--api-key-file"),
    ):
        remote.score([asked(point())])


# -- what is no service ----------------------------------------------------------------------


def test_nobody_there_is_told_in_one_sentence(tmp_path: Path) -> None:
    with running(folder=tmp_path) as site:
        pass
    with pytest.raises(PermanentError, match=r"no answer after 3 attempts .*cannot be reached"):
        LMaaSBackend(site.url)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (reply(b"<html>", headers={"Content-Type": "text/html"}), "not JSON"),
        (reply(b'{"hello": "world"}'), "describes no model"),
        (reply(b"[1, 2]"), "describes no model"),
        (reply(b'{"protocol": 2, "models": []}'), "version 2 of the protocol, and this client 1"),
        (reply(b'{"detail":"Not Found"}', status="404 Not Found"), "404: Not Found; check the URL"),
    ],
)
def test_another_server_is_told_in_one_sentence(said: bytes, words: str) -> None:
    with (
        RawServer(lambda request: Say(named(request, said))) as server,
        pytest.raises(PermanentError, match=words),
    ):
        LMaaSBackend(server.url)


def test_a_server_that_does_not_name_its_answers_is_not_believed() -> None:
    with (
        RawServer(reply(json.dumps(MODEL).encode())) as server,
        pytest.raises(PermanentError, match="not the one to this request"),
    ):
        LMaaSBackend(server.url)


# -- damaged answers -------------------------------------------------------------------------

MODEL = {
    "protocol": 1,
    "identity": "puppet",
    "capabilities": {
        "soft_prompt_width": 16,
        "insertions": ["concat"],
        "text_prompts": True,
        "point_prompts": True,
        "label_anywhere": True,
        "deterministic": True,
        "max_tokens": None,
    },
    "limits": {
        **dict.fromkeys(("body_bytes", "candidates", "prompt_length", "dimensions"), 1000),
        **dict.fromkeys(("prompt_characters", "subspace_bytes"), 10**6),
        **dict.fromkeys(("requests", "tokens", "concurrent")),
        "rows": 10,
    },
}


def named(request: bytes, said: bytes) -> bytes:
    """The reply with the request's name."""
    name = request.split(b"Request-Id: ")[1].split(b"\r\n")[0]
    return said.replace(b"\r\n", b"\r\nRequest-Id: " + name + b"\r\n", 1)


def scored(body: bytes, *, tokens: str | None = "7", digest_of: bytes | None = None) -> bytes:
    """A reply to a scoring request."""
    sha = hashlib.sha256(body if digest_of is None else digest_of).digest()
    headers = {"Content-Digest": f"sha-256=:{base64.b64encode(sha).decode()}:"}
    return reply(body, headers=headers if tokens is None else {**headers, "Tokens": tokens})


def puppet(score: Callable[[bytes], bytes], **others: bytes) -> RawServer:
    """A service whose answers to scoring requests are made up."""

    def answer(request: bytes) -> Say:
        path = request.split(b" ")[1].decode()
        said = {
            "model": json.dumps(MODEL).encode(),
            "batches": b'{"id": "0123456789abcdef", "notes": []}',
            "subspaces": b'{"id": "fedcba9876543210", "length": 5, "width": 16}',
            "inspect": b'{"notes": [], "tokens": 9, "sequences": 2}',
            **others,
        }
        kind = path.split("/")[2]
        return Say(score(request) if kind == "score" else named(request, reply(said[kind])))

    return RawServer(answer)


ROWS = Batch(BATCH.rows[:2])
GOOD = np.full((2, 2), -1.0, "<f4").tobytes()


def test_a_puppet_is_believed() -> None:
    with puppet(lambda request: named(request, scored(GOOD))) as server:
        (answer,) = LMaaSBackend(server.url).score([asked(point(), ROWS)])
    assert answer.logprobs.tolist() == [[-1.0, -1.0], [-1.0, -1.0]]
    assert answer.usage.tokens == 7


def test_a_service_that_does_not_state_its_model_is_asked_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with puppet(lambda request: named(request, scored(GOOD))) as server:
        remote = LMaaSBackend(server.url)
        monkeypatch.setitem(MODEL, "identity", "another")
        with pytest.raises(PermanentError, match="serves 'another' now, and 'puppet' when"):
            remote.score([asked(TextPrompt("so"), ROWS)])


@pytest.mark.parametrize(
    ("score", "words"),
    {
        "another digest": (lambda r: named(r, scored(GOOD, digest_of=b"else")), "Content-Digest"),
        "no digest": (
            lambda r: named(r, reply(GOOD, headers={"Tokens": "7"})),
            "Content-Digest",
        ),
        "a column short": (lambda r: named(r, scored(GOOD[:8])), "has 8 bytes, and 2 x 2 scores"),
        "half a number": (lambda r: named(r, scored(GOOD[:15])), "has 15 bytes"),
        "nothing": (lambda r: named(r, scored(b"")), "has 0 bytes"),
        "no tokens": (lambda r: named(r, scored(GOOD, tokens=None)), "Tokens"),
        "tokens of nothing": (lambda r: named(r, scored(GOOD, tokens="-7")), "Tokens"),
        "another's": (lambda _: scored(GOOD), "not the one to this request"),
        "another model's": (
            lambda r: named(r, scored(GOOD)).replace(b"\r\n", b"\r\nModel-Digest: 0\r\n", 1),
            "is another model's, and not of 'puppet'",
        ),
        "replayed": (
            lambda _: named(b"Request-Id: 00000000\r\n", scored(GOOD)),
            "not the one to this request",
        ),
    }.values(),
)
def test_a_damaged_answer_may_pass(score: Callable[[bytes], bytes], words: str) -> None:
    with puppet(score) as server:
        remote = LMaaSBackend(server.url)
        with pytest.raises(TransientError, match=words):
            remote.score([asked(point(), ROWS)])


@pytest.mark.parametrize("whole", [0, 1])
def test_what_a_call_took_before_it_failed_is_told(whole: int) -> None:
    said = [*[scored(GOOD)] * whole, reply(status="500 Oops")]
    with puppet(lambda r: named(r, said.pop(0))) as server:
        remote = LMaaSBackend(server.url)
        with pytest.raises(TransientError, match="500") as caught:
            remote.score([asked(point(i), ROWS) for i in range(whole + 1)])
    usage = caught.value.usage
    assert usage is not None
    assert (usage.requests, usage.tokens) == (2 + whole + 1, 7 * whole)


@pytest.mark.parametrize("damage", [b'{"something": "else"}', b"[]", b'"id"', b"{", b'{"id": NaN}'])
@pytest.mark.parametrize("kind", ["batches", "subspaces"])
def test_a_damaged_answer_to_a_registration_may_pass(kind: str, damage: bytes) -> None:
    with puppet(lambda r: named(r, scored(GOOD)), **{kind: damage}) as server:
        remote = LMaaSBackend(server.url)
        with pytest.raises(TransientError):
            remote.score([asked(point(), ROWS)])


@pytest.mark.parametrize(
    "damage", [b'{"tokens": 1}', b"[]", b'{"notes": 1, "tokens": 2, "sequences": 2}']
)
def test_a_damaged_inspection_is_asked_for_again(damage: bytes) -> None:
    with puppet(lambda r: named(r, scored(GOOD)), inspect=damage) as server:
        remote = LMaaSBackend(server.url)
        with pytest.raises(PermanentError, match="no answer after 3 attempts"):
            remote.inspect(asked(point(), ROWS))


def test_a_service_that_keeps_nothing_may_pass() -> None:
    gone = reply(
        b'{"error": {"code": "unknown_batch", "message": "never heard of it"}}', status="404 No"
    )
    with puppet(lambda _: gone) as server:
        remote = LMaaSBackend(server.url)
        with pytest.raises(TransientError, match=r"drops registrations at once: never heard of it"):
            remote.score([asked(point(), ROWS)])
        assert sum(b"/v1/batches" in request for request in server.heard) == 2


@pytest.mark.parametrize("status", [400, 422])
def test_what_the_service_says_of_the_input_is_passed_on_as_it_is(status: int) -> None:
    said = reply(b'{"error": {"code": "x", "message": "row 3: too long"}}', status=f"{status} X")
    with puppet(lambda _: said) as server:
        remote = LMaaSBackend(server.url)
        with pytest.raises(InputError) as caught:
            remote.score([asked(point(), ROWS)])
    assert str(caught.value) == "row 3: too long"


@pytest.mark.parametrize("status", [403, 404, 405, 413])
def test_other_refusals_end_it_with_what_to_change(status: int) -> None:
    said = reply(b'{"error": {"code": "no", "message": "no"}}', status=f"{status} X")
    with puppet(lambda _: said) as server:
        remote = LMaaSBackend(server.url)
        with pytest.raises(RefusedError, match=f"answered {status}: no; "):
            remote.score([asked(point(), ROWS)])
        assert sum(b"/v1/score" in request for request in server.heard) == 1
