"""The saved prompt: two plain files that need neither the search nor the optimizer.

``prompt.safetensors`` holds the vectors (key ``prompt_embeddings``, shape (L, H), float32; those of
a deep prompt's further layers under ``layer_embeddings``, shape (layers - 1, L, H)),
``prompt.json`` the rest. A reader ignores keys it does not know, and refuses a higher format.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from lmaas_tune.backend import Backend, ScoreRequest
from lmaas_tune.client import Client
from lmaas_tune.data import Rows, read_examples
from lmaas_tune.errors import InputError, PermanentError, StorageError
from lmaas_tune.files import write_whole
from lmaas_tune.objectives import Targets, cross_entropy, error_rate, log_softmax
from lmaas_tune.prompts import (
    DeepPrompt,
    FloatArray,
    PointPrompt,
    Prompt,
    SoftPrompt,
    Subspace,
    TextPrompt,
)
from lmaas_tune.spaces import drawn
from lmaas_tune.task import Example, Task, Template, Verbalizer

FORMAT = 1
FILE_NAME = "prompt.json"
VECTORS_KEY = "prompt_embeddings"  # peft's own, so that its files and ours are read alike
LAYERS_KEY = "layer_embeddings"
ROWS_A_REQUEST = 512


@dataclass(frozen=True)
class Score:
    """How good a prompt is on labelled rows.

    Attributes:
        accuracy: Share of rows answered right.
        loss: Mean cross-entropy over the label words.
        rows: How many rows.
    """

    accuracy: float
    loss: float
    rows: int

    @classmethod
    def of(cls, scores: FloatArray, targets: Targets) -> Score:
        """Of (rows, labels) calibrated log-probabilities and the (rows,) right columns."""
        return cls(1 - error_rate(scores, targets), cross_entropy(scores, targets), len(targets))


@dataclass(frozen=True, eq=False)
class TunedPrompt:
    """A finished prompt with the task it serves.

    Attributes:
        prompt: The prompt.
        task: Template and label words.
        bias: (labels,) added to the label log-probabilities, see `lmaas_tune.calibration`.
        provenance: How it came to be: backend identity, settings, seed, versions, spent.
    """

    prompt: Prompt
    task: Task
    bias: FloatArray
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def scores(self, backend: Backend | Client, rows: Rows) -> FloatArray:
        """(rows, labels) calibrated log-probabilities; the columns are `task.verbalizer.labels`.

        Args:
            backend: A fitting backend, or a client around one.
            rows: Anything `read_examples` takes; labels are not looked at.

        Raises:
            InputError: The rows do not fit the template, or the backend not the prompt.
            PermanentError: The backend will not answer, or a score is not finite.
        """
        client = backend if isinstance(backend, Client) else Client(backend)
        fitting = replace(self, prompt=drawn(self.prompt, client.backend))
        fitting._check(client)
        (scores,) = scores_together([fitting], client, read_examples(rows, labelled=False))
        return scores

    def predict_proba(self, backend: Backend | Client, rows: Rows) -> FloatArray:
        """(rows, labels) probabilities; each row sums to 1."""
        probabilities: FloatArray = np.exp(log_softmax(self.scores(backend, rows)))
        return probabilities

    def predict(self, backend: Backend | Client, rows: Rows) -> list[str]:
        """The likeliest label of each row."""
        labels = self.task.verbalizer.labels
        return [labels[column] for column in self.scores(backend, rows).argmax(axis=1)]

    def score(self, backend: Backend | Client, rows: Rows) -> Score:
        """Accuracy and loss on labelled rows."""
        examples = read_examples(rows)
        targets = self.task.verbalizer.targets(examples)
        return Score.of(self.scores(backend, examples), targets)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the two files; each replaces its old self whole or not at all.

        Raises:
            StorageError: The folder cannot be written.
        """
        path = Path(folder)
        content: dict[str, Any] = {
            "format": FORMAT,
            "kind": _KINDS[type(self.prompt)],
            "template": self.task.template.text,
            "label_words": dict(self.task.verbalizer.words),
            "bias": [float(b) for b in self.bias],
            "digest": self.prompt.digest,
            **self.provenance,
        }
        try:
            path.mkdir(parents=True, exist_ok=True)
            if (soft := _soft(self.prompt)) is not None:
                content |= {
                    "insertion": soft.insertion,
                    "anchor": list(soft.anchor),
                    "shape": list(soft.vectors.shape),
                }
                vectors = {VECTORS_KEY: np.ascontiguousarray(soft.vectors)}
                if isinstance(self.prompt, DeepPrompt):
                    content["layers"] = self.prompt.layers
                    above = np.array(self.prompt.above, dtype=np.float32)
                    vectors[LAYERS_KEY] = above.reshape(-1, *soft.vectors.shape)
                data = safetensors.numpy.save(vectors, {"format": "pt"})
                write_whole(path / "prompt.safetensors", data)
            elif isinstance(self.prompt, TextPrompt):
                content["text"] = self.prompt.text
            elif isinstance(self.prompt, PointPrompt):
                content["subspace"] = self.prompt.subspace.to_json()
                content["point"] = [float(number) for number in self.prompt.point]
            text = json.dumps(content, indent=1, ensure_ascii=False)
            write_whole(path / FILE_NAME, text.encode() + b"\n")
        except OSError as error:
            raise StorageError(f"{path}: the prompt cannot be saved ({error})") from error
        return path

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> TunedPrompt:
        """Read what `save` wrote.

        Raises:
            InputError: There is no saved prompt.
            StorageError: The files are damaged, or of a later format.
        """
        path = Path(folder)
        try:
            content = json.loads((path / FILE_NAME).read_text(encoding="utf-8"))
            if content["format"] > FORMAT:
                raise StorageError(
                    f"{path}: format {content['format']} of a saved prompt, and this version "
                    f"reads up to {FORMAT}; it was written by lmaas-tune "
                    f"{content.get('versions', {}).get('lmaas-tune', 'of a later version')}"
                )
            prompt = _read_prompt(path, content)
            if prompt.digest != content["digest"]:
                raise ValueError("prompt.json and prompt.safetensors are not of one prompt")
            task = Task(Template(content["template"]), Verbalizer(content["label_words"]))
            bias = np.array(content["bias"], dtype=np.float64)
            if bias.shape != (len(task.verbalizer.labels),) or not np.isfinite(bias).all():
                raise ValueError(f"bias {content['bias']} does not fit the label words")
            provenance = {key: content[key] for key in content if key not in _OWN_KEYS}
            return cls(prompt, task, bias, provenance)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise InputError(
                f"{path}: no saved prompt there ({error.filename} is missing)"
            ) from None
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise StorageError(f"{path}: the saved prompt cannot be read ({error})") from error
        except _DAMAGE as error:
            raise StorageError(
                f"{path}: the saved prompt is damaged ({type(error).__name__}: {error})"
            ) from error

    def _check(self, client: Client) -> None:
        can, origin = client.capabilities, self.provenance.get("backend", "another model")
        if isinstance(self.prompt, TextPrompt) and not can.text_prompts:
            raise InputError(
                f"the prompt is a text, and {client.identity} takes soft prompts only: "
                f"it was tuned for {origin}"
            )
        if isinstance(self.prompt, PointPrompt) and not can.point_prompts:
            raise InputError(
                f"the prompt is a point of a subspace of {origin}, and {client.identity} can "
                "neither draw it nor shows the word embeddings it is made of"
            )
        if isinstance(self.prompt, DeepPrompt) and self.prompt.layers != can.deep_layers:
            layers = can.deep_layers
            raise InputError(
                f"the prompt goes through {self.prompt.layers} layers, and {client.identity} takes "
                f"{'no deep prompts' if layers is None else f'those through {layers}'}: "
                f"it was tuned for {origin}"
            )
        soft = _soft(self.prompt)
        if soft is not None and soft.width != can.soft_prompt_width:
            width = can.soft_prompt_width
            raise InputError(
                f"the prompt has width {soft.width}, and {client.identity} takes "
                f"{'no soft prompts' if width is None else f'width {width}'}: "
                f"it was tuned for {origin}"
            )
        if soft is not None and soft.insertion not in can.insertions:
            raise InputError(
                f"the prompt enters by insertion {soft.insertion!r}, and {client.identity} "
                f"takes {', '.join(sorted(can.insertions))}: it was tuned for {origin}"
            )
        made_for = self.provenance.get("backend", client.identity)
        if made_for != client.identity:
            warnings.warn(
                f"the prompt was tuned for {made_for} and is used with {client.identity}, "
                "which may answer otherwise",
                stacklevel=4,
            )


