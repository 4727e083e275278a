"""What goes over the wire: JSON and raw numbers, read into the values of the core and back.

JSON is read strictly: an unknown name, a number as a string, NaN are refused. Numbers travel as
little-endian float32 or bfloat16, by themselves or as base64; nothing is ever unpickled.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import itertools
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, TypeVar, cast

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    FiniteFloat,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from lmaas_tune.backend import Capabilities
from lmaas_tune.errors import named
from lmaas_tune.prompts import FloatArray, Insertion, SoftPrompt, Start, Subspace, TextPrompt
from lmaas_tune.service.refusal import STATUS, RefusalError, too_large
from lmaas_tune.spaces import PROJECTIONS
from lmaas_tune.task import Batch, Part, Slot, check_text

T = TypeVar("T")

PROTOCOL = 1
"""Version of all that stands here; a client asks for it at ``/v1/model``."""

BINARY = "application/octet-stream"

Anchor = Annotated[list[int], FailFast()]
DType = Literal["float32", "bfloat16"]
_BYTES = {"float32": 4, "bfloat16": 2}


Text = Annotated[str, AfterValidator(lambda text: check_text(text, "text"))]
"""Without half characters, which JSON can say and no model reads."""


def _projection(name: str) -> str:
    named("projection", name, PROJECTIONS)
    return name


def _one_of(names: Iterable[str]) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "enum": sorted(names)})


class _Message(BaseModel):
    """Of what is wrong with one, the first thing is told: a list of all could be huge."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, content: Any) -> Any:
        if isinstance(content, dict):
            for name in content:
                if name not in cls.model_fields:
                    known = ", ".join(cls.model_fields)
                    raise ValueError(f"{str(name)[:40]!r} is no name here; known: {known}")
        return content


# -- what is asked


class SlotPart(_Message):
    """Where the prompt or the label stands."""

    slot: Literal["prompt", "label"]


InRow = Text | Annotated[SlotPart, WithJsonSchema(SlotPart.model_json_schema())]


class BatchBody(_Message):
    """Rows, each of texts and slots in reading order, and the label words to score."""

    rows: Annotated[list[Annotated[list[InRow], FailFast()]], FailFast(), Field(min_length=1)]
    candidates: Annotated[list[Text], FailFast(), Field(min_length=1)]

    def batch(self) -> Batch:
        """The rows as the core has them: neighbouring texts are one."""
        return Batch(tuple(tuple(_joined(row)) for row in self.rows))


def _joined(row: list[str | SlotPart]) -> Iterator[Part]:
    for is_text, parts in itertools.groupby(row, key=lambda part: isinstance(part, str)):
        if is_text:
            yield "".join(cast(list[str], list(parts)))
        else:
            yield from (Slot(cast(SlotPart, part).slot) for part in parts)


class StartBody(_Message):
    """A p0 of the client's own."""

    vectors: str = Field(json_schema_extra={"contentEncoding": "base64"})
    length: Annotated[int, Field(ge=1)]
    insertion: Insertion
    anchor: Anchor = []


class SubspaceBody(_Message):
    """What p0 and A are drawn from: `lmaas_tune.prompts.Subspace`."""

    start: Start | Annotated[StartBody, WithJsonSchema(StartBody.model_json_schema())]
    words: Text = ""
    length: Annotated[int, Field(ge=1)] | None = None
    insertion: Insertion = "concat"
    dim: Annotated[int, Field(ge=1)]
    projection: Annotated[str, AfterValidator(_projection), _one_of(PROJECTIONS)]
    alpha: Annotated[FiniteFloat, Field(gt=0)]
    seed: Annotated[int, Field(ge=0)]

    def subspace(self) -> Subspace:
        """The same as the core has it.

        Raises:
            RefusalError: The vectors of p0 are no numbers.
            InputError: p0 is no soft prompt.
        """
        content = self.model_dump()
        if isinstance(self.start, StartBody):
            start = self.start
            content["start"] = soft_prompt(
                _unpacked(start.vectors),
                "float32",
                length=start.length,
                insertion=start.insertion,
                anchor=start.anchor,
            )
        return Subspace(**content)


class TextBody(_Message):
    """A prompt of words."""

    kind: Literal["text"]
    text: Text

    def prompt(self) -> TextPrompt:
        """The same as the core has it."""
        return TextPrompt(self.text)


class SoftBody(_Message):
    """A prompt of L vectors, one after the other."""

    kind: Literal["soft"]
    vectors: str = Field(json_schema_extra={"contentEncoding": "base64"})
    dtype: DType = "float32"
    length: Annotated[int, Field(ge=1)]
    insertion: Insertion = "concat"
    anchor: Anchor = []

    def prompt(self) -> SoftPrompt:
        """The same as the core has it.

        Raises:
            RefusalError: The vectors are no numbers.
            InputError: They are no soft prompt.
        """
        return soft_prompt(
            _unpacked(self.vectors),
            self.dtype,
            length=self.length,
            insertion=self.insertion,
            anchor=self.anchor,
        )


class PointBody(_Message):
    """Any point of a registered subspace: they all cost the same."""

    kind: Literal["point"]
    subspace: str


BATCH, SUBSPACE = TypeAdapter(BatchBody), TypeAdapter(SubspaceBody)
PROMPT: TypeAdapter[TextBody | SoftBody] = TypeAdapter(
    Annotated[TextBody | SoftBody, Field(discriminator="kind")]
)
INSPECT: TypeAdapter[TextBody | SoftBody | PointBody] = TypeAdapter(
    Annotated[TextBody | SoftBody | PointBody, Field(discriminator="kind")]
)
"""What `read` reads."""


