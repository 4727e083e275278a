"""Who watches a run sees all of it, a resumed one too, and never changes it."""

from __future__ import annotations

import csv
import io
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from queue import Queue
from threading import Semaphore
from typing import Any

import pytest

from lmaas_tune import (
    Budget,
    CSVLogger,
    ProgressBar,
    ScoreReply,
    ScoreRequest,
    Spent,
    Step,
    TensorBoardLogger,
    TuneResult,
)
from lmaas_tune.callbacks import Callback, describe_spent, share_spent
from lmaas_tune.errors import MissingExtraError, PermanentError, StorageError
from lmaas_tune.step import step_row
from tests.support.small_models import TRAIN, VALIDATION, Bowl, Spoilt, small_tuner


class Terminal(io.StringIO):
    """A file that says it is one."""

    def isatty(self) -> bool:
        return True


def fit(*callbacks: Callback, validation: Any = VALIDATION, **wish: Any) -> TuneResult:
    return small_tuner(Bowl(), callbacks=callbacks, **wish).fit(TRAIN, validation)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# The bar


def test_the_bar_shows_loss_best_spent_of_budget_and_time_left() -> None:
    screen = Terminal()
    result = fit(ProgressBar(screen))
    last = screen.getvalue().replace("\r", "\n").strip().splitlines()[-1]
    assert result.best.evaluation is not None
    assert "100%|" in last
    assert f"loss {result.steps[-1].loss:.3f}" in last
    assert f"best {result.best.evaluation.loss:.3f} (val)" in last
    assert "26/26 calls" in last
    assert "<" in last  # time taken < time left


def test_the_bar_names_the_training_loss_where_that_selects_and_every_limit() -> None:
    screen = Terminal()
    fit(ProgressBar(screen), validation=None, budget="calls=26,sequences=1000")
    assert "(train)" in screen.getvalue()
    assert "260/1000 sequences" in screen.getvalue()


