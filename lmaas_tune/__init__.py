"""Tune prompts of language models you cannot train.

::

    from lmaas_tune import Tuner, load_backend

    backend = load_backend("hf")("HuggingFaceTB/SmolLM2-135M-Instruct")
    result = Tuner(backend, optimizer="cma").fit([("I want my money back", "refund"), ...])
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmaas_tune.api import *  # noqa: F403  # for type checkers
    from lmaas_tune.api import __all__ as __all__


def __getattr__(name: str) -> Any:
    """A public name, imported with all others when the first is asked for.

    The command line can thus handle an interrupt before numpy is imported.
    """
    if name.startswith("__") and name != "__all__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    api = import_module("lmaas_tune.api")
    return globals()[name] if name in globals() else getattr(api, name)


def __dir__() -> list[str]:
    return [*globals(), *__getattr__("__all__")]
