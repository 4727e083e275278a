"""Kinds of prompts; each module has the prompt, its search space, settings and file format."""

from collections.abc import Mapping

from lmaas_tune.capabilities import INSERTIONS, FloatArray, Insertion
from lmaas_tune.prompts.auto import Auto, resolve
from lmaas_tune.prompts.base import NeedsStds, Prompt, PromptKind, PromptSpace, Setup
from lmaas_tune.prompts.deep import Deep, DeepPrompt
from lmaas_tune.prompts.soft import Soft, SoftPrompt, Start, Subspace
from lmaas_tune.prompts.subspace import PointPrompt, ProviderDrawn
from lmaas_tune.prompts.text import Text, TextPrompt

PROMPTS: Mapping[str, type[Prompt]] = {
    prompt.kind: prompt for prompt in (SoftPrompt, DeepPrompt, TextPrompt, PointPrompt)
}
"""Classes of prompts by the name in the ``kind`` field of a saved prompt."""

__all__ = [
    "INSERTIONS",
    "PROMPTS",
    "Auto",
    "Deep",
    "DeepPrompt",
    "FloatArray",
    "Insertion",
    "NeedsStds",
    "PointPrompt",
    "Prompt",
    "PromptKind",
    "PromptSpace",
    "ProviderDrawn",
    "Setup",
    "Soft",
    "SoftPrompt",
    "Start",
    "Subspace",
    "Text",
    "TextPrompt",
    "resolve",
]
