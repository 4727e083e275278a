"""Limits of a service: the size of one request, of the queue, and of the memory that it keeps."""

from __future__ import annotations

from typing import ClassVar

from lmaas_tune.service.settings import Count, WholeNumbers

MIB = 1 << 20


class ServerLimits(WholeNumbers):
    """The largest values that a service accepts; ``--bounds`` sets them by name.

    Attributes:
        body_bytes: Bytes of the body of one request.
        rows: Rows of one batch.
        candidates: Label words of one batch. Many of them reveal the model's hidden state, up to a
            linear map: a request with as many words as the state is wide reveals it whole.
        prompt_length: Vectors of one soft prompt.
        prompt_characters: Characters of one text prompt.
        dimensions: d of one subspace.
        queue: Requests that wait for the model at once, of all keys.
        queue_bytes: Bytes of all bodies of unanswered requests, of all keys. One key alone may
            fill half of it, and each further key half of the rest.
        wait_seconds: Longest time that a request waits for its turn.
        connections: Requests in progress at once. A few more connections may be open, and a new
            one replaces the connection that has been idle longest. The number is lower where the
            process may open fewer files.
        head_seconds: Longest time for the head of a request to arrive.
        body_seconds: Longest time for a body to arrive, and for a slow reader to resume.
        round_rows: Rows taken from the queue at once, to share forward passes (one request may
            have more). Later requests wait for the whole round.
        batches: Stored batches of one key; the least recently used one is dropped first.
        batch_bytes: Memory of one key's batches; the descriptions of its subspaces may take as
            much again.
        subspaces: Stored subspaces of one key.
        draws: Subspaces of one key that wait to be drawn.
        subspace_bytes: Memory of p0 and A of one subspace. Subspaces are drawn one at a time, and
            drawing takes up to half as much again.
        drawn_bytes: Memory of p0 and A of all subspaces of all keys.
        grace_seconds: Longest time that accepted requests may take after a signal to stop.
    """

    kind: ClassVar[str] = "bound"

    body_bytes: Count = 8 * MIB
    rows: Count = 1024
    candidates: Count = 600
    prompt_length: Count = 512
    prompt_characters: Count = 16_384
    dimensions: Count = 10_000
    queue: Count = 512
    queue_bytes: Count = 256 * MIB
    wait_seconds: Count = 60
    connections: Count = 512
    head_seconds: Count = 10
    body_seconds: Count = 30
    round_rows: Count = 512
    batches: Count = 64
    batch_bytes: Count = 64 * MIB
    subspaces: Count = 64
    draws: Count = 16
    subspace_bytes: Count = 512 * MIB
    drawn_bytes: Count = 1024 * MIB
    grace_seconds: Count = 30
