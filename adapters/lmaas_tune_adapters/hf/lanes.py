"""Passes side by side on the cores of a processor.

Torch gives every operation of a pass to all cores, which then wait for each other at its end, and
for the one of them that does what is not worth sharing. Passes side by side wait for nobody.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import torch

_LANE = 256  # tokens that are worth a lane: with fewer, each reads all weights for too little

Worker = TypeVar("Worker")
Item = TypeVar("Item")
Result = TypeVar("Result")


class Lanes(Generic[Worker]):
    """Workers who do the same to different items, each in a thread of its own.

    Args:
        first: One of them.
        twin: Makes another, that the others' work does not disturb.
        device: Where they work; side by side on a processor only.
    """

    def __init__(self, first: Worker, twin: Callable[[], Worker], *, device: torch.device) -> None:
        self._workers, self._twin = [first], twin
        self._side_by_side = device.type == "cpu"

    def count(self, tokens: int) -> int:
        """How many lanes so many tokens are worth; a gradient has one."""
        if not (self._side_by_side and torch.is_inference_mode_enabled()):
            return 1
        return max(1, min(torch.get_num_threads(), tokens // _LANE))

    def map(
        self, work: Callable[[Worker, Item], Result], items: Sequence[Item], *, most: int
    ) -> list[Result]:
        """Do the work to each item, in inference mode, and give what comes out, in their order.

        Args:
            work: Called with a worker and an item.
            items: The longest work comes first, so that no lane is late at the end.
            most: So many lanes at most, see `count`; the cores are dealt out among those there are.
        """
        cores = torch.get_num_threads()
        count = max(1, min(most, cores, len(items)))
        while len(self._workers) < count:
            self._workers.append(self._twin())
        if count == 1:
            return [work(self._workers[0], item) for item in items]
        results: dict[int, Result] = {}
        numbers, turn = iter(range(len(items))), threading.Lock()

        def drive(worker: Worker) -> None:
            torch.set_num_threads(cores // count)  # for what this thread asks of torch
            try:
                with torch.inference_mode():
                    for number in _taken(numbers, turn):
                        results[number] = work(worker, items[number])
            except BaseException:
                for _ in _taken(numbers, turn):  # nobody begins another
                    pass
                raise

        try:
            with ThreadPoolExecutor(count - 1) as others:
                futures = [others.submit(drive, worker) for worker in self._workers[1:count]]
                drive(self._workers[0])
            for future in futures:
                future.result()
        finally:
            torch.set_num_threads(cores)
        return [results[number] for number in range(len(items))]


def _taken(numbers: Iterator[int], turn: threading.Lock) -> Iterator[int]:
    """What nobody else took."""
    while True:
        with turn:
            number = next(numbers, None)
        if number is None:
            return
        yield number


def twin(module: Any) -> tuple[Any, Callable[[Any], Any]]:
    """A copy of a module, with its own hooks and settings and the same tensors.

    Returns:
        The copy, and what finds the copy of a part (of None: None).
    """
    owned = [
        value
        for part in module.modules()
        for named in (vars(part), part._parameters, part._buffers)
        for value in named.values()
        if isinstance(value, torch.Tensor)
    ]
    other = copy.deepcopy(module, {id(tensor): tensor for tensor in owned})
    names = {part: name for name, part in module.named_modules()}
    return other, lambda part: None if part is None else other.get_submodule(names[part])