def saved_prompt(folder: Path) -> bool:
    """Whether a prompt is saved there."""
    return (folder / FILE_NAME).exists()


# what reading a file of another shape raises
_DAMAGE = (ValueError, KeyError, TypeError, AttributeError, safetensors.SafetensorError)


def scores_together(
    prompts: Sequence[TunedPrompt], client: Client, examples: Sequence[Example]
) -> list[FloatArray]:
    """(rows, labels) calibrated log-probabilities for each prompt of one task.

    All prompts read a part of the rows before the next part comes, so that a backend can share
    what they have in common.

    Raises:
        PermanentError: A score is not finite.
    """
    task = prompts[0].task
    parts: list[list[FloatArray]] = []
    for first in range(0, len(examples), ROWS_A_REQUEST):
        batch = task.template.batch(examples[first : first + ROWS_A_REQUEST])
        requests = [
            ScoreRequest(tuned.prompt, batch, task.verbalizer.candidates) for tuned in prompts
        ]
        parts.append([reply.logprobs for reply in client.score(requests)])
    whole = [np.concatenate(own) for own in zip(*parts, strict=True)]
    for scores in whole:
        bad = np.flatnonzero(~np.isfinite(scores).all(axis=1))
        if len(bad):  # the highest of NaN would look like an answer
            raise PermanentError(
                f"row {bad[0] + 1} has no finite score from {client.identity}, nor have "
                f"{len(bad) - 1} others of {len(scores)}: the model overflows on them (try dtype "
                "float32), or a label word was not among the answers"
            )
    return [scores + tuned.bias for tuned, scores in zip(prompts, whole, strict=True)]


_KINDS: Mapping[type[Prompt], str] = {
    SoftPrompt: "soft",
    DeepPrompt: "deep",
    TextPrompt: "text",
    PointPrompt: "point",
}
_OWN_KEYS = {"format", "kind", "template", "label_words", "bias", "digest"} | {
    "insertion",
    "anchor",
    "shape",
    "layers",
    "text",
    "subspace",
    "point",
}


def _read_prompt(path: Path, content: Mapping[str, Any]) -> Prompt:
    if content["kind"] == "text":
        return TextPrompt(content["text"])
    if content["kind"] == "point":
        return PointPrompt(Subspace.from_json(content["subspace"]), content["point"])
    tensors = safetensors.numpy.load((path / "prompt.safetensors").read_bytes())
    soft = SoftPrompt(tensors[VECTORS_KEY], content["insertion"], tuple(content["anchor"]))
    return DeepPrompt(soft, list(tensors[LAYERS_KEY])) if content["kind"] == "deep" else soft


def _soft(prompt: Prompt) -> SoftPrompt | None:
    """What of a prompt enters with the embeddings."""
    if isinstance(prompt, DeepPrompt):
        return prompt.first
    return prompt if isinstance(prompt, SoftPrompt) else None
