"""What users try first: logistic regression on the words of a text, or on the model's states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from lmaas_tune_adapters.hf.request_batch import slices
from lmaas_tune_adapters.hf.whitebox import read_hidden
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lmaas_tune.errors import InputError
from lmaas_tune.lab.baselines.fitted import FittedBaseline, Job
from lmaas_tune.lab.baselines.settings import ProbeSettings
from lmaas_tune.prompts import FloatArray, TextPrompt
from lmaas_tune.task import Example

_ROWS = 64  # whose states are held at once
_UNSEEN = -30.0  # the log-probability of a label without rows


def fit_tfidf(job: Job, settings: ProbeSettings) -> FittedBaseline:
    """Logistic regression on the TF-IDF of words and pairs of words; no model is asked."""
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    return _fit(job, settings, vectorizer, job.texts)


def fit_mean_states(job: Job, settings: ProbeSettings) -> FittedBaseline:
    """Logistic regression on the mean of the states of a text's tokens, after the last layer."""
    box = job.backend.open_box()

    def look(examples: Sequence[Example]) -> FloatArray:
        means = [
            row.tokens.mean(dim=0).double().numpy()
            for chunk in slices(examples, _ROWS)
            for row in read_hidden(box, job.request(TextPrompt(""), chunk))
        ]
        return np.stack(means)

    return _fit(job, settings, StandardScaler(), look)


def _fit(
    job: Job,
    settings: ProbeSettings,
    scale: Any,
    look: Callable[[Sequence[Example]], Any],
) -> FittedBaseline:
    """Fit to all labelled rows; cross-validation chooses the penalty."""
    rows = [*job.train, *job.validation]
    targets = job.task.verbalizer.targets(rows)
    labels, counts = np.unique(targets, return_counts=True)
    folds = min(settings.folds, int(counts.min()))
    if len(labels) < 2 or folds < 2:
        raise InputError("a probe needs two labels, and two labelled rows of each")
    model: Any = make_pipeline(
        scale,
        GridSearchCV(
            LogisticRegression(max_iter=1000),
            {"C": np.logspace(-4, 4, settings.penalties)},
            cv=StratifiedKFold(folds, shuffle=True, random_state=job.seed),
            scoring="neg_log_loss",
        ),
    )
    model.fit(look(rows), targets)

    def score(examples: Sequence[Example]) -> FloatArray:
        scores = np.full((len(examples), len(job.task.verbalizer.labels)), _UNSEEN)
        scores[:, labels] = model.predict_log_proba(look(examples))
        return scores

    logistic = model[-1].best_estimator_
    parameters = logistic.coef_.size + logistic.intercept_.size
    return FittedBaseline(parameters=parameters, validation_loss=None, score=score)
