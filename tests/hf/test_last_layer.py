"""The last layer, worked out only where it is read, against the whole layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lmaas_tune_adapters.hf import HFBackend
from lmaas_tune_adapters.hf.cpu.last_layer import last_layer, only_last
from lmaas_tune_adapters.hf.kv_cache import cache_arguments, empty_cache
from transformers.cache_utils import Cache, DynamicCache

from lmaas_tune.backend import ScoreRequest
from tests.support import models

from .test_exact import batch_of, soft


@pytest.mark.parametrize("name", models.CAUSAL)
def test_the_positions_read_come_out_as_from_the_whole_layer(
    name: str, load: Callable[[str], HFBackend]
) -> None:
    model = load(name)._model
    ids = torch.arange(5, 17).reshape(2, 6)
    kept = ids[:, :2], ids[:, 2:]
    layer = last_layer(model.get_decoder(), 2)

    def logits(reads: int) -> torch.Tensor:
        cache = DynamicCache()
        model(input_ids=kept[0], **cache_arguments(model, cache))
        with only_last(layer, reads):
            output = model(input_ids=kept[1], **cache_arguments(model, cache))
        return output.logits[:, -reads:]  # type: ignore[no-any-return]

    with torch.inference_mode():
        whole = model(input_ids=ids, use_cache=False).logits
        with only_last(layer, 1):
            alone = model(input_ids=ids, **cache_arguments(model, empty_cache(2))).logits[:, -1:]
        for reads, got in ((1, alone), (1, logits(1)), (2, logits(2)), (4, logits(4))):
            torch.testing.assert_close(got, whole[:, -reads:], rtol=1e-4, atol=1e-4)
        after = model(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(after, whole)


WITHOUT_WINDOW = [name for name in models.CAUSAL if name not in ("mistral", "gpt-neo")]


@pytest.mark.parametrize("name", WITHOUT_WINDOW)
def test_the_feed_forward_of_the_last_layer_sees_the_positions_read_only(
    name: str, load: Callable[[str], HFBackend]
) -> None:
    model = load(name)
    seen: list[int] = []
    layer = last_layer(model._model.get_decoder(), 2)
    feed_forward = layer.fc1 if name == "opt" else layer.mlp
    hook = feed_forward.register_forward_pre_hook(
        lambda _module, inputs: seen.append(inputs[0].reshape(-1, inputs[0].shape[-1]).shape[0])
    )
    batch = batch_of("{prompt} {text} It was {label}", ("a film", "so it is"))
    request = ScoreRequest(soft(model, 1, length=20)[0], batch, ("great", "bad"))
    try:
        model.score([request])
    finally:
        hook.remove()
    heads, *tails = seen
    assert heads >= 20
    assert sum(tails) == 2


def test_a_layer_that_asks_more_of_its_memory_is_left_whole(
    folder: Callable[[str], Path], load: Callable[[str], HFBackend], monkeypatch: Any
) -> None:
    layer = type(last_layer(load("llama")._model.get_decoder(), 2))
    forward = layer.forward

    def asking(self: Any, *args: Any, **options: Any) -> torch.Tensor:
        for cache in (value for value in options.values() if isinstance(value, Cache)):
            cache.get_seq_length()
        return forward(self, *args, **options)  # type: ignore[no-any-return]

    monkeypatch.setattr(layer, "forward", asking)
    with pytest.warns(UserWarning, match=r"partial last layer .* computed at every position"):
        model = HFBackend(folder("llama"), device="cpu")
    off = {one.name for one in model.capabilities.speedups if one.reason}
    assert off == {"partial last layer"}
