"""The front door: it works with no further word, and says in one sentence why it would not."""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lmaas_tune import (
    Budget,
    Client,
    Example,
    Retry,
    ScoreRequest,
    Settings,
    Soft,
    SoftPrompt,
    Template,
    TextPrompt,
    TunedPrompt,
    Tuner,
    TuneResult,
)
from lmaas_tune.callbacks import ProgressBar
from lmaas_tune.data import read_examples
from lmaas_tune.dataset import default_template, default_verbalizer, task_for
from lmaas_tune.errors import InputError, PermanentError, StorageError, TransientError
from lmaas_tune.optimizers.random import RandomSearch
from lmaas_tune.prompts import FloatArray, Prompt
from lmaas_tune.step import step_row
from lmaas_tune.task import label_name
from lmaas_tune.testing.toy import ToyBackend
from tests.support.small_models import (
    SMALL,
    TRAIN,
    VALIDATION,
    Bowl,
    Spoilt,
    WordBowl,
    changed,
    small_tuner,
)

FORMS = {
    "pairs": TRAIN,
    "dicts": [{"text": text, "label": label} for text, label in TRAIN],
    "numbers": [(text, int(label == "good")) for text, label in TRAIN],
}


@pytest.fixture(scope="module")
def result() -> TuneResult:
    return small_tuner(Bowl(), budget="calls=101").fit(TRAIN, VALIDATION)


# It works with no further word


def test_a_backend_and_rows_are_all_it_takes() -> None:
    result = Tuner(ToyBackend(), optimizer="cma", budget="calls=41").fit(TRAIN)
    assert result.finished
    assert set(result.predict([text for text, _ in TRAIN])) <= {"good", "bad"}
    compared = result.compare(TRAIN)
    assert compared.tuned.loss < compared.baseline.loss


def test_every_default_serves_several_fields_and_classes() -> None:
    rows = [
        {"first_part": f"{word} {n}", "second": str(n), "label": word}
        for word in ("red", "green", "blue")
        for n in range(3)
    ]
    result = Tuner(ToyBackend(), budget="calls=41", callbacks=()).fit(rows, rows)
    assert result.predict_proba(rows).shape == (9, 3)
    assert result.prompt.task.verbalizer.labels == ("blue", "green", "red")
    assert result.prompt.task.template.fields == ("first_part", "second")


@pytest.mark.parametrize(
    "optimizer",
    ["random", RandomSearch, lambda dim, *, seed, calls: RandomSearch(dim, seed=seed)],
)
def test_an_optimizer_is_a_name_a_class_or_a_function(optimizer: Any) -> None:
    tuner = Tuner(Bowl(), optimizer, settings=SMALL, budget=Budget(calls=41), callbacks=())
    result = tuner.fit(TRAIN)
    assert result.spent.calls == 41
    recorded = result.prompt.provenance["settings"]["optimizer"]
    assert recorded == "random" or recorded.split(":")[0].isidentifier() or "." in recorded


def test_what_decided_a_run_is_recorded_with_its_prompt(tmp_path: Path) -> None:
    small_tuner(Bowl(), out=tmp_path, seed=7).fit(TRAIN, VALIDATION)
    content = json.loads((tmp_path / "prompt.json").read_text())
    assert content["seed"] == 7
    assert content["backend"] == "bowl"
    assert content["settings"]["budget"] == "calls=26"
    assert content["spent"]["calls"] == 26
    assert content["spent"]["validation_calls"] == 6
    assert content["validation"]["loss"] <= 1
    assert content["stop_reason"].startswith("budget calls=26")
    assert "numpy" in content["versions"]


def test_a_search_goes_on_from_a_saved_prompt(tmp_path: Path) -> None:
    first = small_tuner(Bowl(), out=tmp_path, budget="calls=101").fit(TRAIN)
    saved = TunedPrompt.load(tmp_path)
    second = small_tuner(Bowl(), start=saved, budget="calls=6").fit(TRAIN)
    assert second.start.prompt.digest == first.prompt.prompt.digest
    third = small_tuner(Bowl(), start=saved.prompt, budget="calls=6").fit(TRAIN)
    assert third.start.prompt.digest == first.prompt.prompt.digest


