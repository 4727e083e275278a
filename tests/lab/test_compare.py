"""Many runs: made once each, at equal budgets, whatever happens to some of them."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import warnings
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from joblib.externals.loky import get_reusable_executor

from lmaas_tune import InputError, Price, StorageError, TunedPrompt, Tuner
from lmaas_tune.errors import PermanentError
from lmaas_tune.lab.optimizers import BackendSpec, EarlyStop, NamedTask, OptimizerSpec
from lmaas_tune.lab.record import notes_of
from lmaas_tune.lab.report import ComparisonResult
from lmaas_tune.optimizers.random import RandomSearch
from lmaas_tune.prompts import FloatArray
from lmaas_tune.testing.toy import ToyBackend
from tests.lab.films import (
    CALLS,
    FILMS,
    SMALL,
    Broken,
    Counting,
    DiesOnce,
    broken,
    compare_films,
    deadly,
    dies_while_built,
    rows,
)
from tests.support.small_models import changed


def scored(book: Path) -> list[str]:
    """What was scored, in the order it was."""
    return [line.split()[1] for line in book.read_text().splitlines()]


def essence(result: ComparisonResult) -> list[Any]:
    """What does not depend on the machine."""
    return [(r.key, r.status, r.final, r.curve, r.settings) for r in result.records]


# -- what is run --------------------------------------------------------------------------------


def test_every_optimizer_meets_every_task_and_seed_at_one_budget(tmp_path: Path) -> None:
    other = NamedTask(name="more films", train=rows(6, 2), test=rows(10))
    result = compare_films(tmp_path, "random", "cma", tasks=[FILMS, other])
    assert Counter((r.task, r.method, r.seed) for r in result.records) == Counter(
        (task, optimizer, seed)
        for task in ("films", "more films")
        for optimizer in ("random", "cma")
        for seed in (1, 2)
    )
    assert all(35 <= record.spent["calls"] <= CALLS for record in result.records)
    assert all(record.status == "finished" for record in result.records)


def test_a_run_is_what_the_tuner_alone_would_have_found(tmp_path: Path) -> None:
    result = compare_films(tmp_path, OptimizerSpec(optimizer="cma", options={"population": 8}))
    record = result.records[0]
    alone = Tuner(
        ToyBackend(), "cma", settings=SMALL, budget=f"calls={CALLS}", seed=1, callbacks=()
    ).fit(FILMS.train, FILMS.validation)
    assert record.settings["optimizer_options"] == {"population": 8}
    # another population
    assert record.curve.generation_loss[-1] != alone.history["train_loss"].iloc[-1]
    plain = compare_films(tmp_path / "plain", "cma").records[0]
    assert list(plain.curve.kept_loss) == alone.history["best_loss"].tolist()
    assert list(plain.curve.calls) == alone.history["calls"].tolist()
    assert plain.accuracy("test") == alone.score(FILMS.test).accuracy
    assert plain.loss("test") == alone.score(FILMS.test).loss


def test_the_tuned_prompt_of_a_run_can_be_used(tmp_path: Path) -> None:
    record = compare_films(tmp_path, "random").records[0]
    saved = TunedPrompt.load(tmp_path / "films" / "random" / "seed-1")
    assert saved.score(ToyBackend(), FILMS.test).loss == record.loss("test")
    assert saved.provenance["settings"]["optimizer"] == "random"


def test_workers_find_what_one_process_finds(tmp_path: Path) -> None:
    alone = compare_films(tmp_path / "alone", "random", "cma")
    together = compare_films(tmp_path / "together", "random", "cma", jobs=2)
    assert essence(together) == essence(alone)


def test_no_more_processes_are_started_than_there_are_runs(tmp_path: Path) -> None:
    psutil = pytest.importorskip("psutil")
    get_reusable_executor().shutdown(wait=True)  # of other tests
    compare_films(tmp_path, "random", jobs=6)
    children = psutil.Process().children()
    assert sum("loky.backend.popen" in " ".join(each.cmdline()) for each in children) == 2


def test_shots_draw_other_rows_for_each_seed(tmp_path: Path) -> None:
    pool = NamedTask(name="pool", train=rows(40), test=rows(12), shots=3)
    records = compare_films(tmp_path, "random", tasks=pool).records
    assert [record.rows["train"].rows for record in records] == [6, 6]
    assert records[0].rows["train"].digest != records[1].rows["train"].digest
    assert records[0].rows["test"] == records[1].rows["test"]


def test_a_seed_in_a_path_chooses_the_rows(tmp_path: Path) -> None:
    for seed in (1, 2):
        text = "".join(
            json.dumps({"text": text, "label": label}) + "\n" for text, label in rows(6 + 2 * seed)
        )
        (tmp_path / f"train-{seed}.jsonl").write_text(text)
    task = NamedTask(name="films", train=tmp_path / "train-{seed}.jsonl")
    records = compare_films(tmp_path / "out", "random", tasks=task).records
    assert [record.rows["train"].rows for record in records] == [8, 10]


@pytest.mark.parametrize("jobs", [None, 2])
def test_notes_of_runs_are_recorded_and_given_once(tmp_path: Path, jobs: int | None) -> None:
    said: list[str] = []
    task = NamedTask(name="films", train=rows(8), validation=rows(8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = compare_films(tmp_path, "random", tasks=task, jobs=jobs, on_note=said.append)
    assert [list(record.notes) for record in result.records] == [said, said]
    overlap, few, *chance = said
    assert overlap.startswith("validation: 8 of 8 rows are training rows too")
    assert few.startswith("the budget pays ")
    assert all("no better than guessing" in note for note in chance)


def test_a_note_that_not_all_runs_have_names_one_that_does(tmp_path: Path) -> None:
    first, *others = compare_films(tmp_path, "random", seeds=(1, 2, 3)).records
    records = [replace(first, notes=["all", "some"]), *(replace(r, notes=["all"]) for r in others)]
    assert notes_of(records) == ["all", "1 of 3 runs, as films, random, seed 1: some"]


# -- time ---------------------------------------------------------------------------------------


def test_a_record_knows_its_times(tmp_path: Path) -> None:
    record = compare_films(tmp_path, "cma").records[0]
    assert 0 < record.optimizer_seconds < record.wall_seconds


# -- going on -----------------------------------------------------------------------------------


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    first = compare_films(tmp_path, "random", "cma")

    def never() -> ToyBackend:
        raise AssertionError("no backend is needed")

    assert essence(compare_films(tmp_path, "random", "cma", backend=never)) == essence(first)


class Impatient(RandomSearch):
    """Is interrupted in its second generation, once."""

    interrupted = False

    def tell(self, points: FloatArray, losses: FloatArray, /) -> None:
        if not Impatient.interrupted and self.told == 1:
            Impatient.interrupted = True
            raise KeyboardInterrupt
        self.told += 1
        super().tell(points, losses)

    told = 0


def test_an_interrupted_comparison_goes_on_and_pays_nothing_twice(tmp_path: Path) -> None:
    book, optimizers = (
        tmp_path / "book",
        ("random", OptimizerSpec(optimizer=Impatient, label="other")),
    )
    backend = partial(Counting, book)
    Impatient.interrupted = False
    with pytest.raises(KeyboardInterrupt):
        compare_films(tmp_path / "out", *optimizers, backend=backend)
    resumed = compare_films(tmp_path / "out", *optimizers, backend=backend)
    paid = scored(book)
    book.unlink()
    through = compare_films(tmp_path / "through", *optimizers, backend=backend)
    assert essence(resumed) == essence(through)
    assert sorted(paid) == sorted(scored(book))


def test_optimizers_and_seeds_may_be_added_to_a_folder(tmp_path: Path) -> None:
    compare_films(tmp_path, "random", seeds=[1])
    compare_films(tmp_path, "cma", "random", seeds=[1, 2])
    assert len(ComparisonResult.of(tmp_path).records) == 4


def test_two_folders_copied_together_are_one_comparison(tmp_path: Path) -> None:
    compare_films(tmp_path / "a", seeds=[1])
    compare_films(tmp_path / "b", seeds=[2])
    whole = compare_films(tmp_path / "whole")
    assert sorted(map(str, essence(ComparisonResult.of(tmp_path / "a", tmp_path / "b")))) == sorted(
        map(str, essence(whole))
    )
    shutil.copytree(tmp_path / "b", tmp_path / "a", dirs_exist_ok=True)
    assert ComparisonResult.of(tmp_path / "a").ranking.equals(whole.ranking)


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"budget": "calls=61"}, "budget is 'calls=41' there and 'calls=61' here"),
        ({"settings": "default"}, "intrinsic_dim is 6 there and 50 here"),
        ({"early_stop": EarlyStop()}, "early_stop is None there"),
        ({"tasks": NamedTask(name="films", train=rows(8))}, "validation rows of 'films'"),
        (
            {"tasks": NamedTask(**{**vars(FILMS), "labels": {"good": "fine", "bad": "bad"}})},
            "the label words of 'films'",
        ),
    ],
)
def test_another_comparison_in_the_same_folder_is_refused(
    tmp_path: Path, more: dict[str, Any], what: str
) -> None:
    compare_films(tmp_path, "random")
    with pytest.raises(InputError, match=what):
        compare_films(tmp_path, "cma", **more)


def test_an_optimizer_with_other_options_under_the_same_name_is_refused(tmp_path: Path) -> None:
    own = [OptimizerSpec(optimizer="cma", options={"population": n}, label="mine") for n in (8, 10)]
    compare_films(tmp_path, own[0], seeds=[1])
    with pytest.raises(InputError, match=r"the optimizer_options of 'mine' is \{'population': 8\}"):
        compare_films(tmp_path, own[1], seeds=[2])


def test_a_run_begun_under_a_larger_budget_is_not_taken_for_one_of_this(tmp_path: Path) -> None:
    compare_films(tmp_path, "cma", "random", seeds=[1], budget="calls=61")
    for file in tmp_path.rglob("run.jsonl"):
        file.unlink()
    shutil.rmtree(tmp_path / "films" / "random")
    result = compare_films(tmp_path, "cma", "random", seeds=[1], budget="calls=41")
    (failed,) = result.failed
    assert failed.method == "cma"
    assert "calls, and the budget is 41: delete" in failed.reason


def test_options_may_be_numbers_of_numpy(tmp_path: Path) -> None:
    options = {"population": np.int64(8)}
    result = compare_films(tmp_path, OptimizerSpec(optimizer="cma", options=options))
    assert result.records[0].settings["optimizer_options"] == {"population": 8}


def test_a_target_is_a_number(tmp_path: Path) -> None:
    compare_films(tmp_path, "random", seeds=[1])
    with pytest.raises(InputError, match="target=nan: it takes a finite loss"):
        ComparisonResult.of(tmp_path, target=math.nan)
    with pytest.raises(InputError, match="target=inf: it takes a finite loss"):
        compare_films(tmp_path / "another", "random", seeds=[1], target=math.inf)
    assert not (tmp_path / "another").exists()


def test_another_backend_in_the_same_folder_is_refused_before_it_is_paid(tmp_path: Path) -> None:
    compare_films(tmp_path, "random")
    with pytest.raises(InputError, match=r"holds runs with the backend 'toy .*seed=0.*seed=7"):
        compare_films(tmp_path, "cma", backend_options={"seed": 7})
    assert not (tmp_path / "films" / "cma").exists()


def test_folders_of_two_comparisons_are_not_reported_as_one(tmp_path: Path) -> None:
    compare_films(tmp_path / "a", "random")
    compare_films(tmp_path / "b", "cma", backend_options={"seed": 7})
    with pytest.raises(InputError, match="not of one comparison: the backend is"):
        ComparisonResult.of(tmp_path / "a", tmp_path / "b")


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    compare_films(tmp_path, "random", seeds=[1])
    file = tmp_path / "films" / "random" / "seed-1" / "run.jsonl"
    file.write_text(file.read_text()[:100])
    with pytest.raises(StorageError, match=r"seed-1/run\.jsonl, line 1: the run is damaged"):
        ComparisonResult.of(tmp_path)
    file.unlink()
    compare_films(tmp_path, "random", seeds=[1])  # from the journal
    file.write_text(file.read_text().replace('"format": 2', '"format": 9', 1))
    with pytest.raises(StorageError, match="format 9 of a run, and this version reads up to 2"):
        ComparisonResult.of(tmp_path)


# -- several backends ---------------------------------------------------------------------------


TWO = [
    BackendSpec(backend="toy", price=Price(input=1.0), label="small"),
    BackendSpec(backend="toy", options={"seed": 7}, price=Price(input=30.0)),
]


def test_each_backend_tunes_its_own_prompts_and_more_may_be_added(tmp_path: Path) -> None:
    first = compare_films(tmp_path / "two", "random", "cma", backend=TWO[:1])
    result = compare_films(tmp_path / "two", "random", "cma", backend=TWO)
    assert result.backends == ["small", "toy(seed=7)"]
    assert essence(result)[:4] == essence(first)
    assert {record.identity for record in result.records} == {
        ToyBackend(seed=seed).identity for seed in (0, 7)
    }
    assert result.cost_unit == "money" and set(result.costs["runs"]) == {2}
    alone = compare_films(tmp_path / "alone", "random", "cma")
    assert alone.backends == []
    losses = [record.loss("test") for record in alone.records]
    assert [record.loss("test") for record in first.records] == losses
    assert [record.loss("test") for record in result.records[4:]] != losses
    assert ComparisonResult.of(tmp_path / "two").costs.equals(result.costs)


def test_a_backend_of_a_label_stays_the_same(tmp_path: Path) -> None:
    compare_films(tmp_path, "random", seeds=[1], backend=TWO[:1])
    other = BackendSpec(backend="toy", options={"seed": 7}, label="small")
    with pytest.raises(InputError, match=r"holds runs with the backend 'toy .*seed=0.*seed=7"):
        compare_films(tmp_path, "random", seeds=[2], backend=[other])
    with pytest.raises(InputError, match="whether the backend has a label is True"):
        compare_films(tmp_path, "random", seeds=[2])


def test_runs_of_an_earlier_version_are_read_and_resumed(tmp_path: Path) -> None:
    first = compare_films(tmp_path, "random", seeds=[1])
    (path,) = tmp_path.rglob("run.jsonl")
    content = json.loads(path.read_text())
    assert (content.pop("backend"), content.pop("command")) == ("", "")
    path.write_text(json.dumps(content) + "\n")
    assert ComparisonResult.of(tmp_path).records == first.records
    assert compare_films(tmp_path, "random", "cma", seeds=[1]).records[0] == first.records[0]


# -- what goes wrong ----------------------------------------------------------------------------


def test_a_failed_run_is_recorded_with_its_sentence_and_counts_nowhere(tmp_path: Path) -> None:
    result = compare_films(tmp_path, "random", broken)
    failed = result.failed
    assert [record.key for record in failed] == [("films", "broken", 1), ("films", "broken", 2)]
    assert failed[0].reason == "ZeroDivisionError: no more ideas"
    assert len(failed[0].curve.calls) == 2  # what it did before is there
    assert [(line.optimizer, line.failed) for line in result.ranking.itertuples()] == [
        ("random", 0),
        ("broken", 2),
    ]
    assert result.ranking.iloc[1].isna().mean_rank
    assert result.tests.optimizers_left_out == ["broken"]


def test_a_failed_run_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compare_films(tmp_path, "random", broken)
    monkeypatch.setattr(Broken, "ask", RandomSearch.ask)
    assert not compare_films(tmp_path, "random", broken).failed


def test_nothing_but_failures_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not one of 2 runs succeeded.*no more ideas"):
        compare_films(tmp_path, broken)


def test_a_budget_too_small_for_one_optimizer_stops_only_that_one(tmp_path: Path) -> None:
    large = OptimizerSpec(optimizer="cma", options={"population": 60})
    result = compare_films(tmp_path, "random", large)
    assert {record.method for record in result.failed} == {"cma(population=60)"}
    assert "Raise the budget" in result.failed[0].reason


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"backend": "toyy"}, "unknown backend 'toyy'; did you mean 'toy'"),
        ({"backend": ToyBackend()}, "is a backend, and each worker builds its own"),
        ({"backend_options": {"widht": 3}}, "'toy' cannot be made with widht=3"),
        ({"backend": ToyBackend, "backend_options": {"width": 3}}, "for a backend given by name"),
        ({"backend": []}, "there is no backend"),
        ({"backend": ["toy", "toy"]}, "the backend 'toy' is named twice"),
        (
            {"backend": ["toy"], "backend_options": {"width": 3}},
            "give each its own, as",
        ),
        ({"optimizers": ["cna"]}, "unknown optimizer 'cna'; did you mean 'cma'"),
        ({"optimizers": ["cma", "cma"]}, "'cma' is named twice"),
        ({"optimizers": "cma"}, r"give a list of them"),
        ({"seeds": []}, "give some, each once"),
        ({"seeds": [1, 1]}, "give some, each once"),
        ({"seeds": [-1]}, "seed -1: it must be a whole number from 0 on"),
        ({"budget": "patience=3"}, "at equal budgets; give one"),
        ({"budget": "seconds=9", "early_stop": EarlyStop()}, "limit these: calls=200"),
        ({"tasks": []}, "there is no task"),
        ({"tasks": [FILMS, FILMS]}, "two tasks have the name 'films'"),
        ({"tasks": NamedTask(name="x", train=rows(8), test=[("a", "new")])}, "task 'x', test"),
        ({"jobs": 0}, "jobs=0"),
    ],
)
def test_what_cannot_work_is_told_before_anything_is_paid(
    tmp_path: Path, more: dict[str, Any], what: str
) -> None:
    given = {"optimizers": ["random"], **more}
    optimizers = given.pop("optimizers")
    with pytest.raises(InputError, match=what):
        if isinstance(optimizers, str):
            from lmaas_tune import compare

            compare("toy", FILMS, optimizers=optimizers, seeds=[1], out=tmp_path)
        compare_films(tmp_path, *optimizers, **given)
    assert not list(tmp_path.rglob("journal.jsonl"))


# -- workers that die ---------------------------------------------------------------------------


def test_a_killed_worker_costs_nothing_but_its_unfinished_generation(tmp_path: Path) -> None:
    book = tmp_path / "book"
    with pytest.warns(UserWarning, match="a worker died .*; resumed one by one: films/"):
        result = compare_films(tmp_path / "out", backend=partial(DiesOnce, book), jobs=2)
    assert book.with_suffix(".dead").exists()
    assert not result.failed
    assert essence(result) == essence(compare_films(tmp_path / "unharmed"))
    # two runs were under way when the pool broke: each may have lost one request, and its test
    again = [n for n in Counter(scored(book)).values() if n > 2]
    assert len(again) <= 2 * 20


def test_a_run_that_always_kills_its_worker_fails_by_itself(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="a worker died"):
        result = compare_films(tmp_path, "random", "cma", deadly, seeds=[1], jobs=2)
    assert [record.method for record in result.failed] == ["deadly"]
    assert "its worker died twice" in result.failed[0].reason
    assert result.failed[0].identity == result.records[0].identity
    assert ComparisonResult.of(tmp_path).ranking.equals(result.ranking)


def test_a_worker_that_is_killed_before_it_begins_costs_nothing(tmp_path: Path) -> None:
    backend = partial(dies_while_built, tmp_path / "book", 1)
    with pytest.warns(UserWarning, match="a worker died .*; no run was under way"):
        result = compare_films(tmp_path / "out", "random", backend=backend, seeds=[1], jobs=2)
    assert [record.status for record in result.records] == ["finished"]


@pytest.mark.filterwarnings("ignore:a worker died")
def test_workers_that_never_begin_end_the_comparison(tmp_path: Path) -> None:
    backend = partial(dies_while_built, tmp_path / "book", 9)
    with pytest.raises(PermanentError, match="workers died twice before they could begin a run"):
        compare_films(tmp_path / "out", "random", backend=backend, seeds=[1], jobs=2)


# -- ending early -------------------------------------------------------------------------------


class Hopeless(RandomSearch):
    """Looks where nothing is."""

    def ask(self) -> FloatArray:
        return 1e3 + super().ask()

    def tell(self, points: FloatArray, losses: FloatArray, /) -> None:
        self._asked = None


def test_runs_end_early_only_where_asked_and_it_is_recorded(tmp_path: Path) -> None:
    optimizers = [OptimizerSpec(optimizer="cma", options={"population": n}) for n in (8, 10, 12)]
    optimizers.append(OptimizerSpec(optimizer=Hopeless, label="hopeless"))
    rule = EarlyStop(after=0.5, rivals=3)
    no_start = {"settings": changed(SMALL, score_start=False, head="none"), "budget": "calls=60"}
    through = compare_films(tmp_path / "through", *optimizers, **no_start)
    assert not through.stopped_early
    result = compare_films(tmp_path / "early", *optimizers, **no_start, early_stop=rule)
    assert not result.failed
    assert {record.method for record in result.stopped_early} == {"hopeless"}
    record = result.stopped_early[0]
    assert record.spent["calls"] == 40
    assert record.reason.startswith("after 40 calls its lowest training loss was")
    assert record.done and record.loss("test") > 0
    assert record.conditions["early_stop"] == {"after": 0.5, "rivals": 3}
    assert result.ranking.iloc[-1].stopped_early == 2
    no_start["budget"] = "calls=59"  # behind at 40 calls too, but then it has had its budget
    result = compare_films(tmp_path / "end", *optimizers, **no_start, early_stop=rule)
    assert not result.stopped_early


def test_a_rule_that_waits_for_more_rivals_than_there_are_is_told_of(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="by 3 finished runs of other optimizers, and 2 take part"):
        compare_films(tmp_path, "cma", "random", early_stop=EarlyStop())


@pytest.mark.parametrize("values", [{"after": 0}, {"after": 1}, {"after": "half"}, {"rivals": 0}])
def test_a_rule_that_cannot_be_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(values))):
        EarlyStop(**values)


# -- what it costs those who do not compare -------------------------------------------------------


def test_the_core_and_the_command_line_import_nothing_that_only_a_comparison_needs() -> None:
    code = (
        "import sys, lmaas_tune\n"
        "assert 'lmaas_tune.lab' not in sys.modules\n"
        "import lmaas_tune.cli\n"
        "heavy = {'joblib', 'scipy', 'statsmodels', 'plotly', 'jinja2', 'pandas'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "from lmaas_tune import compare\n"
        "assert callable(compare)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
