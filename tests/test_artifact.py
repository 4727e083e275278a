"""A saved prompt answers as it did, in other hands too, or says why it cannot."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lmaas_tune import (
    Client,
    ScoreRequest,
    SoftPrompt,
    Task,
    Template,
    TextPrompt,
    TunedPrompt,
    Verbalizer,
)
from lmaas_tune.artifact import ROWS_A_REQUEST, Member, score_prompts
from lmaas_tune.data import read_examples
from lmaas_tune.errors import InputError, PermanentError, StorageError
from lmaas_tune.heads import FittedHead
from lmaas_tune.objectives import log_softmax
from lmaas_tune.prompts import FloatArray
from tests.support.small_models import TRAIN, Bowl

TASK = Task(Template("{text} {prompt} {label}"), Verbalizer({"bad": "bad", "good": "good"}))
SOFT = SoftPrompt(np.full((2, 3), 0.5))
HEAD = FittedHead(np.array([0.5, -0.5]))
TUNED = TunedPrompt(SOFT, TASK, HEAD, provenance={"backend": "bowl", "seed": 3})
MATRIX = np.array([[1.5, 0.0], [0.25, 1.5], [-1.0, 2.0]])  # of the label words and "very"
MIXED = TunedPrompt(
    SOFT,
    TASK,
    FittedHead(HEAD.bias, MATRIX),
    ("very",),
    (
        Member(TextPrompt("so"), FittedHead(np.array([0.0, 1.0]))),
        Member(SoftPrompt(np.ones((4, 3))), FittedHead(np.zeros(2), 2 * MATRIX)),
    ),
    {"backend": "bowl"},
)

EXAMPLES = read_examples(TRAIN)
TEXTS = [text for text, _ in TRAIN]

words = st.text(st.characters(exclude_categories=["Cs"])).filter(str.strip)


@st.composite
def tuned_prompts(draw: st.DrawFn) -> TunedPrompt:
    """Any prompt for any task."""
    pieces = draw(
        st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=3, max_size=3)
    )
    a, b, c = (piece.replace("{", "{{").replace("}", "}}") for piece in pieces)
    label_words = draw(
        st.dictionaries(words.map(str.strip), words.map(str.strip), min_size=2, max_size=4).filter(
            lambda found: len(set(found.values())) == len(found)
        )
    )
    length = draw(st.integers(1, 4))
    vectors = draw(arrays(np.float32, (length, 3), elements=st.floats(-9, 9, width=32)))
    prompt: Any = draw(
        st.one_of(
            st.builds(TextPrompt, st.text(st.characters(exclude_categories=["Cs"]))),
            st.builds(SoftPrompt, st.just(vectors), st.sampled_from(["concat", "prepend"])),
            st.builds(
                SoftPrompt,
                st.just(vectors),
                st.just("add"),
                st.lists(st.integers(0, 10**6), min_size=length, max_size=length).map(tuple),
            ),
        )
    )
    labels = len(label_words)
    further = tuple(draw(st.lists(words, max_size=2)))

    def head() -> FittedHead:
        bias = draw(arrays(np.float64, labels, elements=st.floats(-9, 9)))
        matrix = arrays(np.float64, (labels + len(further), labels), elements=st.floats(-9, 9))
        return FittedHead(bias, draw(st.none() | matrix))

    others = draw(st.lists(st.sampled_from([SOFT, TextPrompt("so")]), max_size=2))
    return TunedPrompt(
        prompt,
        Task(Template(f"{a}{{text}}{b}{{prompt}}{c}{{label}}"), Verbalizer(label_words)),
        head(),
        further,
        tuple(Member(other, head()) for other in others),
        {"seed": 3, "spent": {"calls": 4}},
    )


@given(tuned_prompts())
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_prompt_comes_back_as_it_was_saved(tmp_path: Path, tuned: TunedPrompt) -> None:
    back = TunedPrompt.load(tuned.save(tmp_path))
    assert [m.prompt.digest for m in back.members] == [m.prompt.digest for m in tuned.members]
    assert back.task == tuned.task
    assert back.task.verbalizer.labels == tuned.task.verbalizer.labels  # the order of the columns
    for ours, theirs in zip(back.members, tuned.members, strict=True):
        np.testing.assert_array_equal(ours.head.bias, theirs.head.bias)
        assert (ours.head.matrix is None) == (theirs.head.matrix is None)
        np.testing.assert_array_equal(ours.head.matrix, theirs.head.matrix)
    assert back.words == tuned.words
    assert back.provenance == tuned.provenance


def test_a_saved_prompt_is_two_plain_files_that_others_can_read(tmp_path: Path) -> None:
    TUNED.save(tmp_path / "a" / "b")
    assert sorted(p.name for p in (tmp_path / "a" / "b").iterdir()) == [
        "prompt.json",
        "prompt.safetensors",
    ]
    tensors = safetensors.numpy.load_file(tmp_path / "a" / "b" / "prompt.safetensors")
    np.testing.assert_array_equal(tensors["prompt_embeddings"], SOFT.vectors)
    content = json.loads((tmp_path / "a" / "b" / "prompt.json").read_text(encoding="utf-8"))
    assert content["format"] == 1
    assert content["template"] == TASK.template.text
    assert content["shape"] == [2, 3]
    assert content["backend"] == "bowl"


def test_a_loaded_prompt_answers_as_the_one_that_was_saved(tmp_path: Path) -> None:
    back = TunedPrompt.load(TUNED.save(tmp_path))
    texts = [text for text, _ in TRAIN]
    np.testing.assert_array_equal(
        back.predict_proba(Bowl(), texts), TUNED.predict_proba(Client(Bowl()), texts)
    )
    assert back.predict(Bowl(), texts) == TUNED.predict(Bowl(), texts)
    assert back.score(Bowl(), TRAIN) == TUNED.score(Bowl(), TRAIN)


def test_predictions_are_the_likeliest_labels_and_probabilities_sum_to_one() -> None:
    rows = [text for text, _ in TRAIN] * (2 * ROWS_A_REQUEST // len(TRAIN) + 1)
    assert len(rows) > 2 * ROWS_A_REQUEST
    backend = Bowl()
    probabilities = TUNED.predict_proba(backend, rows)
    assert probabilities.shape == (len(rows), 2)
    assert len(backend.asked) == -(-len(rows) // ROWS_A_REQUEST)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0)
    assert TUNED.predict(backend, rows) == [
        ("bad", "good")[column] for column in probabilities.argmax(axis=1)
    ]
    score = TUNED.score(backend, TRAIN)
    right = [p == label for p, (_, label) in zip(TUNED.predict(backend, TRAIN), TRAIN, strict=True)]
    assert (score.accuracy, score.rows) == (np.mean(right), len(TRAIN))


def test_what_has_no_score_gets_no_label() -> None:
    class Overflowing(Bowl):
        def logprobs(self, request: ScoreRequest) -> FloatArray:
            scores = super().logprobs(request).copy()
            scores[[1, 4]] = np.nan
            return scores

    texts = [text for text, _ in TRAIN]
    for ask in (TUNED.predict, TUNED.predict_proba, TUNED.score):
        with pytest.raises(PermanentError, match="row 2 has no finite score from bowl, nor have 1"):
            ask(Overflowing(), TRAIN if ask == TUNED.score else texts)


def test_the_bias_is_added_to_what_the_model_says() -> None:
    plain = TunedPrompt.without_head(SOFT, TASK)
    difference = TUNED.scores(Bowl(), TRAIN) - plain.scores(Bowl(), TRAIN)
    np.testing.assert_allclose(difference, np.tile([0.5, -0.5], (len(TRAIN), 1)))


def test_the_head_mixes_the_label_words_and_the_words_beside_them() -> None:
    backend = Bowl(words_per_request=None)
    tuned = replace(MIXED, others=())
    request = ScoreRequest(SOFT, TASK.template.batch(EXAMPLES), ("bad", "good", "very"))
    expected = HEAD.bias + backend.logprobs(request) @ MATRIX
    np.testing.assert_allclose(tuned.scores(backend, TEXTS), expected)


def test_several_prompts_answer_by_the_mean_of_their_log_probabilities() -> None:
    backend = Bowl(words_per_request=None)
    members = [replace(MIXED, prompt=m.prompt, head=m.head, others=()) for m in MIXED.members]
    alone = [log_softmax(one.scores(backend, TEXTS)) for one in members]
    backend.asked.clear()
    np.testing.assert_allclose(MIXED.scores(backend, TEXTS), np.mean(alone, axis=0))
    assert [digest for digest, _ in backend.asked] == [m.prompt.digest for m in members]


def test_arrays_that_lie_in_columns_are_saved_as_they_read(tmp_path: Path) -> None:
    vectors, matrix = np.asfortranarray(np.eye(2, 3) + 0.5), np.asfortranarray(MATRIX)
    tuned = replace(MIXED, prompt=SoftPrompt(vectors), head=FittedHead(HEAD.bias, matrix))
    loaded = TunedPrompt.load(tuned.save(tmp_path))
    np.testing.assert_array_equal(loaded.head.matrix, MATRIX)  # type: ignore[arg-type]
    assert loaded.prompt.digest == tuned.prompt.digest


def test_a_prompt_that_several_results_share_is_scored_once() -> None:
    backend = Bowl(words_per_request=None)
    alone = replace(MIXED, prompt=MIXED.others[0].prompt, others=())
    mixed, single, plain = score_prompts([MIXED, alone, TUNED], Client(backend), EXAMPLES)
    assert len(backend.asked) == len(MIXED.members) + 1  # the last one reads other words
    assert single[0] is mixed[1]
    np.testing.assert_allclose(TUNED.log_odds(plain), TUNED.scores(backend, TEXTS))


def test_one_of_several_prompts_that_does_not_fit_is_refused_too() -> None:
    wide = Member(SoftPrompt(np.zeros((2, 4))), HEAD)
    backend = Bowl(words_per_request=None)
    with pytest.raises(InputError, match="has width 4, and bowl takes width 3"):
        replace(TUNED, others=(wide,)).predict(backend, ["a"])
    assert backend.asked == []


def test_a_row_without_its_field_or_label_is_named() -> None:
    with pytest.raises(InputError, match=r"row 1: no field 'text'.*known: words"):
        TUNED.predict(Bowl(), [{"words": "a"}])
    with pytest.raises(InputError, match="row 1: no label"):
        TUNED.score(Bowl(), ["a"])


# Which backends fit


def test_another_backend_is_warned_of_and_the_same_is_not() -> None:
    with pytest.warns(
        UserWarning, match="was tuned for bowl and is used with other, which may answer differently"
    ):
        TUNED.predict(Bowl(identity="other"), ["a"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TUNED.predict(Bowl(), ["a"])


@pytest.mark.parametrize(
    ("prompt", "backend", "sentence"),
    [
        (SOFT, Bowl(width=4), "has width 3, and bowl takes width 4: it was tuned for bowl"),
        (
            TextPrompt("x"),
            Bowl(text_prompts=False),
            "the prompt is a text, and bowl takes soft prompts only: it was tuned for bowl",
        ),
        (
            SoftPrompt(SOFT.vectors, "prepend"),
            Bowl(),
            "enters by insertion 'prepend', and bowl takes concat",
        ),
    ],
)
def test_a_backend_that_does_not_fit_is_refused_before_it_is_asked(
    prompt: Any, backend: Bowl, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        replace(TUNED, prompt=prompt).predict(backend, ["a"])
    assert backend.asked == []


def test_a_text_model_takes_no_soft_prompt() -> None:
    backend: Any = Bowl()
    backend.capabilities = type(backend.capabilities)(soft_prompt_width=None)
    with pytest.raises(InputError, match="has width 3, and bowl takes no soft prompts"):
        TUNED.predict(backend, ["a"])


def test_a_text_prompt_answers_too() -> None:
    tuned = TunedPrompt.without_head(TextPrompt("fourteen chars"), TASK)
    assert tuned.score(Bowl(), TRAIN).accuracy == pytest.approx(0.9)


# Heads and several prompts in files


def test_a_prompt_with_a_matrix_or_with_others_has_format_2(tmp_path: Path) -> None:
    for tuned, version in (
        (TUNED, 1),
        (replace(MIXED, others=()), 2),
        (replace(TUNED, others=(Member(TextPrompt("so"), HEAD),)), 2),
    ):
        tuned.save(tmp_path)
        assert json.loads((tmp_path / "prompt.json").read_text())["format"] == version


def test_the_arrays_of_heads_and_of_other_prompts_are_plain_files_too(tmp_path: Path) -> None:
    MIXED.save(tmp_path)
    tensors = safetensors.numpy.load_file(tmp_path / "prompt.safetensors")
    assert sorted(tensors) == ["2/head", "2/prompt_embeddings", "head", "prompt_embeddings"]
    np.testing.assert_array_equal(tensors["head"], MATRIX)
    np.testing.assert_array_equal(tensors["2/prompt_embeddings"], np.ones((4, 3)))
    content = json.loads((tmp_path / "prompt.json").read_text())
    assert content["head_words"] == ["very"]
    assert [other["kind"] for other in content["others"]] == ["text", "soft"]
    back = TunedPrompt.load(tmp_path)
    np.testing.assert_array_equal(
        back.scores(Bowl(words_per_request=None), TEXTS),
        MIXED.scores(Bowl(words_per_request=None), TEXTS),
    )


def test_a_prompt_of_format_1_from_before_there_were_heads_is_read(tmp_path: Path) -> None:
    TUNED.save(tmp_path)
    path = tmp_path / "prompt.json"
    content = json.loads(path.read_text())
    assert content.pop("head_words") == []
    assert content.pop("others") == []
    assert content.pop("head_digest") is None
    path.write_text(json.dumps(content))
    back = TunedPrompt.load(tmp_path)
    assert (back.words, back.others, back.provenance) == ((), (), TUNED.provenance)
    np.testing.assert_array_equal(
        back.scores(Bowl(words_per_request=None), TEXTS),
        TUNED.scores(Bowl(words_per_request=None), TEXTS),
    )


@pytest.mark.parametrize("kind", ["int", "float", "bool"])
def test_labels_that_are_not_of_the_saved_type_are_text(tmp_path: Path, kind: str) -> None:
    TUNED.save(tmp_path)
    rewrite(tmp_path, label_type=kind)  # as of rows that lacked a label
    assert TunedPrompt.load(tmp_path).classes == ["bad", "good"]


def test_a_head_of_a_text_prompt_is_saved_beside_it(tmp_path: Path) -> None:
    tuned = replace(MIXED, prompt=TextPrompt("so"), others=())
    back = TunedPrompt.load(tuned.save(tmp_path))
    assert back.prompt == tuned.prompt
    np.testing.assert_array_equal(
        back.scores(Bowl(words_per_request=None), TEXTS),
        tuned.scores(Bowl(words_per_request=None), TEXTS),
    )


@pytest.mark.parametrize(
    ("array", "key"), [("head", None), ("2/head", None), (None, "head_digest"), (None, "others")]
)
def test_a_damaged_head_is_told(tmp_path: Path, array: str | None, key: str | None) -> None:
    path = MIXED.save(tmp_path) / "prompt.safetensors"
    if array is not None:
        tensors = safetensors.numpy.load_file(path)
        tensors[array] = tensors[array] + 1e-12
        safetensors.numpy.save_file(tensors, path)
    elif key == "head_digest":
        rewrite(tmp_path, head_digest="0" * 64)
    else:
        others = json.loads((tmp_path / "prompt.json").read_text())["others"]
        rewrite(tmp_path, others=[others[0], {**others[1], "head_digest": "0" * 64}])
    with pytest.raises(StorageError, match="belong to different heads"):
        TunedPrompt.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"head_words": []}, r"the head has shape \(3, 2\), which does not fit its words"),
        ({"head_words": ["very", "so"]}, r"the head has shape \(3, 2\)"),
        ({"head_words": 3}, "head_words"),
        ({"head_digest": 3}, "head_digest"),
        ({"others": [3]}, "others"),
        ({"others": [{"kind": "text"}]}, "bias|digest"),
        ({"others": [{"kind": "choral", "bias": [0.0, 0.0], "digest": ""}]}, "unknown kind"),
    ],
)
def test_a_head_that_fits_nothing_is_told(tmp_path: Path, changes: Any, sentence: str) -> None:
    MIXED.save(tmp_path)
    rewrite(tmp_path, **changes)
    with pytest.raises(StorageError, match=f"the saved prompt is damaged.*({sentence})"):
        TunedPrompt.load(tmp_path)


def test_a_head_without_its_matrix_is_told(tmp_path: Path) -> None:
    path = MIXED.save(tmp_path) / "prompt.safetensors"
    tensors = safetensors.numpy.load_file(path)
    del tensors["head"]
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(StorageError, match="belong to different heads"):
        TunedPrompt.load(tmp_path)


# Files that cannot be read


def test_a_folder_without_a_prompt_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no saved prompt there \(.*prompt\.json is missing"):
        TunedPrompt.load(tmp_path / "nowhere")
    TUNED.save(tmp_path)
    (tmp_path / "prompt.safetensors").unlink()
    with pytest.raises(InputError, match=r"prompt\.safetensors is missing"):
        TunedPrompt.load(tmp_path)
    with pytest.raises(InputError, match="no saved prompt there"):
        TunedPrompt.load(tmp_path / "prompt.json")


def rewrite(folder: Path, **changes: Any) -> None:
    path = folder / "prompt.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        {"digest": "0" * 64},
        {"bias": [1.0]},
        {"bias": [float("nan"), 0.0]},
        {"bias": "x"},
        {"label_words": {"a": "b"}},
        {"label_words": ["a", "b"]},
        {"template": "no slots"},
        {"template": 3},
        {"insertion": "add"},
        {"insertion": "prepend"},
        {"anchor": None},
        {"kind": "text"},
        {"format": "one"},
        {"label_type": "complex"},
    ],
)
def test_a_damaged_description_is_told(tmp_path: Path, changes: Any) -> None:
    TUNED.save(tmp_path)
    rewrite(tmp_path, **changes)
    with pytest.raises(StorageError, match="the saved prompt is damaged"):
        TunedPrompt.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff", b"{}"])
def test_a_description_that_is_none_is_told(tmp_path: Path, content: bytes) -> None:
    TUNED.save(tmp_path)
    (tmp_path / "prompt.json").write_bytes(content)
    with pytest.raises(StorageError, match="the saved prompt is damaged"):
        TunedPrompt.load(tmp_path)


@given(st.integers(0, 200), st.integers(1, 255))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_flipped_byte_in_the_vectors_goes_unseen(tmp_path: Path, place: int, flip: int) -> None:
    path = TUNED.save(tmp_path) / "prompt.safetensors"
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= flip
    path.write_bytes(data)
    try:
        assert TunedPrompt.load(tmp_path).prompt.digest == SOFT.digest  # it was only white space
    except StorageError as error:
        assert "the saved prompt is damaged" in str(error)


def test_vectors_cut_short_or_of_another_prompt_are_told(tmp_path: Path) -> None:
    TUNED.save(tmp_path)
    path = tmp_path / "prompt.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(StorageError, match="damaged"):
        TunedPrompt.load(tmp_path)
    TunedPrompt.without_head(SoftPrompt(np.ones((2, 3))), TASK).save(tmp_path / "other")
    (tmp_path / "other" / "prompt.safetensors").replace(path)
    with pytest.raises(StorageError, match="belong to different prompts"):
        TunedPrompt.load(tmp_path)


def test_a_later_format_names_the_version_that_reads_it(tmp_path: Path) -> None:
    TUNED.save(tmp_path)
    rewrite(tmp_path, format=3, versions={"lmaas-tune": "9.1"})
    with pytest.raises(StorageError, match=r"format 3 .* reads up to 2; it was written by .* 9.1"):
        TunedPrompt.load(tmp_path)
    rewrite(tmp_path, format=1, something_new={"a": 1})
    assert TunedPrompt.load(tmp_path).provenance["something_new"] == {"a": 1}


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="the prompt cannot be saved"):
        TUNED.save(tmp_path / "file")


def test_saving_again_leaves_the_new_prompt_and_nothing_else(tmp_path: Path) -> None:
    TUNED.save(tmp_path)
    other = TunedPrompt.without_head(SoftPrompt(np.ones((4, 3))), TASK)
    other.save(tmp_path)
    assert TunedPrompt.load(tmp_path).prompt.digest == other.prompt.digest
    assert len(list(tmp_path.iterdir())) == 2
