"""An optimizer of a comparison, with its options and its label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lmaas_tune.errors import InputError
from lmaas_tune.optimizers.base import OptimizerFactory
from lmaas_tune.settings import plain_options


@dataclass(frozen=True, kw_only=True)
class OptimizerSpec:
    """An optimizer in a comparison.

    Attributes:
        optimizer: A name (``lmaas-tune optimizers`` lists them), or a class or function that
            builds one.
        options: Of a named optimizer; empty for those that the settings give it.
        label: Its name in the results; by default its name and options, as
            ``cma(population=20)``.

    Raises:
        InputError: A class or function comes with options.
    """

    optimizer: str | OptimizerFactory
    options: Mapping[str, object] = field(default_factory=dict)
    label: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", plain_options(self.options))
        name = self.optimizer
        if not isinstance(name, str):
            if self.options:
                raise InputError(
                    f"options {dict(self.options)} are for an optimizer given by name: set them "
                    "in the function that builds this one"
                )
            name = str(getattr(name, "__name__", type(name).__name__))
        if not self.label:
            options = ",".join(f"{option}={value}" for option, value in self.options.items())
            object.__setattr__(self, "label", f"{name}({options})" if options else name)


def optimizer_specs(given: Sequence[str | OptimizerSpec]) -> tuple[OptimizerSpec, ...]:
    """Names and specs as specs.

    Raises:
        InputError: There is none, or two have one label.
    """
    if isinstance(given, str) or not given:
        raise InputError(f"optimizers={given!r}: give a list of them, as ['cma', 'random']")
    found = tuple(o if isinstance(o, OptimizerSpec) else OptimizerSpec(optimizer=o) for o in given)
    labels = [spec.label for spec in found]
    for label in labels:
        if labels.count(label) > 1:
            raise InputError(f"the optimizer {label!r} is named twice: name each once")
    return found