def test_starting_words_take_the_space_that_stands_before_the_prompt() -> None:
    class Spaces(WordBowl):
        def tokenize(self, text: str, /) -> tuple[int, ...]:
            seen.append(text)
            return super().tokenize(text)

    seen: list[str] = []
    words = {"start": "words", "prompt_init": "ab c", "prompt_length": None}
    for template in (
        "{text} {prompt} {label}",
        "{text}\n{prompt} {label}",
        "{prompt}{text}{label}",
    ):
        tuner = small_tuner(Spaces(), template=template, **words)
        result = tuner.fit(TRAIN)
    assert seen == [" ab c", "ab c", "ab c"]
    start = result.start.prompt
    assert isinstance(start, SoftPrompt)
    np.testing.assert_allclose(start.vectors[:, 0], [0.2, 0.1])


def test_added_vectors_begin_as_the_words_alone() -> None:
    backend = WordBowl(insertions=frozenset({"add"}))
    result = small_tuner(backend, start="words", prompt_init="ab c", insertion="add").fit(TRAIN)
    start, tuned = result.start.prompt, result.prompt.prompt
    assert isinstance(start, SoftPrompt)
    assert isinstance(tuned, SoftPrompt)
    assert start.anchor == tuned.anchor == (2, 1)
    assert (start.vectors == 0).all()


@pytest.mark.parametrize("projection", ["normal", "hadamard", "vocabulary"])
def test_alpha_counts_in_the_models_own_spread(projection: str) -> None:
    def reach(alpha: float, spread: float) -> float:
        backend = WordBowl()
        backend.embedding_std = spread
        wish = {"projection": projection, "alpha": alpha, "prompt_length": 9}
        result = small_tuner(backend, optimizer="random", optimizer_options={}, **wish).fit(TRAIN)
        prompt = result.steps[-1].best.prompt
        assert isinstance(prompt, SoftPrompt)
        return float(np.abs(prompt.vectors).max())

    assert reach(0.2, 0.5) == pytest.approx(reach(0.1, 0.5) * 2, rel=0.5)
    if projection != "vocabulary":
        assert reach(0.1, 5.0) > 3 * reach(0.1, 0.5)


# Rows that tell little


@pytest.mark.parametrize(
    ("good", "bad", "sentence"),
    [
        (8, 3, "train: the label 'bad' has 3 rows, and .* give 8 or more of each label"),
        (1, 8, "train: the label 'good' has 1 row, and"),
        (4, 20, "train: the label 'bad' has 20 rows and 'good' has 4 rows, .*few_shot_split"),
        (4, 19, None),
    ],
)
def test_few_rows_of_a_label_are_noted(good: int, bad: int, sentence: str | None) -> None:
    rows = [(f"good {n}", "good") for n in range(good)] + [(f"bad {n}", "bad") for n in range(bad)]
    notes: list[str] = []
    small_tuner(Bowl(), on_note=notes.append).fit(rows)
    told = [note for note in notes if "the label '" in note]
    assert len(told) == (sentence is not None)
    assert sentence is None or re.search(sentence, told[0])


# Labels as they were given


def pairs_of(values: Any) -> list[tuple[str, Any]]:
    return [(text, values[label == "good"]) for text, label in TRAIN]


@pytest.mark.parametrize(
    "values",
    [(0, 1), (True, False), (-1.5, 2.0), ("no", "yes"), (np.int64(7), np.int64(8)), ("1", "2")],
)
def test_labels_come_back_as_they_were_given(values: Any, tmp_path: Path) -> None:
    words = {str(label): word for label, word in zip(values, ("bad", "good"), strict=True)}
    words = {label.removesuffix(".0"): word for label, word in words.items()}
    result = small_tuner(Bowl(), labels=words, out=tmp_path).fit(pairs_of(values))
    loaded = TunedPrompt.load(tmp_path)
    for found in (result.predict(["good"]), loaded.predict(Bowl(), ["good"])):
        assert found == [values[1]]
        assert isinstance(found[0], type(values[1]) if isinstance(values[1], str) else (int, float))
        assert isinstance(found[0], bool) == isinstance(values[1], bool)
    assert sorted(loaded.classes) == sorted(values)


