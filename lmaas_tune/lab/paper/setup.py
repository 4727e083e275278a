"""The setup of a table: layout, settings and budget, the same for every task and seed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

from lmaas_tune.calls.meter import Budget
from lmaas_tune.errors import InputError, did_you_mean
from lmaas_tune.lab.paper.tasks import LAYOUTS, Layout, PaperTask, Wording
from lmaas_tune.prompts.phrases import BUILT_IN
from lmaas_tune.settings import Settings, preset, with_fields

BBTV2 = "bbtv2"
"""Name of a preset and of a method."""

_OURS, _PAPERS = "default", "paper-icml22"


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The setup of the methods in a table.

    Attributes:
        preset: Settings of the black-box methods: the paper's (``paper-icml22``, ``repo-head``),
            with each task's own loss and budget, or ``default``, ours.
        layout: Order of prompt and text.
        budget: Of each search; it replaces those of the preset and the task.

    Raises:
        InputError: An unknown preset or layout, or a preset that is a method.
    """

    preset: str
    layout: Layout
    budget: Budget | None = None

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise InputError(
                f"unknown layout {self.layout!r}; {did_you_mean(self.layout, LAYOUTS)}"
            )
        if self.preset == BBTV2:
            raise InputError("the preset 'bbtv2' is a method: name it among the methods")
        preset(self.preset)

    @classmethod
    def for_family(
        cls,
        family: str,
        *,
        preset: str | None = None,
        layout: str | None = None,
        budget: Budget | None = None,
    ) -> Setup:
        """The setup for a family of models.

        Masked and sequence-to-sequence models get the paper's settings and templates. Causal
        models get our settings, and the text first: the reference code lacks templates for some
        tasks on them, and they process a text again for each prompt before it.

        Args:
            family: ``causal``, ``masked`` or ``seq2seq``.
            preset: Replaces that of the family.
            layout: Replaces that of the preset.
            budget: See `Setup`.
        """
        if preset is None:
            preset = _OURS if family == "causal" else _PAPERS
        if layout is None:
            layout = "text-first" if preset == _OURS and family == "causal" else "paper"
        return cls(preset=preset, layout=cast("Layout", layout), budget=budget)

    @property
    def is_papers(self) -> bool:
        """Whether the black-box methods have the paper's settings."""
        return self.preset != _OURS

    def bbt(self, task: PaperTask, wording: Wording) -> Settings:
        """Settings of a search over the prompt of the first layer."""
        return self._fitted(with_fields(preset(self.preset), self._papers_rules), task, wording)

    def ours(self, task: PaperTask, wording: Wording) -> Settings:
        """This library's default.

        A call scores the training and the validation rows, so it gets half of the calls.
        """
        words = (wording.words, BUILT_IN) if wording.words else BUILT_IN
        settings = with_fields(preset(_OURS), {"prompt_init": words})
        calls = (self.budget or settings.budget).calls
        half = None if calls is None else max(1, calls // 2)
        return replace(settings, budget=replace(self.budget or settings.budget, calls=half))

    @property
    def _papers_rules(self) -> dict[str, Any]:
        """The validation rows select, and one bias a label at most is fitted, as in the paper."""
        if self.is_papers:
            return {}
        return {"optimizer": "cma", "head": "bias", "validation_rows": "select", "averaged": 1}

    def bbtv2(self, task: PaperTask, wording: Wording) -> Settings:
        """Settings of a search over the prompts of all layers."""
        if self.is_papers:
            return self._fitted(preset(BBTV2), replace(task, calls=8000), wording)
        changes = {
            "deep": "all",
            "projection": "normal",
            "optimizer_options": {"population": 4},  # a small budget makes whole rounds of layers
        }
        deep = with_fields(preset(_OURS), {**changes, **self._papers_rules})
        return self._fitted(deep, task, wording)

    def _fitted(self, settings: Settings, task: PaperTask, wording: Wording) -> Settings:
        changes: dict[str, Any] = {}
        if self.is_papers:
            changes |= {"objective": task.objective, "budget": Budget(calls=task.calls)}
        if wording.words and settings.soft is not None and settings.soft.start == "words":
            changes["prompt_init"] = wording.words
        if self.budget is not None:
            changes["budget"] = self.budget
        return with_fields(settings, changes)
