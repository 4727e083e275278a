"""Limits of a service, given by name: sizes of a request, the queue, and the memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lmaas_tune.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T", bound="WholeNumbers")

MIB = 1 << 20

Count = Annotated[int, Field(ge=1)]
"""A whole number from 1 up."""


class WholeNumbers(BaseModel):
    """A set of numbers; each field states its constraint and its default."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    kind: ClassVar[str]
    """A message calls one of the numbers by this word."""

    @classmethod
    def of(cls: type[T], given: Mapping[str, object]) -> T:
        """The defaults, except for the numbers given by name.

        Raises:
            InputError: A name is unknown, or a value is no whole number from 1 up.
        """
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            fault = error.errors()[0]
        name = str(fault["loc"][0])
        if fault["type"] == "extra_forbidden":
            known = did_you_mean(name, list(cls.model_fields))
            raise InputError(f"there is no {cls.kind} {name!r}; {known}")
        raise InputError(f"the {cls.kind} {name} is {fault['input']!r}: give a whole number from 1")


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
    candidates: Count = 1000
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
