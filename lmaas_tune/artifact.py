"""`TunedPrompt`: a tuned prompt with its task, and its two files ``prompt.*``.

``prompt.safetensors`` holds the arrays: the vectors (key ``prompt_embeddings``, shape (L, H),
float32), those of a deep prompt's further layers (``layer_embeddings``, shape (layers - 1, L, H)),
and the matrix of a head that has one (``head``, shape (words, labels), float64, the label words
first). ``prompt.json`` holds the rest. Where several prompts are averaged, its key ``others`` has
the fields of each further one, whose arrays have the prefix ``1/``, ``2/`` and so on. Readers
ignore unknown keys, and reject a higher format number: prompts with a matrix or with others have
format 2, all others 1.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from lmaas_tune.backend import Backend, ScoreRequest
from lmaas_tune.calls.client import Client
from lmaas_tune.data import Rows, read_examples
from lmaas_tune.dataset import LABEL_TYPES, type_for_all
from lmaas_tune.errors import InputError, PermanentError, StorageError, named
from lmaas_tune.exactness import NOTED, explain_bounds
from lmaas_tune.files import read_limited, read_object, reading, write_atomically
from lmaas_tune.heads import FittedHead
from lmaas_tune.objectives import log_softmax, mean_log_probabilities
from lmaas_tune.peft import PeftPrompt, is_adapter, other_base
from lmaas_tune.prompts import PROMPTS, FloatArray, Prompt
from lmaas_tune.reprs import call_repr
from lmaas_tune.scores import Score
from lmaas_tune.task import Example, Slot, Task, Template, Verbalizer
from lmaas_tune.typed_json import checked

FORMAT = 2
FILE_NAME = "prompt.json"
ROWS_A_REQUEST = 512

_HEAD = "head"  # the key of its matrix


@dataclass(frozen=True, eq=False)
class Member:
    """A prompt with its head, one of several that are averaged.

    Attributes:
        prompt: The prompt.
        head: From the log-probabilities of words to labels.
    """

    prompt: Prompt
    head: FittedHead


@dataclass(frozen=True, eq=False)
class TunedPrompt:
    """A tuned prompt with its task.

    Attributes:
        prompt: The prompt.
        task: Template and label words.
        head: From the log-probabilities of words to labels.
        words: The words that the heads read beside the label words, in their order.
        others: Further prompts, whose log-probabilities of the labels are averaged with those of
            the first. Each costs as much at prediction as the first.
        provenance: Origin: backend identity, settings, seed, versions, spent.
        label_type: The type of the labels that `predict` returns, see
            `lmaas_tune.dataset.LABEL_TYPES`. It becomes text if a label of the task, which may
            have come without training rows, is not of the given type.

    Raises:
        InputError: There is no such type of labels.
    """

    prompt: Prompt
    task: Task
    head: FittedHead
    words: tuple[str, ...] = ()
    others: tuple[Member, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)
    label_type: str = "str"

    def __post_init__(self) -> None:
        label_type = type_for_all(self.label_type, self.task.verbalizer.labels)
        object.__setattr__(self, "label_type", label_type)

    def __repr__(self) -> str:
        return call_repr(
            self,
            prompt=self.prompt,
            template=self.task.template.text,
            labels=self.task.verbalizer.words,
            head_words=len(self.words),
            averaged=len(self.members),
        )

    @property
    def classes(self) -> list[Any]:
        """The labels as they were given, in the order of the columns of all scores."""
        return [LABEL_TYPES[self.label_type](label) for label in self.task.verbalizer.labels]

    @property
    def digest(self) -> str:
        """SHA-256 of all that determines its answers."""
        members = [(m.prompt.digest, m.head.bias.tolist(), m.head.digest) for m in self.members]
        task = self.task.template.text, dict(self.task.verbalizer.words), self.words
        return hashlib.sha256(json.dumps([task, members]).encode()).hexdigest()

    @classmethod
    def without_head(cls, prompt: Prompt, task: Task) -> TunedPrompt:
        """A prompt whose answer is the likeliest label word."""
        return cls(prompt, task, FittedHead.none(len(task.verbalizer.labels)))

    @classmethod
    def from_peft(
        cls, folder: str | os.PathLike[str], *, template: str, labels: Mapping[str, str]
    ) -> TunedPrompt:
        """A prompt that peft trained, for a task; its answer is the likeliest label word.

        Args:
            folder: See `PeftPrompt.load`.
            template: Text with the fields, ``{prompt}`` and ``{label}``.
            labels: The label word of each label.

        Raises:
            InputError: There is no such adapter, the template does not begin with ``{prompt}``, or
                it or a label word cannot be used.
            StorageError: The files are damaged.
        """
        task, peft = Task(Template(template), Verbalizer(labels)), PeftPrompt.load(folder)
        if task.template.parts[0] is not Slot.PROMPT:
            raise InputError(
                f"peft puts a prompt before everything, and the template {template!r} does not "
                "begin with {prompt}: give the one that the prompt was trained with"
            )
        tuned = cls.without_head(peft.prompt, task)
        return replace(tuned, provenance={"base_model": peft.base_model})

    @property
    def candidates(self) -> tuple[str, ...]:
        """All words that a request names."""
        return (*self.task.verbalizer.candidates, *self.words)

    @property
    def members(self) -> tuple[Member, ...]:
        """The prompt and the others, each with its head."""
        return (Member(self.prompt, self.head), *self.others)

    def log_odds(self, scores: Sequence[FloatArray]) -> FloatArray:
        """(rows, labels) log-odds from the (rows, words) scores of each member."""
        odds = [member.head(each) for member, each in zip(self.members, scores, strict=True)]
        return mean_log_probabilities(odds) if self.others else odds[0]

    def scores(self, backend: Backend | Client, rows: Rows) -> FloatArray:
        """(rows, labels) log-odds; the columns are `task.verbalizer.labels`.

        Args:
            backend: A backend that takes the prompt, or a client around it.
            rows: Rows in any form that `read_examples` takes; labels are ignored.

        Raises:
            InputError: The rows do not fit the template, or the backend does not take the prompt.
            PermanentError: The backend failed for good, or a score is not finite.
        """
        client = Client.of(backend)
        model = client.backend
        converted = replace(
            self,
            prompt=self.prompt.for_model(model),
            others=tuple(
                replace(each, prompt=each.prompt.for_model(model)) for each in self.others
            ),
        )
        converted.check_fits(client)
        examples = read_examples(rows, labelled=False, on_note=client.on_note)
        (scores,) = score_prompts([converted], client, examples)
        return self.log_odds(scores)

    def predict_proba(self, backend: Backend | Client, rows: Rows) -> FloatArray:
        """(rows, labels) probabilities; each row sums to 1."""
        probabilities: FloatArray = np.exp(log_softmax(self.scores(backend, rows)))
        return probabilities

    def predict(self, backend: Backend | Client, rows: Rows) -> list[Any]:
        """The most probable label of each row, of the type that labels had in training."""
        labels = self.classes
        return [labels[column] for column in self.scores(backend, rows).argmax(axis=1)]

    def score(self, backend: Backend | Client, rows: Rows) -> Score:
        """Accuracy and loss on labelled rows."""
        client = Client.of(backend)
        examples = read_examples(rows, on_note=client.on_note)
        targets = self.task.verbalizer.targets(examples)
        return Score.of(self.scores(client, examples), targets)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the two files; each is replaced atomically.

        Raises:
            StorageError: The folder cannot be written.
        """
        path = Path(folder)
        (first, arrays), *others = [_to_files(member) for member in self.members]
        for number, (_, more) in enumerate(others, start=1):
            arrays |= {f"{number}/{name}": array for name, array in more.items()}
        content: dict[str, Any] = {
            "format": FORMAT if others or self.head.matrix is not None else 1,
            "template": self.task.template.text,
            "label_words": dict(self.task.verbalizer.words),
            "label_type": self.label_type,
            "head_words": list(self.words),
            **self.provenance,
            **first,
            "others": [fields_of_other for fields_of_other, _ in others],
        }
        try:
            path.mkdir(parents=True, exist_ok=True)
            if arrays:
                # safetensors writes the memory of an array as it lies
                rows = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
                data = safetensors.numpy.save(rows, {"format": "pt"})
                write_atomically(path / "prompt.safetensors", data)
            text = json.dumps(content, indent=1, ensure_ascii=False)
            write_atomically(path / FILE_NAME, text.encode() + b"\n")
        except OSError as error:
            raise StorageError(f"{path}: the prompt cannot be saved ({error})") from error
        return path

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> TunedPrompt:
        """Load a prompt that `save` wrote.

        Raises:
            InputError: There is no saved prompt.
            StorageError: The files are damaged, or have a later format.
        """
        path = Path(folder)
        try:
            with reading(path, "the saved prompt"):
                content = read_object(path / FILE_NAME)
                _check_format(content)
                saved: _Saved = checked(_Saved, content, FILE_NAME)
                contents = [content, *saved.others]
                members: list[_SavedMember] = [
                    checked(_SavedMember, c, FILE_NAME) for c in contents
                ]
                has_arrays = [member.has_arrays for member in members]
                arrays = _arrays(path / "prompt.safetensors") if any(has_arrays) else {}
                first, *others = [
                    member.read(own, _part(arrays, number), saved)
                    for number, (member, own) in enumerate(zip(members, contents, strict=True))
                ]
                known = {"format", *first.prompt.to_files()[0]}
                known |= {each.name for kind in (_Saved, _SavedMember) for each in fields(kind)}
                provenance = {key: content[key] for key in content if key not in known}
                words = tuple(saved.head_words)
                task = saved.task()
                return cls(
                    first.prompt,
                    task,
                    first.head,
                    words,
                    tuple(others),
                    provenance,
                    saved.label_type,
                )
        except (FileNotFoundError, NotADirectoryError) as error:
            raise InputError(
                f"{path}: no saved prompt there ({error.filename} is missing)"
                + "; TunedPrompt.from_peft loads adapters of peft" * is_adapter(path)
            ) from None

    def check_fits(self, client: Client) -> None:
        """Check that a model takes this prompt; note if it was tuned for another model.

        Raises:
            InputError: The model does not take it.
        """
        for member in self.members:
            if (reason := member.prompt.incompatibility(client)) is not None:
                origin = self.provenance.get("backend") or self._base_model or "another model"
                raise InputError(f"{reason}: it was tuned for {origin}")
        most = client.capabilities.words_per_request
        if self.words and most is not None and len(self.candidates) > most:
            raise InputError(
                f"the head reads {len(self.words)} words beside the label words, and "
                f"{client.identity} scores {most} words a request at no further cost: tune with "
                "this backend, or with head='affine' (--head affine)"
            )
        made_for = self.provenance.get("backend", client.identity)
        if made_for != client.identity:
            client.on_note(
                f"the prompt was tuned for {made_for} and is used with {client.identity}, "
                "which may answer differently"
            )
        if note := other_base(self._base_model, client.identity):
            client.on_note(note)

    @property
    def _base_model(self) -> str:
        """The model that peft trained the prompt for; empty for a prompt of ours."""
        return str(self.provenance.get("base_model", ""))


