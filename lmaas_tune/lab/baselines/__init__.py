"""Baselines of the paper, on a local model whose weights are available.

::

    from lmaas_tune.lab.baselines import fit_baseline

    backend = HFBackend("HuggingFaceTB/SmolLM2-135M-Instruct")
    fitted = fit_baseline(
        "prompt-tuning", backend, task, train, validation, seed=13, words="The sentiment is"
    )
    fitted.scores(test).argmax(axis=1)

Black-box tuning does not import them. Needs the extra ``reproduce``.
"""

from __future__ import annotations

import pkgutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lmaas_tune.errors import InputError, named
from lmaas_tune.extras import need
from lmaas_tune.lab.baselines.fitted import FittedBaseline, Job
from lmaas_tune.lab.baselines.settings import (
    BaselineSettings,
    FeatureSettings,
    InContextSettings,
    LoraSettings,
    ManualSettings,
    ModelTuningSettings,
    PrefixTuningSettings,
    ProbeSettings,
    PromptTuningSettings,
)
from lmaas_tune.prompts import SoftPrompt
from lmaas_tune.task import Example, Task

if TYPE_CHECKING:
    from lmaas_tune_adapters.hf import HFBackend


@dataclass(frozen=True)
class Baseline:
    """A baseline.

    Attributes:
        title: Its title in the paper.
        settings: Type of its settings.
        where: Module and function that fit it; imported when it is fitted.
        takes_start: Whether it can start from a soft prompt.
        needs: Packages that it needs beside torch and transformers.
    """

    title: str
    settings: type[Any]
    where: str
    takes_start: bool = False
    needs: tuple[str, ...] = ()

    @property
    def fit(self) -> Callable[[Job, Any], FittedBaseline]:
        """The function that fits it."""
        found: Callable[[Job, Any], FittedBaseline] = pkgutil.resolve_name(
            f"lmaas_tune.lab.baselines.{self.where}"
        )
        return found


BASELINES: Mapping[str, Baseline] = MappingProxyType(
    {
        "manual": Baseline("Manual Prompt", ManualSettings, "in_context:fit_manual"),
        "icl": Baseline("In-Context Learning", InContextSettings, "in_context:fit"),
        "tfidf": Baseline(
            "TF-IDF + Logistic Regression", ProbeSettings, "probes:fit_tfidf", needs=("sklearn",)
        ),
        "mean-states": Baseline(
            "Mean States + Logistic Regression",
            ProbeSettings,
            "probes:fit_mean_states",
            needs=("sklearn",),
        ),
        "feature-mlp": Baseline("Feature-MLP", FeatureSettings, "features:fit_mlp"),
        "feature-bilstm": Baseline("Feature-BiLSTM", FeatureSettings, "features:fit_bilstm"),
        "prompt-tuning": Baseline(
            "Prompt Tuning", PromptTuningSettings, "prompt_tuning:fit", takes_start=True
        ),
        "p-tuning-v2": Baseline(
            "P-Tuning v2", PrefixTuningSettings, "prefix_tuning:fit", needs=("peft",)
        ),
        "lora": Baseline("LoRA", LoraSettings, "lora:fit", needs=("peft",)),
        "model-tuning": Baseline("Model Tuning", ModelTuningSettings, "model_tuning:fit"),
    }
)
"""The baselines by name."""


def fit_baseline(
    name: str,
    backend: HFBackend,
    task: Task,
    train: Sequence[Example],
    validation: Sequence[Example],
    *,
    seed: int,
    words: str,
    settings: BaselineSettings | None = None,
    start: SoftPrompt | None = None,
) -> FittedBaseline:
    """Fit a baseline.

    The backend's model and the global random generators stay unchanged.

    Args:
        name: In `BASELINES`.
        backend: A local model.
        task: Template and label words.
        train: Labelled rows for training.
        validation: Labelled rows that select the epoch; without any, the last one is kept.
        seed: Of everything random.
        words: Text at ``{prompt}``; a soft prompt starts from their embeddings.
        settings: Of this baseline; None for the defaults.
        start: A soft prompt from which prompt tuning starts, instead of the words.

    Raises:
        InputError: An unknown name, settings of another baseline, rows or a model that it does not
            support, or a loss that did not stay finite.
        MissingExtraError: The extra ``reproduce`` is not installed.
    """
    baseline = named("baseline", name, BASELINES)
    settings = baseline.settings() if settings is None else settings
    if type(settings) is not baseline.settings:
        known = ", ".join(f.name for f in fields(baseline.settings)) or "nothing"
        raise InputError(
            f"{name} takes {baseline.settings.__name__} ({known}), and not "
            f"{type(settings).__name__}"
        )
    if start is not None and not baseline.takes_start:
        raise InputError(f"{name} starts from no soft prompt: leave start out")
    if not train:
        raise InputError(f"{name} has no training rows")
    need("a baseline", "torch", "transformers", *baseline.needs, extra="reproduce")
    began = time.perf_counter()
    job = Job(
        backend=_local(backend),
        task=task,
        train=train,
        validation=validation,
        seed=seed,
        words=words,
        start=start,
    )
    fitted = baseline.fit(job, settings)
    return replace(fitted, name=name, seconds=time.perf_counter() - began)


def _local(backend: object) -> HFBackend:
    from lmaas_tune_adapters.hf import HFBackend

    if not isinstance(backend, HFBackend):
        raise InputError(
            f"a baseline needs a model at hand, and {type(backend).__name__} has none: use the "
            "backend 'hf'"
        )
    return backend


__all__ = [
    "BASELINES",
    "Baseline",
    "BaselineSettings",
    "FeatureSettings",
    "FittedBaseline",
    "InContextSettings",
    "LoraSettings",
    "ManualSettings",
    "ModelTuningSettings",
    "PrefixTuningSettings",
    "ProbeSettings",
    "PromptTuningSettings",
    "fit_baseline",
]
