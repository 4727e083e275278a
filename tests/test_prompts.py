"""A prompt is finite, read-only, and known by a digest of all that it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lmaas_tune.errors import InputError
from lmaas_tune.prompts import SoftPrompt, TextPrompt

VECTORS = np.arange(6.0).reshape(2, 3)


def test_a_soft_prompt_tells_its_size_and_keeps_float32() -> None:
    prompt = SoftPrompt(VECTORS)
    assert (prompt.length, prompt.width, prompt.vectors.dtype) == (2, 3, np.float32)


def test_a_soft_prompt_shares_no_memory_and_cannot_be_written() -> None:
    mine = VECTORS.astype(np.float32)
    prompt = SoftPrompt(mine)
    mine[:] = 9
    np.testing.assert_array_equal(prompt.vectors, VECTORS)
    with pytest.raises(ValueError, match="read-only"):
        prompt.vectors[0, 0] = 1


@pytest.mark.parametrize(
    ("given_", "sentence"),
    [
        ({"vectors": np.zeros(3)}, r"shape \(L, H\), not \(3,\)"),
        ({"vectors": np.zeros((0, 3))}, r"shape \(L, H\), not \(0, 3\)"),
        ({"vectors": [[1.0, np.nan]]}, "must be finite"),
        ({"vectors": [[1.0], [1.0, 2.0]]}, r"no \(L, H\) array"),
        ({"vectors": [["a"]]}, r"no \(L, H\) array"),
        ({"vectors": VECTORS, "insertion": "ad"}, "unknown insertion 'ad'; known: concat, add"),
        ({"vectors": VECTORS, "insertion": "add"}, "2 vectors and 0 anchor tokens"),
        ({"vectors": VECTORS, "anchor": (1, 2)}, "the others none"),
    ],
)
def test_what_is_no_soft_prompt_gets_one_sentence(given_: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        SoftPrompt(**given_)


def test_the_digest_of_a_soft_prompt_follows_each_of_its_parts() -> None:
    base = SoftPrompt(VECTORS, "add", (1, 2))
    others = [
        SoftPrompt(VECTORS),
        SoftPrompt(VECTORS, "prepend"),
        SoftPrompt(VECTORS, "add", (1, 3)),
        SoftPrompt(VECTORS, "add", (2, 1)),
        SoftPrompt(VECTORS.reshape(3, 2), "add", (1, 2, 0)),
        SoftPrompt(VECTORS[::-1], "add", (1, 2)),
        SoftPrompt(VECTORS + 1e-6, "add", (1, 2)),
    ]
    assert len({p.digest for p in [base, *others]}) == len(others) + 1


def test_the_digest_does_not_ask_how_the_anchor_was_held() -> None:
    ids = np.array([1, 2])
    same = [SoftPrompt(VECTORS, "add", anchor) for anchor in ((1, 2), [1, 2], ids, tuple(ids))]
    assert len({p.digest for p in same}) == 1


@given(arrays(np.float32, (2, 3), elements=st.floats(-4, 4, width=32)))
def test_equal_vectors_have_equal_digests_whatever_their_layout(vectors: Any) -> None:
    fortran = SoftPrompt(np.asfortranarray(vectors.astype(np.float64)))
    assert SoftPrompt(vectors).digest == fortran.digest


@given(st.text(st.characters()), st.text(st.characters()))
def test_texts_are_told_apart_even_broken_ones(one: str, other: str) -> None:
    assert (TextPrompt(one).digest == TextPrompt(other).digest) == (one == other)
    assert TextPrompt(one + "\ud800").digest != TextPrompt(one).digest