def test_labels_of_several_types_come_back_as_text() -> None:
    words = {"0": "bad", "no": "good"}
    result = small_tuner(Bowl(), labels=words).fit(pairs_of((0, "no")))
    assert set(result.prompt.classes) == {"0", "no"}


@pytest.mark.parametrize(
    ("values", "other", "kind"),
    [
        ((0, 1), "maybe", str),
        ((0, 1), "02", str),
        ((0, 1), 0.5, str),
        ((0, 1), np.float64(2.0), int),
        ((0, 1), "2", int),
        ((False, True), "maybe", str),
        ((False, True), 1, str),
        ((0.5, 1.5), "maybe", str),
        ((0.5, 1.5), "2.50", str),
        ((0.5, 1.5), 2, float),
    ],
)
@pytest.mark.parametrize("rows", [[], ["an odd thing"]])
def test_labels_without_training_rows_may_be_of_another_type(
    values: Any, other: Any, kind: type, rows: list[str], tmp_path: Path
) -> None:
    names = [label_name(each) for each in (*values, other)]
    tuner = small_tuner(
        Bowl(), labels=dict(zip(names, ("bad", "good", "odd"), strict=True)), out=tmp_path
    )
    result = tuner.fit(pairs_of(values), [(text, other) for text in rows] or None)
    loaded = TunedPrompt.load(tmp_path)
    for classes in (result.prompt.classes, loaded.classes):
        assert [label_name(each) for each in classes] == names
        assert {type(each) for each in classes} == {kind}
        assert result.predict(["good"]) == loaded.predict(Bowl(), ["good"]) == [classes[1]]


@pytest.mark.parametrize("form", [list, tuple, np.array, pd.Series])
def test_texts_and_labels_may_come_apart(form: Any) -> None:
    texts, labels = zip(*TRAIN, strict=True)
    expected = small_tuner(Bowl()).fit(TRAIN)
    for found in (
        small_tuner(Bowl()).fit(form(texts), form(labels)),
        small_tuner(Bowl()).fit(form(texts), labels=form(labels)),
    ):
        assert found.prompt.prompt.digest == expected.prompt.prompt.digest
        assert found.predict(list(texts)) == expected.predict(list(texts))


@pytest.mark.parametrize(
    ("train", "labels", "sentence"),
    [
        (["a", "b"], ["x"], "2 texts and 1 labels: give one label for each text"),
        ([("a", "x")], ["x"], "labels are for a sequence of texts"),
        ("rows.csv", ["x"], "labels are for a sequence of texts"),
        (["a", "b"], None, "row 1: no label"),
    ],
)
def test_texts_and_labels_that_do_not_fit_get_one_sentence(
    train: Any, labels: Any, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        small_tuner(Bowl()).fit(train, labels=labels)


# What a result gives


def test_a_result_predicts_with_its_best_prompt(result: TuneResult) -> None:
    texts = [text for text, _ in VALIDATION]
    probabilities = result.predict_proba(texts)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0)
    columns = result.prompt.task.verbalizer.labels
    assert result.predict(texts) == [columns[i] for i in probabilities.argmax(axis=1)]
    score = result.score(VALIDATION)
    assert result.best.validation is not None
    assert score.loss == pytest.approx(result.best.validation.loss)
    assert score.accuracy == pytest.approx(result.best.validation.accuracy)


