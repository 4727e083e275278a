"""Text prompts are searched through the same door: any optimizer, lists that hold, no leak."""

from __future__ import annotations

import itertools
import json
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmaas_tune import Budget, Example, Settings, SoftPrompt, TextPrompt, TunedPrompt, Tuner
from lmaas_tune.backend import ScoreReply, ScoreRequest
from lmaas_tune.errors import InputError
from lmaas_tune.optimizers import optimizer_names
from lmaas_tune.prompts import Prompt, Setup
from lmaas_tune.prompts.phrases import (
    BUILT_IN,
    DIRECTIONS,
    PAIR_WORDINGS,
    WORDINGS,
    WORDS,
    distinctive_words,
    starting_words,
)
from lmaas_tune.prompts.text import Text, TextSpace, draw_demonstrations
from lmaas_tune.task import Task, Template, Verbalizer
from tests.support.small_models import (
    SMALL,
    TRAIN,
    VALIDATION,
    Bowl,
    TellingBowl,
    changed,
    small_tuner,
    words_of,
)

FIRST = "{prompt}\n\nText: {text}\nAnswer: {label}"
LABELS = Verbalizer({"good": "fine", "bad": "poor"})


class Reader(Bowl):
    """Takes texts alone, and reads the better the more of its three favourite words it meets.

    Attributes:
        requests: All of them, in order.
    """

    FAVOURITES = ("simply", "honestly", "above")

    def __init__(self, **can: Any) -> None:
        super().__init__(width=None, identity="reader", **can)  # type: ignore[arg-type]
        self.requests: list[ScoreRequest] = []

    def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
        self.requests += requests
        return super().score(requests)

    def gain(self, prompt: Prompt) -> float:
        return 0.5 + sum(word in text_of(prompt).split() for word in self.FAVOURITES)


