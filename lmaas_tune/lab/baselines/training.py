"""The training loop of all baselines with a gradient."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from lmaas_tune_adapters.hf.request_batch import slices

from lmaas_tune.errors import InputError
from lmaas_tune.lab.baselines.fitted import Job
from lmaas_tune.lab.baselines.settings import GradientSettings
from lmaas_tune.objectives import Targets
from lmaas_tune.task import Example

Logits: TypeAlias = Callable[[Sequence[int]], torch.Tensor]
"""From indices of rows to their (rows, labels) scores."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Labelled rows.

    Attributes:
        logits: Their scores under the parameters as they are now.
        targets: (rows,) the right columns.
    """

    logits: Logits
    targets: Targets

    def loss(self, rows: Sequence[int]) -> torch.Tensor:
        """Mean cross-entropy of some of the rows, over the labels alone."""
        targets = torch.from_numpy(self.targets[list(rows)])
        logits = self.logits(rows)
        return torch.nn.functional.cross_entropy(logits, targets.to(logits.device))


Read: TypeAlias = Callable[[Sequence[Example]], Logits]
"""From examples to the scores of any of them."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The result of training, as the fields of a `FittedBaseline`.

    Attributes:
        parameters: Number of parameters.
        steps: Steps of Adam.
        validation_loss: Of the epoch whose parameters were kept; None without validation rows.
    """

    parameters: int
    steps: int
    validation_loss: float | None


def train_on(
    job: Job,
    settings: GradientSettings,
    parameters: Sequence[torch.nn.Parameter],
    read: Read,
    *,
    mode: Callable[[bool], object] = bool,
) -> Trained:
    """Fit parameters to a job's rows, see `train`.

    Raises:
        InputError: The model cannot read the rows, or the loss is no longer finite.
    """

    def rows(examples: Sequence[Example]) -> Rows:
        return Rows(logits=read(examples), targets=job.task.verbalizer.targets(examples))

    validation = rows(job.validation) if job.validation else None
    return train(parameters, rows(job.train), validation, settings, seed=job.seed, mode=mode)


def train(
    parameters: Sequence[torch.nn.Parameter],
    rows: Rows,
    validation: Rows | None,
    settings: GradientSettings,
    *,
    seed: int,
    mode: Callable[[bool], object] = bool,
) -> Trained:
    """Fit parameters in place, and keep those with the lowest validation loss.

    The state before the first step counts too, so that training never makes it worse.

    Args:
        parameters: The parameters for Adam.
        rows: For training.
        validation: Select the epoch; None keeps the last one.
        settings: Of the training.
        seed: Of the order of rows.
        mode: Called with whether training follows (for dropout).

    Raises:
        InputError: The loss is no longer finite.
    """
    adam = torch.optim.Adam(parameters, lr=settings.learning_rate)
    order = np.random.default_rng(seed)
    best = _Best(parameters)
    if validation is not None:
        best.see(_evaluate(validation, mode))
    steps = 0
    for _ in range(settings.epochs):
        mode(True)
        for batch in slices(order.permutation(len(rows.targets)).tolist(), settings.batch_size):
            adam.zero_grad(set_to_none=True)
            loss = rows.loss(batch)
            if not math.isfinite(float(loss.detach())):
                raise InputError(
                    f"the loss is {float(loss.detach())} after {steps} steps with "
                    f"learning_rate={settings.learning_rate}: take a smaller one"
                )
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
            steps += 1
        if validation is not None:
            best.see(_evaluate(validation, mode))
            if best.age >= settings.patience:
                break
    mode(False)
    if validation is not None:
        best.restore()
    return Trained(
        parameters=sum(parameter.numel() for parameter in parameters),
        steps=steps,
        validation_loss=None if validation is None else best.loss,
    )


class _Best:
    """The parameters of the lowest validation loss so far."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        self._parameters = parameters
        self._kept = [parameter.detach().clone() for parameter in parameters]
        self.loss = math.inf
        self.age = 0

    def see(self, loss: float) -> None:
        """Take note of the parameters as they are."""
        self.age += 1
        if loss < self.loss:
            self.loss, self.age = loss, 0
            for kept, parameter in zip(self._kept, self._parameters, strict=True):
                kept.copy_(parameter.detach())

    def restore(self) -> None:
        """Put them back."""
        with torch.no_grad():
            for kept, parameter in zip(self._kept, self._parameters, strict=True):
                parameter.copy_(kept)


def _evaluate(rows: Rows, mode: Callable[[bool], object]) -> float:
    mode(False)
    with torch.no_grad():
        return float(rows.loss(range(len(rows.targets))))


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let torch draw from a seed; its global generators are as before afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
