"""How the table's rows are made: layout, settings and budget, the same for every task and seed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

from lmaas_tune.calls.meter import Budget
from lmaas_tune.errors import InputError, did_you_mean
from lmaas_tune.reproduction.tasks import LAYOUTS, Layout, PaperTask, Wording
from lmaas_tune.settings import Settings, preset

BBTV2 = "bbtv2"
"""Name of the preset."""

_OURS, _PAPERS = "default", "paper-icml22"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How the rows are made.

    Attributes:
        preset: Settings of the black-box rows: the paper's (``paper-icml22``, ``repo-head``; then
            a task has its own loss and budget), or ``default``, ours.
        layout: Where prompt and text stand.
        budget: Of each search, instead of the preset's and the task's.

    Raises:
        InputError: An unknown preset or layout, or a preset that is a row of its own.
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
            raise InputError("the preset 'bbtv2' is a row of its own: name it among the methods")
        preset(self.preset)

    @classmethod
    def for_family(
        cls,
        family: str,
        *,
        preset: str | None = None,
        layout: str | None = None,
        budget: Budget | None = None,
    ) -> Plan:
        """What suits a family of models, where nothing else is said.

        Masked and sequence-to-sequence models get the paper's settings and templates. The
        reference has no templates of all tasks for causal models, and a causal model reads a text
        anew for each prompt that stands before it: these get our settings, and the text first.

        Args:
            family: ``causal``, ``masked`` or ``seq2seq``.
            preset: Instead of the family's.
            layout: Instead of the preset's.
            budget: See `Plan`.
        """
        if preset is None:
            preset = _OURS if family == "causal" else _PAPERS
        if layout is None:
            layout = "text-first" if preset == _OURS and family == "causal" else "paper"
        return cls(preset=preset, layout=cast(Layout, layout), budget=budget)

    @property
    def is_papers(self) -> bool:
        """Whether the black-box rows have the paper's settings."""
        return self.preset != _OURS

    def bbt(self, task: PaperTask, wording: Wording) -> Settings:
        """Of a search over the first layer's prompt."""
        return self._fitted(preset(self.preset), task, wording)

    def bbtv2(self, task: PaperTask, wording: Wording) -> Settings:
        """Of a search over the prompts of all layers."""
        if self.is_papers:
            return self._fitted(preset(BBTV2), replace(task, calls=8000), wording)
        deep = replace(
            preset(_OURS),
            deep=preset(BBTV2).deep,
            projection="normal",
            optimizer_options={"population": 4},  # a small budget makes whole rounds of all layers
        )
        return self._fitted(deep, task, wording)

    def _fitted(self, settings: Settings, task: PaperTask, wording: Wording) -> Settings:
        changes: dict[str, Any] = {}
        if self.is_papers:
            changes |= {"objective": task.objective, "budget": Budget(calls=task.calls)}
        if wording.words and settings.start == "words":
            changes["prompt_init"] = wording.words
        if self.budget is not None:
            changes["budget"] = self.budget
        return replace(settings, **changes)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        budget = None if self.budget is None else str(self.budget)
        return {"preset": self.preset, "layout": self.layout, "budget": budget}