def test_a_comparison_sets_words_alone_start_and_tuned_side_by_side() -> None:
    tilted = Spoilt(lambda scores, before: scores - np.array([0.0, 3.0]))
    result = small_tuner(tilted, budget="calls=51").fit(TRAIN, VALIDATION)
    comparison = result.compare(VALIDATION)
    assert comparison.tuned == result.score(VALIDATION)
    assert comparison.start == result.start.score(result.client, VALIDATION)
    plain = TunedPrompt.without_head(result.start.prompt, result.start.task)
    assert comparison.baseline.loss == pytest.approx(plain.score(tilted, VALIDATION).loss)
    assert comparison.tuned.loss < comparison.start.loss < comparison.baseline.loss


def test_the_history_is_a_frame_with_a_row_a_step(result: TuneResult) -> None:
    history = result.history
    assert list(history.columns) == list(step_row(result.steps[0]))
    assert list(history["generation"]) == list(range(21))
    assert list(history["calls"]) == list(range(1, 102, 5))
    assert (history["best_loss"].diff().dropna() <= 0).all()
    assert history["best_loss"].iloc[-1] == result.best.evaluation.loss  # type: ignore[union-attr]
    assert (history["train_loss"] <= history["train_loss_mean"]).all()


def test_a_run_without_a_step_has_an_empty_history_with_the_same_columns(
    result: TuneResult,
) -> None:
    none = replace(result, steps=())
    assert list(none.history.columns) == list(result.history.columns)
    assert none.plot().get_xlabel().startswith("calls")


def test_a_result_saves_its_prompt(result: TuneResult, tmp_path: Path) -> None:
    assert TunedPrompt.load(result.save(tmp_path)).prompt.digest == result.prompt.prompt.digest


# Defaults


def test_the_default_template_holds_every_field_and_ends_with_the_label() -> None:
    template = default_template([Example({"a_b": "x", "c": "y"})])
    assert template.fields == ("a_b", "c")
    row = template.render(Example({"a_b": "x", "c": "y"}))
    assert [str(part) for part in row][-1] == "Slot.LABEL"


@pytest.mark.parametrize("name", ["prompt", "label", "a{b", "}", ""])
def test_a_column_that_means_something_else_in_a_template_is_to_be_renamed(name: str) -> None:
    with pytest.raises(InputError, match=r"the column '.*' cannot stand in a template.* rename"):
        default_template([Example({name: "x"})])


def test_labels_are_their_own_words_and_numbers_are_warned_of() -> None:
    def verbalizer(*labels: str) -> Any:
        return default_verbalizer([Example({}, label) for label in labels])

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert verbalizer("good", "bad", "good").words == {"bad": "bad", "good": "good"}
    with pytest.warns(UserWarning, match=r"the labels 0, 1 are numbers, .* labels=\{"):
        assert verbalizer("1", "0").labels == ("0", "1")
    with pytest.warns(UserWarning, match="'Good' and 'good' differ in case only"):
        assert verbalizer("good", "bad", "Good").labels == ("Good", "bad", "good")


def test_notes_of_the_backend_are_warnings_before_anything_is_paid() -> None:
    class Noting(Bowl):
        def inspect(self, request: Any, /) -> Any:
            assert self.asked == []
            from lmaas_tune import Inspection

            return Inspection(("'good' is two tokens",))

    with pytest.warns(UserWarning, match="'good' is two tokens") as caught:
        small_tuner(Noting()).fit(TRAIN, VALIDATION)
    told = [str(each.message) for each in caught]
    assert len(told) == len(set(told))  # told once, though both sets of rows have it


