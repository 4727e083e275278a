"""`PreparedRun`: a search that is ready to run, and the prompt that it results in."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmaas_tune.artifact import Member, TunedPrompt
from lmaas_tune.calls.client import Client
from lmaas_tune.evaluator import Evaluator, IntArray
from lmaas_tune.heads import FittedHead
from lmaas_tune.objectives import log_softmax, mean_log_probabilities
from lmaas_tune.prompts import FloatArray
from lmaas_tune.result import TuneResult
from lmaas_tune.search import Search
from lmaas_tune.step import Candidate
from lmaas_tune.student import student_quantile
from lmaas_tune.task import Task

_WHEN_IT_ENDS = ("budget", "allow_bounds")
_CLEAR, _FAR = 2.0, 3.0  # standard errors
_CHANCE = 0.025
_FEWEST = 8  # rows


@dataclass(frozen=True, kw_only=True)
class PreparedRun:
    """A search that is ready to run.

    Attributes:
        task: Template and label words.
        label_type: Of the labels as they were given, see `lmaas_tune.dataset.LABEL_TYPES`.
        words: The words that the head reads beside the label words.
        evaluator: Of the rows that judge prompts in the search; it fits the head.
        search: The search.
        averaged: The most prompts that the result averages.
        provenance: Origin of its prompts, see `TunedPrompt.provenance`.
        digests: Digests of the scored rows with their targets.
    """

    task: Task
    label_type: str
    words: tuple[str, ...]
    evaluator: Evaluator
    search: Search
    averaged: int
    provenance: Mapping[str, Any]
    digests: Sequence[str]

    def result(
        self, stop_reason: str, *, finished: bool, client: Client, out: Path | None
    ) -> TuneResult:
        """The result of the search so far.

        Args:
            stop_reason: Why the run ended.
            finished: False if the run was interrupted or failed.
            client: The client that made the calls.
            out: Folder of the run.
        """
        search, best, spent = self.search, self.search.best, self.search.meter.spent
        first = search.scored_starts[0] if search.scored_starts else search.start
        return TuneResult(
            prompt=self._tuned(
                self._members(best),
                generation=best.generation,
                train=None if best.train is None else best.train.summary,
                validation=None if best.validation is None else best.validation.summary,
                spent=spent.to_json(),
                stop_reason=stop_reason,
            ),
            start=self._tuned([search.start]),
            best_starts=self._tuned(self._members(first)),
            best=best,
            steps=tuple(search.steps),
            spent=spent,
            stop_reason=stop_reason,
            finished=finished,
            optimizer_seconds=search.optimizer_seconds,
            seed=self.provenance["seed"],
            client=client,
            out=out,
        )

    def note_on_guessing(self) -> str | None:
        """A note if the result is not clearly better than guessing by the labels' shares.

        It is better if its loss or its accuracy on rows that are left out of the head's fit would
        be by chance in about 1 of 40 searches; in up to 1 of 5 with 8 to 11 rows, which tell little
        of the errors.
        """
        found = [one.train for one in self._members(self.search.best) if one.train is not None]
        if not found or not all(math.isfinite(one.loss) for one in found):
            return None
        odds = log_softmax(mean_log_probabilities([self.evaluator.left_out(e) for e in found]))
        targets = self.evaluator.targets
        shares = np.bincount(targets, minlength=odds.shape[1]) / len(targets)
        losses, guessed = -odds[np.arange(len(odds)), targets], -np.log(shares[targets])
        right, likeliest = odds.argmax(axis=1) == targets, targets == shares.argmax()
        prompts = sum(len(step.evaluations) for step in self.search.steps)
        errors = student_quantile(1 - _CHANCE / max(1, prompts), len(targets))
        if any(
            _clearly_higher(d, errors=errors) for d in (guessed - losses, right * 1.0 - likeliest)
        ):
            return None
        return (
            "the tuned prompt may be no better than guessing: on labelled rows left out of its "
            "head's fit, neither its loss nor its accuracy is clearly better than what the labels' "
            "shares alone give; test it before you use it, and try a larger model, other words or "
            "more rows"
        )

    def _members(self, best: Candidate) -> list[Candidate]:
        """A prompt, and the other starts that are averaged with it.

        They are those whose loss on rows that are left out is not clearly higher than that of the
        best start. What the search found stands for this start. It was chosen among many by few
        rows, so that its loss on them is too low: the others are compared with it only where it is
        far better than the start.
        """
        finite = [
            (candidate, candidate.train)
            for candidate in _distinct(self.search.scored_starts)
            if candidate.train is not None and math.isfinite(candidate.train.loss)
        ]
        starts = [(one, self.evaluator.row_losses(train)) for one, train in finite[: self.averaged]]
        if not starts or best.train is None or not math.isfinite(best.train.loss):
            return [best]
        rows, least = None, starts[0][1]
        if best.generation:
            found, choosing = self.evaluator.row_losses(best.train), self.search.choosing
            if _clearly_higher(least - found, choosing, errors=_FAR):
                rows, least = choosing, found
        others = [
            candidate
            for candidate, losses in starts[1:]
            if not _clearly_higher(losses - least, rows)
        ]
        return _distinct([best, *others])

    def _tuned(self, candidates: Sequence[Candidate], **more: Any) -> TunedPrompt:
        first, *others = [Member(c.prompt, self._head_of(c)) for c in candidates]
        reads_words = any(member.head.matrix is not None for member in (first, *others))
        words = self.words if reads_words else ()
        provenance = {**self.provenance, **more}
        return TunedPrompt(
            first.prompt,
            self.task,
            first.head,
            words,
            tuple(others),
            provenance,
            self.label_type,
        )

    def _head_of(self, candidate: Candidate) -> FittedHead:
        if candidate.train is None:
            return FittedHead.none(len(self.task.verbalizer.labels))
        return self.evaluator.fit_head(candidate.train)

    @property
    def header(self) -> dict[str, Any]:
        """The first line of the journal; a resumed run must have the same one."""
        settings = self.provenance["settings"]
        return {
            **self.provenance,
            # a resumed run may have another budget
            "settings": {k: v for k, v in settings.items() if k not in _WHEN_IT_ENDS},
            "template": self.task.template.text,
            "label_words": dict(self.task.verbalizer.words),
            "head_words": hashlib.sha256("\n".join(self.words).encode()).hexdigest()[:16],
            "rows": self.digests,
        }


def _distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Without those whose prompt came before: starts may be cut to the same tokens."""
    by_prompt: dict[str, Candidate] = {}
    for candidate in candidates:
        by_prompt.setdefault(candidate.prompt.digest, candidate)
    return list(by_prompt.values())


def _clearly_higher(
    differences: FloatArray, rows: IntArray | None = None, *, errors: float = _CLEAR
) -> bool:
    """Whether the mean difference of some rows, or of all, is some standard errors above zero.

    Too few rows tell nothing of the errors.
    """
    own = differences if rows is None else differences[rows]
    return bool(len(own) >= _FEWEST and own.mean() > errors * own.std(ddof=1) / len(own) ** 0.5)