def saved_prompt(folder: Path) -> bool:
    """Whether a folder holds a saved prompt."""
    return (folder / FILE_NAME).exists()


def score_prompts(
    prompts: Sequence[TunedPrompt], client: Client, examples: Sequence[Example]
) -> list[list[FloatArray]]:
    """(rows, words) log-probabilities of each member of each prompt; heads are not applied.

    All are scored on a part of the rows before the next part, so that a backend can share work
    between them; a prompt that stands in several places is scored once.

    Args:
        prompts: Of one task.
        client: Makes the calls.
        examples: The rows.

    Raises:
        PermanentError: A score is not finite.
    """
    task = prompts[0].task
    wanted = {
        (member.prompt.digest, tuned.candidates): member.prompt
        for tuned in prompts
        for member in tuned.members
    }
    parts: list[list[FloatArray]] = []
    bounds = 0.0
    for first in range(0, len(examples), ROWS_A_REQUEST):
        batch = task.template.batch(examples[first : first + ROWS_A_REQUEST])
        replies = client.score(
            [ScoreRequest(prompt, batch, words) for (_, words), prompt in wanted.items()]
        )
        parts.append([reply.logprobs for reply in replies])
        bounds += sum(reply.bounds / reply.logprobs.size * len(batch) for reply in replies)
    scores = dict(zip(wanted, map(np.concatenate, zip(*parts, strict=True)), strict=True))
    share = bounds / max(1, len(examples) * len(wanted))
    if share > NOTED:
        client.on_note(explain_bounds(share))
    for each in scores.values():
        _check_finite(each, client)
    return [
        [scores[member.prompt.digest, tuned.candidates] for member in tuned.members]
        for tuned in prompts
    ]


