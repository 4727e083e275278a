"""Templates, label words and batches: what stands where, and nothing lost on the way."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmaas_tune.errors import InputError
from lmaas_tune.task import Batch, Example, Field, Slot, Template, Verbalizer, check_text

PROMPT, LABEL = Slot.PROMPT, Slot.LABEL

names = st.text(st.characters(exclude_characters="{}", exclude_categories=["Cs"]), min_size=1)
fields = names.filter(lambda name: name not in ("prompt", "label"))
pieces = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


def escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


# Templates


def test_a_template_reads_in_order() -> None:
    template = Template("{sentence} {prompt} It was {label}.")
    assert template.parts == (Field("sentence"), " ", PROMPT, " It was ", LABEL, ".")
    assert template.fields == ("sentence",)


@given(
    literals=st.lists(pieces, min_size=5, max_size=5), one=fields, other=fields, values=st.data()
)
def test_what_is_rendered_is_what_was_written(
    literals: list[str], one: str, other: str, values: Any
) -> None:
    a, b, c, d, e = map(escaped, literals)
    template = Template(f"{a}{{{one}}}{b}{{prompt}}{c}{{{other}}}{d}{{label}}{e}")
    example = Example({name: values.draw(pieces) for name in (one, other)})
    row = template.render(example)
    assert template.fields == tuple(dict.fromkeys((one, other)))
    assert [part for part in row if isinstance(part, Slot)] == [PROMPT, LABEL]
    assert "".join(part if isinstance(part, str) else f"<{part.value}>" for part in row) == (
        f"{literals[0]}{example.fields[one]}{literals[1]}<prompt>{literals[2]}"
        f"{example.fields[other]}{literals[3]}<label>{literals[4]}"
    )
    kinds = [isinstance(part, str) for part in row]
    assert "" not in row
    assert not any(left and right for left, right in itertools.pairwise(kinds))


def test_braces_and_slots_in_a_text_stay_text() -> None:
    row = Template("{{{text}}} {prompt}{label}").render(Example({"text": "{label} {{x}}"}))
    assert row == ("{{label} {{x}}} ", PROMPT, LABEL)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{text} {label}", r"has \{prompt\} 0 times; it needs it once"),
        ("{text} {prompt}", r"has \{label\} 0 times"),
        ("{prompt} {prompt} {label}", r"has \{prompt\} 2 times"),
        ("{prompt} {label} }", "lone brace at 17"),
        ("{text {prompt} {label}", "lone brace at 0"),
        ("{} {prompt} {label}", "lone brace at 0"),
        ("\udc80{prompt} {label}", "half a character"),
    ],
)
def test_a_template_that_cannot_be_gets_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Template(text)


def test_a_missing_field_is_named_with_its_row_and_what_is_close() -> None:
    template = Template("{sentence} {prompt} {label}")
    with pytest.raises(InputError, match=r"row 2: no field 'sentence'.*did you mean 'sentense'"):
        template.batch([Example({"sentence": "a"}), Example({"sentense": "b"})])


# Batches

parts = st.one_of(pieces, st.sampled_from(Slot))
rows = st.lists(st.lists(parts, max_size=4).map(tuple), max_size=4).map(tuple)


@given(rows, rows)
def test_batches_are_told_apart_by_anything_that_differs(one: Any, other: Any) -> None:
    assert (Batch(one).digest == Batch(other).digest) == (one == other)


@given(st.lists(pieces, min_size=1, max_size=4), st.data())
def test_text_that_moves_between_parts_or_rows_changes_the_digest(
    texts: list[str], data: Any
) -> None:
    joined = "".join(texts)
    cut = data.draw(st.integers(0, len(joined)))
    moved = [joined[:cut], joined[cut:]]
    variants = {
        ((joined,),),
        (tuple(moved),),
        ((moved[0],), (moved[1],)),
        ((moved[0], PROMPT), (moved[1],)),
        ((moved[0],), (PROMPT, moved[1])),
    }
    assert len({Batch(v).digest for v in variants}) == len(variants)


def test_a_text_that_imitates_the_digests_own_marks_is_no_other_batch() -> None:
    imitation = Batch((("a\nt1:b",),))
    assert imitation.digest != Batch((("a",), ("b",))).digest
    assert Batch((("s6:prompt",),)).digest != Batch(((PROMPT,),)).digest


def test_labels_are_not_in_a_batch() -> None:
    template = Template("{text}{prompt}{label}")
    batches = [template.batch([Example({"text": "a"}, label)]) for label in ("x", "y", None)]
    assert len({batch.digest for batch in batches}) == 1
    assert len(batches[0]) == 1


# Label words


def test_columns_follow_the_label_words() -> None:
    verbalizer = Verbalizer({"0": "terrible", "1": "great"})
    assert verbalizer.labels == ("0", "1")
    assert verbalizer.candidates == ("terrible", "great")
    examples = [Example({}, label) for label in ("1", "0", "1")]
    assert verbalizer.targets(examples).tolist() == [1, 0, 1]


def test_labels_may_be_given_as_numbers_like_rows_may() -> None:
    keys: Any = {0: "terrible", 1: "great"}
    assert Verbalizer(keys).labels == ("0", "1")


def test_the_callers_mapping_is_his_own() -> None:
    words = {"a": "x", "b": "y"}
    verbalizer = Verbalizer(words)
    words["c"] = "z"
    assert verbalizer.labels == ("a", "b")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({}, "needs two labels or more"),
        ({"a": "x"}, r"two labels or more, and it has only \['a'\]: add rows"),
        ({"a": "x", "b": " "}, "label 'b' has the label word ' ': give it a word"),
        ({"a": "x", "b": 3}, "label 'b' has the label word 3"),
        ({"a": "x", "b": " x "}, "labels 'a' and 'b' share the word ' x '.*give each its own"),
        ({1: "x", "1": "y"}, "the label '1' is given twice"),
        ({"a": "x", "b": "\ud800"}, "half a character"),
    ],
)
def test_label_words_that_cannot_be_get_one_sentence(words: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Verbalizer(words)


def test_a_row_with_a_foreign_or_no_label_is_named() -> None:
    verbalizer = Verbalizer({"positive": "great", "negative": "bad"})
    rows_ = [Example({}, "positive"), Example({}, "positve")]
    with pytest.raises(InputError, match=r"row 2 has the label 'positve'.*did you mean 'positive'"):
        verbalizer.targets(rows_)
    with pytest.raises(InputError, match="row 1 has no label"):
        verbalizer.targets([Example({})])


def test_sound_text_passes_as_it_is() -> None:
    assert check_text("naïve 🎬", "x") == "naïve 🎬"
    with pytest.raises(InputError, match=r"row 3: '\\udce9' at 2 is half a character"):
        check_text("caf\udce9"[1:], "row 3")


def test_a_row_without_any_field_is_refused_in_a_whole_sentence() -> None:
    with pytest.raises(InputError, match=r"or no text in it; none is known$"):
        Template("{text} {prompt} {label}").batch([Example({})])


def test_a_limit_reads_the_first_characters_of_a_field() -> None:
    template = Template("{title}: {text:.4} {prompt} {label}")
    row = Example({"title": "a long title", "text": "abcdef"})
    assert template.fields == ("title", "text")
    assert template.render(row)[0] == "a long title: abcd "
    assert template.cuts([row, Example({"title": "a long title", "text": "abcd"})]) == 1


def test_all_fields_without_a_limit_get_one() -> None:
    template = Template("{{{title}}} {text:.4} {prompt} {label}").truncated(9)
    assert template.text == "{{{title:.9}}} {text:.4} {prompt} {label}"
    with pytest.raises(InputError, match="truncate=0: a field needs 1 character or more"):
        template.truncated(0)


@pytest.mark.parametrize("name", ["at 12:30", "text:.x", "text:.0", "x:4"])
def test_a_column_with_a_colon_in_its_name_is_a_field(name: str) -> None:
    template = Template(f"{{{name}}} {{prompt}} {{label}}")
    assert template.fields == (name,)
    assert template.render(Example({name: "text"}))[0] == "text "
