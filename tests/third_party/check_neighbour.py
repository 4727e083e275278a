"""A stranger's backend and optimizer work by name; run where both were installed as wheels."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest

from lmaas_tune import Backend, Budget, Settings, Soft, Tuner, load_backend
from lmaas_tune.errors import MissingExtraError
from lmaas_tune.optimizers import make_optimizer
from lmaas_tune.testing import BackendConformance, OptimizerConformance

ROWS = [(f"good {n}", "good") for n in range(4)] + [(f"bad {n}", "bad") for n in range(4)]
SETTINGS = Settings(
    prompt=Soft(start="zero", prompt_length=2, projection="uniform", alpha=1.0),
    budget=Budget(calls=60),
)
FLAGS = ["--start", "zero", "--prompt-length", "2", "--projection", "uniform", "--alpha", "1"]


class TestNeighbourBackend(BackendConformance):
    @pytest.fixture
    def backend(self) -> Backend:
        return load_backend("neighbour")()

    @pytest.fixture
    def differing(self) -> list[Backend]:
        return [load_backend("neighbour")(sharpness=2.0)]


class TestHillClimbing(OptimizerConformance):
    @pytest.fixture
    def make(self) -> Any:
        return lambda seed: make_optimizer("hill", 5, seed=seed, calls=None, options={})


def lmaas_tune(*words: str) -> Any:
    command = [str(Path(sys.executable).with_name("lmaas-tune")), *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_both_are_installed_as_a_stranger_would_install_them() -> None:
    for name, module in (("lmaas-tune", "lmaas_tune"), ("lmaas-tune-neighbour", "neighbour")):
        found = importlib.util.find_spec(module)
        assert found is not None
        assert found.origin == str(distribution(name).locate_file(f"{module}/__init__.py"))
    assert importlib.util.find_spec("torch") is None  # the core alone


def test_both_are_listed() -> None:
    backends = {offer["name"]: offer for offer in lmaas_tune("backends")["backends"]}
    assert backends["neighbour"]["usable"]
    assert not backends["hf"]["usable"]
    optimizers = {offer["name"]: offer for offer in lmaas_tune("optimizers")["optimizers"]}
    assert "from lmaas-tune-neighbour" in optimizers["hill"]["description"]


@pytest.mark.parametrize("name", ["pso", "nevergrad:PSO"])
def test_an_optimizer_of_nevergrad_names_its_extra(name: str) -> None:
    assert importlib.util.find_spec("nevergrad") is None
    with pytest.raises(MissingExtraError, match=r"pip install 'lmaas-tune\[nevergrad\]'"):
        make_optimizer(name, 5, seed=1)


def test_both_work_by_name_from_python() -> None:
    result = Tuner(
        load_backend("neighbour")(), optimizer="hill", settings=SETTINGS, callbacks=[]
    ).fit(ROWS)
    assert result.best.train is not None
    assert result.start.score(result.client, ROWS).loss > result.score(ROWS).loss


def test_both_work_by_name_from_the_command_line(tmp_path: Path) -> None:
    train = tmp_path / "train.jsonl"
    train.write_text("".join(json.dumps({"text": t, "label": w}) + "\n" for t, w in ROWS))
    files = ["--train", str(train), "--test", str(train), "--out", str(tmp_path / "run")]
    content = lmaas_tune(
        "tune", "--backend", "neighbour", "--optimizer", "hill", "--budget", "calls=60",
        *files, *FLAGS,
    )  # fmt: skip
    assert content["tuned"]["loss"] < content["baseline"]["loss"]
    assert content["identity"].startswith("neighbour")
    assert content["settings"]["optimizer"] == "hill"