class Counting(Reader):
    """One that counts tokens, a word one for each letter, and takes only so many in a row."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def inspect(self, request: ScoreRequest, /) -> Any:
        for number, row in enumerate(request.batch.rows, start=1):
            letters = sum(map(len, [*words_of(row), *text_of(request.prompt).split()]))
            if letters > self.limit:
                raise InputError(f"row {number} has {letters} tokens, more than {self.limit}")
        return TellingBowl().inspect(request)


def text_of(prompt: Prompt) -> str:
    assert isinstance(prompt, TextPrompt)
    return prompt.text


def tune(backend: Any, *, calls: int = 60, **wish: Any) -> Any:
    wish = {"callbacks": (), "template": "{text} {prompt} {label}", **wish}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Tuner(backend, budget=Budget(calls=calls), **wish).fit(TRAIN)


def spaces() -> st.SearchStrategy[TextSpace]:
    """Spaces whose entries can be told apart in a prompt."""
    return st.builds(
        lambda instructions, words, slots, shown: TextSpace(
            instructions=tuple(f"I{i}" for i in range(instructions)),
            starting=instructions,
            words=tuple(f"w{i}" for i in range(words)),
            slots=slots,
            demonstrations=tuple(f"D{i}" for i in range(shown)),
            apart="\n",
        ),
        st.integers(2, 5),
        st.integers(1, 5),
        st.integers(0, 3),
        st.integers(0, 4),
    )


# A point is a prompt


@given(spaces(), st.data())
def test_the_origin_is_the_start_whichever_start_was_taken(space: TextSpace, data: Any) -> None:
    origin = np.zeros((1, space.dim))
    assert space.prompts(origin) == [space.starts[0]]
    index = data.draw(st.integers(0, len(space.starts) - 1))
    begun = space.begin_at(index)
    assert begun.dim == space.dim
    assert begun.prompts(origin) == list(begun.starts) == [space.starts[index]]


@given(spaces(), st.integers(0, 2**32 - 1), st.floats(0.1, 10))
def test_every_point_is_a_prompt_of_the_lists(space: TextSpace, seed: int, scale: float) -> None:
    points = scale * np.random.default_rng(seed).standard_normal((20, space.dim))
    longest = max(len(prompt.text) for prompt in space.longest)
    for prompt in space.prompts(points):
        text = text_of(prompt)
        phrase, *shown = text.split("\n")
        instruction, *words = phrase.split(" ")
        assert instruction in space.instructions
        assert set(words) <= set(space.words)
        assert len(words) <= space.slots
        assert sorted(shown) == list(space.demonstrations)
        assert len(text) <= longest


def test_every_prompt_of_the_lists_has_a_point() -> None:
    space = TextSpace(
        instructions=("A", "B"), words=("v", "w"), slots=2, demonstrations=("1", "2", "3")
    )
    points = np.random.default_rng(0).standard_normal((5000, space.dim))
    orders = len(list(itertools.permutations("123")))
    texts = {text_of(prompt) for prompt in space.prompts(points)}
    phrases = {"", "v", "w", "v v", "v w", "w v", "w w"}
    assert len(texts) == 2 * len(phrases) * orders


@pytest.mark.parametrize("entries", [2, 3, 40])
def test_a_normal_point_leaves_a_choice_at_its_start_about_half_of_the_time(entries: int) -> None:
    space = TextSpace(instructions=tuple(map(str, range(entries))))
    points = np.random.default_rng(0).standard_normal((4000, space.dim))
    taken = Counter(text_of(prompt) for prompt in space.prompts(points))
    assert 0.42 < taken["0"] / 4000 < 0.58
    assert len(taken) == entries
    others = [count for text, count in taken.items() if text != "0"]
    assert max(others) < 2 * 4000 / (entries - 1)


def test_what_leaves_no_choice_takes_no_dimension() -> None:
    space = TextSpace(instructions=("A",), words=("v",), slots=1, demonstrations=("1",))
    assert space.dim == 2
    assert text_of(space.prompts(np.array([[0.0, 9.0]]))[0]) == "A v\n\n1"
    with pytest.raises(InputError, match="leaves nothing to search: give several instructions"):
        TextSpace(instructions=("A",), demonstrations=("1",))


WHOLE = TextSpace(
    instructions=("A", "B"), starting=2, words=("v",), slots=1, demonstrations=("1", "2")
)


@pytest.mark.parametrize(
    "change",
    [
        {"instructions": ("A", "C")},
        {"instructions": ("B", "A")},
        {"starting": 1},
        {"words": ("w",)},
        {"words": ("v", "w")},
        {"slots": 2},
        {"demonstrations": ("2", "1")},
        {"demonstrations": ("1", "3")},
        {"apart": "\n"},
    ],
)
def test_the_digest_changes_with_everything_that_decides_a_prompt(change: dict[str, Any]) -> None:
    assert replace(WHOLE).digest == WHOLE.digest
    assert replace(WHOLE, **change).digest != WHOLE.digest


# Where words come from


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        ({"words": "trian"}, "words='trian': did you mean 'train'.*; or give a list"),
        ({"words": ()}, r"words=\(\): give words that are not empty, or slots=0"),
        ({"words": ("a", " ")}, "give words that are not empty"),
        ({"words": ("a", 3)}, "give words that are not empty"),
        ({"words": ("a", "\ud800")}, "words: .* is half a character"),
        ({"slots": -1}, "slots=-1: it must be 0 or more"),
        ({"slots": 2.0}, "slots=2.0: it takes a whole number"),
        ({"demonstrations": True}, "demonstrations=True: it takes a whole number"),
    ],
)
def test_a_text_setting_that_cannot_be_gets_one_sentence(wish: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Text(**wish)


def test_words_are_given_built_in_or_of_the_training_rows() -> None:
    rows = [Example({"text": text}, label) for text, label in TRAIN]
    assert Text(words=("a ", "b", "a")).list_words(rows) == ("a", "b")
    assert Text().list_words(rows) == WORDS
    assert Text(words="train").list_words(rows)[:2] == ("bad", "good")
    with pytest.raises(InputError, match="the training rows have no words; give a list"):
        Text(words="train").list_words([Example({"text": "7"}, str(n)) for n in range(2)])


def test_telling_words_are_those_of_one_label_in_turns_whatever_the_order_of_rows() -> None:
    rows = [
        Example({"text": "A dull, dull film", "more": "truly"}, "bad"),
        Example({"text": "dull; the film isn't long"}, "bad"),
        Example({"text": "a lovely film, truly"}, "good"),
        Example({"text": "Lovely!"}, "good"),
    ]
    words = distinctive_words(rows, 4)
    assert words == ("dull", "lovely", "film", "truly")
    assert "isn't" in distinctive_words(rows, 20)
    assert distinctive_words(rows[::-1], 4) == words


@pytest.mark.parametrize(
    ("template", "phrases"),
    [
        ("{text} {prompt} {label}", WORDINGS),
        ("{a} {b} {prompt} {label}", PAIR_WORDINGS),
        ("{a} {prompt} {b} {label}", PAIR_WORDINGS),
        ("{prompt} {text} {label}", DIRECTIONS),
        ("Read: {prompt} {a} {b} {label}", DIRECTIONS),
    ],
)
def test_built_in_wordings_suit_the_template(template: str, phrases: tuple[str, ...]) -> None:
    assert Settings().prompt.given_words == (BUILT_IN,)
    for labels, options in ((("yes", "no"), "yes or no"), (("a", "b", "c"), "a, b or c")):
        task = Task(Template(template), Verbalizer({word: f" {word}" for word in labels}))
        words = starting_words((BUILT_IN,), task)
        assert words == tuple(phrase.replace("{options}", options) for phrase in phrases)
        assert not any("{" in phrase for phrase in words)


def test_given_words_keep_their_place_before_the_built_in_ones_and_none_comes_twice() -> None:
    task = Task(Template("{text} {prompt} {label}"), LABELS)
    words = starting_words(("Mine:", WORDINGS[3], "Is it {options}?", BUILT_IN), task)
    assert words[:4] == ("Mine:", WORDINGS[3], "Is it fine or poor?", WORDINGS[0])
    assert len(words) == len(set(words)) == 2 + len(WORDINGS)
    assert starting_words(("Mine:", "Ours:", "Mine:"), task) == ("Mine:", "Ours:")


def test_starts_that_differ_in_the_space_around_them_are_one() -> None:
    result = small_text(Reader(), prompt_init=("It was", " It was", "So it is", "So it is "))
    assert [len(result.steps[0].evaluations), len(result.best_starts.members)] == [2, 2]


def test_built_in_phrases_are_all_different() -> None:
    for phrases in (WORDINGS, PAIR_WORDINGS, DIRECTIONS, WORDS):
        assert len({phrase.casefold() for phrase in phrases}) == len(phrases)
        assert all(phrase == phrase.strip() != "" for phrase in phrases)


# Demonstrations


@given(
    st.lists(st.sampled_from("abc"), min_size=6, max_size=30).filter(
        lambda labels: len(labels) > 5 and min(Counter(labels).values()) > 2
    ),
    st.integers(0, 6),
    st.integers(0, 5),
)
def test_demonstrations_are_balanced_and_no_row_is_lost(
    labels: list[str], count: int, seed: int
) -> None:
    rows = [Example({"n": str(n)}, label) for n, label in enumerate(labels)]
    count = min(count, 2 * len(set(labels)))
    shown, left = draw_demonstrations(rows, count, seed=seed)
    assert len(shown) == count
    assert sorted(shown + left, key=rows.index) == rows
    assert left == sorted(left, key=rows.index)
    times = [sum(row.label == label for row in shown) for label in set(labels)]
    assert max(times) - min(times) <= 1
    assert {row.label for row in left} == set(labels)
    assert draw_demonstrations(rows, count, seed=seed) == (shown, left)


def test_demonstrations_that_leave_no_row_of_a_label_are_refused() -> None:
    rows = [Example({"n": "1"}, "a")] * 4 + [Example({"n": "2"}, "b")]
    with pytest.raises(InputError, match="takes 1 of the 1 rows with the label 'b'"):
        draw_demonstrations(rows, 2, seed=0)
    assert len(draw_demonstrations(rows, 1, seed=0)[0]) == 1


def test_a_demonstration_reads_as_the_row_does() -> None:
    labels = Verbalizer({"good": " fine", "bad": "poor"})  # scored without the space
    task = Task(Template(FIRST), labels)
    rows = [Example({"text": "a film"}, "good"), Example({"text": "a play"}, "bad")]
    setup = Setup(model=Reader(), embeds=None, measures=False, task=task, train=rows, shown=rows)
    space = Text(slots=0, prompt_init="Judge.").space(setup)
    (row,) = task.template.batch([Example({"text": "a book"})]).rows
    pieces = [part if isinstance(part, str) else "" for part in row]
    assert "".join([text_of(space.starts[0]), *pieces]).split("\n\n") == [
        "Judge.",
        "Text: a film\nAnswer: fine",
        "Text: a play\nAnswer: poor",
        "Text: a book\nAnswer: ",
    ]


@pytest.mark.parametrize("template", ["{text} {prompt} {label}", "{prompt}{text} {label}"])
def test_a_template_without_room_for_demonstrations_is_refused(template: str) -> None:
    backend = Reader()
    with pytest.raises(InputError, match=r"does not begin with \{prompt\} and a line break"):
        small_text(backend, demonstrations=2, template=template)
    assert backend.requests == []


def filled(phrases: tuple[str, ...]) -> tuple[str, ...]:
    """The wordings with the label words of `TRAIN`."""
    return tuple(phrase.replace("{options}", "bad or good") for phrase in phrases)


def small_text(backend: Any, *, template: str | None = FIRST, calls: int = 40, **text: Any) -> Any:
    settings = Settings(prompt=Text(**text))
    return tune(backend, settings=settings, template=template, calls=calls)


@pytest.mark.parametrize("template", [FIRST, None])
def test_a_row_that_is_shown_is_not_scored(template: str | None) -> None:
    backend = Reader()
    result = small_text(backend, demonstrations=4, template=template)
    shown = text_of(result.prompt.prompt)
    assert shown.count("Answer:") == 4
    for request in backend.requests:
        assert len(request.batch) == len(TRAIN) - 4
        for row in request.batch.rows:
            text = next(part for part in row if isinstance(part, str) and "Text:" in part)
            assert text.strip() not in text_of(request.prompt)
    orders = {text_of(r.prompt).split("\n\n", 1)[1] for r in backend.requests}
    assert len(orders) > 5
    assert len({tuple(sorted(order.split("\n\n"))) for order in orders}) == 1


# The same tuner


def test_a_model_that_takes_texts_alone_needs_no_further_word() -> None:
    backend = Reader()
    tuner = Tuner(backend, budget=Budget(calls=80), callbacks=())
    with pytest.warns(UserWarning, match="reader takes no soft prompts, so the search is over wor"):
        result = tuner.fit(TRAIN, VALIDATION)
    prompt, start = result.prompt.prompt, result.start.prompt
    assert text_of(start) == WORDINGS[0]
    assert text_of(prompt).startswith(filled(WORDINGS))
    comparison = result.compare(TRAIN)
    assert comparison.tuned.loss < comparison.start.loss
    assert set(result.predict(["a good one"])) <= {"good", "bad"}
    assert result.prompt.provenance["settings"]["prompt"] == "text"


@pytest.mark.parametrize("optimizer", [*optimizer_names(), "nevergrad:DiscreteOnePlusOne"])
def test_every_optimizer_serves_text(optimizer: str) -> None:
    text = Text(words=(*Reader.FAVOURITES, "so", "far"), slots=4)
    settings = Settings(prompt=text, head="none", averaged=1)
    result = tune(Reader(), optimizer=optimizer, settings=settings, calls=130)
    assert result.spent.calls <= 130
    losses = [e.loss for step in result.steps for e in step.evaluations]
    assert result.best.train.loss == min(losses) < result.steps[0].loss
    assert result.score(TRAIN).loss == pytest.approx(result.best.train.loss)


def test_learning_finds_more_of_the_words_than_drawing_does() -> None:
    def loss(optimizer: str, seed: int) -> float:
        result = tune(Reader(), optimizer=optimizer, settings=settings, calls=300, seed=seed)
        found: float = result.best.train.loss
        return found

    settings = Settings(prompt=Text(prompt_init=("It is", "So it is", "Answer:")), head="none")

    learned, drawn = ([loss(name, s) for s in range(4)] for name in ("cma", "random"))
    assert np.mean(learned) < np.mean(drawn)


def test_a_flat_loss_ends_nothing_early() -> None:
    class Deaf(Reader):
        def gain(self, prompt: Prompt) -> float:
            return 1.0

    assert tune(Deaf(), calls=400).spent.calls > 380


def test_equal_prompts_of_a_generation_are_paid_once() -> None:
    backend = Reader()
    result = tune(backend, settings=Settings(prompt=Text(words=("so",), slots=1)), calls=100)
    assert result.spent.calls > 80
    assert result.spent.requests == len(backend.requests) < 75
    assert result.spent.requests + result.spent.hits == result.spent.calls


def test_the_same_seed_is_the_same_run_and_another_is_another() -> None:
    runs = [tune(Reader(), seed=seed) for seed in (1, 1, 2)]
    points = [np.concatenate([step.points for step in run.steps]) for run in runs]
    assert runs[0].prompt.prompt == runs[1].prompt.prompt
    assert np.array_equal(points[0], points[1])
    assert not np.array_equal(points[0], points[2])


def test_a_run_that_goes_on_pays_nothing_twice(tmp_path: Path) -> None:
    settings = Settings(prompt=Text(prompt_init=("Judge.", "Read."), demonstrations=2))
    wish = {"settings": settings, "template": FIRST}
    tune(Reader(), out=tmp_path, calls=30, **wish)
    second, whole = Reader(), Reader()
    tuner = Tuner(second, budget=Budget(calls=60), out=tmp_path, callbacks=(), **wish)
    with pytest.warns(UserWarning, match="2 of the training rows are demonstrations"):
        resumed = tuner.fit(TRAIN, resume=True)
    undisturbed = tune(whole, calls=60, **wish)
    assert resumed.prompt.prompt == undisturbed.prompt.prompt
    assert resumed.spent.calls == undisturbed.spent.calls
    assert 0 < len(second.requests) < len(whole.requests)


@pytest.mark.parametrize("change", [{"words": ("a", "b")}, {"slots": 2}, {"demonstrations": 4}])
def test_a_run_does_not_go_on_with_other_words(change: dict[str, Any], tmp_path: Path) -> None:
    settings = Settings(prompt=Text(demonstrations=2))
    tune(Reader(), out=tmp_path, calls=30, settings=settings, template=FIRST)
    other = changed(settings, **change)
    tuner = Tuner(Reader(), settings=other, out=tmp_path, template=FIRST, callbacks=())
    with (
        pytest.warns(UserWarning, match="are demonstrations"),
        pytest.raises(InputError, match="run"),
    ):
        tuner.fit(TRAIN, resume=True)


def test_the_saved_prompt_is_a_string_and_starts_a_further_search(tmp_path: Path) -> None:
    first = tune(Reader(), out=tmp_path)
    assert json.loads((tmp_path / "prompt.json").read_text())["text"] == first.prompt.prompt.text
    saved = TunedPrompt.load(tmp_path)
    assert saved.predict(Reader(), ["a good one"]) == first.predict(["a good one"])
    for start in (saved, saved.prompt):
        second = tune(Reader(), start=start, calls=30)
        assert second.start.prompt == saved.prompt
        assert text_of(second.prompt.prompt).startswith(text_of(saved.prompt))
        assert second.prompt.provenance["settings"]["start"] == "given"


@pytest.mark.parametrize(
    ("template", "phrases"),
    [("{text} {prompt} {label}", WORDINGS), ("{prompt} {text} {label}", DIRECTIONS)],
)
def test_built_in_instructions_suit_where_the_prompt_stands(
    template: str, phrases: tuple[str, ...]
) -> None:
    backend = Reader()
    tune(backend, template=template)
    begun = {p for p in phrases for r in backend.requests if text_of(r.prompt).startswith(p)}
    assert [text_of(r.prompt) for r in backend.requests[:5]] == list(phrases[:5])
    assert len(begun) > 5
    own = Reader()
    tune(own, template=template, settings=changed(Settings(), prompt_init=(" I say ", "We say")))
    assert [text_of(r.prompt) for r in own.requests[:2]] == ["I say", "We say"]
    assert all(text_of(r.prompt).startswith(("I say", "We say")) for r in own.requests)


def test_auto_takes_text_where_something_asks_for_it() -> None:
    for wish in (
        {"settings": Settings(prompt=Text())},
        {"settings": Settings(prompt=Text(slots=1))},
        {"start": TextPrompt("It was")},
    ):
        assert isinstance(tune(Bowl(), **wish).prompt.prompt, TextPrompt)
    assert isinstance(small_tuner(Bowl(), prompt="auto").fit(TRAIN).prompt.prompt, SoftPrompt)


SOFT = SoftPrompt(np.zeros((2, 3)))


@pytest.mark.parametrize(
    ("backend", "wish", "sentence"),
    [
        (
            Bowl(text_prompts=False),
            {"settings": Settings(prompt=Text())},
            "takes soft prompts only",
        ),
        (Reader(), {"settings": SMALL}, "takes text prompts only.* take prompt=Text"),
        (Reader(), {"settings": "paper-icml22"}, "takes text prompts only"),
        (Reader(), {"start": SOFT}, "is asked for text prompts, and the start is a soft one"),
        (Reader(), {"settings": changed(SMALL, prompt="auto")}, "the start is a soft one"),
        (Bowl(), {"settings": SMALL, "start": TextPrompt("a")}, "must be a soft one of width 3"),
        (Counting(20), {}, "train: row 1 has .* longest prompt that this search could try: fewer"),
    ],
)
def test_what_cannot_work_is_told_before_anything_is_paid(
    backend: Bowl, wish: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        tune(backend, **wish)
    assert backend.asked == []


def test_the_longest_prompt_that_could_be_tried_is_inspected_and_not_only_the_start() -> None:
    longest = max(map(len, WORDS)) * 3 + max(len(p.replace(" ", "")) for p in filled(WORDINGS))
    row = max(len(text.replace(" ", "")) for text, _ in TRAIN)
    assert tune(Counting(longest + row), calls=200).finished
    with pytest.raises(InputError, match="longest prompt"):
        tune(Counting(longest + row - 1))


def test_a_limit_in_tokens_counts_the_longest_prompt_beforehand() -> None:
    class Dear(TellingBowl):
        def inspect(self, request: ScoreRequest, /) -> Any:
            found = super().inspect(request)
            letters = len(text_of(request.prompt)) * len(request.batch)
            return replace(found, usage=replace(found.usage, tokens=letters))

    budget = Budget(tokens=len(TRAIN) * 5 * max(map(len, WORDINGS)))  # pays the five starts
    tuner = Tuner(
        Dear(),
        settings=Settings(prompt=Text()),
        budget=budget,
        callbacks=(),
        template="{text} {prompt} {label}",
    )
    with pytest.raises(InputError, match="no call was made"):
        tuner.fit(TRAIN)


def test_a_search_that_has_tried_all_texts_ends_without_a_limit_on_calls() -> None:
    backend = Bowl(rows_per_call=4)
    kind = Text(prompt_init=("It was", "I found it"), slots=0)
    result = small_tuner(backend, settings=changed(SMALL, prompt=kind), budget="tokens=100000").fit(
        TRAIN
    )
    assert result.stop_reason == "1000 generations without a new prompt"
