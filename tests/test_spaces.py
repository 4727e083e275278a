"""The random embedding is the paper's, comes again from its seed, and fits into memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmaas_tune.errors import InputError
from lmaas_tune.prompts import FloatArray, SoftPrompt
from lmaas_tune.prompts import projections as spaces
from lmaas_tune.prompts.projections import PROJECTIONS
from lmaas_tune.prompts.soft import RandomEmbedding, start_from_vocabulary, start_from_words
from tests.support.small_models import WordBowl

KINDS = ["normal", "uniform", "hadamard"]


class Words:
    """Word embeddings alone: fifty words of width 5."""

    matrix = np.random.default_rng(9).standard_normal((50, 5)).astype(np.float32)
    embedding_std = float(matrix.std())
    vocabulary_size = 50

    def tokenize(self, text: str, /) -> tuple[int, ...]:
        return (0,)

    def embed(self, token_ids: Sequence[int], /) -> FloatArray:
        vectors: FloatArray = self.matrix[list(token_ids)]
        return vectors


def matrix(kind: str, outputs: int, dim: int, *, scale: float = 1.0, seed: int = 0) -> FloatArray:
    """(outputs, dim) A, read off the images of the unit vectors."""
    project = PROJECTIONS[kind](outputs, dim, scale=scale, rng=np.random.default_rng(seed))
    columns: FloatArray = project(np.eye(dim)).T
    return columns


def embedding(**changes: Any) -> RandomEmbedding:
    start = changes.pop("start", SoftPrompt(np.zeros((4, 5))))
    wish = {"starts": [start], "dim": 6, "projection": "normal", "scale": 1.0, "seed": 3}
    return RandomEmbedding(**{**wish, "embeds": Words(), **changes})


# A itself


@pytest.mark.parametrize("dim", [10, 500])
def test_uniform_entries_keep_the_papers_bound_and_spread(dim: int) -> None:
    a = matrix("uniform", 2000, dim)
    bound = 1 / np.sqrt(dim)
    assert np.abs(a).max() <= bound * (1 + 1e-6)
    assert np.abs(a).max() > 0.99 * bound
    assert a.std() == pytest.approx(1 / np.sqrt(3 * dim), rel=0.01)
    assert abs(a.mean()) < 0.01 * bound


@pytest.mark.parametrize("scale", [0.05, 1.0, 3.0])
def test_normal_entries_have_the_reference_codes_spread(scale: float) -> None:
    a = matrix("normal", 4000, 100, scale=scale)
    assert a.std() == pytest.approx(scale / np.sqrt(100), rel=0.01)
    kurtosis = ((a / a.std()) ** 4).mean()
    assert kurtosis == pytest.approx(3.0, rel=0.05)


@pytest.mark.parametrize("dim", [1, 3, 8, 100])
def test_hadamard_entries_are_of_one_size_with_random_signs(dim: int) -> None:
    a = matrix("hadamard", 2000, dim, scale=2.0)
    np.testing.assert_allclose(np.abs(a), 2.0 / np.sqrt(dim), rtol=1e-6)
    assert abs(a.mean()) < 0.1 / np.sqrt(dim)


@pytest.mark.parametrize("kind", KINDS)
def test_a_point_moves_each_number_of_the_prompt_by_the_scale(kind: str) -> None:
    points = np.random.default_rng(5).standard_normal((200, 50))
    images = points @ matrix(kind, 300, 50, scale=0.3).T
    expected = 0.3 / np.sqrt(3) if kind == "uniform" else 0.3
    assert images.std() == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("kind", KINDS)
def test_distances_are_kept(kind: str) -> None:
    points = np.random.default_rng(1).standard_normal((12, 40))
    a = matrix(kind, 4096, 40)
    ratios = [
        np.linalg.norm(a @ (p - q)) / np.linalg.norm(p - q)
        for i, p in enumerate(points)
        for q in points[:i]
    ]
    assert np.std(ratios) / np.mean(ratios) < (1e-5 if kind == "hadamard" else 0.03)


def test_a_vocabulary_step_leads_from_one_word_to_another() -> None:
    space = embedding(projection="vocabulary", scale=0.5)
    steps = np.array([p.vectors for p in space.prompts(np.eye(6))])  # (d, L, H)
    words = Words.matrix
    differences = (words[:, None] - words).reshape(-1, 5)
    for step in (steps * np.sqrt(2 * 6) / 0.5).reshape(-1, 5):
        assert np.abs(differences - step).max(axis=1).min() < 1e-5
    assert len(np.unique(steps.reshape(-1, 5), axis=0)) > 20  # every token of every column anew


def test_a_vocabulary_step_needs_word_embeddings() -> None:
    with pytest.raises(InputError, match="'vocabulary' is made of the model's word embeddings"):
        _ = embedding(projection="vocabulary", embeds=None).digest


# p = p0 + A z


@pytest.mark.parametrize("kind", PROJECTIONS)
@given(seed=st.integers(0, 1000), factor=st.floats(-3, 3))
def test_the_image_is_linear_around_the_start(kind: str, seed: int, factor: float) -> None:
    rng = np.random.default_rng(seed)
    start = SoftPrompt(rng.standard_normal((3, 5)))
    space = embedding(start=start, projection=kind)
    x, y = rng.standard_normal((2, 6))
    prompts = space.prompts(np.array([x, y, x + factor * y, np.zeros(6)]))
    ax, ay, both, nothing = (p.vectors - start.vectors for p in prompts)
    np.testing.assert_allclose(both, ax + factor * ay, atol=1e-4)
    np.testing.assert_array_equal(nothing, 0)


def test_the_first_h_outputs_are_the_first_token(monkeypatch: pytest.MonkeyPatch) -> None:
    a = np.arange(20.0 * 6).reshape(20, 6)
    monkeypatch.setitem(PROJECTIONS, "normal", lambda *_, **__: lambda points: points @ a.T)
    point = np.array([1.0, 0, 0, 0, 0, -2.0])
    (prompt,) = embedding().prompts(point[None])
    np.testing.assert_array_equal(prompt.vectors[0], (a @ point)[:5])
    np.testing.assert_array_equal(prompt.vectors.ravel(), a @ point)


@pytest.mark.parametrize("kind", PROJECTIONS)
def test_a_stays_as_it_is_and_comes_again_from_its_seed(kind: str) -> None:
    points = np.random.default_rng(0).standard_normal((3, 6))
    space = embedding(projection=kind)
    first = [p.digest for p in space.prompts(points)]
    space.prompts(points * 9)
    assert [p.digest for p in space.prompts(points)] == first
    again = embedding(projection=kind)
    assert [p.digest for p in again.prompts(points)] == first
    assert again.digest == space.digest
    other = embedding(projection=kind, seed=4)
    assert [p.digest for p in other.prompts(points)] != first


@pytest.mark.parametrize("kind", PROJECTIONS)
def test_what_a_prompt_is_beside_its_vectors_is_the_starts(kind: str) -> None:
    start = SoftPrompt(np.zeros((2, 5)), "add", (7, 8))
    (prompt,) = embedding(start=start, projection=kind).prompts(np.ones((1, 6)))
    assert isinstance(prompt, SoftPrompt)
    assert (prompt.insertion, prompt.anchor) == ("add", (7, 8))


def test_a_space_begins_at_its_first_start_or_at_another_of_any_length() -> None:
    starts = [SoftPrompt(np.full((length, 5), float(length))) for length in (2, 4)]
    space = embedding(starts=starts)
    for chosen, start in zip(
        (space, space.begin_at(0), space.begin_at(1)), (*starts[:1], *starts), strict=False
    ):
        (prompt,) = chosen.prompts(np.zeros((1, 6)))
        assert prompt.digest == start.digest
    points = np.ones((1, 6))
    moved = space.begin_at(1).prompts(points)[0].digest
    assert moved == embedding(start=starts[1]).prompts(points)[0].digest


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_the_digest_follows_all_that_decides_a_prompt(scale: float) -> None:
    start = SoftPrompt(np.zeros((4, 5)))
    spaces = [
        embedding(scale=scale),
        embedding(scale=scale, seed=4),
        embedding(scale=scale, dim=7),
        embedding(scale=scale * 1.01),
        embedding(scale=scale, projection="uniform"),
        embedding(scale=scale, projection="hadamard"),
        embedding(scale=scale, projection="vocabulary"),
        embedding(scale=scale, projection="vocabulary", embeds=WordBowl(width=5)),
        embedding(scale=scale, start=SoftPrompt(np.full((4, 5), 1e-7))),
        embedding(scale=scale, start=SoftPrompt(np.zeros((5, 4)))),
        embedding(scale=scale, start=replace(start, insertion="prepend")),
        embedding(scale=scale, starts=[start, start]),
    ]
    assert len({space.digest for space in spaces}) == len(spaces)


def test_spaces_of_two_seeds_are_told_apart_even_where_a_is_too_small_to_differ() -> None:
    start = SoftPrompt(np.zeros((1, 1)))
    spaces = [embedding(start=start, dim=1, projection="hadamard", seed=seed) for seed in range(10)]
    assert len({space.digest for space in spaces}) == 10


def test_the_digest_is_hashed_from_a_and_not_from_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    before = embedding().digest
    monkeypatch.setitem(PROJECTIONS, "normal", PROJECTIONS["uniform"])
    assert embedding().digest != before


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"projection": "norml"}, "unknown projection 'norml'; did you mean 'normal'"),
        ({"dim": 0}, "intrinsic_dim=0"),
        ({"scale": 0.0}, "projection scale 0.0: it must be positive"),
        ({"scale": float("nan")}, "projection scale nan"),
        ({"scale": float("inf")}, "projection scale inf"),
    ],
)
def test_a_space_that_cannot_be_gets_one_sentence(changes: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        embedding(**changes)


LARGE = """
import resource, time
import numpy as np
from lmaas_tune.prompts import SoftPrompt
from lmaas_tune.prompts.soft import RandomEmbedding

