"""The name of a model, and a hash of all of it but its weights; without torch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def name_of(model: str | Path, config: Any, revision: str | None) -> str:
    """Name a model in an identity, with the commit if it is known; never by its whole path."""
    commit = getattr(config, "_commit_hash", None) or revision
    name = Path(model).name if Path(model).exists() else str(model)
    return f"{name}@{commit[:12]}" if commit else name


def settings_hash(config: Any, tokenizer: Any) -> hashlib._Hash:
    """Begin a SHA-256 with configuration and tokenizer: all of a model but its weights."""
    sha = hashlib.sha256()
    content = config.to_dict()
    for key in ("_name_or_path", "transformers_version", "dtype", "architectures"):
        content.pop(key, None)
    sha.update(json.dumps(content, sort_keys=True, default=str).encode())
    if tokenizer.is_fast:
        sha.update(tokenizer.backend_tokenizer.to_str().encode())
    else:
        sha.update(json.dumps(sorted(tokenizer.get_vocab().items())).encode())
    if tokenizer.mask_token_id is not None:  # masked models are read there
        sha.update(f"mask={tokenizer.mask_token_id}".encode())
    return sha