def test_every_note_of_a_run_goes_to_the_tuners_on_note(tmp_path: Path) -> None:
    class Busy(Bowl):
        failed = False

        def score(self, requests: Any, /) -> Any:
            if not self.failed:
                self.failed = True
                raise TransientError("busy")
            replies = super().score(requests)
            return [replace(reply, bounds=2) for reply in replies]

    said, elsewhere = list[str](), list[str]()
    rows = [(text, int(label == "good")) for text, label in TRAIN]
    client = Client(Busy(), retry=Retry(first_wait=0.0), on_note=elsewhere.append)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tuner = small_tuner(client, on_note=said.append, out=tmp_path, budget="calls=11")
        result = tuner.fit(rows, resume=True)
        result.score(rows)
    phrases = ["are numbers", "after the starts, and a search learns", "no run to resume"]
    phrases += ["trying again", "are bounds", "no better than guessing", "are bounds"]
    assert len(said) == len(phrases)
    assert [p for p, note in zip(phrases, said, strict=True) if p not in note] == []
    assert result.client.meter is client.meter
    client.on_note("its own")
    assert elsewhere == ["its own"]


# What cannot work is told before anything is paid

ONE_CLASS = [("a", "good"), ("b", "good")]


@pytest.mark.parametrize(
    ("wish", "rows", "sentence"),
    [
        ({}, [], "train: it has no rows"),
        ({}, "nowhere.csv", r"nowhere\.csv: no such file"),
        ({}, ONE_CLASS, "every row has the label 'good'.* add rows of another class"),
        ({"labels": {"good": "g", "bad": "b"}}, ONE_CLASS, "every row has the label 'good'"),
        ({"labels": {"good": "x", "bad": "x"}}, TRAIN, "share the word 'x'"),
        ({"labels": {"good": "x", "poor": "y"}}, TRAIN, "train: row 5 has the label 'bad', which"),
        ({"template": "{sentence} {prompt} {label}"}, TRAIN, "train: row 1: no field 'sentence'"),
        ({"template": "{text} {label}"}, TRAIN, r"has \{prompt\} 0 times"),
        ({"optimizer": "cmaa"}, TRAIN, "unknown optimizer 'cmaa'; did you mean 'cma'"),
        ({"optimizer_options": {"popsize": 4}}, TRAIN, "'cma' has no option 'popsize'"),
        ({"settings": "papre"}, TRAIN, "unknown preset 'papre'"),
        ({"budget": "calls=5"}, TRAIN, "no call was made: budget calls=5: 5 left, .* needs 6"),
        ({"budget": "call=5"}, TRAIN, "unknown limit 'call'; did you mean 'calls'"),
        ({"seed": -1}, TRAIN, "seed=-1: it must be a whole number from 0 on"),
        ({"seed": "13"}, TRAIN, "seed='13': it must be a whole number"),
        ({"seed": None}, TRAIN, "seed=None: it must be a whole number"),
        (
            {"seed": 2**32, "optimizer": "one-plus-one", "optimizer_options": {}},
            TRAIN,
            "seed=4294967296",
        ),
        ({"settings": {}}, TRAIN, r"settings=\{\}: give Settings"),
        ({"template": 5}, TRAIN, "template=5: give a text"),
        ({"labels": ["good", "bad"]}, TRAIN, r"labels=\['good', 'bad'\]: give the word for each"),
        ({"backend": "hf"}, TRAIN, r"backend='hf' is no backend: give load_backend"),
        ({"objective": lambda scores, targets: None}, TRAIN, "the objective gives no number for"),
        (
            {"settings": SMALL, "objective": "hinge"},
            TRAIN,
            "objective='hinge' is no function: a name goes into",
        ),
        ({"settings": SMALL, "head": "bias"}, TRAIN, "head='bias' is no head: .* a name goes"),
        ({"callbacks": ProgressBar()}, TRAIN, "callbacks=<.*ProgressBar.*: give a list of them"),
        ({"start": "It was"}, TRAIN, "start='It was' is no prompt: .* into the settings, as Soft"),
        ({"start": SoftPrompt(np.zeros((2, 4)))}, TRAIN, "must be a soft one of width 3 for bowl"),
        (
            {"start": TunedPrompt.without_head(TextPrompt("a"), task_for(read_examples(TRAIN)))},
            TRAIN,
            "must be a soft one of width 3",
        ),
        (
            {"start": SoftPrompt(np.zeros((2, 3)), "prepend")},
            TRAIN,
            "bowl does not take a prompt by insertion 'prepend'; it takes concat",
        ),
        (
            {"settings": changed(SMALL, prompt_length=10**8)},
            TRAIN,
            "prompt_length=100000000: bowl reads 512 tokens at most, the row's included",
        ),
        (
            {"settings": Settings(prompt=Soft(start="words", prompt_init="a"))},
            TRAIN,
            r"bowl does not give word embeddings.* start='zero'",
        ),
    ],
)
def test_what_cannot_work_gets_one_sentence_and_costs_nothing(
    wish: Any, rows: Any, sentence: str, tmp_path: Path
) -> None:
    backend = Bowl(max_tokens=512)
    own = {k: v for k, v in wish.items() if k in ("optimizer_options", "budget", "optimizer")}
    rest = {k: v for k, v in wish.items() if k not in own and k != "backend"}
    asked = wish.get("backend", backend)
    if "settings" in rest or "start" in rest:
        arguments = {"settings": SMALL, "callbacks": (), **rest}
        with pytest.raises(InputError, match=sentence):
            Tuner(asked, **arguments).fit(rows)
    else:
        with pytest.raises(InputError, match=sentence):
            small_tuner(asked, out=tmp_path / "run", **own, **rest).fit(rows)
        assert not (tmp_path / "run" / "journal.jsonl").exists()
    assert backend.asked == []