class Pauses:
    """Stands for the event that ends a heartbeat: a pause ends when the test says so."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._begun = Semaphore(0)
        self._ends: Queue[bool] = Queue()

    def wait(self, seconds: float) -> bool:
        self.seconds.append(seconds)
        self._begun.release()
        return self._ends.get()

    def set(self) -> None:
        self._ends.put(True)

    def pass_by(self) -> None:
        """End a pause; returns when the next one has begun."""
        assert self._begun.acquire(timeout=60), "nobody waits"
        self._ends.put(False)
        assert self._begun.acquire(timeout=60), "what followed the pause does not end"
        self._begun.release()


def test_a_log_gets_a_line_every_half_minute_also_while_a_call_takes_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log, pauses = io.StringIO(), Pauses()
    monkeypatch.setattr("lmaas_tune.progress.Event", lambda: pauses)

    class Slow(Bowl):
        def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
            if len(self.asked) in (0, 11):  # the first call, and one of the third generation
                pauses.pass_by()
            return super().score(requests)

    bar = ProgressBar(log, clock=iter(range(0, 10_000, 30)).__next__)
    result = small_tuner(Slow(), callbacks=[bar]).fit(TRAIN)
    first, second = log.getvalue().splitlines()
    assert "0% 00:30<?" in first and "no prompt is scored yet" in first
    assert f"loss {result.steps[2].loss:.3f}" in second
    assert "11/26 calls" in second and "01:00<01:21" in second
    assert "\r" not in log.getvalue()
    assert set(pauses.seconds) == {30.0}


def test_a_short_run_writes_nothing_to_a_log() -> None:
    log = io.StringIO()
    fit(ProgressBar(log))
    assert log.getvalue() == ""


def test_a_bar_serves_a_second_run() -> None:
    screen = Terminal()
    bar = ProgressBar(screen)
    fit(bar)
    before = len(screen.getvalue())
    fit(bar)
    assert "26/26 calls" in screen.getvalue()[before:]


def test_a_tuner_without_callbacks_draws_on_standard_error_only_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for screen, drawn in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", screen)
        small_tuner(Bowl(), callbacks=None).fit(TRAIN)
        assert bool(screen.getvalue()) == drawn


def test_the_share_is_that_of_the_limit_nearest_to_its_end() -> None:
    spent = Spent(calls=30, tokens=50, seconds=5.0)
    assert share_spent(Budget(calls=100, tokens=100), spent) == 0.5
    assert share_spent(Budget(calls=10), spent) == 1.0
    assert share_spent(Budget(patience=3), spent) == 0.0
    assert describe_spent(Budget(calls=100, seconds=60), spent) == "30/100 calls, 5/60 seconds"
    assert describe_spent(Budget(), spent) == "30 calls"
    assert describe_spent(Budget(seconds=60), Spent(calls=1, money=0.25)) == (
        "1 calls, 0.25 money, 0/60 seconds"
    )


# Logs


def test_the_csv_file_has_a_row_a_step_with_the_history_of_the_run(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "run.csv"
    result = fit(CSVLogger(path))
    rows = rows_of(path)
    assert [int(row["generation"]) for row in rows] == list(range(6))
    history = result.history
    for name in history.columns:
        assert [float(row[name]) for row in rows] == pytest.approx(list(history[name]))


def test_cells_of_what_was_not_looked_at_are_empty(tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    small_tuner(
        Spoilt(lambda scores, before: scores), callbacks=[CSVLogger(path)], score_start=False
    ).fit(TRAIN)
    assert {row["validation_loss"] for row in rows_of(path)} == {""}


def test_a_file_that_is_no_log_of_a_run_is_left_alone(tmp_path: Path) -> None:
    path, backend = tmp_path / "train.csv", Bowl()
    path.write_text("text,label\na,b\n")
    with pytest.raises(StorageError, match="is not the log of a run"):
        small_tuner(backend, callbacks=[CSVLogger(path)]).fit(TRAIN, VALIDATION)
    assert path.read_text() == "text,label\na,b\n"
    assert backend.asked == []


def test_the_csv_file_is_whole_after_an_interruption_and_a_resumption(tmp_path: Path) -> None:
    class Stop(Callback):
        def on_step(self, step: Step) -> None:
            if step.generation == 3:
                raise KeyboardInterrupt

    whole, path = tmp_path / "whole.csv", tmp_path / "run.csv"
    fit(CSVLogger(whole))
    cut = fit(CSVLogger(path), Stop(), out=tmp_path / "run")
    assert not cut.finished
    assert len(rows_of(path)) == 4
    tuner = small_tuner(Bowl(), callbacks=[CSVLogger(path)], out=tmp_path / "run")
    tuner.fit(TRAIN, VALIDATION, resume=True)
    both = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in rows_of(p)]
        for p in (whole, path)
    ]
    assert both[0] == both[1]
    seconds = [float(row["seconds"]) for row in rows_of(path)]
    assert seconds == sorted(seconds)


def test_a_log_that_cannot_be_written_is_told_before_anything_is_paid(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    backend = Bowl()
    logger = CSVLogger(tmp_path / "file" / "run.csv")
    with pytest.raises(StorageError, match=r"run\.csv: the log of the run cannot be written"):
        small_tuner(backend, callbacks=[logger, ProgressBar()]).fit(TRAIN)
    assert backend.asked == []
    pytest.importorskip("tensorboardX")
    with pytest.raises(StorageError, match="the log of the run cannot be written"):
        TensorBoardLogger(tmp_path / "file" / "logs")


def test_tensorboard_reads_the_curves(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    result = fit(TensorBoardLogger(tmp_path))
    events = reader.EventAccumulator(str(tmp_path))
    events.Reload()
    assert "train_loss" in events.Tags()["scalars"]
    for name in ("train_loss", "best_loss", "validation_accuracy", "tokens"):
        points = events.Scalars(name)
        assert [p.step for p in points] == [step.spent.calls for step in result.steps]
        expected = [step_row(step)[name] for step in result.steps]
        assert [p.value for p in points] == pytest.approx(expected, rel=1e-5)


def test_without_tensorboardx_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'lmaas-tune\[tensorboard\]'"):
        TensorBoardLogger("anywhere")


# Rows


def test_a_row_of_a_generation_with_gaps_has_the_finite_ones() -> None:
    broken = Spoilt(lambda scores, before: scores * math.nan if before == 1 else scores)
    result = small_tuner(broken).fit(TRAIN)
    row = step_row(result.steps[1])
    finite = [e.loss for e in result.steps[1].evaluations if e.loss == e.loss]
    assert len(finite) == 4
    assert row["train_loss"] == min(finite)
    assert row["train_loss_mean"] == pytest.approx(sum(finite) / 4)
    assert row["validation_loss"] is row["validation_accuracy"] is None


# However a run ends


@pytest.mark.parametrize("error", [None, KeyboardInterrupt(), ValueError("mine")])
def test_every_callback_is_told_the_end_once(error: BaseException | None, tmp_path: Path) -> None:
    class Watch(Callback):
        def on_end(self, result: TuneResult) -> None:
            ends.append(result)

    class Ends(Callback):
        def on_step(self, step: Step) -> None:
            if step.generation == 2 and error is not None:
                raise error

    ends: list[TuneResult] = []
    if isinstance(error, ValueError):
        with pytest.raises(ValueError, match="mine"):
            fit(Watch(), Ends(), out=tmp_path)
    else:
        fit(Watch(), Ends(), out=tmp_path)
    (result,) = ends
    reasons = {ValueError: "failed: mine", KeyboardInterrupt: "interrupted by the user"}
    assert result.stop_reason.startswith(reasons.get(type(error), "budget calls=26"))
    assert result.finished == (error is None)
    assert (tmp_path / "prompt.json").exists()


def test_an_end_that_cannot_be_saved_hides_no_error(tmp_path: Path) -> None:
    class Gone(Bowl):
        def score(self, requests: Any, /) -> Any:
            if len(self.asked) > 5:
                (tmp_path / "run" / "prompt.json.part").mkdir()
                raise PermanentError("the model is gone")
            return super().score(requests)

    with pytest.raises(PermanentError, match="the model is gone"):
        small_tuner(Gone(), out=tmp_path / "run").fit(TRAIN)
