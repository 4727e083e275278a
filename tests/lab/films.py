"""A small task, and backends that go wrong in a worker."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmaas_tune import ScoreReply, ScoreRequest, Soft, compare
from lmaas_tune.lab.optimizers import NamedTask
from lmaas_tune.lab.report import ComparisonResult
from lmaas_tune.optimizers.random import RandomSearch
from lmaas_tune.prompts import FloatArray
from lmaas_tune.settings import Settings
from lmaas_tune.testing.toy import ToyBackend

WORDS = {"good": ["great", "lovely", "superb"], "bad": ["awful", "dull", "poor"]}
SMALL = Settings(prompt=Soft(intrinsic_dim=6, prompt_init="so very"))
CALLS = 41  # the start, and two generations of 20


def rows(count: int, shift: int = 0) -> list[tuple[str, str]]:
    """Labelled rows, half of each label."""
    labels = sorted(WORDS)
    return [
        (f"{WORDS[label][(i + shift) % 3]} film {i % 4}, {WORDS[label][i // 2 % 3]} cast", label)
        for i in range(count)
        for label in [labels[i % 2]]
    ]


FILMS = NamedTask(name="films", train=rows(8), validation=rows(6, 1), test=rows(12, 2))


def compare_films(
    out: Path, *optimizers: Any, backend: Any = "toy", **more: Any
) -> ComparisonResult:
    """A comparison on `FILMS`."""
    given: dict[str, Any] = {"seeds": [1, 2], "budget": f"calls={CALLS}", "settings": SMALL, **more}
    tasks = given.pop("tasks", FILMS)
    return compare(backend, tasks, optimizers=optimizers or ("random", "cma"), out=out, **given)


class Counting(ToyBackend):
    """Writes down each prompt that is scored, and who scored it.

    Args:
        book: The file.
    """

    def __init__(self, book: Path) -> None:
        super().__init__()
        self.book = book

    def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
        """The toy's answers."""
        with self.book.open("a") as file:
            for request in requests:
                batch, prompt = request.batch.digest[:8], request.prompt.digest[:8]
                file.write(f"{os.getpid()} {batch}/{prompt}\n")
        return super().score(requests)


class DiesOnce(Counting):
    """Kills its own process at its fifth answer, unless another one did so already."""

    answers = 0

    def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
        """The toy's answers, or none."""
        self.answers += 1
        if self.answers == 5:
            try:
                self.book.with_suffix(".dead").touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().score(requests)


def dies_while_built(book: Path, times: int) -> ToyBackend:
    """A toy whose building kills the process, so many times."""
    for death in range(times):
        try:
            book.with_suffix(f".dead-{death}").touch(exist_ok=False)
        except FileExistsError:
            continue
        os.kill(os.getpid(), signal.SIGKILL)
    return ToyBackend()


class Deadly(RandomSearch):
    """Kills its process whenever it is told something."""

    def tell(self, points: FloatArray, losses: FloatArray, /) -> None:
        """The last thing it does."""
        os.kill(os.getpid(), signal.SIGKILL)


class Broken(RandomSearch):
    """Fails in its second generation."""

    asked = 0

    def ask(self) -> FloatArray:
        """Once."""
        self.asked += 1
        if self.asked > 1:
            raise ZeroDivisionError("no more ideas")
        return super().ask()


def deadly(dim: int, *, seed: int, calls: int | None) -> Deadly:
    """Builds it."""
    return Deadly(dim, seed=seed, calls=calls)


def broken(dim: int, *, seed: int, calls: int | None) -> Broken:
    """Builds it."""
    return Broken(dim, seed=seed, calls=calls)
