"""What a run answers with: a head, its words, joined rows, and the mean of several prompts."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmaas_tune import (
    Client,
    ScoreReply,
    ScoreRequest,
    Settings,
    Soft,
    Text,
    TextPrompt,
    TunedPrompt,
    Tuner,
    TuneResult,
)
from lmaas_tune.data import read_examples
from lmaas_tune.errors import InputError
from lmaas_tune.evaluator import Evaluator
from lmaas_tune.heads import BiasHead, Fit, FittedHead, LinearHead
from lmaas_tune.journal import FILE_NAME
from lmaas_tune.notes import OnNote
from lmaas_tune.objectives import cross_entropy
from lmaas_tune.optimizers.random import RandomSearch
from lmaas_tune.prepared_run import _clearly_higher
from lmaas_tune.prompts import FloatArray, Prompt
from lmaas_tune.settings import with_fields
from lmaas_tune.student import student_quantile
from lmaas_tune.task import Task, Template, Verbalizer
from lmaas_tune.testing.toy import ToyBackend
from tests.support.small_models import Bowl, words_of

LABELS = ("good", "bad")
TASK = Task(Template("{text} {prompt} {label}"), Verbalizer({word: word for word in LABELS}))
TRAIN = [(f"{label} film {n}", label) for n in range(12) for label in LABELS]
VALIDATION = [(f"{label} play {n}", label) for n in range(6) for label in LABELS]
SETTINGS = Settings(
    prompt=Text(prompt_init=("blunt", "sharp", "keen"), words=("so",), slots=0),
    optimizer="random",
    optimizer_options={"population": 2},
    head="bias",
)
SKILL = {"blunt": 0.1, "sharp": 2.0, "keen": 2.0}
MANY = [(f"{label} book {n}", label) for n in range(80) for label in LABELS]
UNEVEN = [(text, label) for n, (text, label) in enumerate(MANY) if label == "good" or n < 10]
KNOWN = tuple(f"{a}{b}{c}" for a in "bcdf" for b in "aeiou" for c in "klmn")  # 80 words


class Noisy(Bowl):
    """Knows the labels by the skill of a prompt, with noise of its own for each row and prompt.

    Attributes:
        requests: All of them, in order.
    """

    def __init__(self, skill: dict[str, float] | None = None, **can: Any) -> None:
        super().__init__(identity="noisy", **can)
        self.skill = skill or SKILL
        self.requests: list[ScoreRequest] = []

    def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
        self.requests += requests
        return super().score(requests)

    def logprobs(self, request: ScoreRequest) -> FloatArray:
        skill = self.skill[text_of(request.prompt)]
        rows = [
            [
                self.word(text_of(request.prompt), words_of(row), w, skill)
                for w in request.candidates
            ]
            for row in request.batch.rows
        ]
        return np.array(rows) - 20.0

    def word(self, prompt: str, row: list[str], word: str, skill: float) -> float:
        """The score of a word; that of others is noise."""
        seed = zlib.crc32(" ".join([prompt, *row, word]).encode())
        noise = float(np.random.default_rng(seed).normal())
        return noise + skill * (word in row)


class Knowing(Noisy):
    """Scores further words, which tell the label where the label words tell little."""

    def __init__(self, *, telling: float = 3.0, most: int | None = 40) -> None:
        # a request names the two label words too
        super().__init__(dict.fromkeys(SKILL, 0.1), words_per_request=most + 2 if most else most)
        self.telling = telling

    def one_token_words(self) -> Sequence[str]:
        return ("good", "bad", *KNOWN)

    def word(self, prompt: str, row: list[str], word: str, skill: float) -> float:
        of_label = word[0] in "bc" if "good" in row else word[0] in "df"
        return super().word(prompt, row, word, skill) + self.telling * of_label * (word in KNOWN)


def text_of(prompt: Prompt) -> str:
    assert isinstance(prompt, TextPrompt)
    return prompt.text


def fit(
    backend: Any,
    train: Any = TRAIN,
    validation: Any = None,
    *,
    out: Path | None = None,
    resume: bool = False,
    own_head: Any = None,
    on_note: OnNote | None = None,
    **wish: Any,
) -> TuneResult:
    tuner = Tuner(
        backend,
        settings=with_fields(SETTINGS, wish),
        head=own_head,
        budget="calls=5",
        template=TASK.template.text,
        labels=TASK.verbalizer.words,
        callbacks=(),
        out=out,
        on_note=on_note,
    )
    return tuner.fit(train, validation, resume=resume)


def evaluator(rows: Any = TRAIN, head: Any = None) -> Evaluator:
    examples = read_examples(rows)
    return Evaluator(Client(Bowl()), TASK, examples, cross_entropy, head or BiasHead(), what="all")


# Validation rows join the training rows


def test_validation_rows_judge_with_the_training_rows_and_are_never_scored_apart() -> None:
    backend = Noisy()
    result = fit(backend, TRAIN, VALIDATION)
    assert {len(request.batch) for request in backend.requests} == {len(TRAIN) + len(VALIDATION)}
    assert result.spent.validation_calls == 0
    both = fit(Noisy(), TRAIN + VALIDATION)
    assert [e.loss for e in result.steps[0].evaluations] == [
        e.loss for e in both.steps[0].evaluations
    ]
    np.testing.assert_array_equal(result.prompt.head.bias, both.prompt.head.bias)


def soft_search(
    train: Any,
    validation: Any,
    optimizer: Any = "cma",
    *,
    words: str | Sequence[str] = "it was",
    length: int | None = None,
) -> TuneResult:
    soft = Soft(prompt_init=words, prompt_length=length, intrinsic_dim=4)
    tuner = Tuner(
        ToyBackend(),
        optimizer,
        settings=Settings(prompt=soft, head="bias"),
        template=TASK.template.text,
        labels=TASK.verbalizer.words,
        budget="calls=60",
        callbacks=(),
    )
    return tuner.fit(train, validation)


def test_training_rows_tell_the_optimizer_and_validation_rows_choose() -> None:
    told: list[float] = []

    class Told(RandomSearch):
        def tell(self, points: Any, losses: Any, /) -> None:
            told.extend(losses)
            super().tell(points, losses)

    result = soft_search(TRAIN, VALIDATION, Told)
    both, count = evaluator(TRAIN + VALIDATION), len(TRAIN)
    assert told == [e.loss for step in result.steps[1:] for e in step.evaluations]
    chosen = [step.best for step in result.steps if step.improved]
    assert len(chosen) > 2
    for best in chosen:
        assert best.train is not None and best.validation is not None
        scores = best.train.scores
        assert scores is not None
        whole, train, others = (
            both.judge(scores, rows=rows).loss
            for rows in (None, np.arange(count), np.arange(count, len(both.targets)))
        )
        assert (best.train.loss, best.validation.loss) == (train, others)
        assert whole == pytest.approx((2 * train + others) / 3)  # two of three rows are told
    losses = [best.evaluation.loss for best in chosen if best.evaluation is not None]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize(("each", "parted"), [(15, False), (16, True)])
def test_half_of_enough_training_rows_choose_where_there_are_no_others(
    each: int, parted: bool
) -> None:
    rows = [(f"{label} book {n}", label) for n in range(each) for label in LABELS]
    result = soft_search(rows, None)
    assert (result.best.validation is not None) == parted
    assert result.spent.validation_calls == 0


def test_own_validation_rows_are_scored_apart_where_they_select() -> None:
    backend = Noisy()
    result = fit(backend, TRAIN, VALIDATION, validation_rows="select", averaged=1)
    assert {len(request.batch) for request in backend.requests} == {len(TRAIN), len(VALIDATION)}
    assert result.spent.validation_calls > 0
    assert result.best.validation is not None


@pytest.mark.parametrize(
    ("train", "validation", "sentence"),
    [
        (TRAIN, [("a", "good"), ("b", "god")], r"validation: row 2 has the label 'god'"),
        ([*TRAIN, ("b", "god")], VALIDATION, r"train: row 25 has the label 'god'"),
        (TRAIN, [*VALIDATION, {"words": "a", "label": "bad"}], r"validation: row 13.*'text'"),
    ],
)
def test_a_row_that_does_not_fit_is_named_by_its_own_set_and_number(
    train: Any, validation: Any, sentence: str
) -> None:
    backend = Noisy()
    with pytest.raises(InputError, match=sentence):
        fit(backend, train, validation)
    assert backend.requests == []


def test_a_run_goes_on_with_the_rows_of_both_sets_alone(tmp_path: Path) -> None:
    fit(Noisy(), TRAIN, VALIDATION, out=tmp_path)
    header = json.loads((tmp_path / FILE_NAME).read_text().splitlines()[0])
    labels = list(LABELS)
    assert header["label_words"] == dict(zip(labels, labels, strict=True))
    assert header["rows"] == [evaluator(TRAIN).digest, evaluator(VALIDATION).digest]
    for others in (VALIDATION[:-1], [*VALIDATION[:-1], ("bad play 9", "bad")], None):
        with pytest.raises(InputError, match="rows"):
            fit(Noisy(), TRAIN, others, out=tmp_path, resume=True)
    apart = tmp_path / "select"
    fit(Noisy(), TRAIN, VALIDATION, out=apart, validation_rows="select", averaged=1)
    header = json.loads((apart / FILE_NAME).read_text().splitlines()[0])
    assert header["rows"] == [evaluator(rows).digest for rows in (TRAIN, VALIDATION)]


def test_validation_rows_that_are_training_rows_are_told() -> None:
    with pytest.warns(UserWarning, match="validation: 1 of 13 rows are training rows too"):
        fit(Noisy(), TRAIN, [*VALIDATION, TRAIN[0]])


# Heads


class Centroids:
    """The label whose mean is nearest to a row; a user's own head."""

    extra_words = 12

    def fit(self, scores: FloatArray, targets: Any, labels: int, /) -> Fit:
        return Fit(self.head(scores, targets, labels), self.held_out(scores, targets, labels))

    def head(self, scores: FloatArray, targets: Any, labels: int) -> FittedHead:
        means = np.array([scores[targets == label].mean(axis=0) for label in range(labels)])
        return FittedHead(-(means**2).sum(axis=1) / 2, means.T)

    def held_out(self, scores: FloatArray, targets: Any, labels: int) -> FloatArray:
        rows = range(len(scores))
        return np.array(
            [
                self.head(np.delete(scores, row, 0), np.delete(targets, row), labels)(scores[row])
                for row in rows
            ]
        )


