"""The loop: what it keeps, when it ends."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from lmaas_tune import InputError
from lmaas_tune.lab.baselines import PromptTuningSettings
from lmaas_tune.lab.baselines.training import Rows, train


class Slide:
    """Two labels whose margin is one number that training moves; validation likes it at `best`."""

    def __init__(self, best: float) -> None:
        self.x = torch.nn.Parameter(torch.zeros(1))
        self._best = best
        self.modes: list[bool] = []

    def rows(self) -> Rows:
        def logits(rows: Sequence[int]) -> torch.Tensor:
            return torch.stack([self.x * 0, self.x], dim=1).expand(len(rows), 2)

        return Rows(logits=logits, targets=np.ones(6, dtype=np.intp))

    def validation(self) -> Rows:
        def logits(rows: Sequence[int]) -> torch.Tensor:
            margin = 5 - (self.x - self._best).abs()
            return torch.stack([margin * 0, margin], dim=1).expand(len(rows), 2)

        return Rows(logits=logits, targets=np.ones(2, dtype=np.intp))

    def train(self, *, validated: bool = True, **settings: int) -> tuple[int, float | None]:
        trained = train(
            [self.x],
            self.rows(),
            self.validation() if validated else None,
            PromptTuningSettings(
                learning_rate=0.1, **{"epochs": 30, "batch_size": 3, "patience": 30, **settings}
            ),
            seed=0,
            mode=self.modes.append,
        )
        return trained.steps, trained.validation_loss


def test_the_epoch_that_validation_likes_best_is_kept() -> None:
    slide = Slide(best=1.0)
    steps, loss = slide.train()
    assert steps == 60  # two batches an epoch
    assert abs(float(slide.x.detach()) - 1.0) < 0.11
    with torch.no_grad():
        assert loss == float(slide.validation().loss(range(2)))


def test_what_was_there_before_training_may_be_best() -> None:
    slide = Slide(best=-1.0)
    slide.train()
    assert float(slide.x.detach()) == 0.0


def test_patience_ends_it() -> None:
    slide = Slide(best=-1.0)
    assert slide.train(patience=4)[0] == 8


def test_without_validation_the_last_epoch_is_kept() -> None:
    slide = Slide(best=1.0)
    steps, loss = slide.train(validated=False)
    assert loss is None
    assert steps == 60
    assert float(slide.x.detach()) > 2


def test_it_says_when_it_trains_and_ends_without_dropout() -> None:
    slide = Slide(best=1.0)
    slide.train(epochs=2)
    assert slide.modes == [False, True, False, True, False, False]


def test_a_loss_that_is_no_longer_finite_is_told() -> None:
    x = torch.nn.Parameter(torch.ones(1))

    def logits(rows: Sequence[int]) -> torch.Tensor:  # better the smaller x is, and NaN below 0
        return torch.stack([x * 0, torch.log(x)], dim=1).expand(len(rows), 2)

    rows = Rows(logits=logits, targets=np.zeros(2, dtype=np.intp))
    settings = PromptTuningSettings(learning_rate=3.0, epochs=9)
    with pytest.raises(InputError, match=r"loss is nan after 1 steps with learning_rate=3\.0"):
        train([x], rows, None, settings, seed=0)
