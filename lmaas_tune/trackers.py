"""Callbacks that write a run to a tracker of experiments: MLflow, and Weights & Biases."""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lmaas_tune.callbacks import Callback
from lmaas_tune.errors import MissingExtraError, StorageError
from lmaas_tune.result import TuneResult
from lmaas_tune.step import Step, step_row


class MLflowLogger(Callback):
    """Writes a run to MLflow (extra ``mlflow``).

    Parameters are the seed, the settings and the versions; metrics the numbers of `CSVLogger`, over
    the number of calls; at the end also the losses of the result. The saved prompt is the artifact
    ``prompt``.

    Args:
        experiment: Name of the experiment, which is created if it does not exist.
        tracking_uri: Address of the server, or of a local store; by default that of the
            environment variable MLFLOW_TRACKING_URI, else MLflow's own.
        run_name: Name of the run; by default MLflow draws one.

    Raises:
        MissingExtraError: mlflow is not installed.
        StorageError: During the run: MLflow does not take it.
    """

    def __init__(
        self, experiment: str, *, tracking_uri: str | None = None, run_name: str | None = None
    ) -> None:
        try:
            import mlflow
        except ImportError as error:
            raise MissingExtraError(
                "MLflowLogger", package="mlflow-skinny", extra="mlflow"
            ) from error
        self._mlflow: Any = mlflow
        self._experiment, self._uri, self._run_name = experiment, tracking_uri, run_name
        self._client: Any = None
        self._run_id = ""

    def on_prepared(self, origin: Mapping[str, Any]) -> None:
        """Create the run, with its parameters."""
        with self._errors():
            self._client = self._mlflow.MlflowClient(tracking_uri=self._uri)
            found = self._client.get_experiment_by_name(self._experiment)
            number = (
                self._client.create_experiment(self._experiment)
                if found is None
                else found.experiment_id
            )
            self._run_id = self._client.create_run(number, run_name=self._run_name).info.run_id
            parameter = self._mlflow.entities.Param
            parameters = [parameter(name, value) for name, value in _flat(origin).items()]
            self._client.log_batch(self._run_id, params=parameters)

    def on_step(self, step: Step) -> None:
        """Write one point of every curve; the x axis is the number of calls."""
        self._log(step_row(step), step.spent.calls)

    def on_end(self, result: TuneResult) -> None:
        """Write the losses and the prompt of the result, and end the run."""
        if not self._run_id:  # another callback ended the run before
            return
        self._log(_losses(result), result.spent.calls)
        status = "FINISHED" if result.finished else "KILLED"
        with self._errors(), tempfile.TemporaryDirectory() as folder:
            result.save(folder)
            self._client.log_artifacts(self._run_id, folder, "prompt")
            self._client.set_tag(self._run_id, "stop_reason", result.stop_reason)
            self._client.set_terminated(self._run_id, "FAILED" if _failed(result) else status)

    def _log(self, values: Mapping[str, float | None], calls: int) -> None:
        metric, now = self._mlflow.entities.Metric, int(1000 * time.time())
        points = [metric(name, value, now, calls) for name, value in _known(values).items()]
        with self._errors():
            self._client.log_batch(self._run_id, metrics=points)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        with _translated("MLflow", self._mlflow.MlflowException):
            yield


class WandbLogger(Callback):
    """Writes a run to Weights & Biases (extra ``wandb``).

    The configuration is the seed, the settings and the versions. The curves are those of
    `CSVLogger` over the number of calls, and the summary has the losses of the result. The saved
    prompt is an artifact.

    Args:
        project: Name of the project.
        **options: Of ``wandb.init``, such as ``mode="offline"``, ``entity`` and ``dir``. Without
            them wandb reads its environment variables, such as WANDB_MODE.

    Raises:
        MissingExtraError: wandb is not installed.
        StorageError: During the run: wandb does not take it, as without a key.
    """

    def __init__(self, project: str, **options: Any) -> None:
        try:
            import wandb
        except ImportError as error:
            raise MissingExtraError("WandbLogger", package="wandb", extra="wandb") from error
        self._wandb: Any = wandb
        self._options = {"project": project, **options}
        self._run: Any = None

    def on_prepared(self, origin: Mapping[str, Any]) -> None:
        """Create the run, with its configuration."""
        with _translated("Weights & Biases", self._wandb.errors.Error):
            self._run = self._wandb.init(config=dict(origin), **self._options)
            self._run.define_metric("*", step_metric="calls")

    def on_step(self, step: Step) -> None:
        """Write one point of every curve; the x axis is the number of calls."""
        self._run.log(_known(step_row(step)))

    def on_end(self, result: TuneResult) -> None:
        """Write the losses and the prompt of the result, and end the run."""
        if self._run is None:  # another callback ended the run before
            return
        self._run.summary.update({**_known(_losses(result)), "stop_reason": result.stop_reason})
        with tempfile.TemporaryDirectory() as folder:
            artifact = self._wandb.Artifact("prompt", type="prompt")
            artifact.add_dir(str(result.save(folder)))
            self._run.log_artifact(artifact)
            self._run.finish(exit_code=int(_failed(result)))


def _known(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: v for name, v in values.items() if v is not None and math.isfinite(v)}


def _losses(result: TuneResult) -> dict[str, float | None]:
    """Loss and accuracy of the result on training and validation rows."""
    evaluations = {"train": result.best.train, "validation": result.best.validation}
    return {
        f"result_{rows}_{name}": value
        for rows, evaluation in evaluations.items()
        if evaluation is not None
        for name, value in (("loss", evaluation.loss), ("accuracy", evaluation.accuracy))
    }


def _failed(result: TuneResult) -> bool:
    return result.stop_reason.startswith("failed")


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values by names with dots; lists as JSON."""
    found: dict[str, str] = {}
    for name, value in content.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value if isinstance(value, str) else json.dumps(value)
    return found


@contextmanager
def _translated(tracker: str, kind: type[Exception]) -> Iterator[None]:
    try:
        yield
    except kind as error:
        raise StorageError(f"{tracker} does not take the run: {error}") from error