def schema(*kinds: type[BaseModel]) -> dict[str, Any]:
    """One of these, for the description of the API."""
    return {"oneOf": [kind.model_json_schema() for kind in kinds]}


# -- what is answered


class CapabilitiesAnswer(BaseModel):
    """See `lmaas_tune.backend.Capabilities`."""

    soft_prompt_width: int | None
    insertions: list[Insertion]
    text_prompts: bool
    point_prompts: bool
    label_anywhere: bool
    deterministic: bool
    max_tokens: int | None

    @classmethod
    def of(cls, can: Capabilities) -> CapabilitiesAnswer:
        """What a model behind this service can do: it draws subspaces, if it takes vectors."""
        return cls(
            soft_prompt_width=can.soft_prompt_width,
            insertions=sorted(can.insertions),
            text_prompts=can.text_prompts,
            point_prompts=can.soft_prompt_width is not None,
            label_anywhere=can.label_anywhere,
            deterministic=can.deterministic,
            max_tokens=can.max_tokens,
        )


class LimitsAnswer(BaseModel):
    """What one request may hold, and what this key may use in a minute and at once."""

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


class ModelAnswer(BaseModel):
    """What is served."""

    protocol: int
    identity: str
    capabilities: CapabilitiesAnswer
    limits: LimitsAnswer


class BatchAnswer(BaseModel):
    """A batch is registered."""

    id: str
    notes: list[str]


class SubspaceAnswer(BaseModel):
    """A subspace is registered: of L vectors, H wide."""

    id: str
    length: int
    width: int


class InspectAnswer(BaseModel):
    """What scoring would take, where the model can tell."""

    notes: list[str]
    tokens: int
    sequences: int


class HealthAnswer(BaseModel):
    """The service answers."""

    status: Literal["ok"]


class ErrorContent(BaseModel):
    """Why not."""

    code: Annotated[str, _one_of(STATUS)]
    message: str


class ErrorAnswer(BaseModel):
    """Every answer that is none has this shape."""

    error: ErrorContent


# -- numbers


def read(kind: TypeAdapter[T], content: bytes, *, values: int) -> T:
    """What a body of JSON says.

    Args:
        kind: What it should be.
        content: The body.
        values: Most values that it may hold; one takes up to forty times its bytes in memory.

    Raises:
        RefusalError: It is none of this kind.
    """
    _check_values(content, values)
    try:
        return kind.validate_json(content)
    except ValidationError as error:
        raise bad_json([(found["loc"], found["msg"]) for found in error.errors()]) from None


def _check_values(content: bytes, most: int) -> None:
    """Counts the values of JSON by its punctuation, before anything is made of them."""
    plain = content.replace(rb"\\", b"").replace(rb"\"", b"")  # quotes left begin or end a text
    count = plain.count(b'"') // 2
    if count <= most:
        between = b"".join(plain.split(b'"')[::2])
        count = sum(map(between.count, (b",", b"[", b"{", b":")))
    if count > most:
        raise too_large("values in the body", count, most, "rows and candidates")


def soft_prompt(
    content: bytes,
    dtype: DType,
    *,
    length: int,
    insertion: Insertion,
    anchor: list[int] | tuple[int, ...] = (),
) -> SoftPrompt:
    """L vectors from raw numbers, as wide as their count says.

    Raises:
        RefusalError: They do not make up L vectors.
        InputError: They are no soft prompt.
    """
    numbers = floats(content, dtype)
    if not len(numbers) or len(numbers) % length:
        raise RefusalError(
            "bad_request",
            f"{len(numbers)} numbers of {dtype} do not make up {length} vectors: send length x "
            "width of them, one vector after the other",
        )
    return SoftPrompt(numbers.reshape(length, -1), insertion, tuple(anchor))


def point(content: bytes, dim: int) -> FloatArray:
    """z as (d,) float32.

    Raises:
        RefusalError: These are no d finite numbers.
    """
    numbers = floats(content, "float32")
    if len(numbers) != dim or not np.isfinite(numbers).all():
        raise RefusalError(
            "bad_request",
            f"the body holds {len(numbers)} numbers and the subspace has {dim} dimensions: send "
            "as many finite float32, little-endian",
        )
    return numbers


def floats(content: bytes, dtype: DType) -> FloatArray:
    """Little-endian numbers as float32.

    Raises:
        RefusalError: The bytes do not make up whole numbers.
    """
    if len(content) % _BYTES[dtype]:
        raise RefusalError(
            "bad_request",
            f"{len(content)} bytes are no whole number of {dtype}, which has {_BYTES[dtype]} each",
        )
    if dtype == "float32":
        return np.frombuffer(content, "<f4").astype(np.float32)
    # bfloat16 is the upper half of a float32
    return (np.frombuffer(content, "<u2").astype(np.uint32) << 16).view(np.float32)


def logprob_bytes(logprobs: FloatArray) -> bytes:
    """(rows, candidates) as little-endian float32, row by row."""
    return logprobs.astype("<f4").tobytes()


def content_digest(content: bytes) -> str:
    """The header ``Content-Digest`` (RFC 9530), by which a client knows a damaged body."""
    return f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"


def short_id(*parts: str) -> str:
    """16 hexadecimal digits that equal content has in common."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def bad_json(faults: list[tuple[tuple[int | str, ...], str]]) -> RefusalError:
    """Says the first things that are wrong with a body or a query, and where."""
    said = "; ".join(f"{'.'.join(map(str, place))}: {what}" for place, what in faults[:3])
    return RefusalError("bad_request", f"this is not what /openapi.json describes: {said}")


def _unpacked(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RefusalError("bad_request", f"the vectors are no base64: {error}") from None