def test_a_text_only_model_is_no_match_for_soft_prompts_that_are_asked_for() -> None:
    backend: Any = Bowl()
    backend.capabilities = type(backend.capabilities)(soft_prompt_width=None)
    with pytest.raises(InputError, match=r"bowl takes text prompts only.*Text.*or .* such as 'hf'"):
        small_tuner(backend).fit(TRAIN)


def test_a_model_that_reads_left_to_right_needs_the_label_last() -> None:
    with pytest.raises(InputError, match=r"so \{label\} must come last: remove the text after"):
        small_tuner(Bowl(label_anywhere=False), template="{text} {label}. {prompt}").fit(TRAIN)
    assert small_tuner(Bowl(label_anywhere=False)).fit(TRAIN).finished


@pytest.mark.parametrize("projection", ["normal", "hadamard", "vocabulary"])
def test_a_model_without_word_embeddings_is_told_what_to_take_instead(projection: str) -> None:
    with pytest.raises(
        InputError, match=r"(?s)word embeddings.*take (projection='uniform'|another)"
    ):
        small_tuner(Bowl(), projection=projection).fit(TRAIN)


def test_a_foreign_label_among_the_validation_rows_is_named() -> None:
    backend = Bowl()
    with pytest.raises(InputError, match=r"validation: row 2 has the label 'god', .* mean 'good'"):
        small_tuner(backend).fit(TRAIN, [("a", "good"), ("b", "god")])
    assert backend.asked == []


def test_a_template_and_labels_may_be_ready_made_or_plain() -> None:
    results = [
        small_tuner(Bowl(), template=template, labels={"good": "good", "bad": "bad"}).fit(TRAIN)
        for template in ("{text} {prompt}: {label}", Template("{text} {prompt}: {label}"))
    ]
    assert results[0].prompt.prompt.digest == results[1].prompt.prompt.digest


def test_rows_are_the_same_run_in_every_form() -> None:
    labels = {"numbers": {"1": "good", "0": "bad"}}
    words = {"good": "good", "bad": "bad"}
    digests = {
        small_tuner(Bowl(), labels=labels.get(form, words)).fit(rows).prompt.prompt.digest
        for form, rows in FORMS.items()
    }
    assert len(digests) == 1


# It learns


class Planted(Bowl):
    """Reads a row in full where the prompt's mean is at one place in eight of twelve dimensions."""

    def __init__(self, seed: int) -> None:
        super().__init__(width=12, identity=f"planted {seed}")
        rng = np.random.default_rng(seed)
        self._basis = np.linalg.qr(rng.standard_normal((12, 8)))[0]
        self._optimum = rng.standard_normal(8)

    def gain(self, prompt: Prompt) -> float:
        assert isinstance(prompt, SoftPrompt)
        away = prompt.vectors.mean(axis=0) @ self._basis - self._optimum
        return 4.0 / (1.0 + float(away @ away))


