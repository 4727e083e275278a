"""What cannot be is refused in one sentence, and before a model is loaded where it can be."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from lmaas_tune_adapters.hf import HFBackend

from lmaas_tune import InputError, MissingExtraError, SoftPrompt
from lmaas_tune.lab.baselines import (
    BASELINES,
    FeatureSettings,
    InContextSettings,
    ManualSettings,
    ModelTuningSettings,
    PrefixTuningSettings,
    PromptTuningSettings,
    fit_baseline,
)
from lmaas_tune.testing import ToyBackend
from tests.lab.baselines import planted

Load = Callable[[str], HFBackend]


def fit(backend: Any, name: str = "prompt-tuning", **changes: Any) -> Any:
    given = {
        "train": planted.TRAIN,
        "validation": planted.VALIDATION,
        "seed": 0,
        "words": "it was",
        **changes,
    }
    task = planted.task(getattr(backend, "family", "causal"))
    return fit_baseline(name, backend, task, **given)


@pytest.mark.parametrize(
    ("settings", "values", "named"),
    [
        (PromptTuningSettings, {"learning_rate": -1.0}, "learning_rate=-1.0"),
        (PromptTuningSettings, {"learning_rate": float("nan")}, "learning_rate=nan"),
        (PromptTuningSettings, {"length": 0}, "length=0"),
        (PrefixTuningSettings, {"length": 2.5}, "length=2.5"),
        (ModelTuningSettings, {"epochs": 0}, "epochs=0"),
        (ModelTuningSettings, {"batch_size": True}, "batch_size=True"),
        (FeatureSettings, {"patience": 0}, "patience=0"),
        (FeatureSettings, {"width": 0}, "width=0"),
        (FeatureSettings, {"dropout": 1.0}, "dropout=1.0"),
        (InContextSettings, {"demonstrations": -1}, "demonstrations=-1"),
        (InContextSettings, {"max_tokens": 0}, "max_tokens=0"),
    ],
)
def test_a_value_that_cannot_be_is_named(settings: Any, values: Any, named: str) -> None:
    with pytest.raises(InputError, match=named):
        settings(**values)


def test_every_row_has_settings_of_its_own_that_stand() -> None:
    assert list(BASELINES) == [
        "manual",
        "icl",
        "tfidf",
        "mean-states",
        "feature-mlp",
        "feature-bilstm",
        "prompt-tuning",
        "p-tuning-v2",
        "lora",
        "model-tuning",
    ]
    for baseline in BASELINES.values():
        assert baseline.settings() == baseline.settings()


def test_an_unknown_row_gets_a_guess(load: Load) -> None:
    with pytest.raises(InputError, match="did you mean 'p-tuning-v2'"):
        fit(load("llama"), "p-tuning")


def test_settings_of_another_row_are_refused(load: Load) -> None:
    with pytest.raises(InputError, match="prompt-tuning takes PromptTuningSettings"):
        fit(load("llama"), settings=ManualSettings())


def test_only_prompt_tuning_goes_on_from_a_prompt(load: Load) -> None:
    with pytest.raises(InputError, match="model-tuning starts from no soft prompt"):
        fit(load("llama"), "model-tuning", start=SoftPrompt([[0.0] * 32]))


def test_a_start_of_another_length_is_refused(load: Load) -> None:
    with pytest.raises(InputError, match=r"length=3.*has 1 tokens"):
        fit(
            load("llama"),
            start=SoftPrompt([[0.0] * 32]),
            settings=PromptTuningSettings(length=3),
        )


def test_a_start_of_another_width_is_refused(load: Load) -> None:
    with pytest.raises(InputError, match="32 wide"):
        fit(load("llama"), start=SoftPrompt([[0.0] * 8]))


def test_a_model_that_is_not_at_hand_is_refused() -> None:
    with pytest.raises(InputError, match="ToyBackend has none"):
        fit(ToyBackend())


def test_training_rows_are_needed(load: Load) -> None:
    with pytest.raises(InputError, match="icl has no training rows"):
        fit(load("llama"), "icl", train=[])


def test_a_soft_prompt_needs_words_or_a_length(load: Load) -> None:
    backend = load("llama")
    with pytest.raises(InputError, match="neither words"):
        fit_baseline(
            "prompt-tuning",
            backend,
            planted.task("causal"),
            planted.TRAIN,
            planted.VALIDATION,
            words="",
            seed=0,
        )


def test_a_model_without_keys_and_values_to_stand_among_takes_no_prefix(load: Load) -> None:
    with pytest.raises(InputError, match=r"p-tuning-v2.*distilbert"):
        fit(load("distilbert"), "p-tuning-v2")


def test_a_prefix_that_leaves_too_little_room_is_refused(load: Load) -> None:
    settings = PrefixTuningSettings(length=250)
    with pytest.raises(InputError, match="250 positions before it, more than the 256"):
        fit(load("llama"), "p-tuning-v2", settings=settings)


def test_a_text_longer_than_the_model_reads_is_refused(load: Load) -> None:
    row = planted.TRAIN[0]
    long = type(row)({"text": "the film " * 300}, row.label)
    with pytest.raises(InputError, match=r"row 33 has .* tokens, more than the 256"):
        fit(load("llama"), "model-tuning", train=[*planted.TRAIN, long])


def test_without_peft_the_extra_is_named(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "lmaas_tune.extras.find_spec", lambda name: None if name == "peft" else name
    )
    with pytest.raises(MissingExtraError, match=r"lmaas-tune\[reproduce\]"):
        fit(load("llama"), "p-tuning-v2")
    assert fit(load("llama"), "tfidf").parameters > 0  # which needs no peft


def test_the_room_s_door_needs_no_torch() -> None:
    code = (
        "import sys, lmaas_tune.lab.baselines; "
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules), 'imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_core_does_not_know_this_room() -> None:
    code = (
        "import sys, lmaas_tune, lmaas_tune.tuner; "
        "assert not [m for m in sys.modules if m.startswith('lmaas_tune.lab')], 'imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