def _check_finite(scores: FloatArray, client: Client) -> None:
    bad = np.flatnonzero(~np.isfinite(scores).all(axis=1))
    if len(bad):  # argmax of NaN would look like an answer
        raise PermanentError(
            f"row {bad[0] + 1} has no finite score from {client.identity}, nor have "
            f"{len(bad) - 1} others of {len(scores)}: the model overflows on them (try dtype "
            "float32), or a label word was not among the answers"
        )


@dataclass(frozen=True, kw_only=True)
class _Saved:
    """The fields of ``prompt.json`` that are common to all members."""

    template: str
    label_words: Mapping[str, str]
    label_type: str = "str"
    head_words: Sequence[str] = ()
    others: Sequence[Mapping[str, Any]] = ()

    def task(self) -> Task:
        return Task(Template(self.template), Verbalizer(self.label_words))


@dataclass(frozen=True, kw_only=True)
class _SavedMember:
    """The fields of a member that all kinds of prompts have."""

    kind: str
    bias: Sequence[float]
    head_digest: str | None = None
    digest: str

    @property
    def has_arrays(self) -> bool:
        kind = named("kind of prompt", self.kind, PROMPTS)
        return kind.has_arrays or self.head_digest is not None

    def read(
        self, content: Mapping[str, Any], arrays: Mapping[str, FloatArray], saved: _Saved
    ) -> Member:
        prompt = PROMPTS[self.kind].from_files(content, arrays)
        if prompt.digest != self.digest:
            raise InputError("prompt.json and prompt.safetensors belong to different prompts")
        labels = len(saved.label_words)
        if len(self.bias) != labels:
            raise InputError(f"bias {self.bias!r:.60} does not fit the label words")
        matrix = None if self.head_digest is None else arrays.get(_HEAD)
        head = FittedHead(np.array(self.bias, dtype=np.float64), matrix)
        if head.digest != self.head_digest:
            raise InputError("prompt.json and prompt.safetensors belong to different heads")
        if matrix is not None and matrix.shape != (labels + len(saved.head_words), labels):
            raise InputError(f"the head has shape {matrix.shape}, which does not fit its words")
        return Member(prompt, head)


