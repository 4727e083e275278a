"""What stands before a row, and how much of it fits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lmaas_tune_adapters.hf import HFBackend

from lmaas_tune import Example, Task, Template, TextPrompt, Verbalizer
from lmaas_tune.backend import ScoreRequest
from lmaas_tune.lab.baselines import FittedBaseline, InContextSettings, fit_baseline
from lmaas_tune.objectives import log_softmax
from lmaas_tune.prompts.text import alternate_labels, demonstration
from tests.lab.baselines import planted

Load = Callable[[str], HFBackend]


def fitted(backend: HFBackend, task: Task, *, words: str, **settings: Any) -> FittedBaseline:
    return fit_baseline(
        "icl",
        backend,
        task,
        planted.TRAIN,
        planted.VALIDATION,
        seed=3,
        words=words,
        settings=InContextSettings(**settings),
    )


def said(backend: HFBackend, template: str, before: str, rows: list[Example]) -> Any:
    """Label log-probabilities of rows in a template that has no field but its own."""
    task = planted.task("causal")
    batch = Template(template).batch(rows)
    request = ScoreRequest(TextPrompt(before), batch, task.verbalizer.candidates)
    return log_softmax(backend.score([request])[0].logprobs)


def test_rows_with_their_answers_stand_before_the_row_labels_in_turn(load: Load) -> None:
    backend = load("llama")
    row = fitted(backend, planted.task("causal"), words="it was", demonstrations=4)
    words = planted.task("causal").verbalizer.words
    drawn = [planted.TRAIN[index] for index in alternate_labels(planted.TRAIN, seed=3)[:4]]
    assert sorted(example.label or "" for example in drawn) == ["0", "0", "1", "1"]
    shown = "".join(f"{e.fields['text']}\nit was {words[e.label or '']}\n\n" for e in drawn)
    expected = said(backend, "{prompt}{text}\nit was {label}", shown, planted.TEST)
    np.testing.assert_allclose(row.scores(planted.TEST), expected, atol=1e-6)
    assert row.notes == ("4 of 32 training rows stand before each row",)


@pytest.mark.parametrize("words", ["it was", ""])
@pytest.mark.parametrize("template", ["{text}\n{prompt} {label}", "{{{text}}} {prompt} so {label}"])
def test_with_no_demonstrations_it_is_the_manual_row(load: Load, words: str, template: str) -> None:
    backend = load("llama")
    task = Task(Template(template), Verbalizer({"0": "bad", "1": "great"}))
    row = fitted(backend, task, words=words, demonstrations=0)
    manual = fit_baseline("manual", backend, task, planted.TRAIN, [], seed=0, words=words)
    np.testing.assert_allclose(row.scores(planted.TEST), manual.scores(planted.TEST), atol=1e-6)


def test_a_longer_row_has_fewer_demonstrations_before_it(load: Load) -> None:
    backend = load("llama")  # reads 256 tokens
    long = Example({"text": "the story is told well " * 22})
    row = fitted(backend, planted.task("causal"), words="it was")
    together = row.scores([long, planted.TEST[0]])
    assert np.isfinite(together).all()
    np.testing.assert_allclose(together[1], row.scores(planted.TEST[:1])[0], atol=1e-6)
    (note,) = row.notes
    assert 0 < int(note.split()[0]) < 32


def test_a_limit_of_tokens_is_kept(load: Load) -> None:
    backend = load("llama")
    row = fitted(backend, planted.task("causal"), words="it was", max_tokens=60)
    (note,) = row.notes
    count = int(note.split()[0])
    task = planted.task("causal")
    drawn = [planted.TRAIN[index] for index in alternate_labels(planted.TRAIN, seed=3)]
    spelled = Task(Template("{prompt}{text}\nit was {label}"), task.verbalizer)
    for taken, fits in ((count, True), (count + 1, False)):
        shown = TextPrompt("".join(demonstration(spelled, e) + "\n\n" for e in drawn[:taken]))
        lengths = [
            backend.inspect(
                ScoreRequest(shown, spelled.template.batch([e]), task.verbalizer.candidates)
            ).usage.tokens
            for e in (*planted.TRAIN, *planted.VALIDATION)
        ]
        assert (max(lengths) <= 60) is fits


@given(st.lists(st.sampled_from("abc"), max_size=20), st.integers(0, 5))
def test_all_rows_take_their_turn_and_labels_as_long_as_they_last(
    labels: list[str], seed: int
) -> None:
    examples = [Example({"text": ""}, label) for label in labels]
    turns = alternate_labels(examples, seed=seed)
    assert sorted(turns) == list(range(len(labels)))
    left = Counter(labels)
    while left:
        turn, turns = turns[: len(left)], turns[len(left) :]
        assert {labels[index] for index in turn} == set(left)
        left = Counter({label: count - 1 for label, count in left.items() if count > 1})
