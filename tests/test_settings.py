"""Settings are checked when they are made; the paper's presets do not follow our defaults."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from lmaas_tune.calls.meter import Budget
from lmaas_tune.errors import InputError
from lmaas_tune.prompts import Deep, Soft, Text
from lmaas_tune.settings import PRESETS, Settings, preset, with_fields
from lmaas_tune.versions import versions

PAPER = {
    "prompt": "soft",
    "start": "vocabulary",
    "prompt_length": 50,
    "insertion": "add",
    "intrinsic_dim": 500,
    "alpha": 1.0,
    "optimizer": "cma",
    "objective": "cross_entropy",
    "head": "none",
    "head_words": 600,
    "averaged": 1,
    "validation_rows": "select",
    "selection": "candidate@100",
    "score_start": False,
    "budget": "calls=8000",
}


@pytest.mark.parametrize(
    ("name", "own"),
    [
        (
            "paper-icml22",
            {
                "projection": "uniform",
                "optimizer_options": {
                    "population": 20,
                    "sigma0": 0.5,
                    "bounds": 5.0,
                    "step_rule": "csa",
                },
            },
        ),
        (
            "repo-head",
            {
                "projection": "normal",
                "optimizer_options": {"population": 20, "sigma0": 1.0, "step_rule": "csa"},
            },
        ),
        (
            "bbtv2",
            {
                "deep": "all",
                "projection": "normal",
                "alpha": 1.0,  # theirs is 0.2, of steps of 0.2
                "optimizer_options": {"population": 20, "sigma0": 0.2, "step_rule": "csa"},
            },
        ),
    ],
)
def test_a_preset_is_what_the_literature_says(name: str, own: dict[str, Any]) -> None:
    settings = preset(name)
    for field, value in {**PAPER, **own}.items():
        assert settings.to_json()[field] == value, field


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        ({"start": "word"}, "unknown start 'word'; did you mean 'words'"),
        ({"start": "words", "prompt_init": " "}, "prompt_init is empty"),
        ({"start": "words", "prompt_init": ()}, "prompt_init is empty"),
        (
            {"start": "words", "prompt_init": ("a", "b"), "score_start": False},
            "2 prompt_inits and score_start=False.* give one prompt_init",
        ),
        ({"prompt_init": None}, "prompt_init=None: give starting words, one text or several"),
        ({"prompt_init": ("a", 5)}, r"prompt_init=\('a', 5\): give starting words"),
        ({"intrinsic_dim": None}, "intrinsic_dim=None: it takes a whole number"),
        ({"alpha": "1"}, "alpha='1': it takes a number"),
        ({"optimizer_options": {"x": object()}}, "option x=<object.* cannot be saved"),
        ({"optimizer_options": {"sigma0": float("inf")}}, "option sigma0=inf .* finite numbers"),
        ({"optimizer_options": [("sigma0", 1)]}, "give a mapping, as {'sigma0': 0.5}"),
        ({"prompt": "txt"}, "unknown prompt 'txt'; did you mean 'text'"),
        ({"prompt": 7}, r"prompt=7: give Soft\(...\), Deep\(...\) or Text\(...\)"),
        ({"slot": 2}, "settings have no field 'slot'"),
        ({"prompt": "soft", "slots": 2}, "prompt='soft' does not use slots: set prompt='text'"),
        (
            {"prompt": "text", "slots": 2, "start": "zero", "prompt_length": 2},
            "start='zero' is for soft prompts, and a text starts from words",
        ),
        ({"prompt_length": 0}, "prompt_length=0: it must be 1 or more"),
        ({"start": "zero", "prompt_length": None}, "start='zero' needs a prompt_length"),
        ({"insertion": "cat"}, "unknown insertion 'cat'; did you mean 'concat'"),
        ({"projection": "unifrom"}, "unknown projection 'unifrom'; did you mean 'uniform'"),
        ({"deep": "al"}, "deep='al': it takes 'all', or the numbers of layers from 0 up"),
        ({"deep": ()}, r"deep=\(\): it takes 'all'"),
        ({"deep": 3}, "deep=3: it takes 'all'"),
        ({"deep": (0, -1)}, r"deep=\(0, -1\): it takes"),
        ({"deep": (0, True)}, r"deep=\(0, True\): it takes"),
        ({"deep": (1, 2, 1)}, r"deep=\(1, 2, 1\): .* once each"),
        ({"deep": "all", "prompt": "text"}, "deep='all' is for soft prompts: set prompt='soft'"),
        ({"intrinsic_dim": 0}, "intrinsic_dim=0: it must be 1 or more"),
        ({"alpha": 0.0}, "alpha=0.0: it must be positive and finite"),
        ({"alpha": float("nan")}, "alpha=nan"),
        ({"objective": "accuracy"}, "unknown objective 'accuracy'"),
        ({"head": "wrods"}, "unknown head 'wrods'; did you mean 'words'"),
        ({"calibration": "fitted"}, "settings have no field 'calibration'"),
        ({"head_words": 0}, "head_words=0: it must be 1 or more"),
        ({"averaged": 0}, "averaged=0: it must be 1 or more"),
        ({"validation_rows": "jion"}, "unknown validation_rows 'jion'; did you mean 'join'"),
        ({"validation_rows": "select"}, "chooses a single prompt: set averaged=1"),
        (
            {"selection": "candidate@5"},
            "validation rows of their own: set validation_rows='select'",
        ),
        ({"selection": "best"}, "unknown selection 'best'"),
    ],
)
def test_a_setting_that_cannot_be_gets_one_sentence(wish: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        with_fields(Settings(), wish)


def test_numpys_numbers_are_settings_that_a_file_can_hold() -> None:
    settings = Settings(
        prompt=Soft(
            intrinsic_dim=np.int64(5),  # type: ignore[arg-type]
            prompt_length=np.int32(2),  # type: ignore[arg-type]
            alpha=np.float32(0.5),  # type: ignore[arg-type]
        ),
        optimizer_options={"sigma0": np.float64(2), "bounds": np.array([-1.0, 1.0])},
    )
    plain = Settings(
        prompt=Soft(intrinsic_dim=5, prompt_length=2, alpha=0.5),
        optimizer_options={"sigma0": 2.0, "bounds": [-1.0, 1.0]},
    )
    assert json.dumps(settings.to_json()) == json.dumps(plain.to_json())


@pytest.mark.parametrize("name", PRESETS)
def test_settings_are_recorded_as_plain_json(name: str) -> None:
    content = preset(name).to_json()
    assert json.loads(json.dumps(content)) == content
    assert Budget.parse(content["budget"]) == preset(name).budget


def test_layers_are_recorded_in_their_order_and_not_at_all_where_there_are_none() -> None:
    assert Deep(layers=[20, 0, 10]).layers == (0, 10, 20)
    content = Settings(prompt=Deep(layers=(20, 0, 10))).to_json()
    assert content["deep"] == [0, 10, 20]
    assert json.loads(json.dumps(content)) == content
    assert "deep" not in Settings().to_json()  # so that older journals go on


def test_words_of_ones_own_are_recorded_as_a_list() -> None:
    content = Settings(prompt=Text(words=("so", "far"), demonstrations=2)).to_json()
    assert content["text"] == {"words": ["so", "far"], "slots": 3, "demonstrations": 2}
    assert json.loads(json.dumps(content)) == content


def test_an_unknown_preset_gets_a_suggestion() -> None:
    with pytest.raises(InputError, match="unknown preset 'paper'; did you mean 'paper-icml22'"):
        preset("paper")


def test_the_versions_that_decide_a_run_are_recorded() -> None:
    assert {"python", "lmaas-tune", "numpy", "cma"} <= set(versions())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"budget": "calls=50"}, "give a Budget"),
        ({"prompt_length": "5"}, "prompt_length='5': it takes a whole number"),
        ({"intrinsic_dim": 2.5}, "intrinsic_dim=2.5: it takes a whole number"),
        ({"alpha": "big"}, "alpha='big': it takes a number"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        with_fields(Settings(), changes)
