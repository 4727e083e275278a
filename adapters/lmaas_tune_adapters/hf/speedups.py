"""The ways in which the backend saves work, and the interface that `hf/cpu/` implements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from lmaas_tune.backend import Speedup

SWITCHED_OFF = "speedups=False"

COSTS = {
    "processor kernels": "the model's modules are the stock ones, which are slower on a processor",
    "shared prefixes": "every row is read whole under every prompt",
    "joint passes": "each length of text, and each label word of several tokens, takes a pass of "
    "its own",
    "partial last layer": "the last layer is computed at every position",
    "parallel passes": "forward passes run one after another, and cores wait for each other",
}
"""By the name of each way: the work that is done where it is off."""

FEED_FORWARD_LAST = ("bert", "roberta", "xlm-roberta", "camembert", "electra")
"""Types of masked models whose last layer works position by position behind its attention."""

Worker = TypeVar("Worker")
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class PartialLayer:
    """A last layer that can be computed for the last positions alone.

    Attributes:
        module: The layer.
        computing: Gives a context, for a layer and a number, in which the layer computes only
            this number of positions at the end.
    """

    module: Any
    computing: Callable[[Any, int], AbstractContextManager[None]]

    def last(self, positions: int) -> AbstractContextManager[None]:
        """A context in which the layer computes only its last positions."""
        return self.computing(self.module, positions)


class Workers(Generic[Worker]):
    """Runs forward passes one after another."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def count(self, _tokens: int, /) -> int:
        """How many workers to use for a number of tokens."""
        return 1

    def map(
        self,
        work: Callable[[Worker, Item], Result],
        items: Sequence[Item],
        *,
        most: int,
    ) -> list[Result]:
        """Call `work` with a worker and each item; at most `most` at the same time."""
        return [work(self._worker, item) for item in items]


class Speedups:
    """The stock model: nothing that is only speed is used.

    Args:
        reason: Why.

    Attributes:
        reports: Each way that was tried, on or off.
    """

    def __init__(self, reason: str = SWITCHED_OFF) -> None:
        self._reason = reason
        self.reports: list[Speedup] = []

    def report(self, name: str, reason: str) -> None:
        """Note that a way is on, or off for a reason."""
        self.reports.append(Speedup(name=name, reason=reason, cost=COSTS[name]))

    def install_kernels(self, network: Any, logits: Any) -> bool:
        """Replace modules of a network on a processor by faster ones.

        Args:
            network: Changed in place.
            logits: What `probe_logits` gives for it; None where it gives nothing.

        Returns:
            False if the network is spoilt and must be loaded again.
        """
        self.report("processor kernels", self._reason)
        return True

    def last_layer(
        self,
        body: Any,
        layers: int,
        check: Callable[[PartialLayer], None],
    ) -> PartialLayer | None:
        """Find the last layer of a causal body, to compute it in part.

        Args:
            body: Has a list of `layers` layers.
            layers: How many keep keys and values.
            check: Raises where scores with a partial layer differ.
        """
        self.report("partial last layer", self._reason)
        return None

    def masked_body(self, network: Any, body: Any) -> Any:
        """Find an earlier module of a masked model whose output can be cut to the masks."""
        if network.config.model_type in FEED_FORWARD_LAST:
            self.report("partial last layer", self._reason)
        return body

    def workers(
        self,
        worker: Worker,
        network: Any,
        copy_to: Callable[[Any, Callable[[Any], Any]], Worker],
    ) -> Workers[Worker]:
        """Workers for forward passes of one network.

        Args:
            worker: The first.
            network: The model that it calls.
            copy_to: Makes another worker from a copy of the network, and from a function that
                finds the copy of any of its modules.
        """
        if network.device.type == "cpu":
            self.report("parallel passes", self._reason)
        return Workers(worker)
