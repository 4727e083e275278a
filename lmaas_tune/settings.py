"""`Settings` of a search, as one frozen dataclass, and the named presets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from lmaas_tune.calls.meter import Budget
from lmaas_tune.errors import InputError, named
from lmaas_tune.heads import AUTO, HEADS
from lmaas_tune.objectives import objective_named
from lmaas_tune.prompts import Auto, PromptKind, Soft
from lmaas_tune.prompts.auto import changed_kind, kind_named, soft_of
from lmaas_tune.selection import LOWEST_LOSS, selection_named
from lmaas_tune.validate import one_of, validate, whole

DEFAULT_BUDGET = Budget(calls=300, patience=5)
"""Most of what a search finds, its starts find: it goes on for as long as it finds more."""

JOIN = "join"
VALIDATION_ROWS = (JOIN, "select")


def plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Optimizer options with numpy values converted to Python's, so that JSON can hold them.

    Raises:
        InputError: JSON cannot hold a value, or the options are no mapping.
    """
    if not isinstance(options, Mapping):
        raise InputError(f"optimizer_options={options!r:.60}: give a mapping, as {{'sigma0': 0.5}}")
    plain = {
        name: value.tolist() if isinstance(value, np.generic | np.ndarray) else value
        for name, value in options.items()
    }
    for name, value in plain.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"the option {name}={value!r:.60} of the optimizer cannot be saved with the run "
                f"({error}): give finite numbers, texts or lists of them"
            ) from None
    return plain


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a search; task, model and seed are given apart.

    Attributes:
        prompt: The kind of prompt to search, with its settings: `Soft`, `Deep` or `Text`; or
            `Auto`, which searches soft prompts if the model takes them, else text prompts.
        optimizer: Name of the optimizer; ``lmaas-tune optimizers`` lists the names. ``auto`` is
            ``gauss-newton`` for soft prompts and the objective ``cross_entropy``, else ``cma``.
        optimizer_options: Options of the optimizer by name.
        objective: ``cross_entropy``, ``hinge``, ``error_rate`` or ``negative_f1``.
        head: From scores to labels, see `lmaas_tune.heads`: ``none`` passes the scores of the
            label words on, ``bias`` adds one number a label, ``affine`` mixes the label words,
            and ``words`` reads further words beside them. ``auto`` is ``words`` if the model
            scores further words at no cost, else ``affine``.
        head_words: The most further words that the head reads.
        averaged: The most prompts whose log-probabilities the result averages: the best one, and
            other starting words whose loss on rows that are left out is not clearly higher than
            that of the best of them. Each costs a call at prediction.
        validation_rows: ``join``: each call scores training and validation rows. Heads are fitted
            to all of them, and all judge the starts, each by a head that was fitted to the others.
            Then the search lowers the loss of the training rows, and the validation rows compare
            its candidates. Without validation rows, half of the training rows compare them, if
            there are 16 of each label. ``select``: the search and the heads see the training rows
            only, and the validation rows compare its candidates, as in the paper.
        selection: ``lowest-loss``, or ``candidate@N`` for the reference code's rule.
        score_start: Whether p0 is scored first, at the cost of one call; then the selection
            never returns a prompt that it ranks below the start.
        budget: The limits that end the run.
        allow_bounds: Whether the run continues if more than half of the first scores are upper
            bounds, as from an API that returns only the most likely tokens.

    Raises:
        InputError: A value is out of range; the message names it and the remedy.
    """

    prompt: PromptKind | Auto = field(default_factory=Auto)
    optimizer: str = AUTO
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)
    objective: str = "cross_entropy"
    head: str = one_of(HEADS, default=AUTO)
    head_words: int = whole(least=1, default=600)
    validation_rows: str = one_of(VALIDATION_ROWS, default=JOIN)
    averaged: int = whole(least=1, default=5)
    selection: str = LOWEST_LOSS
    score_start: bool = True
    budget: Budget = DEFAULT_BUDGET
    allow_bounds: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.budget, Budget):
            raise InputError(f"budget={self.budget!r}: give a Budget, as Budget.parse('calls=300')")
        if not hasattr(self.prompt, "given_words"):
            raise InputError(f"prompt={self.prompt!r:.60}: give Soft(...), Deep(...) or Text(...)")
        starts = len(self.prompt.given_words)
        of_words = self.soft is None or self.soft.start == "words"
        if starts > 1 and of_words and not self.score_start:
            raise InputError(
                f"{starts} prompt_inits and score_start=False, so that none "
                "can be selected by its score: give one prompt_init, or score_start=True"
            )
        object.__setattr__(self, "optimizer_options", plain_options(self.optimizer_options))
        objective_named(self.objective)
        validate(self)
        selection_named(self.selection)
        if self.validation_rows == JOIN and self.selection != LOWEST_LOSS:
            raise InputError(
                f"selection={self.selection!r} chooses by validation rows of their own: set "
                "validation_rows='select'"
            )
        if self.validation_rows != JOIN and self.averaged > 1:
            raise InputError("validation_rows='select' chooses a single prompt: set averaged=1")

    def to_json(self) -> dict[str, Any]:
        """The fields as in journals and saved prompts; the budget as text."""
        content = {each.name: getattr(self, each.name) for each in fields(self)}
        content["budget"] = str(self.budget)
        content["optimizer_options"] = dict(self.optimizer_options)
        # kinds of prompts that are not searched have their default values
        return {**content, **Auto().to_json(), **self.prompt.to_json()}

    @property
    def soft(self) -> Soft | None:
        """The settings of soft prompts; None if only text prompts are searched."""
        return soft_of(self.prompt)


def with_fields(settings: Settings, given: Mapping[str, Any]) -> Settings:
    """Settings with some fields changed: fields of `Settings` or of the kind of prompt.

    Args:
        settings: The settings to change.
        given: New values by name. ``prompt`` takes a kind of prompt or its name (``soft``,
            ``text``, ``auto``); ``deep`` takes layers; the others are fields of `Settings` and of
            the kinds.

    Raises:
        InputError: A value is out of range, or a field is unknown.
    """
    own = {each.name for each in fields(Settings)}
    mine = {name: value for name, value in given.items() if name in own and name != "prompt"}
    rest = {name: value for name, value in given.items() if name not in own}
    prompt = given.get("prompt", settings.prompt)
    if isinstance(prompt, str):
        prompt = kind_named(prompt, settings.prompt)
    return replace(settings, **mine, prompt=changed_kind(prompt, rest))


_REFERENCE = Settings(  # all fields, so that it does not depend on our defaults
    prompt=Soft(
        start="vocabulary",
        prompt_length=50,
        insertion="add",
        intrinsic_dim=500,
        projection="normal",
        alpha=1.0,
    ),
    optimizer="cma",
    objective="cross_entropy",
    head="none",
    validation_rows="select",
    averaged=1,
    selection="candidate@100",
    score_start=False,
    budget=Budget(calls=8000),
)

PRESETS: Mapping[str, Settings] = {
    "default": Settings(),
    # Sun et al. 2022, table 2. The paper has no step size; 0.5 is from the code of that year.
    "paper-icml22": with_fields(
        _REFERENCE,
        {
            "projection": "uniform",
            "optimizer_options": {
                "population": 20,
                "bounds": 5.0,
                "sigma0": 0.5,
                "step_rule": "csa",
            },
        },
    ),
    # the reference repository at its last commit (e4013f7)
    "repo-head": replace(
        _REFERENCE,
        optimizer_options={"population": 20, "sigma0": 1.0, "step_rule": "csa"},
    ),
    # Sun et al., EMNLP 2022, with the command in the reference repository's README
    "bbtv2": with_fields(
        _REFERENCE,
        {
            "deep": "all",
            "alpha": 0.2 / 0.2,  # their alpha divided by their sigma, as in their A
            "optimizer_options": {"population": 20, "sigma0": 0.2, "step_rule": "csa"},
        },
    ),
}


def preset(name: str) -> Settings:
    """Settings by name; change some with `with_fields`.

    Raises:
        InputError: No preset has this name.
    """
    return named("preset", name, PRESETS)
