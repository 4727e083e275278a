"""Feature-MLP and Feature-BiLSTM: a small network on the states of the frozen model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from lmaas_tune_adapters.hf.request_batch import slices
from lmaas_tune_adapters.hf.whitebox import HiddenRow, read_hidden
from torch.nn.utils.rnn import pack_sequence

from lmaas_tune.lab.baselines.fitted import FittedBaseline, Job
from lmaas_tune.lab.baselines.settings import FeatureSettings
from lmaas_tune.lab.baselines.training import Logits, seeded, train_on
from lmaas_tune.prompts import FloatArray, TextPrompt
from lmaas_tune.task import Example

MakeHead: TypeAlias = Callable[[int, int, FeatureSettings], torch.nn.Module]
"""From H, the number of labels and settings to a network that reads `Vectors`."""

Vectors: TypeAlias = Sequence[torch.Tensor]
"""(vectors, H) of each row."""

_ROWS = 64  # whose features are held at once for scores


def fit_mlp(job: Job, settings: FeatureSettings) -> FittedBaseline:
    """Three layers on the state at the label's position.

    With w for the layers' width, (H + 1) w + (w + 1) w + (w + 1) labels parameters.
    """
    return _fit(job, settings, MLP, lambda row: row.tokens[[row.label]])


def fit_bilstm(job: Job, settings: FeatureSettings) -> FittedBaseline:
    """Two bidirectional LSTM layers over the states of all tokens, and a linear one on their ends.

    With w for the layers' width, 8 w (H + w + 2) + 8 w (3 w + 2) + (2 w + 1) labels parameters.
    """
    return _fit(job, settings, BiLSTM, lambda row: row.tokens)


class MLP(torch.nn.Module):
    """Three layers on one vector a row."""

    def __init__(self, inputs: int, labels: int, settings: FeatureSettings) -> None:
        super().__init__()
        width = settings.width
        self._layers = torch.nn.Sequential(
            torch.nn.Linear(inputs, width),
            torch.nn.ReLU(),
            torch.nn.Dropout(settings.dropout),
            torch.nn.Linear(width, width),
            torch.nn.ReLU(),
            torch.nn.Dropout(settings.dropout),
            torch.nn.Linear(width, labels),
        )

    def forward(self, rows: Vectors) -> torch.Tensor:
        """(rows, labels)."""
        logits: torch.Tensor = self._layers(torch.cat(list(rows)))
        return logits


class BiLSTM(torch.nn.Module):
    """Two bidirectional layers over all vectors of a row, and a linear one on their last states."""

    def __init__(self, inputs: int, labels: int, settings: FeatureSettings) -> None:
        super().__init__()
        self._lstm = torch.nn.LSTM(
            inputs, settings.width, num_layers=2, bidirectional=True, dropout=settings.dropout
        )
        self._out = torch.nn.Linear(2 * settings.width, labels)

    def forward(self, rows: Vectors) -> torch.Tensor:
        """(rows, labels)."""
        _, (states, _) = self._lstm(pack_sequence(list(rows), enforce_sorted=False))
        logits: torch.Tensor = self._out(torch.cat([states[-2], states[-1]], dim=1))
        return logits


def _fit(
    job: Job,
    settings: FeatureSettings,
    make: MakeHead,
    choose: Callable[[HiddenRow], torch.Tensor],
) -> FittedBaseline:
    box = job.backend.open_box()
    prompt = TextPrompt(job.words)

    def look(examples: Sequence[Example]) -> list[torch.Tensor]:
        return [choose(row) for row in read_hidden(box, job.request(prompt, examples))]

    seen = look(job.train)
    scale = _Scale(seen)
    with seeded(job.seed):
        network = make(seen[0].shape[1], len(job.task.verbalizer.labels), settings)
        parameters = list(network.parameters())

        def read(examples: Sequence[Example]) -> Logits:
            scaled = scale(seen if examples is job.train else look(examples))
            return lambda numbers: network([scaled[number] for number in numbers])

        trained = train_on(job, settings, parameters, read, mode=network.train)

    def score(examples: Sequence[Example]) -> FloatArray:
        with torch.no_grad():
            parts = [network(scale(look(chunk))) for chunk in slices(examples, _ROWS)]
        return torch.cat(parts).double().numpy()

    return FittedBaseline(**vars(trained), score=score)


class _Scale:
    """Scales each feature to mean 0 and deviation 1, measured on the training rows."""

    def __init__(self, vectors: Vectors) -> None:
        seen = torch.cat(list(vectors))
        self._mean = seen.mean(dim=0)
        self._deviation = seen.std(dim=0, correction=0).clamp(min=1e-6)

    def __call__(self, vectors: Vectors) -> list[torch.Tensor]:
        """(vectors, H) of each row."""
        return [(row - self._mean) / self._deviation for row in vectors]