def test_black_box_tuning_beats_random_search_at_equal_calls() -> None:
    wish = {"intrinsic_dim": 20, "alpha": 2.0, "budget": "calls=301"}

    def loss(optimizer: str, seed: int) -> float:
        tuner = small_tuner(
            Planted(seed),
            optimizer=optimizer,
            optimizer_options={"population": 10},
            seed=seed,
            **wish,
        )
        result = tuner.fit(TRAIN, VALIDATION)
        assert result.spent.calls == 301
        return result.score(VALIDATION).loss

    tuned, drawn = ([loss(name, seed) for seed in range(4)] for name in ("cma", "random"))
    assert np.mean(tuned) < np.mean(drawn) - 0.05


def test_a_replay_that_fails_leaves_the_finished_prompt_alone(tmp_path: Path) -> None:
    small_tuner(Bowl(), out=tmp_path).fit(TRAIN, VALIDATION)
    finished = (tmp_path / "prompt.json").read_bytes()
    journal = tmp_path / "journal.jsonl"
    lines = journal.read_text().splitlines()
    lines[3] = lines[3].replace('"of": "', '"of": "x')
    journal.write_text("\n".join(lines) + "\n")
    with pytest.raises(StorageError):
        small_tuner(Bowl(), out=tmp_path).fit(TRAIN, VALIDATION, resume=True)
    assert (tmp_path / "prompt.json").read_bytes() == finished


@pytest.mark.parametrize("validation", [None, VALIDATION])
def test_a_model_that_cannot_tell_its_price_is_asked_once_first(validation: Any) -> None:
    model = WordBowl()
    settings = changed(SMALL, start="words", prompt_init=("one", "two", "three"))
    result = small_tuner(model, settings=settings, budget="tokens=700").fit(TRAIN, validation)
    assert len(result.steps[0].evaluations) == 3
    assert 0 < result.spent.tokens <= 700
    assert len(result.steps) > 1


def test_the_record_names_the_options_that_were_used() -> None:
    tuner = Tuner(Bowl(), "random", settings=SMALL, budget="calls=50", callbacks=())
    result = tuner.fit(TRAIN)
    assert result.prompt.provenance["settings"]["optimizer"] == "random"
    assert result.prompt.provenance["settings"]["optimizer_options"] == {}


def test_numbers_of_numpy_are_as_good_as_pythons_own(tmp_path: Path) -> None:
    options = {"population": np.int64(5)}
    tuner = small_tuner(Bowl(), seed=np.int64(3), optimizer_options=options, out=tmp_path)
    record = tuner.fit(TRAIN).prompt.provenance
    assert (record["seed"], record["settings"]["optimizer_options"]) == (3, {"population": 5})


def test_labels_are_called_alike_in_rows_and_words() -> None:
    rows = [(text, float(label == "good")) for text, label in TRAIN]
    result = small_tuner(Bowl(), labels={1.0: "good", 0.0: "bad"}).fit(rows)
    assert result.prompt.task.verbalizer.labels == ("1", "0")


def test_a_start_without_a_finite_validation_loss_ends_the_run() -> None:
    class Overflowing(Bowl):
        def logprobs(self, request: ScoreRequest) -> FloatArray:
            scores = super().logprobs(request)
            return scores if len(request.batch) == len(TRAIN) else scores * np.nan

    with pytest.raises(PermanentError, match="the start has no finite loss on the validation"):
        small_tuner(Overflowing()).fit(TRAIN, VALIDATION)


def test_the_record_says_that_a_start_was_given() -> None:
    result = small_tuner(Bowl(), start=SoftPrompt(np.ones((2, 3)))).fit(TRAIN)
    assert result.prompt.provenance["settings"]["start"] == "given"
