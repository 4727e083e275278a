"""Where a model comes from, and how its files are read: quietly, with errors that name it.

Without torch, as `vllm/` uses it too.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from lmaas_tune.errors import InputError, MissingExtraError

_EXTRA = ("torch", "transformers", "gguf", "accelerate")  # the packages of the extra `hf`


def source_of(model: str | Path, revision: str | None) -> tuple[str, dict[str, Any]]:
    """Turn a model's name or path into the arguments of `from_pretrained`.

    Returns:
        A folder or hub name, and options.

    Raises:
        InputError: The file or folder is no model.
    """
    path = Path(model)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise InputError(f"there is no GGUF file {str(path)!r}: check the path")
        return str(path.parent), {"gguf_file": path.name}
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(
                f"the folder {str(path)!r} holds no model: it has no config.json; give a folder "
                "that save_pretrained wrote"
            )
        return str(path), {}
    try:
        validate_repo_id(str(model))
    except HFValidationError as error:
        raise InputError(
            f"there is no folder {str(model)!r}, and it is not a valid name on the hub"
        ) from error
    return str(model), {"revision": revision} if revision else {}


@contextlib.contextmanager
def errors_translated(model: str | Path) -> Iterator[None]:
    """Turn every failure of transformers and the hub into one sentence that names the model."""
    try:
        yield
    except InputError:
        raise
    except ImportError as error:
        if error.name in _EXTRA:
            raise MissingExtraError(
                f"loading the model {str(model)!r}", package=error.name, extra="hf"
            ) from error
        raise InputError(
            f"loading the model {str(model)!r} needs a package that is not installed: "
            f"{error.name or failure(error)}"
        ) from error
    except Exception as error:  # parsers of damaged files raise any exception
        raise InputError(
            f"cannot load the model {str(model)!r} ({failure(error)}): check the name, the "
            "folder, or the network"
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Switch off progress bars and logs of transformers, and restore them afterwards."""
    log: Any = transformers.utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        # the progress bar of GGUF files has no switch
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()


def failure(error: Exception) -> str:
    """Shorten an exception of foreign code to its type and the first line of its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ": ".join([type(error).__name__, *lines[:1]]).rstrip(".")[:160]
