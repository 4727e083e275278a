"""Numbers and JSON on their way in and out."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lmaas_tune.errors import InputError
from lmaas_tune.prompts import SoftPrompt, Subspace, TextPrompt
from lmaas_tune.prompts.projections import PROJECTIONS
from lmaas_tune.service import bodies, wire
from lmaas_tune.service.errors import ApiError
from tests.support.service import SUBSPACE, raw, soft

arrays = hnp.arrays(np.float32, st.integers(1, 30), elements=st.floats(width=32))


@given(arrays)
def test_float32_comes_out_as_it_went_in(numbers: np.ndarray) -> None:
    got = wire.floats(numbers.astype("<f4").tobytes(), "float32")
    np.testing.assert_array_equal(got, numbers)


@given(hnp.arrays(np.uint16, 20))
def test_bfloat16_is_the_upper_half_of_a_float32(halves: np.ndarray) -> None:
    got = wire.floats(halves.astype("<u2").tobytes(), "bfloat16")
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got.view(np.uint32), halves.astype(np.uint32) << 16)


def test_bfloat16_means_what_torch_means_by_it() -> None:
    torch = pytest.importorskip("torch")
    numbers = torch.randn(50, generator=torch.Generator().manual_seed(0)).bfloat16()
    got = wire.floats(numbers.view(torch.int16).numpy().astype("<i2").tobytes(), "bfloat16")
    np.testing.assert_array_equal(got, numbers.float().numpy())


def test_base64_and_raw_vectors_are_the_same_prompt() -> None:
    prompt = soft()
    content = {
        "kind": "soft",
        "vectors": base64.b64encode(raw(prompt)).decode(),
        "length": 5,
    }
    read = bodies.read(bodies.PROMPT, json.dumps(content).encode(), values=100).prompt()
    assert read.digest == prompt.digest
    direct = wire.soft_prompt(raw(prompt), "float32", length=5, insertion="concat")
    assert direct.digest == prompt.digest


def test_a_text_prompt_keeps_every_character() -> None:
    text = ' naïve\n电影 "🎬"\0'
    content = json.dumps({"kind": "text", "text": text}).encode()
    assert bodies.read(bodies.PROMPT, content, values=100).prompt() == TextPrompt(text)


@pytest.mark.parametrize(
    "subspace",
    [
        Subspace(start="words", words=" it was", dim=3, projection="normal", alpha=0.5, seed=1),
        Subspace(
            start=SoftPrompt(np.ones((2, 3)), "add", (4, 5)),
            insertion="add",
            dim=3,
            projection="uniform",
            alpha=1.0,
            seed=2**63,
        ),
    ],
)
def test_a_subspace_is_the_same_on_both_sides(subspace: Subspace) -> None:
    content = json.dumps(asdict(wire.SubspaceBody.of(subspace))).encode()
    assert json.loads(content) == json.loads(json.dumps(subspace.to_json()))
    assert bodies.read(bodies.SUBSPACE, content, values=100).subspace().digest == subspace.digest


def test_every_projection_of_the_core_can_be_asked_for() -> None:
    for name in PROJECTIONS:
        content = json.dumps(SUBSPACE | {"projection": name}).encode()
        assert bodies.read(bodies.SUBSPACE, content, values=100).projection == name


def test_scores_leave_as_little_endian_float32_row_by_row() -> None:
    content = wire.float_bytes(np.array([[-1.0, -2.0], [np.nan, -4.0]]))
    assert content == np.array([-1, -2, np.nan, -4], "<f4").tobytes()
    assert wire.content_digest(b"") == "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b'{"kind": "text"}',
        b'{"kind": "text", "text": 5}',
        b'{"kind": "text", "text": "a", "more": 1}',
        b'{"kind": "text", "text": "\\ud800"}',
        b'{"kind": "other", "text": "a"}',
        b'{"kind": "soft", "vectors": "AAAA", "length": 1}',  # 3 bytes
        b'{"kind": "soft", "vectors": "AAAAAA==", "length": 0}',
        b'{"kind": "soft", "vectors": "AAAAAA==", "length": 2}',
        b'{"kind": "soft", "vectors": "AAAAAA==", "length": "1"}',
        b'{"kind": "soft", "vectors": "AAAAAA==", "length": 1, "dtype": "float64"}',
        b'{"kind": "soft", "vectors": "A!AAAA==", "length": 1}',
        b'{"kind": "soft", "vectors": "\xc3\xa9", "length": 1}',
        b'{"kind": "soft", "vectors": "", "length": 1}',
        b"\x80\x04\x95",  # a pickle
    ],
)
def test_what_is_no_prompt_is_refused(content: bytes) -> None:
    with pytest.raises((ApiError, wire.MalformedError)) as caught:  # each is answered by 400
        bodies.read(bodies.PROMPT, content, values=100).prompt()
    assert getattr(caught.value, "status", 400) == 400


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_vectors_and_points_are_finite(wrong: float) -> None:
    content = np.array([1, wrong], "<f4").tobytes()
    with pytest.raises(wire.MalformedError, match="finite"):
        wire.point(content, 2)
    with pytest.raises(InputError, match="finite"):
        wire.soft_prompt(content, "float32", length=1, insertion="concat")
