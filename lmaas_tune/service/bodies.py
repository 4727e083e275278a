"""Request bodies of the service: JSON checked against the messages of `wire.py` by pydantic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from lmaas_tune.service import wire
from lmaas_tune.service.errors import ApiError, bad_json, too_large

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

T = TypeVar("T")

BATCH = TypeAdapter(wire.BatchBody)
SUBSPACE = TypeAdapter(wire.SubspaceBody)
PROMPT: TypeAdapter[wire.TextBody | wire.SoftBody] = TypeAdapter(
    Annotated[wire.TextBody | wire.SoftBody, Field(discriminator="kind")]
)
INSPECT: TypeAdapter[wire.TextBody | wire.SoftBody | wire.PointBody] = TypeAdapter(
    Annotated[wire.TextBody | wire.SoftBody | wire.PointBody, Field(discriminator="kind")]
)
"""The bodies that `read` accepts."""

_MOST_FAULTS = 100  # the details of more would take much memory


def read(kind: TypeAdapter[T], content: bytes, *, values: int) -> T:
    """The message that a body of JSON holds.

    Args:
        kind: The message expected.
        content: The body.
        values: Most values that it may hold; one takes up to forty times its bytes in memory.

    Raises:
        ApiError: It holds another message.
    """
    _check_values(content, values)
    try:
        return kind.validate_json(content)
    except ValidationError as error:
        raise _translated(error) from None


def schema(kind: TypeAdapter[Any]) -> dict[str, Any]:
    """The JSON schema of a body, with its parts in their places."""
    content = kind.json_schema()
    parts = content.pop("$defs", {})

    def inlined(value: Any) -> Any:
        if isinstance(value, list):
            return [inlined(one) for one in value]
        if not isinstance(value, dict):
            return value
        if "$ref" in value:
            return inlined(parts[value["$ref"].rpartition("/")[2]])
        return {name: inlined(one) for name, one in value.items() if name != "discriminator"}

    found: dict[str, Any] = inlined(content)
    return found


def _translated(error: ValidationError) -> ApiError:
    if error.error_count() > _MOST_FAULTS:
        return bad_json([((), f"{error.error_count()} values are of another type or name")])
    return bad_json([_place_and_message(fault) for fault in error.errors()])


def _place_and_message(fault: ErrorDetails) -> tuple[tuple[int | str, ...], str]:
    if fault["type"] == "unexpected_keyword_argument":
        *place, name = fault["loc"]
        return tuple(place), f"{str(name)[:40]!r} is no name here"
    return fault["loc"], fault["msg"]


def _check_values(content: bytes, most: int) -> None:
    """Count the values of JSON by its punctuation, before any of them is built."""
    plain = content.replace(rb"\\", b"").replace(rb"\"", b"")  # quotes left begin or end a text
    count = plain.count(b'"') // 2
    if count <= most:
        between = b"".join(plain.split(b'"')[::2])
        count = sum(map(between.count, (b",", b"[", b"{", b":")))
    if count > most:
        raise too_large("values in the body", count, most, "rows and candidates")
