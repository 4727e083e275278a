"""Label words among tokens and in answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lmaas_tune_adapters.openai.words import (
    RIGHT,
    exact_logprobs,
    find_word,
    first_token_logprobs,
    shared_beginnings,
    stated_logprobs,
    upper_bound,
)

from lmaas_tune.prompts import FloatArray

# --- what is not among the likeliest


@given(
    st.lists(st.floats(-20, 20), min_size=2, max_size=40),
    st.data(),
)
def test_no_token_outside_the_likeliest_has_more_than_the_bound(
    logits: list[float], data: st.DataObject
) -> None:
    logprobs = np.sort(np.array(logits) - np.logaddexp.reduce(logits))[::-1]
    k = data.draw(st.integers(1, len(logits) - 1))
    top = [(str(i), float(v)) for i, v in enumerate(logprobs[:k])]
    assert logprobs[k] <= upper_bound(top) + 1e-9


def test_the_bound_is_the_last_of_the_likeliest_or_what_they_leave() -> None:
    assert upper_bound([("a", math.log(0.3)), ("b", math.log(0.2))]) == pytest.approx(math.log(0.2))
    assert upper_bound([("a", math.log(0.6)), ("b", math.log(0.3))]) == pytest.approx(
        math.log(0.1), abs=1e-4
    )


def test_a_written_token_that_is_not_among_the_likeliest_is_no_bound() -> None:
    top = [("a", math.log(0.4)), ("b", math.log(0.3)), ("rare", math.log(0.001))]
    assert upper_bound(top, "rare") == pytest.approx(math.log(0.299), abs=1e-4)
    assert upper_bound(top, "a") == pytest.approx(math.log(0.001))


def test_the_bound_is_finite_where_rounding_leaves_nothing() -> None:
    assert upper_bound([("a", 0.0)]) == pytest.approx(math.log(1e-6))


def test_a_sum_above_1_bounds_by_its_excess() -> None:
    assert upper_bound([("a", math.log(0.7)), ("b", math.log(0.4))]) == pytest.approx(
        math.log(0.1), abs=1e-4
    )


# --- among the likeliest


TOP = [(" great", -1.0), ("great", -3.0), (" Great", -3.5), (" terr", -4.0), (" t", -4.5)]


def test_a_word_after_a_space_is_a_token_with_its_space() -> None:
    assert first_token_logprobs(TOP, ["great"], spaced=True) == [-1.0]
    assert first_token_logprobs(TOP, ["great"], spaced=False) == [-3.0]


def test_bare_vocabularies_spell_the_space_in_their_own_way() -> None:
    assert first_token_logprobs([("▁great", -1.0), ("x", -2.0)], ["great"], spaced=True) == [-1.0]
    assert first_token_logprobs([("Ġgreat", -1.0), ("x", -2.0)], ["great"], spaced=True) == [-1.0]


def test_where_a_server_shows_no_space_at_all_the_word_alone_will_do() -> None:
    assert first_token_logprobs([("great", -1.0), (",", -2.0)], ["great"], spaced=True) == [-1.0]


def test_in_a_chat_spaces_and_capitals_do_not_matter_and_spellings_add_up() -> None:
    assert first_token_logprobs(TOP, ["great"], spaced=None) == pytest.approx(
        [math.log(math.exp(-1.0) + math.exp(-3.0) + math.exp(-3.5))]
    )


def test_spellings_of_all_mass_do_not_add_up_to_more_than_all() -> None:
    top = [("a", math.log(0.6)), ("A", math.log(0.4 + 1e-7))]
    assert first_token_logprobs(top, ["a"], spaced=None) == [0.0]


def test_the_longest_beginning_of_a_word_stands_for_it() -> None:
    assert first_token_logprobs(TOP, ["terrible"], spaced=True) == [-4.0]


def test_one_letter_is_too_little_of_a_word() -> None:
    top = [(" t", -1.0), (" x", -2.0)]
    assert first_token_logprobs(top, ["terrible"], spaced=True) == [None]
    assert first_token_logprobs([("好", -1.0), ("x", -2.0)], ["好的"], spaced=False) == [-1.0]
    assert first_token_logprobs([(" A", -1.0), (" B", -2.0)], ["B", "A"], spaced=True) == [
        -2.0,
        -1.0,
    ]


def test_two_words_that_begin_alike_share_their_token() -> None:
    top = [(" un", -1.0), (" it", -2.0)]
    assert first_token_logprobs(top, ["unkind", "uneven", "even"], spaced=True) == [
        -1.0,
        -1.0,
        None,
    ]


def test_a_token_that_goes_on_after_the_word_is_another_word() -> None:
    top = [(" goodness", -1.0), (" it", -2.0)]
    assert first_token_logprobs(top, ["good"], spaced=True) == [None]


def test_half_a_character_is_no_word() -> None:
    top = [("\ufffd", -1.0), ("", -1.5), (" ", -2.0)]
    assert first_token_logprobs(top, ["good"], spaced=None) == [None]


def test_a_word_that_is_no_token_of_its_own_is_not_found_by_its_beginning() -> None:
    assert exact_logprobs(TOP, ["terrible", "great"], spaced=True) == [None, -1.0]
    assert exact_logprobs(TOP, ["great"], spaced=False) == [-3.0]
    assert exact_logprobs(TOP, ["GREAT"], spaced=None) == first_token_logprobs(
        TOP, ["great"], spaced=None
    )


def test_a_word_that_begins_another_is_noted() -> None:
    (note,) = shared_beginnings(["good", "bad", "goodness"])
    assert "'good'" in note
    assert "'goodness'" in note
    assert shared_beginnings(["good", "bad"]) == []


# --- in an answer

WORDS = ["good", "bad", "not bad"]


def in_answer(answer: str, words: list[str]) -> FloatArray:
    return stated_logprobs(find_word(answer, words), len(words))


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        ("good", 0),
        ("  Good.", 0),
        ('"bad", I think', 1),
        ("**Bad**", 1),
        ("Good, and not bad", 0),
        ("Not bad at all", 2),
        ("The film is good.", 0),
        ("badly made, but good", 0),
        ("It is not bad.", 2),
        ("It is bad (very bad).", 1),
        ("<think>It could be bad, no</think>\n\ngood", 0),
    ],
)
def test_the_label_that_an_answer_begins_with_or_alone_has_in_it_is_named(
    answer: str, named: int
) -> None:
    expected = [0.05, 0.05, 0.05]
    expected[named] = RIGHT
    assert np.exp(in_answer(answer, WORDS)) == pytest.approx(np.array(expected))


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "I cannot say.",
        "either good or bad",
        "goodness",
        "abad",
        "is it bad? not bad",
        "<think>bad",
    ],
)
def test_an_answer_that_names_none_or_several_makes_all_equal(answer: str) -> None:
    assert np.exp(in_answer(answer, WORDS)) == pytest.approx(np.full(3, 1 / 3))


def test_a_script_without_spaces_is_searched_letter_by_letter() -> None:
    assert in_answer("答案是好。", ["好", "坏"])[0] == pytest.approx(math.log(RIGHT))


@given(st.text(max_size=20), st.lists(st.text("ab c", min_size=1).map(str.strip), min_size=2))
def test_stated_probabilities_add_up_to_one(answer: str, words: list[str]) -> None:
    words = sorted({word for word in words if word})
    if len(words) >= 2:
        assert np.exp(in_answer(answer, words)).sum() == pytest.approx(1.0)
