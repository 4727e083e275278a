"""Packed linear layers against the model's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lmaas_tune_adapters.hf.loading import load
from lmaas_tune_adapters.hf.packing import PackedLinear

from . import models


@pytest.mark.parametrize("name", [*models.CAUSAL, *models.MASKED, *models.SEQ2SEQ])
def test_packing_changes_no_number(name: str, folder: Callable[[str], Path]) -> None:
    plain, packed = (
        load(folder(name), revision=None, device="cpu", dtype="float32", pack=pack)
        for pack in (False, True)
    )
    assert any(isinstance(m, PackedLinear) for m in packed.model.modules())
    assert plain.fingerprint == packed.fingerprint
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    inputs = {"decoder_input_ids": ids} if plain.family == "seq2seq" else {}
    with torch.inference_mode():
        expected = plain.model(input_ids=ids, **inputs).logits
        got = packed.model(input_ids=ids, **inputs).logits
    assert (expected - got).abs().max() < 1e-5 * expected.abs().max()


def test_other_dtypes_are_left_as_they_are(folder: Callable[[str], Path]) -> None:
    loaded = load(folder("llama"), revision=None, device="cpu", dtype="bfloat16")
    assert not any(isinstance(m, PackedLinear) for m in loaded.model.modules())
