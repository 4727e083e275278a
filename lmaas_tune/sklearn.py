"""`PromptClassifier`: a tuned prompt as a classifier of scikit-learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from lmaas_tune.backend import Backend
from lmaas_tune.calls.client import Client
from lmaas_tune.calls.meter import Budget
from lmaas_tune.calls.opening import Open, opened
from lmaas_tune.data import TEXT_FIELD
from lmaas_tune.errors import InputError
from lmaas_tune.prompts import FloatArray
from lmaas_tune.settings import Settings
from lmaas_tune.task import Example, Template, label_name
from lmaas_tune.tuner import Tuner


class PromptClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # without types
    """Classifies texts by a prompt that is tuned in `fit`.

        from functools import partial

        model = partial(load_backend("hf"), "HuggingFaceTB/SmolLM2-135M-Instruct")
        classifier = PromptClassifier(model, budget="calls=100").fit(texts, labels)
        classifier.predict_proba(["The app logs me out every minute."])

    X is a sequence of texts, or a table with a text in each column; numbers count as texts. The
    model is shared by clones. In other processes (``n_jobs``) it has to be a function that opens
    it, as above; each process calls it once.

    Args:
        backend: The model, see `lmaas_tune.Tuner`; or a function that opens it.
        settings: Settings of the search, or the name of a preset.
        template: See `lmaas_tune.Tuner`; the columns of an array are ``{x0}``, ``{x1}`` and so on,
            and a sequence of texts is ``{text}``.
        labels: The label word of each label; by default the label itself.
        budget: The limits that end the search.
        random_state: Seed of the search; None is 0.
        callbacks: Observers of the search; none by default.

    Attributes:
        classes_: The labels, sorted; the columns of `predict_proba`.
        result_: The `lmaas_tune.TuneResult` of the search; a pickled classifier has none.
        prompt_: The tuned prompt, which can be saved.
        n_features_in_: Number of columns of X, if it is a table.

    Raises:
        InputError: An argument cannot work; raised by `fit`.
    """

    def __init__(
        self,
        backend: Backend | Client | Open,
        *,
        settings: Settings | str = "default",
        template: str | Template | None = None,
        labels: Mapping[str, str] | None = None,
        budget: Budget | str | None = None,
        random_state: int | None = None,
        callbacks: Sequence[Any] = (),
    ) -> None:
        self.backend = backend
        self.settings = settings
        self.template = template
        self.labels = labels
        self.budget = budget
        self.random_state = random_state
        self.callbacks = callbacks

    def __sklearn_clone__(self) -> PromptClassifier:
        others = {k: v for k, v in self.get_params(deep=False).items() if k != "backend"}
        copies: dict[str, Any] = {name: clone(value, safe=False) for name, value in others.items()}
        return type(self)(self.backend, **copies)

    def __getstate__(self) -> Any:
        state = dict(super().__getstate__())
        state.pop("result_", None)  # its client has connections, which stay in their process
        return state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = tags.input_tags.allow_nan = True
        return tags

    def fit(self, X: Any, y: Any) -> PromptClassifier:
        """Tune a prompt.

        Args:
            X: (rows,) texts, or (rows, columns).
            y: (rows,) labels.

        Raises:
            InputError: Nothing can be tuned; the message says why.
        """
        names = getattr(X, "columns", None)
        X, y = validate_data(self, X, y, dtype=None, ensure_2d=False, ensure_all_finite=False)
        check_classification_targets(y)
        self.classes_ = np.unique(y)
        self._fields = None if names is None else [str(name) for name in names]
        if X.ndim == 2:
            self.n_features_in_ = X.shape[1]
        tuner = Tuner(
            opened(self.backend),
            settings=self.settings,
            template=self.template,
            labels=self.labels,
            budget=self.budget,
            seed=0 if self.random_state is None else self.random_state,
            callbacks=self.callbacks,
        )
        self.result_ = tuner.fit(
            [Example(row, label_name(label)) for row, label in zip(self._rows(X), y, strict=True)]
        )
        self.prompt_ = self.result_.prompt
        return self

    def predict_proba(self, X: Any) -> FloatArray:
        """(rows, classes) probabilities, in the order of `classes_`.

        Args:
            X: As in `fit`, without its labels.
        """
        check_is_fitted(self)
        X = validate_data(
            self, X, dtype=None, ensure_2d=False, ensure_all_finite=False, reset=False
        )
        self._check_columns(X)
        rows = [Example(row) for row in self._rows(X)]
        found = self.prompt_.predict_proba(opened(self.backend), rows)
        columns = self.prompt_.task.verbalizer.labels
        order = [columns.index(label_name(label)) for label in self.classes_]
        probabilities: FloatArray = found[:, order]
        return probabilities

    def predict(self, X: Any) -> Any:
        """(rows,) the most probable label of each row."""
        columns = self.predict_proba(X).argmax(axis=1)
        return self.classes_[columns]

    def _check_columns(self, X: Any) -> None:
        known = getattr(self, "n_features_in_", None)
        if known is not None and X.ndim == 1:
            raise InputError(
                f"expected a table of {known} columns, as in fit, and got a sequence. Reshape your "
                "data: a single row is [row]"
            )
        if X.ndim == 2 and X.shape[1] != known:
            raise InputError(
                f"X has {X.shape[1]} features, but {type(self).__name__} is expecting {known or 0} "
                "features as input"
            )

    def _rows(self, X: Any) -> list[dict[str, str]]:
        """Each row of an array as texts by name."""
        if X.ndim == 1:
            return [{TEXT_FIELD: str(text)} for text in X]
        names = self._fields or [f"x{column}" for column in range(X.shape[1])]
        return [dict(zip(names, map(str, row), strict=True)) for row in X]
