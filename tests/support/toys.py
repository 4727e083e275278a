"""A toy model that inspects requests before it answers them, as real backends do."""

from __future__ import annotations

from dataclasses import replace

from lmaas_tune.backend import Inspection, ScoreRequest
from lmaas_tune.errors import InputError
from lmaas_tune.task import Batch
from lmaas_tune.testing.toy import ToyBackend


class InspectingToy(ToyBackend):
    """Names a row that is too long, and gives a note on each request."""

    def inspect(self, request: ScoreRequest, /) -> Inspection:
        for number, row in enumerate(request.batch.rows, start=1):
            try:
                self.score([replace(request, batch=Batch((row,)))])
            except InputError as error:
                raise InputError(f"row {number}: {error}") from error
        (answer,) = self.score([request])
        return Inspection(("a word is odd",), answer.usage)
