"""Diagnosis: installed packages, and capabilities and one answer of a backend."""

from __future__ import annotations

import os
import platform
import re
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import numpy as np
from packaging.requirements import Requirement

from lmaas_tune.backend import Backend, ScoreRequest
from lmaas_tune.calls.client import Client
from lmaas_tune.notes import OnNote, warn
from lmaas_tune.prompts import Prompt, SoftPrompt, TextPrompt
from lmaas_tune.registry import OURS
from lmaas_tune.task import Batch, Slot

_EXTRA = re.compile(r"""extra\s*==\s*['"]([^'"]+)['"]""")


@dataclass(frozen=True, kw_only=True)
class Package:
    """One package that the project uses, for one extra.

    Attributes:
        name: Name of the distribution.
        extra: The extra that installs it; None for a required package.
        version: Installed version; None if it is missing.
    """

    name: str
    extra: str | None
    version: str | None


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One answer of a backend.

    Attributes:
        identity: Identity of the backend.
        capabilities: Its capabilities, as JSON has them.
        seconds: Time of the answer.
        probabilities: Probabilities of the two candidate words.
        bounds: How many of them are only upper bounds.
    """

    identity: str
    capabilities: dict[str, Any]
    seconds: float
    probabilities: dict[str, float]
    bounds: int = 0


def system() -> dict[str, Any]:
    """Python and the machine."""
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
    }


def packages() -> list[Package]:
    """The packages that this project requires, with their installed versions."""
    found: dict[tuple[str, str | None], None] = {}
    for requirement in map(Requirement, metadata.requires(OURS) or ()):
        extra = _extra(requirement)
        here = requirement.marker is None or requirement.marker.evaluate({"extra": extra or ""})
        # `dev` is for development, and some extras include others
        if here and extra != "dev" and requirement.name != OURS:
            found[requirement.name, extra] = None
    return [Package(name=name, extra=extra, version=_version(name)) for name, extra in found]


def probe(backend: Backend, *, on_note: OnNote = warn) -> Probe:
    """Send one small request to a backend; a failed attempt gives a note.

    Raises:
        LMaaSError: The backend failed.
    """
    words = ("good", "bad")
    request = ScoreRequest(
        _prompt(backend), Batch((("The weather is ", Slot.PROMPT, Slot.LABEL),)), words
    )
    began = time.perf_counter()
    (reply,) = Client(backend, on_note=on_note).score([request])
    seconds = time.perf_counter() - began
    capabilities = asdict(backend.capabilities)
    capabilities["insertions"] = sorted(capabilities["insertions"])
    return Probe(
        identity=backend.identity,
        capabilities=capabilities,
        seconds=seconds,
        probabilities={w: float(np.exp(p)) for w, p in zip(words, reply.logprobs[0], strict=True)},
        bounds=reply.bounds,
    )


def _prompt(backend: Backend) -> Prompt:
    width = backend.capabilities.soft_prompt_width
    if width is None or "concat" not in backend.capabilities.insertions:
        return TextPrompt(" very")
    return SoftPrompt(np.zeros((1, width)))


def _extra(requirement: Requirement) -> str | None:
    named = _EXTRA.search(str(requirement.marker))
    return None if named is None else named.group(1)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
