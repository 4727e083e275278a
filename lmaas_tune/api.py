"""All public names, which `lmaas_tune` exports lazily."""

from typing import TYPE_CHECKING, Any

from lmaas_tune.artifact import TunedPrompt
from lmaas_tune.backend import (
    Backend,
    Capabilities,
    Embeds,
    Inspection,
    Inspects,
    Measures,
    ScoreReply,
    ScoreRequest,
    Spread,
    Usage,
)
from lmaas_tune.callbacks import Callback, CSVLogger, ProgressBar, TensorBoardLogger
from lmaas_tune.calls.cache import ScoreCache
from lmaas_tune.calls.client import Client
from lmaas_tune.calls.meter import Budget, Price, Spent
from lmaas_tune.calls.pace import Pace
from lmaas_tune.calls.retry import Retry
from lmaas_tune.data import few_shot_split, read_examples
from lmaas_tune.errors import (
    BackendError,
    BudgetExceededError,
    InputError,
    LMaaSError,
    MissingExtraError,
    PermanentError,
    StorageError,
    TransientError,
)
from lmaas_tune.optimizers.base import Optimizer, OptimizerFactory
from lmaas_tune.peft import PeftPrompt
from lmaas_tune.prompts import (
    Auto,
    Deep,
    DeepPrompt,
    PointPrompt,
    Soft,
    SoftPrompt,
    Subspace,
    Text,
    TextPrompt,
)
from lmaas_tune.registry import load_backend
from lmaas_tune.result import TuneResult
from lmaas_tune.scores import Comparison, Score
from lmaas_tune.settings import Settings, preset
from lmaas_tune.step import Candidate, Step
from lmaas_tune.task import Batch, Example, Slot, Task, Template, Verbalizer
from lmaas_tune.trackers import MLflowLogger, WandbLogger
from lmaas_tune.tuner import Tuner

if TYPE_CHECKING:
    from lmaas_tune.lab.optimizers import compare

__all__ = [
    "Auto",
    "Backend",
    "BackendError",
    "Batch",
    "Budget",
    "BudgetExceededError",
    "CSVLogger",
    "Callback",
    "Candidate",
    "Capabilities",
    "Client",
    "Comparison",
    "Deep",
    "DeepPrompt",
    "Embeds",
    "Example",
    "InputError",
    "Inspection",
    "Inspects",
    "LMaaSError",
    "MLflowLogger",
    "Measures",
    "MissingExtraError",
    "Optimizer",
    "OptimizerFactory",
    "Pace",
    "PeftPrompt",
    "PermanentError",
    "PointPrompt",
    "Price",
    "ProgressBar",
    "Retry",
    "Score",
    "ScoreCache",
    "ScoreReply",
    "ScoreRequest",
    "Settings",
    "Slot",
    "Soft",
    "SoftPrompt",
    "Spent",
    "Spread",
    "Step",
    "StorageError",
    "Subspace",
    "Task",
    "Template",
    "TensorBoardLogger",
    "Text",
    "TextPrompt",
    "TransientError",
    "TuneResult",
    "TunedPrompt",
    "Tuner",
    "Usage",
    "Verbalizer",
    "WandbLogger",
    "compare",
    "few_shot_split",
    "load_backend",
    "preset",
    "read_examples",
]


def __getattr__(name: str) -> Any:
    """`compare`, imported on first use, because the core does not depend on `lab`."""
    if name == "compare":
        from lmaas_tune.lab.optimizers import compare

        return compare
    raise AttributeError(f"module 'lmaas_tune' has no attribute {name!r}")
