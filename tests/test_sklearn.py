"""The classifier keeps scikit-learn's rules, and its tools work with it."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks

from lmaas_tune import InputError, Settings, Soft, load_backend
from lmaas_tune.prompts import Text
from lmaas_tune.sklearn import PromptClassifier
from lmaas_tune.testing.toy import ToyBackend

SMALL = Settings(prompt=Soft(prompt_init="it was", intrinsic_dim=4), head="bias", averaged=1)
MODEL = partial(load_backend("toy"))
EXCEPTIONS = {
    "check_classifiers_train": "numbers are read as texts, and the toy model knows no numbers",
    "check_fit1d": "a sequence of texts has one dimension",
}


def small(**wish: Any) -> PromptClassifier:
    return PromptClassifier(MODEL, **{"settings": SMALL, "budget": "calls=15", **wish})


@parametrize_with_checks([small()], expected_failed_checks=lambda estimator: EXCEPTIONS)
def test_rules_of_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)


# What users do with it

TEXTS = [
    f"a {mood} {thing}" for thing in ("day", "meal", "film", "book") for mood in ("good", "bad")
]
LABELS = [text.split()[1] for text in TEXTS]
FRAME = pd.DataFrame({"id": range(8), "subject": TEXTS, "body": [f"{t}!" for t in TEXTS]})


@pytest.mark.parametrize("form", [list, np.array, pd.Series])
def test_texts_are_classified(form: Any) -> None:
    classifier = small().fit(form(TEXTS), form(LABELS))
    assert classifier.classes_.tolist() == ["bad", "good"]
    probabilities = classifier.predict_proba(form(TEXTS))
    np.testing.assert_allclose(probabilities, classifier.prompt_.predict_proba(ToyBackend(), TEXTS))
    assert (
        classifier.predict(TEXTS).tolist()
        == classifier.classes_[probabilities.argmax(axis=1)].tolist()
    )


@pytest.mark.parametrize("values", [(0, 1), (True, False), (10, 9), (2.0, -1.0), ("b", "a")])
def test_labels_keep_their_type_and_their_order_is_scikit_learns(values: Any) -> None:
    y = np.array([values[label == "good"] for label in LABELS])
    words = {
        str(value).removesuffix(".0"): word
        for value, word in zip(values, ("bad", "good"), strict=True)
    }
    classifier = small(labels=words).fit(TEXTS, y)
    assert classifier.classes_.dtype == y.dtype
    assert classifier.classes_.tolist() == sorted(values)
    found = classifier.predict(TEXTS)
    assert found.dtype == y.dtype
    by_name = dict(
        zip(
            classifier.prompt_.task.verbalizer.labels,
            classifier.prompt_.predict_proba(ToyBackend(), TEXTS).T,
            strict=True,
        )
    )
    for column, value in enumerate(classifier.classes_.tolist()):
        name = str(value).removesuffix(".0")
        np.testing.assert_allclose(classifier.predict_proba(TEXTS)[:, column], by_name[name])


def test_columns_of_a_frame_are_fields_and_those_of_an_array_are_numbered() -> None:
    classifier = small(template="{subject} {body} {prompt} {label}").fit(FRAME, LABELS)
    assert classifier.feature_names_in_.tolist() == ["id", "subject", "body"]
    assert len(classifier.predict(FRAME)) == 8
    with pytest.raises(ValueError, match="feature names"):
        classifier.predict(FRAME.rename(columns={"body": "text"}))
    array = FRAME[["subject", "body"]].to_numpy()
    numbered = small(template="{x0} {x1} {prompt} {label}").fit(array, LABELS)
    assert numbered.n_features_in_ == 2
    assert len(numbered.predict(array)) == 8


def test_a_clone_shares_the_model_and_copies_the_rest() -> None:
    backend = ToyBackend()
    first = PromptClassifier(backend, settings=SMALL, labels={"a": "good", "b": "bad"})
    second = clone(first)
    assert second.backend is backend
    assert second.get_params() == first.get_params()
    assert second.labels is not first.labels
    assert not hasattr(clone(small().fit(TEXTS, LABELS)), "prompt_")


def test_pipelines_searches_and_processes() -> None:
    pipeline = make_pipeline(FunctionTransformer(lambda X: [text.upper() for text in X]), small())
    assert set(pipeline.fit(TEXTS, LABELS).predict(TEXTS)) <= {"good", "bad"}
    scores = cross_val_score(small(), TEXTS, LABELS, cv=2, n_jobs=2)
    assert scores.shape == (2,)
    assert scores.tolist() == cross_val_score(small(), TEXTS, LABELS, cv=2).tolist()
    grid = {"settings": [SMALL, Settings(prompt=Text(prompt_init=("so", "it is")), averaged=1)]}
    search = GridSearchCV(small(budget="calls=60"), grid, cv=2).fit(np.array(TEXTS), LABELS)
    assert search.best_params_["settings"] in grid["settings"]
    assert len(search.predict_proba(TEXTS)) == 8


def test_what_cannot_be_fitted_gets_one_sentence() -> None:
    with pytest.raises(InputError, match="one class leaves nothing to tell apart"):
        small().fit(TEXTS, ["good"] * 8)
    with pytest.raises(InputError, match="no template"):
        small(settings="no template").fit(TEXTS, LABELS)
