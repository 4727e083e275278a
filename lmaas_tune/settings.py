"""How a search is set up: one frozen value, and the presets by name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np

from lmaas_tune.calibration import calibration_named
from lmaas_tune.calls.meter import Budget
from lmaas_tune.errors import InputError, did_you_mean, named
from lmaas_tune.objectives import objective_named
from lmaas_tune.phrases import STARTING_WORDS
from lmaas_tune.prompts import INSERTIONS, Insertion, Start
from lmaas_tune.selection import selection_named
from lmaas_tune.spaces import PROJECTIONS
from lmaas_tune.text import TextSettings

DEFAULT_BUDGET = Budget(calls=300)

PROMPT_KINDS = ("auto", "soft", "text")


def plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer's options with numpy's numbers as Python's own, which a file can hold.

    Raises:
        InputError: A value that no file can hold, or they are no mapping.
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
                f"the option {name}={value!r:.60} of the optimizer cannot be written down with the "
                f"run ({error}): give finite numbers, texts or lists of them"
            ) from None
    return plain


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything about a search that is not the task, the model or the seed.

    Attributes:
        prompt: ``soft``, ``text``, or ``auto``: text where `text` asks for something or the start
            is a text, else soft where the backend takes such, else text.
        text: What a text prompt is made of. What the fields from `start` to `alpha` say is of
            soft prompts alone, but for `prompt_init`.
        start: Where p0 comes from: ``words`` (the embeddings of `prompt_init`), ``vocabulary``
            (tokens drawn from the model's own vocabulary) or ``zero``.
        prompt_init: The starting words, which are the instruction of a text prompt. Of several,
            each is scored on the training rows at the price of one call, and the search starts
            from the best. A search over text may take any of them later; where none are given,
            further built-in ones too.
        prompt_length: L, in tokens; None takes as many as the words have.
        insertion: How the prompt enters, see `lmaas_tune.SoftPrompt`.
        deep: Layers that have a prompt of their own, searched one after another (BBTv2):
            ``all``, or numbers, where 0 is the layer that the word embeddings enter. None: a
            plain soft prompt. Where `calls` limits the budget, whole rounds over them are made.
        intrinsic_dim: d, the dimension that is searched; with `deep`, in each layer.
        projection: Kind of the random matrix A: ``vocabulary``, ``normal``, ``uniform`` or
            ``hadamard``.
        alpha: Scale of A, in standard deviations of the model's word embeddings, or of what
            enters the layer; for ``uniform`` absolute (the paper's is 1).
        optimizer: Name in the registry; ``lmaas-tune optimizers`` lists them.
        optimizer_options: Its options by name.
        objective: ``cross_entropy``, ``hinge``, ``error_rate`` or ``negative_f1``.
        calibration: ``none``, ``mean`` or ``fitted``: whether the model's bias for a label word
            is taken out of the scores (`lmaas_tune.calibration`).
        selection: ``lowest-loss``, or ``candidate@N`` for the reference code's rule.
        score_start: Whether p0 itself is scored first, at the price of one call; then a run
            never ends with something that its selection finds worse than its start.
        budget: What ends the run.
        allow_bounds: Whether the run goes on where more than half of the first scores are upper
            bounds, as those of an API that names a few likeliest tokens can be.

    Raises:
        InputError: A value that cannot be, named with its remedy.
    """

    prompt: str = "auto"
    text: TextSettings = field(default_factory=TextSettings)
    start: Start = "words"
    prompt_init: str | tuple[str, ...] = STARTING_WORDS
    prompt_length: int | None = None
    insertion: Insertion = "concat"
    deep: Literal["all"] | tuple[int, ...] | None = None
    intrinsic_dim: int = 50
    projection: str = "vocabulary"
    alpha: float = 0.2
    optimizer: str = "cma"
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)
    objective: str = "cross_entropy"
    calibration: str = "fitted"
    selection: str = "lowest-loss"
    score_start: bool = True
    budget: Budget = DEFAULT_BUDGET
    allow_bounds: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.budget, Budget):
            raise InputError(f"budget={self.budget!r}: give a Budget, as Budget.parse('calls=300')")
        for name in ("prompt_length", "intrinsic_dim"):
            value = getattr(self, name)
            if value is not None or name == "intrinsic_dim":
                object.__setattr__(self, name, _number(name, value, Integral))
        object.__setattr__(self, "alpha", _number("alpha", self.alpha, Real))
        if self.prompt not in PROMPT_KINDS:
            raise InputError(
                f"unknown prompt {self.prompt!r}; {did_you_mean(str(self.prompt), PROMPT_KINDS)}"
            )
        if not isinstance(self.text, TextSettings):
            raise InputError(f"text={self.text!r}: give TextSettings(...)")
        if self.prompt == "soft" and self.asks_for_text:
            raise InputError(f"prompt='soft' has no use for {self.text}: take prompt='text'")
        if self.asks_for_text and self.start != "words":
            raise InputError(
                f"start={self.start!r} is for soft prompts, and a text starts from words: leave "
                "it out, or take prompt='soft'"
            )
        if self.start not in ("words", "vocabulary", "zero"):
            raise InputError(f"unknown start {self.start!r}; known: words, vocabulary, zero")
        words = self.prompt_init
        if not isinstance(words, Sequence) or not all(isinstance(text, str) for text in words):
            raise InputError(
                f"prompt_init={words!r:.60}: give words to start from, or several such"
            )
        if not self.starting_words or not all(words.strip() for words in self.starting_words):
            raise InputError("prompt_init is empty: give words to start from, or start='zero'")
        if len(self.starting_words) > 1 and self.start == "words" and not self.score_start:
            raise InputError(
                f"{len(self.starting_words)} prompt_inits and score_start=False, which leaves none "
                "to be chosen by its score: give one prompt_init, or score_start=True"
            )
        if self.prompt_length is not None and self.prompt_length < 1:
            raise InputError(f"prompt_length={self.prompt_length}: a prompt has 1 token or more")
        if self.start != "words" and self.prompt_length is None:
            raise InputError(f"start={self.start!r} needs a prompt_length, as no words give one")
        if self.insertion not in INSERTIONS:
            raise InputError(
                f"unknown insertion {self.insertion!r}; {did_you_mean(self.insertion, INSERTIONS)}"
            )
        if self.projection not in PROJECTIONS:
            raise InputError(
                f"unknown projection {self.projection!r}; "
                f"{did_you_mean(self.projection, PROJECTIONS)}"
            )
        if self.deep is not None:
            object.__setattr__(self, "deep", _layers(self.deep))
            if self.asks_for_text:
                raise InputError(f"deep={self.deep!r} is for soft prompts: take prompt='soft'")
        if self.intrinsic_dim < 1:
            raise InputError(f"intrinsic_dim={self.intrinsic_dim}: it must be 1 or more")
        if not 0 < self.alpha < float("inf"):
            raise InputError(f"alpha={self.alpha}: it must be positive and finite")
        object.__setattr__(self, "optimizer_options", plain_options(self.optimizer_options))
        objective_named(self.objective)
        calibration_named(self.calibration)
        selection_named(self.selection)

    @property
    def starting_words(self) -> tuple[str, ...]:
        """`prompt_init` as a tuple."""
        return (self.prompt_init,) if isinstance(self.prompt_init, str) else tuple(self.prompt_init)

    @property
    def asks_for_text(self) -> bool:
        """Whether something is set that only a text prompt has."""
        return self.prompt == "text" or self.text != TextSettings()

    def to_json(self) -> dict[str, Any]:
        """A dict for the journal and the saved prompt; the budget as text."""
        content = asdict(self)
        content["budget"] = str(self.budget)
        content["prompt_init"] = list(self.starting_words)
        content["text"] = self.text.to_json()
        if self.deep is None:
            del content["deep"]  # journals from before there was one go on
        elif self.deep != "all":
            content["deep"] = list(self.deep)
        content["optimizer_options"] = dict(self.optimizer_options)
        return content