start = SoftPrompt(np.zeros((50, 4096)))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
began = time.process_time()
space = RandomEmbedding([start], dim=1000, projection="hadamard", scale=1.0, seed=0)
prompts = space.prompts(np.random.default_rng(0).standard_normal((20, 1000)))
space.digest
assert len(prompts) == 20 and prompts[0].vectors.shape == (50, 4096)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(before / 1024, peak / 1024, time.process_time() - began)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux")
def test_a_large_prompt_in_a_thousand_dimensions_takes_less_than_200_megabytes() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LARGE], capture_output=True, text=True, check=True, timeout=120
    )
    before, peak, seconds = map(float, done.stdout.split())
    assert peak - before < 200  # A alone, were it dense: 819
    assert seconds < 10  # a generation of 20 and the set-up: about 0.5


@pytest.mark.parametrize("kind", sorted(PROJECTIONS))
def test_a_matrix_drawn_in_parts_is_the_one_drawn_at_once(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = np.random.default_rng(1).standard_normal((3, 6))
    at_once = embedding(projection=kind).prompts(points)
    monkeypatch.setattr(spaces, "_PART", 7)
    for whole, part in zip(at_once, embedding(projection=kind).prompts(points), strict=True):
        assert isinstance(whole, SoftPrompt) and isinstance(part, SoftPrompt)
        np.testing.assert_array_equal(whole.vectors, part.vectors)


@pytest.mark.parametrize("kind", sorted(PROJECTIONS))
def test_a_drawing_ends_at_a_checkpoint_that_raises(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spaces, "_PART", 7)
    calls: list[int] = []

    def checkpoint() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        embedding(projection=kind, checkpoint=checkpoint).prompts(np.zeros((1, 6)))
    assert len(calls) == 3


# Where p0 comes from


def test_a_prompt_starts_from_the_embeddings_of_words() -> None:
    start = start_from_words(WordBowl(), "a bb ccc", insertion="concat")
    np.testing.assert_allclose(start.vectors[:, 0], [0.1, 0.2, 0.3])
    assert start.insertion == "concat"


@pytest.mark.parametrize(("length", "tokens"), [(2, [1, 2]), (7, [1, 2, 3, 1, 2, 3, 1])])
def test_words_are_repeated_or_cut_to_a_length(length: int, tokens: list[int]) -> None:
    start = start_from_words(WordBowl(), "a bb ccc", insertion="concat", length=length)
    np.testing.assert_allclose(start.vectors[:, 0], np.array(tokens) / 10)


def test_added_vectors_start_at_zero_on_top_of_the_words() -> None:
    start = start_from_words(WordBowl(), "a bb", insertion="add")
    np.testing.assert_array_equal(start.vectors, np.zeros((2, 3)))
    assert (start.insertion, start.anchor) == ("add", (1, 2))


def test_words_without_a_token_are_no_start() -> None:
    with pytest.raises(InputError, match="prompt_init=' ' has no token to start from"):
        start_from_words(WordBowl(), " ", insertion="concat")


def test_the_vocabulary_gives_other_tokens_for_another_seed_and_the_same_for_the_same() -> None:
    def tokens(seed: int) -> list[float]:
        start = start_from_vocabulary(WordBowl(), 8, insertion="concat", seed=seed)
        return start.vectors[:, 0].tolist()

    assert tokens(1) == tokens(1) != tokens(2)
    assert all(0 <= value < 5 for value in tokens(1))
    added = start_from_vocabulary(WordBowl(), 8, insertion="add", seed=1)
    np.testing.assert_allclose(np.array(added.anchor) / 10, tokens(1), atol=1e-6)
