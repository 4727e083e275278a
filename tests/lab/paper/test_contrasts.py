"""Differences between rows of the table, and the scores that they are made of."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lmaas_tune.errors import InputError
from lmaas_tune.lab.paper.contrasts import differences, differences_text
from lmaas_tune.lab.paper.table import table_cells, table_text
from lmaas_tune.lab.record import FinalScore, Record, expected_calibration_error
from lmaas_tune.objectives import cross_entropy

RNG = np.random.default_rng(0)
TARGETS = RNG.integers(2, size=400)


def odds(share: float) -> np.ndarray:
    """(400, 2) log-odds that are right for a share of the rows."""
    right = RNG.random(400) < share
    answers = np.where(right, TARGETS, 1 - TARGETS)
    return 2.0 * np.eye(2)[answers] + RNG.normal(scale=0.1, size=(400, 2))


def record(method: str, seed: int, task: str = "sst2", **shares: float) -> Record:
    final = {name: FinalScore.of_log_odds(odds(share), TARGETS) for name, share in shares.items()}
    return Record(
        task=task,
        method=method,
        seed=seed,
        status="finished",
        identity="m",
        conditions={},
        template="",
        label_words={},
        rows={},
        final=final,
        value=final["test"].accuracy,
    )


def test_a_score_keeps_the_loss_and_the_answer_of_each_row() -> None:
    scores = odds(0.7)
    score = FinalScore.of_log_odds(scores, TARGETS)
    assert score.by_row is not None
    losses, right = score.by_row
    assert right.mean() == pytest.approx(score.accuracy)
    assert score.loss == pytest.approx(cross_entropy(scores, TARGETS))
    assert losses.mean() == pytest.approx(score.loss, rel=1e-3)
    np.testing.assert_array_equal(right == 1, scores.argmax(axis=1) == TARGETS)
    kept = Record.from_json(record("manual", 1, test=0.7).to_json())
    assert kept.final["test"] is not None and kept.final["test"].by_row is not None
    with pytest.raises(InputError, match="row_losses"):
        _ = FinalScore(row_losses="no base64!").by_row


def test_a_loss_beyond_float16_is_the_highest_that_it_holds() -> None:
    score = FinalScore.of_log_odds(np.array([[0.0, 1e6], [0.0, -1e6]]), np.array([0, 0]))
    assert score.by_row is not None
    losses, right = score.by_row
    assert losses.tolist() == [60000.0, 0.0] and right.tolist() == [0.0, 1.0]


def test_the_calibration_error_is_the_distance_of_confidence_and_accuracy() -> None:
    sure = np.array([[10.0, -10.0]] * 10)
    assert expected_calibration_error(sure, np.zeros(10, int)) == pytest.approx(0.0, abs=1e-6)
    assert expected_calibration_error(sure, np.ones(10, int)) == pytest.approx(1.0, abs=1e-6)
    half = np.full((10, 2), math.log(0.5))
    assert expected_calibration_error(half, np.arange(10) % 2) == pytest.approx(0.0)
    assert expected_calibration_error(half, np.zeros(10, int)) == pytest.approx(0.5)


def test_the_parts_of_the_default_are_told_apart_with_intervals() -> None:
    records = [
        record("default", seed, task, test=0.9, starts=0.85, start=0.8, bias=0.6)
        for task in ("sst2", "mrpc")
        for seed in (1, 2, 3)
    ]
    records += [record("p-tuning-v2", seed, test=0.85, head=0.7) for seed in (1, 2, 3)]
    found = {one.name: one for one in differences(records)}
    head, search = list(found.values())[:2]
    assert head.name.startswith("words head") and search.name.startswith("search")
    for part, gain in ((head, 0.2), (search, 0.1)):
        for task in ("sst2", "mrpc", "average"):
            contrast = part.accuracy[task]
            assert contrast.low < contrast.mean < contrast.high
            assert contrast.mean == pytest.approx(gain, abs=0.05)
            assert part.loss[task].high < 0
        widths = {task: c.high - c.low for task, c in part.accuracy.items()}
        assert widths["average"] < widths["sst2"]
    assert set(found["default - P-Tuning v2"].accuracy) == {"sst2", "average"}
    assert found["default - P-Tuning v2 + words head (ours)"].accuracy["sst2"].low > 0.1
    assert "SST-2 +" in differences_text(list(found.values()))


def test_seeds_that_one_row_lacks_are_left_out_of_a_difference() -> None:
    one = [record("default", 1, test=0.9), record("icl", 2, test=0.5)]
    assert differences(one) == []
    (found,) = differences([*one, record("icl", 1, test=0.5)])
    assert found.name == "default - In-Context Learning"


def test_the_one_run_of_a_row_that_no_seed_changes_stands_for_every_seed() -> None:
    ours = [record("default", seed, test=test) for seed, test in ((1, 0.9), (2, 0.7), (3, 0.6))]
    records = [*ours, record("manual", 4, test=0.5)]
    cells = table_cells(records)["sst2"]
    (found,) = differences(records)
    apart = cells["default"].accuracy.mean - cells["manual"].accuracy.mean
    assert found.accuracy["sst2"].mean == pytest.approx(apart)


def test_a_variant_has_its_own_line_below_its_method() -> None:
    text = table_text(table_cells([record("p-tuning-v2", 1, test=1.0, head=0.5)]))
    lines = text.splitlines()
    (at,) = [
        i for i, line in enumerate(lines) if line.startswith("P-Tuning v2") and "100.0" in line
    ]
    assert "(paper)" in lines[at + 1] and "+ words head (ours)" in lines[at + 2]
    assert "Expected calibration error." in text
