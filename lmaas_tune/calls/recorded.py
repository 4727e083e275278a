"""`Recorded`: answers from the journal of the run, and appends new answers to it."""

from __future__ import annotations

from lmaas_tune.backend import ScoreReply
from lmaas_tune.calls.call import Call, Caller, Reply


class Recorded:
    """Looks up parts of a generation in the journal of the run, and records each new part."""

    def __init__(self, next_caller: Caller) -> None:
        self._next = next_caller

    def __call__(self, call: Call, /) -> list[Reply]:
        """One reply a request, in order."""
        recorder = call.run.recorder
        if recorder is None:
            return self._next(call)
        if call.is_part and (recorded := recorder.get_part(call.keys[0])) is not None:
            reply, spent = recorded
            if call.run.meter is not None:
                call.run.meter.book(spent)
            if spent.requests:
                call.paid.update(call.keys)
            return [reply]
        try:
            replies = self._next(call)
        except BaseException:
            if call.spent.requests:
                recorder.append_failure(call.spent)
            raise
        if call.is_part and call.paid and isinstance(replies[0], ScoreReply):
            recorder.append_part(call.keys[0], replies[0], call.spent)
        return replies
