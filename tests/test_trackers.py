"""What MLflow and Weights & Biases have of a run, read back by the libraries themselves."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from lmaas_tune import MLflowLogger, StorageError, TunedPrompt, TuneResult, WandbLogger
from lmaas_tune.callbacks import Callback
from lmaas_tune.cli import main
from lmaas_tune.errors import MissingExtraError
from lmaas_tune.step import Step, step_row
from tests.support.small_models import TRAIN, VALIDATION, Bowl, small_tuner


def fit(*callbacks: Callback) -> TuneResult:
    return small_tuner(Bowl(), callbacks=callbacks).fit(TRAIN, VALIDATION)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder as a store of MLflow, which starts faster than a database."""
    pytest.importorskip("mlflow", reason="mlflow is missing: `make test-trackers` installs it")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return (tmp_path / "runs").as_uri()


def runs_in(store: str, experiment: str) -> tuple[Any, list[Any]]:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=store)
    return client, client.search_runs([client.get_experiment_by_name(experiment).experiment_id])


def test_mlflow_has_settings_curves_scores_and_the_prompt(store: str, tmp_path: Path) -> None:
    first, second = (fit(MLflowLogger("moods", tracking_uri=store)) for _ in range(2))
    client, runs = runs_in(store, "moods")
    assert len(runs) == 2  # both runs of one experiment
    (run,) = [
        each for each in runs if each.data.metrics["seconds"] == first.steps[-1].spent.seconds
    ]
    assert run.info.status == "FINISHED"
    assert run.data.tags["stop_reason"] == first.stop_reason == second.stop_reason
    assert run.data.params["seed"] == str(first.prompt.provenance["seed"])
    assert run.data.params["settings.intrinsic_dim"] == str(
        first.prompt.provenance["settings"]["intrinsic_dim"]
    )
    assert run.data.params["versions.numpy"]
    for name in ("train_loss", "best_loss", "calls", "tokens", "money"):
        points = client.get_metric_history(run.info.run_id, name)
        expected = {step.spent.calls: step_row(step)[name] for step in first.steps}
        assert {p.step: p.value for p in points} == pytest.approx(expected)
    assert first.best.validation is not None
    assert run.data.metrics["result_validation_loss"] == first.best.validation.loss
    saved = client.download_artifacts(run.info.run_id, "prompt", str(tmp_path))
    assert TunedPrompt.load(saved).digest == first.prompt.digest


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt(), "KILLED"), (ValueError("mine"), "FAILED")]
)
def test_mlflow_is_told_how_a_run_ended(store: str, error: BaseException, status: str) -> None:
    class Ends(Callback):
        def on_step(self, step: Step) -> None:
            if step.generation == 2:
                raise error

    if status == "KILLED":
        fit(MLflowLogger("moods", tracking_uri=store), Ends())
    else:
        with pytest.raises(ValueError, match="mine"):
            fit(MLflowLogger("moods", tracking_uri=store), Ends())
    _, (run,) = runs_in(store, "moods")
    assert run.info.status == status


def test_a_tracker_that_takes_nothing_is_told_before_anything_is_paid(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE")
    backend = Bowl()
    logger = MLflowLogger("moods", tracking_uri=store)
    with pytest.raises(StorageError, match="MLflow does not take the run: "):
        small_tuner(backend, callbacks=[logger]).fit(TRAIN)
    assert backend.asked == []


def test_weights_and_biases_has_settings_curves_scores_and_the_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip(
        "wandb", reason="wandb is missing: `make test-trackers` installs it"
    )
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    rows: list[dict[str, Any]] = []
    held: dict[str, Any] = {}
    log, log_artifact, finish = wandb.Run.log, wandb.Run.log_artifact, wandb.Run.finish

    def logging(run: Any, row: Any) -> None:
        rows.append(row)
        log(run, row)

    def logging_artifact(run: Any, artifact: Any) -> None:
        held["artifact"] = artifact
        log_artifact(run, artifact)

    def finishing(run: Any, exit_code: int) -> None:
        held.update(config=dict(run.config), exit_code=exit_code)
        finish(run, exit_code)

    monkeypatch.setattr(wandb.Run, "log", logging)
    monkeypatch.setattr(wandb.Run, "log_artifact", logging_artifact)
    monkeypatch.setattr(wandb.Run, "finish", finishing)
    result = fit(WandbLogger("moods", mode="offline", dir=str(tmp_path)))
    assert held["config"]["seed"] == result.prompt.provenance["seed"]
    assert held["config"]["settings"] == result.prompt.provenance["settings"]
    assert held["exit_code"] == 0
    for name in ("train_loss", "best_loss", "calls", "tokens", "money"):
        assert [row[name] for row in rows] == [step_row(step)[name] for step in result.steps]
    assert result.best.validation is not None
    assert set(held["artifact"].manifest.entries) == {"prompt.json", "prompt.safetensors"}
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    written = file.read_bytes()  # wandb reads it only to send it
    for value in (rows[2]["train_loss"], result.best.validation.loss, result.stop_reason):
        assert json.dumps(value).encode() in written


@pytest.mark.parametrize(("module", "extra"), [("mlflow", "mlflow"), ("wandb", "wandb")])
def test_without_the_library_the_extra_is_named(
    module: str,
    extra: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    kind = {"mlflow": MLflowLogger, "wandb": WandbLogger}[module]
    with pytest.raises(MissingExtraError, match=rf"pip install 'lmaas-tune\[{extra}\]'"):
        kind("moods")
    rows = tmp_path / "train.jsonl"
    rows.write_text("".join(json.dumps({"text": t, "label": y}) + "\n" for t, y in TRAIN))
    assert main(["tune", "--backend", "toy", "--train", str(rows), f"--{module}", "moods"]) == 2
    assert f"lmaas-tune[{extra}]" in capsys.readouterr().err