@pytest.mark.parametrize(("most", "words"), [(40, 12), (5, 5), (None, 12)])
def test_a_head_of_ones_own_reads_the_words_it_asks_for_and_is_saved(
    most: int | None, words: int, tmp_path: Path
) -> None:
    result = fit(Knowing(most=most), own_head=Centroids(), averaged=1, out=tmp_path)
    assert len(result.prompt.words) == words
    assert result.compare(VALIDATION).tuned.accuracy > 0.9
    loaded = TunedPrompt.load(tmp_path)
    assert loaded.provenance["settings"]["head"] == "tests.test_answers:Centroids"
    backend = Knowing(most=most)
    assert loaded.predict(backend, ["good play 1"]) == result.predict(["good play 1"])


def test_a_head_of_ones_own_reads_the_label_words_where_no_others_are_scored() -> None:
    result = fit(Noisy(), own_head=Centroids(), averaged=1)
    assert result.prompt.words == ()
    assert result.prompt.head.matrix is not None
    assert result.prompt.head.matrix.shape == (2, 2)


def test_the_words_of_the_head_are_scored_learned_from_and_saved(tmp_path: Path) -> None:
    backend = Knowing()
    result = fit(backend, head="words", averaged=1, out=tmp_path)
    words = result.prompt.words
    assert len(words) == len(set(words)) == 40
    assert set(words) <= set(KNOWN)
    assert {request.candidates for request in backend.requests} == {
        (*(f"{label}" for label in LABELS), *words)
    }
    comparison = result.compare(VALIDATION)
    assert comparison.baseline.accuracy < 0.8 < 0.95 < comparison.start.accuracy
    assert comparison.tuned.accuracy > 0.95
    loaded, backend = TunedPrompt.load(tmp_path), Knowing()
    assert loaded.words == words
    texts = [text for text, _ in VALIDATION]
    np.testing.assert_array_equal(
        loaded.scores(backend, texts), result.prompt.scores(backend, texts)
    )


