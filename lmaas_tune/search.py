"""`Search`: the optimization loop of a run. Asks for points, scores prompts, tells losses."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from lmaas_tune.backend import Usage
from lmaas_tune.blas import one_thread
from lmaas_tune.callbacks import Callback
from lmaas_tune.calls.meter import Budget, Meter, Spent
from lmaas_tune.errors import BudgetExceededError, InputError, PermanentError
from lmaas_tune.evaluator import Evaluation, Evaluator, IntArray, known_scores
from lmaas_tune.exactness import NOTED, explain_bounds, refuse_bounds
from lmaas_tune.journal import STARTS, Journal, Record
from lmaas_tune.notes import OnNote, warn
from lmaas_tune.objectives import Targets
from lmaas_tune.optimizers.base import Ends, Optimizer, UsesScores
from lmaas_tune.plan import FEWEST_GENERATIONS, Plan, few_generations
from lmaas_tune.prompts import FloatArray, NeedsStds, Prompt, PromptSpace
from lmaas_tune.screening import rungs
from lmaas_tune.selection import Selection
from lmaas_tune.step import Candidate, Step
from lmaas_tune.typed_json import checked


class Search:
    """The search of one run.

    Args:
        train: Scores prompts on the training rows; one prompt is one call.
        validation: Scores nominated prompts on the validation rows; None: the training rows
            select.
        told: Indices of the training rows whose loss the optimizer is told; the others select.
            None: all rows are told, and select. All of them judge the starts.
        space: Maps points to prompts.
        optimizer: The optimizer.
        selection: Nominates candidates for validation, and compares them.
        score_start: Whether the starts are scored first, and the search begins at the best.
        most_starts: The most starts that are scored, from the first; None: all of them.
        budget: Limits that end the run.
        allow_bounds: Whether the run continues if most scores are bounds.
        callbacks: Called after every step.
        on_note: Called with each note for the user.
        clock: Monotonic clock in seconds.

    Attributes:
        start: The first start, with its losses once it is scored.
        best: The best candidate so far.
        choosing: Indices of the training rows that select; None: all of them, or validation rows.
        scored_starts: The starts that were scored on all rows, the best first.
        steps: All steps so far.
        meter: Spending so far.
        optimizer_seconds: Time in the optimizer's ask and tell, including replays.
    """

    def __init__(
        self,
        *,
        train: Evaluator,
        validation: Evaluator | None,
        told: IntArray | None = None,
        space: PromptSpace,
        optimizer: Optimizer,
        selection: Selection,
        score_start: bool,
        most_starts: int | None = None,
        budget: Budget,
        allow_bounds: bool = False,
        callbacks: Sequence[Callback] = (),
        on_note: OnNote = warn,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._train, self._validation = train, validation
        self._told = told
        self.choosing = None if told is None else np.delete(np.arange(train.shape[0]), told)
        self._space, self._optimizer = space, optimizer
        self._selection, self._score_start, self._budget = selection, score_start, budget
        self._most_starts = min(most_starts or len(space.starts), len(space.starts))
        self._allow_bounds, self._noted = allow_bounds, False
        self._callbacks, self._on_note, self._clock = callbacks, on_note, clock
        self._journal = Journal(None, {})
        self.meter = Meter(budget, clock=clock)
        self.start = self.best = Candidate(0, space.starts[0], None)
        self.scored_starts: list[Candidate] = []
        self.steps: list[Step] = []
        self.optimizer_seconds = 0.0
        self._lowest = math.inf  # training loss
        self._idle = 0  # considered generations since the last improvement
        self._asked: set[str] = set()  # digests of prompts, where calls have no limit
        self._repeats = 0  # generations since the last new prompt

    def check(self) -> list[str]:
        """Check the search before the first paid call.

        Returns:
            Notes for the user.

        Raises:
            InputError: The rows or the prompt do not fit the backend, or the budget does not
                pay one generation.
        """
        evaluators = [self._train] + ([] if self._validation is None else [self._validation])
        starts = self._space.starts
        self._inspect_longest(evaluators)
        notes = [note for e in evaluators for start in starts for note in e.inspect(start)]
        notes += self._selection.notes(self._candidates)
        if self._candidates is not None:
            generations = max(0, self._candidates) // self._optimizer.population
            notes += [few_generations(generations)] * (generations < FEWEST_GENERATIONS)
        usage = self._train.cost.of_prompt(self._train.batch).usage
        if self._budget.money is not None and usage.tokens and not usage.money:
            raise InputError(f"nothing was paid: {_unpriced(self._budget)}")
        first, what = self._planned_generation(), "the first generation"
        if self._score_start:
            first, what = first + self._planned_start(), "the start with the first generation"
        if self._unmeasured is not None:
            first += self._planned(self._train, 1) + Spent(calls=1)
        if reason := self.meter.exceeded_limit(first, what=what):
            raise InputError(
                f"no call was made: {reason}. Raise the budget, or take fewer starting words "
                "(prompt_init) or a smaller population (an option of the optimizer)"
            )
        return list(dict.fromkeys(notes))

    def _inspect_longest(self, evaluators: Sequence[Evaluator]) -> None:
        """Check that no prompt of the space is too long.

        Raises:
            InputError: A prompt is too long.
        """
        try:
            for evaluator in evaluators:
                for prompt in self._space.longest:
                    evaluator.inspect(prompt)
        except InputError as error:
            raise InputError(
                f"{error} (with the longest prompt that this search could try: fewer word slots or "
                "demonstrations make it shorter)"
            ) from error

    def plan(self) -> Plan:
        """What the search would cost at most, by one paid call for a longest prompt.

        It is paid even if the cache has its answer, which does not show what it cost.

        Raises:
            BackendError: The call failed.
        """
        train, meter, began = self._train, Meter(clock=self._clock), self._clock()
        prompts = [*self._space.starts[: self._most_starts], *self._space.longest]
        train.probe(max(prompts, key=lambda prompt: prompt.characters), meter)
        cost = train.cost.of_prompt(train.batch)
        train.cost.learn(train.batch, cost.usage, cost.characters, self._clock() - began)
        call = meter.spent + Spent(calls=1)
        total = self._planned_start() if self._score_start else Spent()
        if self._unmeasured is not None:
            total += self._planned(train, 1) + Spent(calls=1)
        generation, generations = self._planned_generation(), 0
        while (reason := Meter(self._budget, spent=total).exceeded_limit(generation)) is None:
            if generations == _MOST_PLANNED:
                reason = f"no limit of {self._budget} ends it before"
                break
            total, generations = total + generation, generations + 1
        return Plan(
            rows=len(train.batch),
            starts=self._most_starts if self._score_start else 0,
            population=self._optimizer.population,
            generations=generations,
            call=call,
            total=total,
            reason=reason,
        )

    def run(self, journal: Journal) -> str:
        """Search until a stop condition holds, and return it as a sentence.

        Raises:
            BudgetExceededError: The budget ended before the first step.
            KeyboardInterrupt: From the user. The journal has all paid answers; `best` and
                `steps` are those after the last complete step.
        """
        self._journal = journal
        self.meter = Meter(self._budget, spent=journal.spent, clock=self._clock)
        try:
            return self._run()
        finally:
            self.meter.book(journal.take_unasked())
            journal.append_held()

    def _run(self) -> str:
        if isinstance(self._optimizer, UsesScores):
            self._optimizer.begin(_LossOfRows(self._train, self._told))
        for callback in self._callbacks:
            callback.on_start(self._budget)
        try:
            if self._score_start:
                self._score_starts()
            self._measure_stds()
            while (reason := self._stop_reason()) is None:
                self._run_generation()
        except BudgetExceededError as error:  # retries used up the cost planned for a generation
            if not self.steps:
                raise BudgetExceededError(
                    f"{error}; not one prompt was scored on all rows: raise the budget"
                ) from error
            return str(error)
        return reason

    def _score_starts(self) -> None:
        """Score the starts, and search from the one with the lowest loss."""
        starts = self._space.starts[: self._scored_starts()]
        left, evaluations, spent = self._screen(starts)
        losses = np.array([evaluation.loss for evaluation in evaluations])
        order = self._penalised(losses, 0).argsort(kind="stable")
        self._space = self._space.begin_at(left[order[0]])
        scored = [Candidate(0, starts[left[i]], evaluations[i]) for i in order]
        self.scored_starts = scored
        first = [scored[0], *(one for one in scored[1:] if one.prompt is starts[0])]
        validated, spent = self._validated(0, [self._on_told(one) for one in first], spent)
        self.start, best = validated[-1], validated[0]
        if best.validation is not None and math.isnan(best.validation.loss):
            raise PermanentError(
                "the start has no finite loss on the validation rows, though it has one on the "
                "training rows: the model overflows on one of them (try dtype float32), or the "
                "objective is at fault"
            )
        origin = np.zeros((len(left), self._space.dim))
        # without validation rows of their own, all rows have chosen the best start
        compared = validated[:1] if self._validation is None else validated
        self._step(0, origin, evaluations, compared, spent, considered=True)
        began = validated[0].train
        self._lowest = math.nan if began is None else began.loss

    def _scored_starts(self) -> int:
        """The number of starts that are scored; a run keeps it if its budget changes."""
        most, every = self._most_starts, len(self._space.starts)
        if every == 1:
            return 1
        if (answer := self._journal.get(STARTS, "")) is None:
            answer = self._append(STARTS, "", {"most": most})
        with self._journal.reading(STARTS):
            recorded: int = checked(int, answer.get("most"), "most")
            if not 1 <= recorded <= every:
                raise ValueError(f"{recorded} starts of {every}")
            return recorded

    def _screen(self, starts: Sequence[Prompt]) -> tuple[list[int], list[Evaluation], Spent]:
        """Score the starts by successive halving, see `lmaas_tune.screening`.

        Returns:
            The indices of the starts that are left, their evaluations on all rows, and the total
            spent.
        """
        turns = rungs(self._train, len(starts))
        left = list(range(len(starts)))
        if len(turns) == 1:
            found, spent = self._score("start/0", str(left), self._train, starts, turns[0].calls)
            return left, found, spent
        scores: dict[int, FloatArray] = {}
        bounds: dict[int, float] = {}
        spent = self.meter.spent
        parts = [self._train.subset(rung.rows) for rung in turns]
        for number, (rung, part) in enumerate(zip(turns, parts, strict=True)):
            if number:
                seen = self._train.subset(np.concatenate([turn.rows for turn in turns[:number]]))
                losses = np.array([seen.judge(scores[index]).loss for index in left])
                best = [left[i] for i in self._penalised(losses, 0).argsort(kind="stable")]
                left = sorted([0, *[index for index in best if index][: rung.starts - 1]])
            found, spent = self._score(
                f"start/{number}", str(left), part, [starts[index] for index in left], rung.calls
            )
            for index, evaluation in zip(left, found, strict=True):
                new = known_scores(evaluation)
                scores[index] = np.concatenate([scores.get(index, new[:0]), new])
                share = len(rung.rows) / len(self._train.batch)
                bounds[index] = bounds.get(index, 0.0) + share * evaluation.bounds
        self._train.cost.learn_whole(self._train.batch, [part.batch for part in parts])
        back = np.argsort(np.concatenate([turn.rows for turn in turns]))
        return (
            left,
            [self._train.judge(scores[index][back], bounds[index]) for index in left],
            spent,
        )

    @property
    def _unmeasured(self) -> NeedsStds | None:
        """The space if it still needs the stds of the layers' inputs, else None."""
        space = self._space
        return space if isinstance(space, NeedsStds) and space.needs_stds else None

    def _measure_stds(self) -> None:
        """Measure the stds of the layers' inputs if the space needs them; it costs one call."""
        if (space := self._unmeasured) is None:
            return
        start = self._space.starts[0]
        if (answer := self._journal.get("stds", start.digest)) is None:
            spread = self._train.measure(start, self.meter, self._journal)
            self.meter.book(Spent(calls=1))
            content = {"stds": [float(std) for std in spread.stds]}
            answer = self._append("stds", start.digest, content)
        with self._journal.reading("stds"):
            stds = checked(Sequence[float], answer.get("stds"), "stds")
            self._space = space.with_stds(np.array(stds))

    def _run_generation(self) -> None:
        number = self._next
        with self._timed():
            points = self._optimizer.ask()
        prompts = self._space.prompts(points)
        if self._budget.calls is None:
            new = {prompt.digest for prompt in prompts} - self._asked
            self._asked |= new
            self._repeats = 0 if new else self._repeats + 1
        evaluations, spent = self._score_on_train(number, points, prompts)
        losses = np.array([evaluation.loss for evaluation in evaluations])
        finite = self._penalised(losses, number)
        self._tell(points, finite, evaluations)
        chosen = self._nominate(number, losses)
        nominated = [Candidate(number, prompts[i], evaluations[i]) for i in chosen or ()]
        validated, spent = self._validated(number, nominated, spent)
        self._step(number, points, evaluations, validated, spent, considered=chosen is not None)

    def _nominate(self, number: int, losses: FloatArray) -> list[int] | None:
        return self._selection.nominate(list(losses), self._calls_before(number), self._lowest)

    def _tell(
        self, points: FloatArray, losses: FloatArray, evaluations: Sequence[Evaluation]
    ) -> None:
        optimizer = self._optimizer
        with self._timed():
            if isinstance(optimizer, UsesScores):
                optimizer.tell_scores(
                    points, losses, np.stack(list(map(known_scores, evaluations)))
                )
            else:
                optimizer.tell(points, losses)

    def _penalised(self, losses: FloatArray, number: int) -> FloatArray:
        """See `penalised`; a note names the prompts without a finite loss."""
        bad = np.flatnonzero(~np.isfinite(losses))
        if not len(bad):
            return losses
        before = [e.loss for step in self.steps for e in step.evaluations]
        finite = penalised(losses, number, np.array(before))
        prompts = ", ".join(str(i + 1) for i in bad)
        self._on_note(
            f"generation {number}: no finite loss for prompt {prompts} of {len(losses)}, which "
            "counts as worse than all others"
        )
        return finite

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Compute with one thread, and add the time within to `optimizer_seconds`."""
        began = time.perf_counter()
        with one_thread():
            yield
        self.optimizer_seconds += time.perf_counter() - began

    def _step(
        self,
        number: int,
        points: FloatArray,
        evaluations: Sequence[Evaluation],
        candidates: Sequence[Candidate],
        spent: Spent,
        *,
        considered: bool,
    ) -> None:
        before = self.best
        for candidate in candidates:
            evaluation = candidate.evaluation
            # the start is the best until a better candidate is found, even if its loss is NaN
            if (number == 0 and candidate is candidates[0]) or (
                evaluation is not None and self._selection.better(evaluation, self.best.evaluation)
            ):
                self.best = candidate
        improved = self.best is not before
        self._idle = 0 if improved else self._idle + considered
        validations = [c.validation for c in candidates if c.validation is not None]
        step = Step(
            number, points, evaluations, validations, self.best, improved, spent, self._budget
        )
        self.steps.append(step)
        self._lowest = float(np.nanmin([self._lowest, step.loss]))
        for callback in self._callbacks:
            callback.on_step(step)
        self._check_bounds(step)

    def _check_bounds(self, step: Step) -> None:
        """Give one note on scores that are bounds, and end a run that starts with too many.

        Raises:
            PermanentError: Too many scores are bounds, and `allow_bounds` is not set.
        """
        if len(self.steps) == 1 and not self._allow_bounds:
            refuse_bounds(step.bounds)
        if step.bounds > NOTED and not self._noted:
            self._noted = True
            self._on_note(explain_bounds(step.bounds))

    def _score_on_train(
        self, number: int, points: FloatArray, prompts: Sequence[Prompt]
    ) -> tuple[list[Evaluation], Spent]:
        """The evaluations of a generation on the training rows, and the total spent by then.

        Only those that may be selected keep their scores, if the optimizer does not use them.
        """

        def kept(evaluations: Sequence[Evaluation]) -> Sequence[int]:
            if isinstance(self._optimizer, UsesScores):
                return range(len(evaluations))
            return self._nominate(number, np.array([e.loss for e in evaluations])) or ()

        key, of = f"train/{number}", _digest(points)
        return self._score(key, of, self._train, prompts, len(prompts), kept, rows=self._told)

    def _score(
        self,
        key: str,
        of: str,
        evaluator: Evaluator,
        prompts: Sequence[Prompt],
        calls: int,
        kept: Callable[[Sequence[Evaluation]], Sequence[int]] = lambda every: range(len(every)),
        *,
        rows: IntArray | None = None,
    ) -> tuple[list[Evaluation], Spent]:
        """The evaluations of prompts, and the total spent by then; `calls` are booked."""
        if (answer := self._journal.get(key, of)) is None:
            before = self.meter.spent.seconds
            evaluations = evaluator.evaluate(prompts, self.meter, self._journal, rows=rows)
            self.meter.book(Spent(calls=calls))
            keep = set(kept(evaluations))
            evaluations = [
                e if i in keep else replace(e, scores=None) for i, e in enumerate(evaluations)
            ]
            answer = self._append_evaluations(key, of, evaluator, evaluations, before)
        evaluations, spent = self._read(key, answer, len(prompts), evaluator)
        with self._journal.reading(key):
            if any(evaluations[i].scores is None for i in kept(evaluations)):
                raise ValueError("scores are missing")
        return evaluations, spent

    def _on_told(self, candidate: Candidate) -> Candidate:
        """A start with the loss that the optimizer is told of it."""
        if self._told is None or candidate.train is None:
            return candidate
        return replace(candidate, train=self._judged(candidate.train, self._told))

    def _judged(self, evaluation: Evaluation, rows: IntArray) -> Evaluation:
        """The evaluation of some of its rows."""
        return self._train.judge(known_scores(evaluation), evaluation.bounds, rows=rows)

    def _validated(
        self, number: int, candidates: Sequence[Candidate], spent: Spent
    ) -> tuple[list[Candidate], Spent]:
        """The candidates with the losses that select, and the total spent by then."""
        if self.choosing is not None:
            return [
                replace(c, validation=self._judged(c.train, self.choosing))
                for c in candidates
                if c.train is not None
            ], spent
        validation = self._validation
        if validation is None or not candidates:
            return list(candidates), spent
        key, of = f"validation/{number}", f"{len(candidates)} of generation {number}"
        if (answer := self._journal.get(key, of)) is None:
            before = self.meter.spent.seconds
            heads = [self._train.fit_head(c.train) for c in candidates if c.train is not None]
            prompts = [c.prompt for c in candidates]
            evaluations = validation.evaluate(prompts, self.meter, self._journal, heads=heads)
            self.meter.book(Spent(validation_calls=len(candidates)))
            evaluations = [replace(e, scores=None) for e in evaluations]  # nothing reads them
            answer = self._append_evaluations(key, of, validation, evaluations, before)
        evaluations, spent = self._read(key, answer, len(candidates), validation)
        return [
            replace(c, validation=e) for c, e in zip(candidates, evaluations, strict=True)
        ], spent

    def _append(self, key: str, of: str, content: Mapping[str, Any]) -> Record:
        """Record an answer; parts in the journal that it did not need are booked with it."""
        self.meter.book(self._journal.take_unasked())
        return self._journal.append(key, of, content, self.meter.spent)

    def _append_evaluations(
        self,
        key: str,
        of: str,
        evaluator: Evaluator,
        evaluations: Sequence[Evaluation],
        before: float,
    ) -> Record:
        """Record evaluations that started `before` seconds after the start of the run."""
        cost = evaluator.cost.of_prompt(evaluator.batch)
        content = {
            "evaluations": [e.to_json() for e in evaluations],
            "usage": asdict(cost.usage),
            "read": cost.characters,
            "seconds": (self.meter.spent.seconds - before) / len(evaluations),
        }
        return self._append(key, of, content)

    def _read(
        self, key: str, answer: Record, prompts: int, evaluator: Evaluator
    ) -> tuple[list[Evaluation], Spent]:
        """Recorded evaluations, and the total spent by then; the cost model learns from them."""
        with self._journal.reading(key):
            recorded: _RecordedEvaluations = checked(_RecordedEvaluations, answer, "it")
            evaluations = [Evaluation.from_json(e, evaluator.shape) for e in recorded.evaluations]
            if len(evaluations) != prompts:
                raise ValueError(f"{len(evaluations)} evaluations instead of {prompts}")
            evaluator.cost.learn(evaluator.batch, recorded.usage, recorded.read, recorded.seconds)
            return evaluations, Spent.from_json(answer["spent"])

    def _stop_reason(self) -> str | None:
        best, budget = self.best.evaluation, self._budget
        if budget.target is not None and best is not None and best.loss <= budget.target:
            return f"target: the loss {best.loss:.4g} reached {budget.target:g}"
        if budget.patience is not None and self._idle >= budget.patience:
            return f"patience: {budget.patience} generations without a better prompt"
        if self._repeats >= _MOST_REPEATS:  # free, so that no limit on usage would end the run
            return f"{_MOST_REPEATS} generations without a new prompt"
        if f"train/{self._next}" in self._journal:  # paid before, within the budget of then
            return None
        optimizer = self._optimizer
        if isinstance(optimizer, Ends) and optimizer.ended is not None:
            return optimizer.ended
        self._check_usage()
        return self.meter.exceeded_limit(self._planned_generation())

    def _check_usage(self) -> None:
        """Check that the backend reports the usage that the budget limits.

        Raises:
            InputError: It does not, so that the budget would never end the run.
        """
        spent = self.meter.spent
        if spent.requests and self._budget.tokens is not None and not spent.tokens:
            raise InputError(
                f"budget {self._budget}: the backend does not report the tokens of a call: "
                "limit calls or sequences"
            )
        if spent.requests and self._budget.money is not None and not spent.money:
            raise InputError(_unpriced(self._budget))

    @property
    def _candidates(self) -> int | None:
        """Number of candidates that the budget's calls pay; None: no limit on calls."""
        if (calls := self._budget.calls) is None:
            return None
        calls -= int(self._planned_start().calls) if self._score_start else 0
        calls -= 1 if self._unmeasured is not None else 0
        return calls - calls % self._optimizer.population

    @property
    def _next(self) -> int:
        """Number of the next generation, from 1; the start is 0."""
        return len(self.steps) + (0 if self._score_start else 1)

    def _calls_before(self, number: int) -> int:
        return sum(len(step.points) for step in self.steps if 0 < step.generation < number)

    def _planned(self, evaluator: Evaluator, prompts: int) -> Spent:
        return evaluator.cost.expect(evaluator.batch, prompts)

    def _planned_start(self) -> Spent:
        starts, validation = self._most_starts, Spent()
        if self._validation is not None:  # the best start and the first
            validation = self._planned(self._validation, min(starts, 2))
        turns = rungs(self._train, starts)
        calls = sum(turn.calls for turn in turns)
        # a turn scores few rows of many starts, so that it takes more requests than calls
        requests = sum(self._train.cost.requests(len(turn.rows), turn.starts) for turn in turns)
        planned = replace(self._planned(self._train, calls), requests=requests)
        return planned + validation + Spent(calls=calls)

    def _planned_generation(self) -> Spent:
        population = self._optimizer.population
        planned = self._planned(self._train, population) + Spent(calls=population)
        if self._validation is None:
            return planned
        first = self._calls_before(self._next)
        nominated = self._selection.nominate([0.0] * population, first, math.inf)
        return planned + self._planned(self._validation, len(nominated or ()))