def _to_files(member: Member) -> tuple[dict[str, Any], dict[str, FloatArray]]:
    """The fields and the arrays of a member."""
    content, arrays = member.prompt.to_files()
    head = member.head
    return (
        {
            "kind": member.prompt.kind,
            "bias": [float(b) for b in head.bias],
            "head_digest": head.digest,
            "digest": member.prompt.digest,
            **content,
        },
        dict(arrays) if head.matrix is None else {**arrays, _HEAD: head.matrix},
    )


def _part(arrays: Mapping[str, FloatArray], number: int) -> dict[str, FloatArray]:
    """The arrays of a member, without the prefix of its number."""
    prefix = f"{number}/" if number else ""
    return {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}


def _check_format(content: Mapping[str, Any]) -> None:
    version = checked(int, content.get("format"), "format")
    if version > FORMAT:
        versions = content.get("versions")
        ours = versions.get("lmaas-tune") if isinstance(versions, dict) else None
        raise StorageError(
            f"format {version} of a saved prompt, and this version reads up to {FORMAT}; it was "
            f"written by lmaas-tune {ours or 'of a later version'}"
        )


def _arrays(path: Path) -> dict[str, FloatArray]:
    data = read_limited(path)
    try:
        return dict(safetensors.numpy.load(data))
    except (safetensors.SafetensorError, KeyError, TypeError) as error:
        raise InputError(f"{path.name}: {error}") from error