def test_the_head_is_fitted_to_the_scores_that_were_paid() -> None:
    backend = Knowing()
    result = fit(backend, head="words", averaged=1)
    assert result.best.train is not None
    scores = result.best.train.scores.astype(np.float64)
    expected = LinearHead(40).fit(scores, evaluator().targets, 2).head
    assert expected.matrix is not None
    np.testing.assert_array_equal(result.prompt.head.matrix, expected.matrix)
    np.testing.assert_array_equal(result.prompt.head.bias, expected.bias)
    assert len(backend.requests) == result.spent.calls - result.spent.hits


@pytest.mark.parametrize(
    ("wish", "most", "words"),
    [
        ({"head": "auto"}, 40, 40),
        ({"head": "auto"}, None, 80),
        ({"head": "words", "head_words": 7}, None, 7),
        ({"head": "auto", "head_words": 300}, 12, 12),
        ({"head": "auto"}, 0, 0),
        ({"head": "affine"}, 40, 0),
        ({"head": "bias"}, 40, 0),
        ({"head": "none"}, 40, 0),
    ],
)
def test_as_many_words_are_asked_for_as_setting_and_model_allow(
    wish: dict[str, Any], most: int | None, words: int
) -> None:
    backend = Knowing(most=most)
    fit(backend, **wish)
    assert {len(request.candidates) for request in backend.requests} == {2 + words}