def _number(name: str, value: Any, kind: type[Any]) -> Any:
    """A number of a kind as Python's own.

    Raises:
        InputError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, kind):
        what = "a whole number" if kind is Integral else "a number"
        raise InputError(f"{name}={value!r}: it takes {what}")
    return int(value) if kind is Integral else float(value)


def _layers(deep: Any) -> Literal["all"] | tuple[int, ...]:
    """Layers as they were given, their numbers rising.

    Raises:
        InputError: They are neither ``all`` nor numbers.
    """
    if deep == "all":
        return "all"
    numbers = () if isinstance(deep, str) or not isinstance(deep, Sequence) else tuple(deep)
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers)
    if not numbers or not whole or len(set(numbers)) < len(numbers):
        raise InputError(
            f"deep={deep!r}: it takes 'all', or the numbers of layers from 0 up, once each"
        )
    return tuple(sorted(numbers))


_REFERENCE = Settings(  # in full, so that our own defaults can move without it
    prompt="soft",
    start="vocabulary",
    prompt_length=50,
    insertion="add",
    intrinsic_dim=500,
    projection="normal",
    alpha=1.0,
    optimizer="cma",
    objective="cross_entropy",
    calibration="none",
    selection="candidate@100",
    score_start=False,
    budget=Budget(calls=8000),
)

PRESETS: Mapping[str, Settings] = {
    "default": Settings(),
    # Sun et al. 2022, table 2. The step size is not in the paper: 0.5 is the code's of that year.
    "paper-icml22": Settings(
        **{
            **vars(_REFERENCE),
            "projection": "uniform",
            "optimizer_options": {
                "population": 20,
                "bounds": 5.0,
                "sigma0": 0.5,
                "step_rule": "csa",
            },
        }
    ),
    # the reference repository as it stood last (e4013f7)
    "repo-head": Settings(
        **{
            **vars(_REFERENCE),
            "optimizer_options": {"population": 20, "sigma0": 1.0, "step_rule": "csa"},
        }
    ),
    # Sun et al., EMNLP 2022, by the command of the reference repository's README
    "bbtv2": Settings(
        **{
            **vars(_REFERENCE),
            "deep": "all",
            "alpha": 0.2 / 0.2,  # their alpha over their sigma, which they divide A by
            "optimizer_options": {"population": 20, "sigma0": 0.2, "step_rule": "csa"},
        }
    ),
}


def preset(name: str) -> Settings:
    """Settings by name; change some with ``dataclasses.replace``.

    Raises:
        InputError: No preset has this name.
    """
    return named("preset", name, PRESETS)