@dataclass(frozen=True, eq=False)
class _LossOfRows:
    """The loss of some rows, or of all, by heads that are fitted to the others."""

    evaluator: Evaluator
    rows: IntArray | None

    def linearised(
        self, scores: FloatArray, /
    ) -> tuple[Callable[[FloatArray], FloatArray], Targets]:
        """See `lmaas_tune.optimizers.base.ScoreLoss.linearised`."""
        odds, targets = self.evaluator.linearised(scores)
        if self.rows is None:
            return odds, targets
        rows = self.rows
        return lambda other: odds(other)[rows], targets[rows]


@dataclass(frozen=True, kw_only=True)
class _RecordedEvaluations:
    """A journal record of a batch, see `Search._append`."""

    evaluations: Sequence[Mapping[str, Any]]
    usage: Usage
    read: int
    seconds: float


def _unpriced(budget: Budget) -> str:
    return (
        f"budget {budget}: nothing that is spent has a price; give one (--price-in, or "
        "Client(price=Price(...))), or limit calls, sequences or tokens"
    )


_MOST_PLANNED = 10_000  # generations
_MOST_REPEATS = 1000  # generations

_MAX_FAILURES = 10
"""Number of consecutive prompts without a finite loss that ends a run."""


def penalised(losses: FloatArray, number: int, before: FloatArray | None = None) -> FloatArray:
    """(population,) losses with non-finite values set well above the worst of the run.

    Args:
        losses: Losses of one generation.
        number: Number of the generation.
        before: (n,) losses of the generations before it, in order.

    Raises:
        PermanentError: None of the last losses is finite.
    """
    run = losses if before is None else np.concatenate([before, losses])
    last = run[-max(len(losses), _MAX_FAILURES) :]
    if not np.isfinite(last).any():
        raise PermanentError(
            f"generation {number}: not one of {len(last)} prompts has a finite loss; the model "
            "overflows on them (try dtype float32, or a smaller alpha) or the objective is at fault"
        )
    finite = run[np.isfinite(run)]
    worst = float(finite.max())
    return np.where(np.isfinite(losses), losses, worst + max(1.0, worst - float(finite.min())))


def _digest(points: FloatArray) -> str:
    """Digest of points, rounded so that it is the same on all machines."""
    rounded = np.round(points, 4) + 0.0
    return hashlib.sha256(rounded.astype("<f8").tobytes()).hexdigest()[:16]
