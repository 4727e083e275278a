"""`Metered`: reserves the estimated cost of each attempt, makes it, and books its real cost."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lmaas_tune.backend import Backend, ScoreReply, ScoreRequest, Usage
from lmaas_tune.calls.call import Call, Reply
from lmaas_tune.calls.cost import CostModel
from lmaas_tune.calls.meter import Spent, reserved_attempt
from lmaas_tune.errors import InputError, LMaaSError, PermanentError
from lmaas_tune.prompts import FloatArray

_ROUNDING = 1e-6  # the most by which a log-probability may exceed 0


class Metered:
    """Makes one attempt. The meters of the run admit it beforehand and book its cost afterwards.

    Args:
        backend: The backend.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def __call__(self, call: Call, /) -> list[Reply]:
        """One reply a request, in order.

        Raises:
            BudgetExceededError: A meter does not admit the attempt.
            PermanentError: The backend failed, or its replies do not fit the requests.
        """
        run, retries = call.run, int(call.spent.requests > 0)
        with reserved_attempt(run.meters, call.planned) as bill, run.deadline.applied():
            try:
                sent = call.send(self._backend)
                replies = [self._priced(reply, run.cost) for reply in sent]
                usage = sum((reply.usage for reply in replies), Usage())
                bill.spent = run.cost.answered(call.requests, call.expected, usage)
            except BaseException as error:
                bill.spent = run.cost.failed(call.requests, call.expected, error)
                if isinstance(error, LMaaSError) or not isinstance(error, Exception):
                    raise
                raise PermanentError(
                    f"backend {self._backend.identity!r} failed with {type(error).__name__}: "
                    f"{error}"
                ) from error
            finally:
                bill.spent += Spent(retries=retries)
                call.spent += bill.spent
        call.paid.update(call.keys)
        return self._checked(replies, call.requests)

    def _priced(self, reply: Reply, cost: CostModel) -> Reply:
        try:
            # as plain numbers, which the journal can hold
            return replace(reply, usage=Spent.of(cost.priced(reply.usage)).usage)
        except (AttributeError, TypeError, InputError) as error:
            raise PermanentError(
                f"backend {self._backend.identity!r} gave a reply whose usage is invalid: {error}"
            ) from error

    def _checked(self, replies: list[Reply], requests: Sequence[ScoreRequest]) -> list[Reply]:
        """The replies in float64.

        Raises:
            PermanentError: A reply does not fit its request; the message names the first.
        """
        identity = self._backend.identity
        if len(replies) != len(requests):
            raise PermanentError(
                f"backend {identity!r} gave {len(replies)} replies to {len(requests)} requests"
            )
        checked = []
        for number, (reply, request) in enumerate(zip(replies, requests, strict=True), start=1):
            try:
                checked.append(_fitting(reply, request))
            except (ValueError, TypeError) as error:
                raise PermanentError(
                    f"backend {identity!r}, reply {number} of {len(requests)}: {error}"
                ) from error
        return checked


def _fitting(reply: Reply, request: ScoreRequest) -> Reply:
    """The reply with read-only float64 log-probabilities of at most 0.

    Raises:
        ValueError: It does not fit the request.
    """
    if not isinstance(reply, ScoreReply):
        return reply
    logprobs: FloatArray = np.array(reply.logprobs, dtype=np.float64)
    shape = (len(request.batch), len(request.candidates))
    if logprobs.shape != shape:
        raise ValueError(f"scores of shape {logprobs.shape} for {shape} (rows, candidates)")
    if (logprobs > _ROUNDING).any():
        raise ValueError(f"a log-probability of {np.nanmax(logprobs):g}, which is above 0")
    bounds = operator.index(reply.bounds)
    if not 0 <= bounds <= logprobs.size:
        raise ValueError(f"{bounds} bounds among {logprobs.size} scores")
    logprobs = np.minimum(logprobs, 0.0)
    logprobs.setflags(write=False)
    return replace(reply, logprobs=logprobs, bounds=bounds)
