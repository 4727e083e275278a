"""Forward passes side by side on the cores of a processor.

Torch splits every operation of a pass among all cores. They wait for each other after each
operation, and for the one core that runs operations too small to split. Passes side by side do not
wait for each other.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from lmaas_tune_adapters.hf.speedups import Item, Result, Worker, Workers

_MIN_TOKENS = 256  # a replica reads all weights; fewer tokens are not worth that


class Replicas(Workers[Worker]):
    """Workers that do the same work on different items, each in its own thread.

    Args:
        first: One of them.
        replicate: Makes another that works independently of the others.
        device: Replicas are used on a processor only.
    """

    def __init__(
        self, first: Worker, replicate: Callable[[], Worker], *, device: torch.device
    ) -> None:
        super().__init__(first)
        self._workers, self._replicate = [first], replicate
        self._on_cpu = device.type == "cpu"

    def count(self, tokens: int, /) -> int:
        """How many replicas to use for a number of tokens; one where gradients are needed."""
        if not (self._on_cpu and torch.is_inference_mode_enabled()):
            return 1
        return max(1, min(torch.get_num_threads(), tokens // _MIN_TOKENS))

    def map(
        self, work: Callable[[Worker, Item], Result], items: Sequence[Item], *, most: int
    ) -> list[Result]:
        """Do the work on each item, in inference mode.

        Args:
            work: Called with a worker and an item.
            items: The longest work first, so that all replicas end at about the same time.
            most: Most replicas, see `count`; they share the cores equally.

        Returns:
            The results, in the order of the items.
        """
        cores = torch.get_num_threads()
        count = max(1, min(most, cores, len(items)))
        while len(self._workers) < count:
            self._workers.append(self._replicate())
        if count == 1:
            return super().map(work, items, most=1)
        results: dict[int, Result] = {}
        numbers, lock = iter(range(len(items))), threading.Lock()

        def run(worker: Worker) -> None:
            torch.set_num_threads(cores // count)  # torch's setting of this thread
            try:
                with torch.inference_mode():
                    for number in _take(numbers, lock):
                        results[number] = work(worker, items[number])
            except BaseException:
                for _ in _take(numbers, lock):  # leaves no item for the others
                    pass
                raise

        try:
            with ThreadPoolExecutor(count - 1) as threads:
                futures = [threads.submit(run, worker) for worker in self._workers[1:count]]
                run(self._workers[0])
            for future in futures:
                future.result()
        finally:
            torch.set_num_threads(cores)
        return [results[number] for number in range(len(items))]


def _take(numbers: Iterator[int], lock: threading.Lock) -> Iterator[int]:
    """Iterate over the numbers that no other thread took."""
    while True:
        with lock:
            number = next(numbers, None)
        if number is None:
            return
        yield number


def replicate(module: Any) -> tuple[Any, Callable[[Any], Any]]:
    """Copy a module with its hooks and settings; the tensors are shared.

    Returns:
        The copy, and a function that finds the copy of a part (None for None).
    """
    attributes = [value for part in module.modules() for value in vars(part).values()]
    tensors = [value for value in attributes if isinstance(value, torch.Tensor)]
    tensors += [*module.parameters(), *module.buffers()]
    other = copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})
    names = {part: name for name, part in module.named_modules()}
    return other, lambda part: None if part is None else other.get_submodule(names[part])
