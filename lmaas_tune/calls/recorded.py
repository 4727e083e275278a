"""`Recorded`: answers from the journal of the run, and appends new answers to it."""

from __future__ import annotations

from lmaas_tune.backend import ScoreReply
from lmaas_tune.calls.call import Call, Caller, Recorder, Reply


class Recorded:
    """Looks up answers in the journal of the run, and records new ones.

    A part of a generation is recorded at once. Other answers are held until the run has used them,
    because its own record of a generation replaces them.
    """

    def __init__(self, next_caller: Caller) -> None:
        self._next = next_caller

    def __call__(self, call: Call, /) -> list[Reply]:
        """One reply a request, in order."""
        recorder = call.run.recorder
        if recorder is None:
            return self._next(call)
        if not call.keys:
            answers = self._new(recorder, call)
            recorder.hold({}, call.spent)
            return answers
        asked = dict(zip(call.keys, call.requests, strict=True))
        replies = {key: r for key in asked if (r := _recorded(recorder, key, call)) is not None}
        if missing := [key for key in asked if key not in replies]:
            call.keys, call.requests = missing, [asked[key] for key in missing]
            answers = self._new(recorder, call)
            paid = {
                key: reply
                for key, reply in zip(missing, answers, strict=True)
                if key in call.paid and isinstance(reply, ScoreReply)
            }
            if not call.is_part:
                recorder.hold(paid, call.spent)
            elif call.spent.requests:
                recorder.append_part(missing[0], paid[missing[0]], call.spent)
            replies |= zip(missing, answers, strict=True)
        return [replies[key] for key in asked]

    def _new(self, recorder: Recorder, call: Call) -> list[Reply]:
        """New answers; if they fail, what that cost is recorded."""
        try:
            return self._next(call)
        except BaseException:
            if call.spent.requests:
                recorder.append_failure(call.spent)
            raise


def _recorded(recorder: Recorder, key: bytes, call: Call) -> Reply | None:
    """A part in the journal; its cost is booked with the run."""
    if (recorded := recorder.get_part(key)) is None:
        return None
    reply, spent = recorded
    if call.run.meter is not None:
        call.run.meter.book(spent)
    if spent.requests:
        call.paid.add(key)
    return reply