def test_words_that_mislead_are_not_asked_for_again() -> None:
    rows = [(f"{LABELS[n % 2]} film {n}", LABELS[n // 2 % 2]) for n in range(24)]
    backend = Knowing(telling=0.0)
    found = []
    for seed in range(6):
        tuner = Tuner(
            backend,
            settings=with_fields(SETTINGS, {"head": "words", "averaged": 1}),
            budget="calls=5",
            template=TASK.template.text,
            callbacks=(),
            seed=seed,
        )
        found.append(tuner.fit(rows).prompt)
    misled = [prompt for prompt in found if prompt.head.matrix is None]
    assert misled
    for prompt in misled:
        backend.requests.clear()
        assert prompt.words == ()
        prompt.predict(backend, ["good film"])
        assert [len(request.candidates) for request in backend.requests] == [2]


class Uneven(Knowing):
    """One of its prompts reads the label words well, another the words beside them."""

    def word(self, prompt: str, row: list[str], word: str, skill: float) -> float:
        if prompt == "keen":
            return super().word(prompt, row, word, skill)
        return Noisy.word(self, prompt, row, word, 1.5 if prompt == "sharp" else 0.1)


def test_one_of_several_heads_may_read_no_words(tmp_path: Path) -> None:
    result = fit(Uneven(telling=0.3), MANY, head="words", averaged=2, out=tmp_path)
    sharp, keen = result.prompt.members
    assert (sharp.head.matrix is None, keen.head.matrix is None) == (True, False)
    assert len(result.prompt.words) == 40
    loaded, texts = TunedPrompt.load(tmp_path), [text for text, _ in VALIDATION]
    assert loaded.words == result.prompt.words
    np.testing.assert_array_equal(
        loaded.scores(Uneven(), texts), result.prompt.scores(Uneven(), texts)
    )


def test_words_without_a_model_that_knows_any_are_refused_for_free() -> None:
    backend = Noisy(words_per_request=None)
    with pytest.raises(InputError, match="scores the label words only; take head='affine'"):
        fit(backend, head="words")
    assert backend.requests == []


def test_a_run_whose_words_are_others_is_not_resumed(tmp_path: Path) -> None:
    class Reordered(Knowing):
        def one_token_words(self) -> Sequence[str]:
            return super().one_token_words()[::-1]

    first = fit(Knowing(), out=tmp_path, head="words", head_words=10)
    for other in (Reordered(), Knowing(most=5)):
        with pytest.raises(InputError, match="another run: head_words differ"):
            fit(other, out=tmp_path, head="words", head_words=10, resume=True)
        assert other.requests == []
    again = fit(Knowing(), out=tmp_path, head="words", head_words=10, resume=True)
    assert again.prompt.words == first.prompt.words


# The mean of several prompts


def test_starts_are_averaged_unless_one_is_clearly_worse_on_rows_that_are_left_out() -> None:
    result = fit(Noisy(), MANY)
    assert {text_of(member.prompt) for member in result.prompt.members} == {"sharp", "keen"}
    some = evaluator(MANY)
    by_text = dict(zip(("blunt", "sharp", "keen"), result.steps[0].evaluations, strict=True))
    least = some.row_losses(by_text[text_of(result.prompt.prompt)])
    for text, evaluation in by_text.items():
        differences = some.row_losses(evaluation) - least
        error = differences.std() / len(differences) ** 0.5
        assert (differences.mean() > 2 * error) == (text == "blunt")
    for member in result.prompt.members:
        head = some.fit_head(by_text[text_of(member.prompt)])
        np.testing.assert_array_equal(member.head.bias, head.bias)


def test_a_start_that_is_clearly_better_stays_alone() -> None:
    result = fit(Noisy({"blunt": 0.1, "sharp": 6.0, "keen": 0.1}), MANY)
    assert [text_of(member.prompt) for member in result.prompt.members] == ["sharp"]
    assert result.prompt.others == ()


def test_what_the_search_found_stands_for_the_start_that_it_began_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lmaas_tune.prepared_run._clearly_higher", lambda *_, **errors: False)
    result = soft_search(TRAIN, VALIDATION, words=("it was", "so", "very"))
    assert result.best.generation > 0
    began, *others = [member.prompt.digest for member in result.best_starts.members]
    assert began == result.steps[0].best.prompt.digest
    assert len(others) == 2 and [m.prompt.digest for m in result.prompt.others] == others


@pytest.mark.parametrize(("far", "members"), [(3.0, 1), (4.0, 2)])
def test_starts_give_way_only_to_what_is_far_better_on_the_rows_that_choose(
    monkeypatch: pytest.MonkeyPatch, far: float, members: int
) -> None:
    monkeypatch.setattr("lmaas_tune.prepared_run._FAR", far)
    equal = "it was", "was it"  # the toy model takes the mean of the words
    result = soft_search(TRAIN, VALIDATION, words=equal)
    rows, start, found = evaluator(TRAIN + VALIDATION), result.steps[0].best, result.best
    assert start.train is not None and found.train is not None
    gains = rows.row_losses(start.train) - rows.row_losses(found.train)
    every, own = (g.mean() / (g.std() / len(g) ** 0.5) for g in (gains, gains[len(TRAIN) :]))
    assert every < 3 < own < 4
    assert len(result.prompt.members) == members


@pytest.mark.parametrize(("rows", "far"), [(7, False), (8, True)])
def test_too_few_rows_tell_nothing_of_errors(rows: int, far: bool) -> None:
    assert _clearly_higher(np.full(rows, 0.1)) == far


class Overconfident(Noisy):
    """Right as often as before, and far too sure."""

    def logprobs(self, request: ScoreRequest) -> FloatArray:
        return super().logprobs(request) * 50.0


@pytest.mark.parametrize(
    ("backend", "rows", "wish", "noted"),
    [
        (Noisy(dict.fromkeys(SKILL, 0.0)), MANY, {"head": "affine"}, True),
        (Noisy(), MANY, {"head": "affine"}, False),
        # its loss is high, its accuracy too
        (Overconfident(), MANY, {"head": "none", "averaged": 1}, False),
        # the likeliest label is right as often
        (Noisy(), UNEVEN, {"head": "affine"}, False),
    ],
)
def test_a_result_that_is_not_better_than_guessing_is_told(
    backend: Noisy, rows: Any, wish: dict[str, Any], noted: bool
) -> None:
    notes: list[str] = []
    fit(backend, rows, on_note=notes.append, **wish)
    assert any("no better than guessing" in note for note in notes) == noted


def test_the_best_of_many_prompts_has_to_be_better_than_that_of_one() -> None:
    best = np.random.default_rng(0).normal(size=(20_000, 60)).max(axis=1)
    errors = student_quantile(1 - 0.025 / 60, 10_000)
    assert (best > errors).mean() == pytest.approx(0.025, abs=0.005)


@pytest.mark.filterwarnings("ignore:generation 0. no finite loss")
@pytest.mark.parametrize("head", ["bias", "affine"])
def test_a_start_without_finite_scores_is_not_averaged(head: str) -> None:
    class Overflowing(Noisy):
        def logprobs(self, request: ScoreRequest) -> FloatArray:
            scores = super().logprobs(request)
            return scores * np.nan if text_of(request.prompt) == "keen" else scores

    result = fit(Overflowing(dict.fromkeys(SKILL, 1.5)), MANY, head=head, prompt_init=tuple(SKILL))
    assert sorted(text_of(member.prompt) for member in result.prompt.members) == ["blunt", "sharp"]


@pytest.mark.parametrize("averaged", [1, 2, 3])
def test_no_more_prompts_are_averaged_than_allowed(averaged: int) -> None:
    equal = Noisy(dict.fromkeys(SKILL, 1.5))
    assert len(fit(equal, MANY, averaged=averaged).prompt.members) == averaged


def test_starts_that_are_cut_to_one_prompt_are_averaged_once() -> None:
    result = soft_search(TRAIN, VALIDATION, words=("it was", "it is"), length=1)
    assert len(result.best_starts.members) == 1


def test_an_average_is_saved_and_predicts_the_same_at_a_request_a_member(tmp_path: Path) -> None:
    skill = dict.fromkeys(SKILL, 1.5)
    result = fit(Noisy(skill), MANY, out=tmp_path)
    loaded = TunedPrompt.load(tmp_path)
    assert len(loaded.members) == len(result.prompt.members) == 3
    texts = [text for text, _ in VALIDATION]
    backend = Noisy(skill)
    np.testing.assert_array_equal(
        loaded.predict_proba(backend, texts), result.prompt.predict_proba(Noisy(skill), texts)
    )
    assert len(backend.requests) == 3
    assert sorted(text_of(request.prompt) for request in backend.requests) == sorted(SKILL)
    comparison = result.compare(VALIDATION)
    assert comparison.tuned == result.score(VALIDATION)
    assert comparison.start == result.start.score(result.client, VALIDATION)
    assert result.start.others == ()


def test_an_average_of_many_rows_is_better_than_each_of_its_prompts() -> None:
    skill = dict.fromkeys(SKILL, 1.5)
    rows = [(f"{label} play {n}", label) for n in range(300) for label in LABELS]
    result = fit(Noisy(skill), MANY)
    alone = [
        TunedPrompt(member.prompt, TASK, member.head).score(Noisy(skill), rows).loss
        for member in result.prompt.members
    ]
    assert result.prompt.score(Noisy(skill), rows).loss < min(alone)


def test_a_run_that_goes_on_averages_the_same_prompts(tmp_path: Path) -> None:
    skill = dict.fromkeys(SKILL, 1.5)
    first = fit(Noisy(skill), MANY, out=tmp_path)
    again = Noisy(skill)
    resumed = fit(again, MANY, out=tmp_path, resume=True)
    assert len(resumed.prompt.members) == 3
    assert again.requests == []
    for ours, theirs in zip(resumed.prompt.members, first.prompt.members, strict=True):
        assert ours.prompt == theirs.prompt
        np.testing.assert_array_equal(ours.head.bias, theirs.head.bias)


def test_a_backend_that_charges_for_the_words_of_a_head_is_not_asked() -> None:
    tuned = fit(Knowing(), head="words").prompt
    other = Noisy(words_per_request=0)
    with pytest.raises(InputError, match=r"the head reads 40 words .* tune with this backend"):
        tuned.predict(other, ["a film"])
    assert not other.requests
