"""What runs say together, against values found by other ways."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lmaas_tune import InputError
from lmaas_tune.lab.record import Curve, Record
from lmaas_tune.lab.report import ComparisonResult
from lmaas_tune.lab.runtimes import targets
from lmaas_tune.lab.significance import Pair, Pairs, friedman, pairs
from tests.lab.made import run, table

THREE = {"a": [0.1, 0.2, 0.3, 0.4], "b": [0.2, 0.3, 0.4, 0.6], "c": [0.3, 0.1, 0.5, 0.5]}


def ranks(records: Sequence[Record]) -> dict[str, float | None]:
    ranking = ComparisonResult(records).ranking
    return dict(zip(ranking["optimizer"], ranking["mean_rank"], strict=True))


# -- ranking ------------------------------------------------------------------------------------


def test_ranks_are_taken_within_a_task_and_seed() -> None:
    assert ranks(table(THREE)) == {"a": 1.25, "c": 2.25, "b": 2.5}
    assert list(ranks(table(THREE))) == ["a", "c", "b"]  # best first


def test_equal_losses_share_a_rank() -> None:
    assert ranks(table({"a": [0.5], "b": [0.5], "c": [0.1]})) == {"c": 1, "a": 2.5, "b": 2.5}


def test_what_the_machine_rounds_is_no_difference() -> None:
    result = ComparisonResult(
        table({"a": [0.5 + 2e-16] * 9, "b": [0.5] * 9, "c": [0.5 - 3e-9] * 9})
    )
    assert {line.mean_rank for line in result.ranking.itertuples()} == {2}
    assert result.tests.friedman.p is None
    assert not any(pair.differ for pair in result.tests.pairs.of)


@given(
    st.integers(2, 4).flatmap(
        lambda count: st.lists(
            st.lists(st.integers(0, 3), min_size=count, max_size=count), min_size=2, max_size=5
        )
    )
)
def test_mean_ranks_add_up_whatever_the_losses(losses: list[list[int]]) -> None:
    found = ranks(table({str(i): [float(x) for x in own] for i, own in enumerate(losses)}))
    assert sum(filter(None, found.values())) == pytest.approx(sum(range(1, len(losses) + 1)))


def test_a_hard_task_weighs_no_more_than_an_easy_one() -> None:
    records = table({"a": [0.1], "b": [0.2]}) + table({"a": [9.0], "b": [5.0]}, task="hard")
    assert ranks(records) == {"b": 1.5, "a": 1.5}


def test_the_deviation_is_over_the_seeds_of_a_task() -> None:
    records = table({"a": [1.0, 3.0]}) + table({"a": [101.0, 103.0]}, task="other")
    line = ComparisonResult(records).ranking.iloc[0]
    assert line.loss_mean == 52
    assert line.loss_std == pytest.approx(math.sqrt(2))
    assert ComparisonResult(table({"a": [1.0]})).ranking.iloc[0].isna().loss_std


def test_a_block_without_all_losses_is_left_out_and_counted() -> None:
    records = table(THREE)
    records[0] = replace(records[0], status="failed", final={})
    records[-1] = run("c", 4, loss=None)  # its loss was not finite
    result = ComparisonResult(records)
    assert result.tests.blocks == 2
    assert result.tests.blocks_left_out == 2
    assert ranks(records) == {"a": 1.5, "b": 2.5, "c": 2.0}
    assert result.ranking.iloc[0].failed == 1


def test_an_optimizer_is_no_better_for_a_hard_task_that_it_lacks() -> None:
    records = table({"a": [0.1], "b": [0.2]})
    records += [run("a", 1, loss=1.0, task="hard")]
    lines = {line.optimizer: line for line in ComparisonResult(records).ranking.itertuples()}
    assert (lines["a"].loss_mean, lines["b"].loss_mean) == (0.1, 0.2)
    assert (lines["a"].runs, lines["b"].runs) == (2, 1)


def test_losses_are_those_of_the_rows_that_all_tasks_have() -> None:
    assert ComparisonResult([run()]).judged_on == "test"
    bare = replace(run(task="bare"), rows={**run().rows, "test": None})
    assert ComparisonResult([run(), bare]).judged_on == "validation"
    barer = replace(bare, rows={**bare.rows, "validation": None})
    assert ComparisonResult([run(), barer]).judged_on == "train"


def test_each_task_has_its_own_means_and_medians() -> None:
    first = ComparisonResult(table({"a": [0.1, 0.2, 0.6]})).by_task.iloc[0]
    assert first.loss_mean == pytest.approx(0.3)
    assert first.loss_median == pytest.approx(0.2)
    assert first.accuracy_median == pytest.approx(0.8)
    assert first.loss_std == pytest.approx(np.std([0.1, 0.2, 0.6], ddof=1))


def test_an_interval_on_one_task_is_students() -> None:
    losses = [0.1, 0.2, 0.6, 0.4]
    result = ComparisonResult(table({"a": losses, "b": [0.5, 0.5, 0.5, 0.5]}))
    low, high = stats.t.interval(0.95, 3, loc=np.mean(losses), scale=stats.sem(losses))
    for line in (result.by_task.iloc[0], result.ranking.set_index("optimizer").loc["a"]):
        assert (line.loss_low, line.loss_high) == pytest.approx((low, high))
        assert (line.accuracy_low, line.accuracy_high) == pytest.approx((1 - high, min(1, 1 - low)))
    ranks = [1, 1, 2, 1]
    low, high = stats.t.interval(0.95, 3, loc=np.mean(ranks), scale=stats.sem(ranks))
    line = result.ranking.iloc[0]
    assert (line.rank_low, line.rank_high) == pytest.approx((1, min(2, high)))  # there are two


def test_an_interval_over_tasks_is_that_of_welch() -> None:
    a, b = [0.1, 0.2, 0.4], [0.3, 0.7, 0.2, 0.6]
    line = ComparisonResult(table({"x": a}) + table({"x": b}, task="other")).ranking.iloc[0]
    # a difference and a sum have the same variance, and half of it is the mean
    both = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert line.loss_high - line.loss_low == pytest.approx((both.high - both.low) / 2)
    assert (line.loss_high + line.loss_low) / 2 == pytest.approx(line.loss_mean)


@pytest.mark.parametrize("losses", [[0.4], [0.4, 0.4, 0.4]])
def test_where_no_spread_is_known_there_is_no_interval(losses: list[float]) -> None:
    records = table({"a": losses}) + table({"a": [0.1, 0.2]}, task="other")
    result = ComparisonResult(records)
    assert result.by_task.iloc[0].isna().loss_low
    assert result.ranking.iloc[0].isna().loss_low == (len(losses) == 1)


def test_one_seed_is_said_before_all_else() -> None:
    one = ComparisonResult(table({"a": [0.1], "b": [0.2]}))
    assert one.verdict.startswith("No ranking: one seed. ")
    assert repr(one).startswith("ComparisonResult('No ranking: one seed. ")
    assert next(iter(one.to_json().items())) == ("verdict", one.verdict)
    two = ComparisonResult(table({"a": [0.1, 0.1], "b": [0.2, 0.2]}))
    assert not two.caution and "No ranking" not in two.verdict


# -- tests --------------------------------------------------------------------------------------


def test_friedmans_p_is_the_share_of_arrangements_that_are_as_extreme() -> None:
    friedman = ComparisonResult(table(THREE)).tests.friedman
    losses = np.array(list(THREE.values())).T
    found = stats.friedmanchisquare(*losses.T).statistic
    orders = list(itertools.permutations(range(3)))
    others = [
        stats.friedmanchisquare(*np.take_along_axis(losses, np.array(order), axis=1).T)[0]
        for order in itertools.product(orders, repeat=len(losses))
    ]
    assert friedman.statistic == pytest.approx(found)
    assert friedman.p == pytest.approx(np.mean(np.array(others) >= found - 1e-9), abs=1e-12)


def test_what_holds_over_tasks_is_tested_by_their_means() -> None:
    losses = {"a": [0.1, 0.9], "b": [0.2, 0.5], "c": [0.3, 0.3]}  # a block each way round
    records = [record for task in "xyz" for record in table(losses, task=task)]
    tests = ComparisonResult(records).tests
    assert (tests.blocks, tests.tasks) == (6, 3)
    assert tests.friedman.p > 0.5
    assert tests.friedman_over_tasks.statistic == 6  # the same order on each of 3 tasks
    assert tests.friedman_over_tasks.p == pytest.approx(6 / 6**3)
    alone = ComparisonResult(table(losses)).tests.friedman_over_tasks
    assert alone.untested == ("1 task is too few: with any losses, p would be 1 or more; add tasks")


def test_pairs_are_scipys_wilcoxon_with_holms_correction_by_hand() -> None:
    rng = np.random.default_rng(0)
    losses = {
        name: list(rng.random(12) + more) for name, more in (("a", 0), ("b", 0.1), ("c", 0.9))
    }
    pairs = ComparisonResult(table(losses)).tests.pairs.of
    raw = {}
    for pair in pairs:
        a, b = pair.first, pair.second
        raw[a, b] = stats.wilcoxon(losses[a], losses[b]).pvalue
        assert pair.p == pytest.approx(raw[a, b])
        assert pair.first_better == sum(np.less(losses[a], losses[b]))
    adjusted, highest = {}, 0.0
    for rank, couple in enumerate(sorted(raw, key=lambda couple: raw[couple])):
        highest = max(highest, min(1.0, (len(raw) - rank) * raw[couple]))
        adjusted[couple] = highest
    for pair in pairs:
        assert pair.p_holm == pytest.approx(adjusted[pair.first, pair.second])
        assert pair.differ == (pair.p_holm <= 0.05)
    assert [pair.differ for pair in pairs] == [False, True, True]


def test_few_differences_among_many_ties_tell_no_more_than_their_signs() -> None:
    losses = {"a": [0.1] * 5 + [0.5] * 15, "b": [0.2, 0.3, 0.4, 0.5, 0.6] + [0.5] * 15}
    assert ComparisonResult(table(losses)).tests.pairs.of[0].p == pytest.approx(2 / 2**5)
    losses = {"a": [0.1] * 6 + [0.5] * 8, "b": [0.2] * 6 + [0.5] * 8}
    assert ComparisonResult(table(losses)).tests.pairs.of[0].p == pytest.approx(2 / 2**6)


def test_what_cannot_come_out_is_not_tested_but_said() -> None:
    tests = ComparisonResult(table({"a": [0.1, 0.1], "b": [0.2, 0.2], "c": [0.3, 0.3]})).tests
    assert tests.friedman.p is None
    assert tests.friedman.untested == (
        "2 blocks are too few: with any losses, p would be 0.17 or more; add seeds or tasks"
    )
    assert tests.pairs.of == ()
    assert "p would be 1 or more (Holm's method, 3 pairs)" in tests.pairs.untested
    two = ComparisonResult(table({"a": [0.1] * 6, "b": [0.2] * 6})).tests
    assert two.friedman.untested == "Friedman's test needs three optimizers or more"
    assert two.pairs.of[0].differ  # 2 of 2^6 signs
    assert ComparisonResult(table({"a": [0.1] * 5, "b": [0.2] * 5})).tests.pairs.untested
    none = pd.DataFrame(columns=["a", "b", "c"], dtype=float)
    assert friedman(none, of="task").untested == "not one task has a loss of every optimizer"
    assert pairs(none).untested == "not one block has a loss of every optimizer"


def test_equal_losses_are_no_difference() -> None:
    tests = ComparisonResult(table({"a": [0.1] * 9, "b": [0.1] * 9, "c": [0.1] * 9})).tests
    assert tests.friedman.untested == "all optimizers have the same losses"
    assert [pair.p for pair in tests.pairs.of] == [1, 1, 1]
    assert tests.pairs.of[0].ties == 9


@pytest.mark.parametrize(
    ("optimizers", "seeds"), [(3, 2), (3, 3), (4, 2), (5, 4), (3, 7), (3, 8), (5, 9), (4, 12)]
)
def test_a_test_that_is_made_could_have_told(optimizers: int, seeds: int) -> None:
    clear = {str(i): [float(i)] * seeds for i in range(optimizers)}  # as extreme as can be
    tests = ComparisonResult(table(clear)).tests
    assert (tests.friedman.p is None) == (math.factorial(optimizers) ** (1.0 - seeds) > 0.05)
    if tests.friedman.p is not None:
        assert tests.friedman.p <= 0.05
    if tests.pairs.untested is None:
        assert all(pair.differ for pair in tests.pairs.of)


def test_those_who_are_not_told_apart_are_the_largest_sets_without_a_difference() -> None:
    def pair(first: str, second: str, *, differ: bool) -> Pair:
        rest = {"first_better": 0, "ties": 0, "median_difference": 0.0, "p": 0.5, "p_holm": 0.5}
        return Pair(first=first, second=second, differ=differ, **rest)

    rng = np.random.default_rng(0)
    for _ in range(30):
        all_pairs = list(itertools.combinations("abcdef", 2))
        found = Pairs(of=[pair(a, b, differ=bool(rng.random() < 0.5)) for a, b in all_pairs])
        differ = [{own.first, own.second} for own in found.of if own.differ]
        sets = [set(s) for n in range(2, 7) for s in itertools.combinations("abcdef", n)]
        alike = [s for s in sets if not any(two <= s for two in differ)]
        largest = [s for s in alike if not any(s < other for other in alike)]
        assert sorted(map(sorted, found.alike)) == sorted(map(sorted, largest))
    assert Pairs(untested="too few").alike == []


# -- curves, targets, time ----------------------------------------------------------------------


def test_a_curve_is_the_median_over_seeds_with_its_quartiles() -> None:
    records = [run("a", seed, losses=[seed, seed / 2], calls=[10, 30]) for seed in range(1, 6)]
    (line,) = ComparisonResult(records).curves()
    assert line.calls == [10, 30]
    assert (line.low[0], line.median[0], line.high[0]) == (2, 3, 4)
    assert line.median[1] == 1.5


def test_a_loss_holds_until_the_next_and_after_the_end() -> None:
    short = run("a", 1, losses=[0.8, 0.2], calls=[5, 10])
    long = run("b", 1, losses=[0.9, 0.6, 0.5], calls=[7, 20, 40])
    a, b = ComparisonResult([short, long]).curves()
    assert a.calls == b.calls == [7, 10, 20, 40]  # from where both have begun
    assert a.median == [0.8, 0.2, 0.2, 0.2]
    assert b.median == [0.9, 0.9, 0.6, 0.5]


def test_a_run_that_failed_has_no_part_in_a_curve() -> None:
    failed = run("a", 2, losses=[9.0], calls=[1], status="failed")
    (line,) = ComparisonResult([run("a", 1), failed]).curves()
    assert line.runs == 1


def test_a_run_that_never_reached_the_target_is_censored() -> None:
    reached = [run("a", seed, losses=[0.9, 0.4], calls=[10, 10 * seed]) for seed in (2, 3)]
    never = run("a", 4, losses=[0.9, 0.8], calls=[10, 100])
    (line,) = ComparisonResult([*reached, never], target=0.5).calls_to_target.itertuples()
    assert (line.reached, line.runs) == (2, 3)
    assert line.calls_median == 30
    assert line.calls_a_success == (20 + 30 + 100) / 2
    (line,) = ComparisonResult([reached[0], never], target=0.5).calls_to_target.itertuples()
    assert math.isnan(line.calls_median)


def test_the_soonest_at_the_target_comes_first_and_who_never_came_last() -> None:
    records = [
        run("never", losses=[0.9, 0.8], calls=[10, 20]),
        run("late", losses=[0.9, 0.4], calls=[10, 20]),
        run("soon", losses=[0.4, 0.4], calls=[10, 20]),
    ]
    lines = ComparisonResult(records, target=0.5).calls_to_target.itertuples()
    assert [line.optimizer for line in lines] == ["soon", "late", "never"]


def test_without_a_target_it_is_what_half_of_the_runs_reached() -> None:
    records = [run("a", seed, losses=[0.9, 0.1 * seed]) for seed in (1, 2, 3)]
    (line,) = ComparisonResult([replace(r, curve=replace(r.curve, calls=[1, 9])) for r in records])\
        .calls_to_target.itertuples()  # fmt: skip
    assert line.target == pytest.approx(0.2)
    assert line.reached == 2


def test_a_runtime_distribution_counts_the_targets_between_start_and_best() -> None:
    records = [
        run("a", 1, losses=[1.0, 0.5, 0.0], calls=[1, 10, 20]),
        run("a", 2, losses=[0.9, 0.9, 0.5], calls=[1, 10, 20]),
        run("b", 1, losses=[1.0, 1.0], calls=[1, 30]),
        run("b", 3, losses=[9.0, -9.0], calls=[1, 2], status="failed"),
    ]
    assert targets(records[:3]) == pytest.approx([1 - i / 50 for i in range(1, 51)])
    a, b = ComparisonResult(records).runtimes
    assert (a.optimizer, a.pairs, list(a.calls)) == ("a", 100, [1, 10, 20])
    assert a.share == pytest.approx([5 / 100, (25 + 5) / 100, (50 + 25) / 100])
    assert a.low is not None and a.high is not None
    assert (a.low[-1], a.high[-1]) == pytest.approx((0.5, 1.0))  # one seed drawn twice
    assert (b.pairs, list(b.share), b.low) == (50, [0, 0, 0], None)


def test_each_task_has_its_own_targets_and_as_many() -> None:
    other = run("a", task="other", losses=[90.0, 10.0], calls=[1, 5])
    (line,) = ComparisonResult([run("a", losses=[0.9, 0.1], calls=[1, 9]), other]).runtimes
    assert (line.pairs, list(line.calls), list(line.share)) == (100, [5, 9], [0.5, 1.0])
    flat = [run("a", losses=[0.5, 0.5], calls=[1, 9])]
    assert targets(flat) == [] and ComparisonResult(flat).runtimes[0].pairs == 0


# -- money --------------------------------------------------------------------------------------


def dear(backend: str, optimizer: str, loss: float, **spent: float) -> Record:
    return run(optimizer, loss=loss, backend=backend, spent={"calls": 40, "seconds": 2.0, **spent})


def test_the_front_is_who_is_not_beaten_in_price_and_accuracy_at_once() -> None:
    records = [
        dear("small", "a", 0.4, money=1.0),
        dear("small", "b", 0.4, money=2.0),  # as accurate, and dearer
        dear("large", "a", 0.1, money=5.0),
        dear("large", "b", 0.2, money=5.0),  # as dear, and less accurate
    ]
    result = ComparisonResult(records)
    assert result.cost_unit == "money" and result.backends == ["small", "large"]
    lines = [(line.backend, line.optimizer, line.on_front) for line in result.costs.itertuples()]
    assert lines == [
        ("small", "a", True),
        ("small", "b", False),
        ("large", "a", True),
        ("large", "b", False),
    ]


def test_costs_are_in_tokens_if_a_backend_has_no_price_and_in_calls_if_none_counts_them() -> None:
    tokens = [dear("s", "a", 0.4, money=1.0, tokens=10), dear("l", "a", 0.3, tokens=9)]
    assert ComparisonResult(tokens).cost_unit == "tokens"
    assert ComparisonResult([tokens[0], dear("l", "a", 0.3)]).cost_unit == "calls"


def test_costs_are_of_the_tasks_and_seeds_that_all_have() -> None:
    records = [dear("s", "a", 0.4, money=1.0), dear("l", "a", 0.3, money=2.0)]
    hard = replace(dear("l", "a", 0.9, money=9.0), task="hard")
    assert list(ComparisonResult([*records, hard]).costs["money"]) == [1.0, 2.0]


def test_a_block_is_on_one_backend() -> None:
    records = [dear(backend, name, loss) for backend, name, loss in
               (("s", "a", 0.8), ("s", "b", 0.9), ("l", "a", 0.2), ("l", "b", 0.1))]  # fmt: skip
    result = ComparisonResult(records)
    assert (result.tests.blocks, result.tests.tasks) == (2, 1)
    assert set(result.ranking["mean_rank"]) == {1.5}
    assert len(result.by_task) == len(result.curves()) == len(result.calls_to_target) == 4


def test_time_is_told_by_the_calls() -> None:
    slow = run("slow", optimizer_seconds=4.0, spent={"calls": 50, "seconds": 16.0})
    fast, slower = ComparisonResult([slow, run("fast")]).times.itertuples()
    assert (fast.optimizer, slower.seconds_per_100_calls) == ("fast", 8)
    assert slower.share_of_search == 0.25


# -- single records -----------------------------------------------------------------------------


def test_a_record_is_read_as_it_was_written() -> None:
    record = run(notes=["a note"], prompt_text="say")
    content = record.to_json()
    assert Record.from_json({**content, "of a later version": 1}) == record


def test_a_curve_without_losses_has_none() -> None:
    curve = Curve(calls=[1, 2], lowest_loss=[None, 0.5])
    assert curve.lowest_after(0) == curve.lowest_after(1) == math.inf
    assert curve.lowest_after(2) == 0.5
    assert curve.calls_to(0.4) is None


def test_no_success_is_no_comparison() -> None:
    with pytest.raises(InputError, match=r"not one of 1 runs succeeded.*budget calls=40"):
        ComparisonResult([run(status="failed")])
