"""The messages between `lmaas-tune serve` and its clients: JSON bodies, raw numbers, error codes.

The service and its client both use this module, which needs nothing beyond the core. The service
checks bodies against the types and the constraints that stand here (`bodies.py`). Numbers travel
as little-endian float32 or bfloat16, raw or as base64; nothing is ever unpickled.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import numpy as np

from lmaas_tune.backend import Capabilities
from lmaas_tune.errors import named
from lmaas_tune.prompts import FloatArray, Insertion, SoftPrompt, Start, Subspace, TextPrompt
from lmaas_tune.prompts.projections import PROJECTIONS
from lmaas_tune.task import Batch, Part, Slot
from lmaas_tune.typed_json import checked

T = TypeVar("T")

PROTOCOL = 1
"""Version of the paths and messages; ``/v1/model`` states it."""

BINARY = "application/octet-stream"

DType = Literal["float32", "bfloat16"]
_BYTES = {"float32": 4, "bfloat16": 2}
_BASE64 = {"json_schema_extra": {"contentEncoding": "base64"}}

STATUS = {
    "bad_request": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "unknown_batch": 404,
    "unknown_subspace": 404,
    "method_not_allowed": 405,
    "timeout": 408,
    "too_large": 413,
    "unprocessable": 422,
    "rate_limited": 429,
    "client_gone": 499,
    "internal": 500,
    "overloaded": 503,
}
"""The error codes, each with its HTTP status."""


class MalformedError(ValueError):
    """Bytes or text that are no numbers of the format stated."""


def decode(kind: type[T], content: object) -> T:
    """A message from JSON values; unknown names are ignored.

    Raises:
        InputError: The content is no message of this kind.
    """
    found: T = checked(kind, content, kind.__name__)
    return found


# -- requests


class _FirstFault:
    """For a list: the service reports its first fault alone, as a list of all could be huge."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        return handler(source) | {"fail_fast": True}


FIRST_FAULT = _FirstFault()


