"""A prompt as a point of a subspace: the provider draws it, and who has the model can too."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmaas_tune import (
    Backend,
    Capabilities,
    InputError,
    PointPrompt,
    ScoreReply,
    ScoreRequest,
    Settings,
    SoftPrompt,
    StorageError,
    Subspace,
    TunedPrompt,
    Tuner,
)
from lmaas_tune.prompts.soft import draw
from lmaas_tune.prompts.subspace import PointSpace
from lmaas_tune.testing.toy import ToyBackend
from tests.support.small_models import changed

TRAIN = [("a fine film", "good"), ("fine acting", "good"), ("a dull film", "bad"), ("dull", "bad")]
WORDS = Subspace(
    start="words", words=" Overall it", dim=4, projection="vocabulary", alpha=0.5, seed=3
)
OWN = replace(WORDS, start=SoftPrompt(np.ones((2, 16))), words="", length=2, projection="uniform")


class Drawing:
    """A provider that draws subspaces for its users, and shows no embeddings."""

    def __init__(self) -> None:
        self._model = ToyBackend()
        self.identity = f"drawing {self._model.identity}"
        self.capabilities = replace(self._model.capabilities, point_prompts=True)
        self.seen: list[str] = []

    def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
        self.seen += [type(request.prompt).__name__ for request in requests]
        return self._model.score(
            [replace(r, prompt=r.prompt.for_model(self._model)) for r in requests]
        )


def tuner(backend: Backend, **wish: Any) -> Tuner:
    wish = {"prompt_init": ("It was", "This is"), "intrinsic_dim": 4, **wish}
    settings = changed(Settings(), **wish)
    return Tuner(backend, "cma", settings=settings, budget="calls=60", seed=5, callbacks=[])


@pytest.mark.parametrize("start", ["words", "vocabulary", "zero"])
@pytest.mark.parametrize("projection", ["vocabulary", "normal", "uniform", "hadamard"])
def test_a_search_over_points_is_the_search_over_their_vectors(start: str, projection: str) -> None:
    wish = {"start": start, "projection": projection, "head": "none", "alpha": 5.0}
    if start != "words":
        wish["prompt_length"] = 2
    remote, local = Drawing(), ToyBackend()
    points = tuner(remote, **wish).fit(TRAIN)
    vectors = tuner(local, **wish).fit(TRAIN)
    assert set(remote.seen) == {"PointPrompt"}
    # one point at a time and many at once differ in the last bits
    losses = [[step.loss for step in result.steps] for result in (points, vectors)]
    np.testing.assert_allclose(*losses, atol=1e-7)
    there = points.prompt.prompt.for_model(local)
    assert isinstance(there, SoftPrompt)
    assert isinstance(vectors.prompt.prompt, SoftPrompt)
    np.testing.assert_allclose(there.vectors, vectors.prompt.prompt.vectors, atol=1e-5)


def test_a_search_may_start_from_a_saved_prompt_of_ones_own() -> None:
    start = SoftPrompt(ToyBackend().embed([3, 4]))
    backend = Drawing()
    result = Tuner(
        backend, settings=changed(Settings(), projection="uniform", intrinsic_dim=4),
        start=start, budget="calls=40", callbacks=[],
    ).fit(TRAIN)  # fmt: skip
    there = result.start.prompt.for_model(ToyBackend())
    assert isinstance(there, SoftPrompt)
    assert there.digest == start.digest
    assert set(backend.seen) == {"PointPrompt"}


@pytest.mark.parametrize("subspace", [WORDS, OWN], ids=["words", "own"])
def test_a_description_comes_back_from_json(subspace: Subspace) -> None:
    again = Subspace.from_json(json.loads(json.dumps(subspace.to_json())))
    assert again.digest == subspace.digest
    point = np.arange(4.0)
    one, other = (PointPrompt(s, point).for_model(ToyBackend()) for s in (subspace, again))
    assert one.digest == other.digest


@pytest.mark.parametrize(
    "change",
    [
        {"words": " Overall"},
        {"length": 3},
        {"dim": 5},
        {"projection": "normal"},
        {"alpha": 0.6},
        {"seed": 4},
        {"start": "vocabulary"},
        {"insertion": "add"},
        {"start": SoftPrompt(np.ones((2, 16)))},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_changes_a_subspace_changes_its_digest(change: dict[str, Any]) -> None:
    other = replace(WORDS, **change)
    assert other.digest != WORDS.digest
    assert PointSpace([other]).digest != PointSpace([WORDS]).digest
    origins = [PointPrompt(s, np.zeros(s.dim)).digest for s in (other, WORDS)]
    assert origins[0] != origins[1]


def test_a_whole_number_for_alpha_makes_no_other_subspace() -> None:
    assert replace(WORDS, alpha=1).digest == replace(WORDS, alpha=1.0).digest


@pytest.mark.parametrize(
    "content",
    [
        {},
        {**WORDS.to_json(), "start": {"vectors": "%%%", "length": 2}},
        {**OWN.to_json(), "start": {**OWN.to_json()["start"], "length": 0}},
        {**OWN.to_json(), "start": {**OWN.to_json()["start"], "length": 7}},
    ],
)
def test_what_describes_no_subspace_is_refused(content: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="no subspace"):
        Subspace.from_json(content)


@pytest.mark.parametrize("point", [np.zeros(3), np.zeros((1, 4)), np.array([0, 0, 0, np.nan])])
def test_a_point_that_does_not_lie_in_its_subspace_is_refused(point: Any) -> None:
    with pytest.raises(InputError, match="a subspace of 4 dimensions"):
        PointPrompt(WORDS, point)


@given(st.lists(st.floats(-5, 5, width=32), min_size=4, max_size=4))
@settings(max_examples=30)
def test_a_point_is_drawn_as_its_vectors(numbers: list[float]) -> None:
    backend = ToyBackend()
    (vectors,) = draw([WORDS], backend).prompts(np.array([numbers]))
    assert PointPrompt(WORDS, np.array(numbers)).for_model(backend).digest == vectors.digest


def test_a_saved_point_serves_its_provider_and_who_has_the_model(tmp_path: Path) -> None:
    remote = Drawing()
    result = tuner(remote, head="bias").fit(TRAIN)
    saved = TunedPrompt.load(result.save(tmp_path))
    assert not (tmp_path / "prompt.safetensors").exists()
    assert saved.prompt.digest == result.prompt.prompt.digest
    expected = result.predict_proba(TRAIN)
    np.testing.assert_array_equal(saved.predict_proba(remote, TRAIN), expected)
    with pytest.warns(UserWarning, match="was tuned for drawing toy"):
        np.testing.assert_array_equal(saved.predict_proba(ToyBackend(), TRAIN), expected)


def test_a_point_elsewhere_is_refused_in_words(tmp_path: Path) -> None:
    class Blind(Drawing):
        def __init__(self) -> None:
            super().__init__()
            self.capabilities = Capabilities(soft_prompt_width=16)

    saved = tuner(Drawing()).fit(TRAIN).prompt
    with pytest.raises(InputError, match="can neither draw it nor shows"):
        saved.predict(Blind(), TRAIN)


def test_a_search_from_a_point_needs_its_vectors() -> None:
    saved = tuner(Drawing()).fit(TRAIN).prompt
    onward = Tuner(ToyBackend(), start=saved, budget="calls=40", callbacks=[]).fit(TRAIN)
    there = saved.prompt.for_model(ToyBackend())
    assert onward.start.prompt.digest == there.digest
    with pytest.raises(InputError, match="start from words, or use the model itself"):
        Tuner(Drawing(), start=saved)


def test_a_saved_point_that_was_changed_is_seen(tmp_path: Path) -> None:
    tuner(Drawing()).fit(TRAIN).save(tmp_path)
    content = json.loads((tmp_path / "prompt.json").read_text())
    content["point"][0] += 1
    (tmp_path / "prompt.json").write_text(json.dumps(content))
    with pytest.raises(StorageError, match="damaged"):
        TunedPrompt.load(tmp_path)


def test_a_backend_that_takes_no_points_says_so() -> None:
    batch = tuner(ToyBackend()).fit(TRAIN).prompt.task.template.batch([])
    with pytest.raises(InputError, match="not a point of a subspace"):
        ToyBackend().score([ScoreRequest(PointPrompt(WORDS, np.zeros(4)), batch, ("good",))])
