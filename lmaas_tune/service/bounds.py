"""How much a service takes on: in one request, waiting, and kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lmaas_tune.service.numbers import WholeNumbers

MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Bounds(WholeNumbers):
    """What is refused above; all are whole numbers from 1 up.

    Attributes:
        body_bytes: Of the body of one request.
        rows: Rows of one batch.
        candidates: Label words of one batch. Many of them give the model's state away, up to a
            linear map: a request that names as many words as a state is wide tells all of it.
        prompt_length: Vectors of one soft prompt.
        prompt_characters: Characters of one text prompt.
        dimensions: d of one subspace.
        queue: Requests that wait for the model at once, of all keys.
        queue_bytes: Bodies of requests that are not answered yet, of all keys; one key alone may
            fill half, and each further one half of what is left.
        wait_seconds: How long one may wait for its turn.
        connections: Requests under way at once. Some more connections are open at most, and the
            one that has been idle longest goes for a new one. Fewer, where the process may not
            open as many files.
        head_seconds: How long a request may take to arrive up to its body.
        body_seconds: How long its body may take to arrive, and a reader to go on reading.
        round_rows: Rows taken from the queue at once, to share passes (one request may have more).
            Who comes next waits for them all.
        batches: Batches that are kept for one key; the least recently used goes first.
        batch_bytes: What they take in memory; the descriptions of the key's subspaces as much
            again.
        subspaces: Subspaces that are kept for one key.
        draws: Subspaces of one key that wait to be drawn.
        subspace_bytes: p0 and A of one subspace. One is drawn at a time, which takes up to half
            as much again while it lasts.
        drawn_bytes: p0 and A of all subspaces of all keys.
        grace_seconds: How long what was taken on may go on when the service is told to stop.
    """

    kind: ClassVar[str] = "bound"
    may_be_none: ClassVar[bool] = False

    body_bytes: int = 8 * MIB
    rows: int = 1024
    candidates: int = 600
    prompt_length: int = 512
    prompt_characters: int = 16_384
    dimensions: int = 10_000
    queue: int = 512
    queue_bytes: int = 256 * MIB
    wait_seconds: int = 60
    connections: int = 512
    head_seconds: int = 10
    body_seconds: int = 30
    round_rows: int = 512
    batches: int = 64
    batch_bytes: int = 64 * MIB
    subspaces: int = 64
    draws: int = 16
    subspace_bytes: int = 512 * MIB
    drawn_bytes: int = 1024 * MIB
    grace_seconds: int = 30
