"""The name and the fingerprint of a model: equal ones give equal answers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch


def name_of(model: str | Path, config: Any, revision: str | None) -> str:
    """Name a model in an identity, with the commit if it is known; never by its whole path."""
    commit = getattr(config, "_commit_hash", None) or revision
    name = Path(model).name if Path(model).exists() else str(model)
    return f"{name}@{commit[:12]}" if commit else name


def fingerprint_of(network: Any, tokenizer: Any) -> str:
    """Hash configuration, tokenizer and every weight: 16 hexadecimal digits."""
    sha = settings_hash(network.config, tokenizer)
    for name, weight in network.state_dict().items():
        sha.update(f"{name}{tuple(weight.shape)}{weight.dtype}".encode())
        sha.update(_checksums(weight))
    return sha.hexdigest()[:16]


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


def _checksums(weight: torch.Tensor) -> bytes:
    """Sum a tensor's bits over the first axis as integers: exact, and equal on every device."""
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    if not weight.numel():
        return b""
    bits = weight.contiguous().reshape(len(weight) if weight.dim() else 1, -1)
    if bits.dtype == torch.bool:
        bits = bits.to(torch.int8)
    bits = bits.view(whole[bits.element_size()])
    return bits.sum(dim=0, dtype=torch.int64).cpu().numpy().tobytes()