@dataclass(frozen=True, kw_only=True)
class Message:
    """A body that a client sends; the service refuses other names and converts no types."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid", "strict": True}


@dataclass(frozen=True, kw_only=True)
class SlotPart(Message):
    """The position of the prompt or of the label in a row."""

    slot: Literal["prompt", "label"]


Row = Annotated[list[str | SlotPart], FIRST_FAULT]


@dataclass(frozen=True, kw_only=True)
class BatchBody(Message):
    """Rows, each of texts and slots in reading order, and the label words to score."""

    rows: Annotated[list[Row], FIRST_FAULT] = field(metadata={"min_length": 1})
    candidates: Annotated[list[str], FIRST_FAULT] = field(metadata={"min_length": 1})

    @classmethod
    def of(cls, batch: Batch, candidates: Sequence[str]) -> BatchBody:
        """The message for a batch."""
        rows = [[_encoded(part) for part in row] for row in batch.rows]
        return cls(rows=rows, candidates=list(candidates))

    def batch(self) -> Batch:
        """The batch; neighbouring texts are joined."""
        return Batch(tuple(tuple(_joined(row)) for row in self.rows))


def _encoded(part: Part) -> str | SlotPart:
    return part if isinstance(part, str) else SlotPart(slot=part.value)


def _joined(row: Row) -> Iterator[Part]:
    for is_text, parts in itertools.groupby(row, key=lambda part: isinstance(part, str)):
        if is_text:
            yield "".join(part for part in parts if isinstance(part, str))
        else:
            yield from (Slot(part.slot) for part in parts if isinstance(part, SlotPart))


@dataclass(frozen=True, kw_only=True)
class StartBody(Message):
    """L vectors as base64, one after the other: a p0 that the client chose, in float32."""

    vectors: str = field(metadata=_BASE64)
    length: int = field(metadata={"ge": 1})
    insertion: Insertion
    anchor: Annotated[list[int], FIRST_FAULT] = field(default_factory=list)

    def prompt(self) -> SoftPrompt:
        """The prompt.

        Raises:
            MalformedError: The vectors are no numbers.
            InputError: They are no soft prompt.
        """
        return self._prompt("float32")

    def _prompt(self, dtype: DType) -> SoftPrompt:
        try:
            content = base64.b64decode(self.vectors, validate=True)
        except (binascii.Error, ValueError) as error:
            raise MalformedError(f"the vectors are no base64: {error}") from None
        return soft_prompt(
            content, dtype, length=self.length, insertion=self.insertion, anchor=self.anchor
        )


@dataclass(frozen=True, kw_only=True)
class SoftBody(StartBody):
    """A soft prompt of L vectors."""

    kind: Literal["soft"]
    dtype: DType = "float32"
    insertion: Insertion = "concat"

    @classmethod
    def of(cls, prompt: SoftPrompt) -> SoftBody:
        """The message for a soft prompt."""
        return cls(
            kind="soft",
            vectors=base64.b64encode(float_bytes(prompt.vectors)).decode(),
            length=prompt.length,
            insertion=prompt.insertion,
            anchor=list(prompt.anchor),
        )

    def prompt(self) -> SoftPrompt:
        """See `StartBody.prompt`."""
        return self._prompt(self.dtype)


@dataclass(frozen=True, kw_only=True)
class TextBody(Message):
    """A text prompt."""

    kind: Literal["text"]
    text: str

    def prompt(self) -> TextPrompt:
        """The prompt."""
        return TextPrompt(self.text)


@dataclass(frozen=True, kw_only=True)
class PointBody(Message):
    """Any point of a registered subspace: all of them cost the same."""

    kind: Literal["point"]
    subspace: str


@dataclass(frozen=True, kw_only=True)
class SubspaceBody(Message):
    """The description from which p0 and A are drawn, as `lmaas_tune.prompts.Subspace.to_json`."""

    start: Start | StartBody
    words: str = ""
    length: int | None = field(default=None, metadata={"ge": 1})
    insertion: Insertion = "concat"
    dim: int = field(metadata={"ge": 1})
    projection: str = field(metadata={"json_schema_extra": {"enum": sorted(PROJECTIONS)}})
    alpha: float = field(metadata={"gt": 0, "allow_inf_nan": False})
    seed: int = field(metadata={"ge": 0})

    def __post_init__(self) -> None:
        named("projection", self.projection, PROJECTIONS)

    def subspace(self) -> Subspace:
        """The subspace.

        Raises:
            MalformedError: The vectors of p0 are no numbers.
            InputError: p0 is no soft prompt.
        """
        content = dict(vars(self))
        if isinstance(self.start, StartBody):
            content["start"] = self.start.prompt()
        return Subspace(**content)


# -- answers


@dataclass(frozen=True, kw_only=True)
class CapabilitiesAnswer:
    """See `lmaas_tune.backend.Capabilities`."""

    soft_prompt_width: int | None
    insertions: Sequence[Insertion]
    text_prompts: bool
    point_prompts: bool
    label_anywhere: bool
    deterministic: bool
    max_tokens: int | None
    words_per_request: int | None = 0

    @classmethod
    def of(cls, can: Capabilities) -> CapabilitiesAnswer:
        """The capabilities of a service, which draws subspaces if its model takes vectors."""
        content = {each.name: getattr(can, each.name) for each in fields(cls)}
        content["insertions"] = sorted(can.insertions)
        content["point_prompts"] = can.soft_prompt_width is not None
        return cls(**content)

    def capabilities(self, rows_per_call: int) -> Capabilities:
        """The capabilities of a client of that service."""
        content = dict(vars(self))
        content["insertions"] = frozenset(self.insertions)
        return Capabilities(**content, rows_per_call=rows_per_call)


@dataclass(frozen=True, kw_only=True)
class LimitsAnswer:
    """The limits of one request, and the quota of this key."""

    body_bytes: int
    rows: int
    candidates: int
    prompt_length: int
    prompt_characters: int
    dimensions: int
    subspace_bytes: int
    requests: int | None
    tokens: int | None
    concurrent: int | None


@dataclass(frozen=True, kw_only=True)
class ModelAnswer:
    """The model that is served."""

    protocol: int
    identity: str
    capabilities: CapabilitiesAnswer
    limits: LimitsAnswer


@dataclass(frozen=True, kw_only=True)
class WordsAnswer:
    """The words that are one token to the model, see `lmaas_tune.capabilities.KnowsWords`."""

    words: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class BatchAnswer:
    """A batch is registered."""

    id: str
    notes: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class SubspaceAnswer:
    """A subspace is registered: of L vectors, H wide."""

    id: str
    length: int
    width: int


@dataclass(frozen=True, kw_only=True)
class InspectAnswer:
    """The cost of scoring, or as much of it as the model knows."""

    notes: Sequence[str]
    tokens: int
    sequences: int


@dataclass(frozen=True, kw_only=True)
class HealthAnswer:
    """The service answers."""

    status: Literal["ok"]


@dataclass(frozen=True, kw_only=True)
class ErrorContent:
    """The reason of an error."""

    code: str = field(metadata={"json_schema_extra": {"enum": sorted(STATUS)}})
    message: str


@dataclass(frozen=True, kw_only=True)
class ErrorAnswer:
    """The body of every error."""

    error: ErrorContent


# -- numbers


def soft_prompt(
    content: bytes,
    dtype: DType,
    *,
    length: int,
    insertion: Insertion,
    anchor: Sequence[int] = (),
) -> SoftPrompt:
    """L vectors from raw numbers; their count gives the width.

    Raises:
        MalformedError: They do not make up L vectors.
        InputError: They are no soft prompt.
    """
    numbers = floats(content, dtype)
    if not len(numbers) or len(numbers) % length:
        raise MalformedError(
            f"{len(numbers)} numbers of {dtype} do not make up {length} vectors: send length x "
            "width of them, one vector after the other"
        )
    return SoftPrompt(numbers.reshape(length, -1), insertion, tuple(anchor))


def point(content: bytes, dim: int) -> FloatArray:
    """z as (d,) float32.

    Raises:
        MalformedError: The content is not d finite numbers.
    """
    numbers = floats(content, "float32")
    if len(numbers) != dim or not np.isfinite(numbers).all():
        raise MalformedError(
            f"the body holds {len(numbers)} numbers and the subspace has {dim} dimensions: send "
            "as many finite float32, little-endian"
        )
    return numbers


def floats(content: bytes, dtype: DType) -> FloatArray:
    """Little-endian numbers as float32.

    Raises:
        MalformedError: The bytes are not a whole number of values.
    """
    if len(content) % _BYTES[dtype]:
        raise MalformedError(
            f"{len(content)} bytes are no whole number of {dtype}, which has {_BYTES[dtype]} each"
        )
    if dtype == "float32":
        return np.frombuffer(content, "<f4").astype(np.float32)
    # bfloat16 is the upper half of a float32
    return (np.frombuffer(content, "<u2").astype(np.uint32) << 16).view(np.float32)


def float_bytes(numbers: FloatArray) -> bytes:
    """An array, row by row, as little-endian float32."""
    return numbers.astype("<f4").tobytes()


def content_digest(content: bytes) -> str:
    """The header ``Content-Digest`` (RFC 9530), which reveals a damaged body."""
    return f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"


def model_digest(identity: str) -> str:
    """The header ``Model-Digest`` of an answer, which reveals that another model gave it.

    Args:
        identity: Of the model, as ``/v1/model`` states it.
    """
    return hashlib.sha256(identity.encode()).hexdigest()[:16]
