"""Faster modules against the model's own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from lmaas_tune_adapters.hf import HFBackend
from lmaas_tune_adapters.hf.cpu import replacement
from lmaas_tune_adapters.hf.cpu.kernels import (
    GatedUnit,
    PackedLinear,
    RootNorm,
    RotaryAttention,
)
from lmaas_tune_adapters.hf.cpu.replacement import replace_modules
from lmaas_tune_adapters.hf.kv_cache import cache_arguments
from lmaas_tune_adapters.hf.loading import load
from transformers.cache_utils import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lmaas_tune.backend import ScoreRequest
from lmaas_tune.prompts import TextPrompt
from tests.support import models

from .test_exact import batch_of

WORDS = ("great", "bad")
CPU = "lmaas_tune_adapters.hf.cpu"
PACKS_BFLOAT16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
"""Whether this processor packs bfloat16 weights; else they stay, and the reason is reported."""


@pytest.mark.parametrize("name", [*models.CAUSAL, *models.MASKED, *models.SEQ2SEQ])
def test_packing_changes_no_number(name: str, folder: Callable[[str], Path]) -> None:
    plain, packed = (
        load(folder(name), revision=None, device="cpu", dtype="float32") for _ in range(2)
    )
    assert replace_modules(packed.model) == []
    assert any(isinstance(m, PackedLinear) for m in packed.model.modules())
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    inputs = {"decoder_input_ids": ids} if plain.family == "seq2seq" else {}
    with torch.inference_mode():
        expected = plain.model(input_ids=ids, **inputs).logits
        got = packed.model(input_ids=ids, **inputs).logits
    assert (expected - got).abs().max() < 1e-5 * expected.abs().max()


def test_float16_is_left_as_it_is(folder: Callable[[str], Path]) -> None:
    model = HFBackend(folder("llama"), device="cpu", dtype="float16")
    assert not any(isinstance(m, PackedLinear) for m in model._model.modules())


@pytest.mark.parametrize("name", models.CAUSAL)
def test_bfloat16_packs_and_stays_as_near_to_float32(
    name: str, folder: Callable[[str], Path]
) -> None:
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    logits = {}
    for dtype, replaced in (("float32", False), ("bfloat16", False), ("bfloat16", True)):
        loaded = load(folder(name), revision=None, device="cpu", dtype=dtype)
        failures = replace_modules(loaded.model) if replaced else []
        packs = replaced and PACKS_BFLOAT16
        assert any(isinstance(m, PackedLinear) for m in loaded.model.modules()) is packs
        assert all("bf16" in reason for reason in failures)
        assert bool(failures) is (replaced and not packs)
        with torch.inference_mode():
            logits[dtype, replaced] = loaded.model(input_ids=ids).logits.float()
    exact = logits["float32", False]
    stock, ours = ((logits["bfloat16", replaced] - exact).norm() for replaced in (False, True))
    assert ours < 1.25 * stock


ROPE = {"rope_type": "default", "rope_theta": 10.0}  # places that differ much


def small(**options: Any) -> transformers.LlamaConfig:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 64}
    return transformers.LlamaConfig(**sizes, num_attention_heads=4, **options)


def logits_before_and_after(network: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens, vocabulary) each, of all tokens but padding, which sees nothing."""
    network = network.eval().requires_grad_(False)
    for weight in network.parameters():
        weight.mul_(5)
    ids = torch.arange(12).reshape(2, 6)
    mask = torch.tensor([[1] * 6, [0] * 2 + [1] * 4])
    plain = network(input_ids=ids, attention_mask=mask).logits[mask.bool()]
    replace_modules(network)
    return plain, network(input_ids=ids, attention_mask=mask).logits[mask.bool()]


@pytest.mark.parametrize("bias", [False, True])
def test_a_gated_unit_gives_what_the_feed_forward_gave(bias: bool) -> None:
    network = transformers.LlamaForCausalLM(small(mlp_bias=bias))
    plain, packed = logits_before_and_after(network)
    assert sum(isinstance(m, GatedUnit) for m in network.modules()) == 2
    torch.testing.assert_close(packed, plain, rtol=1e-4, atol=1e-4)


def test_a_feed_forward_with_another_activation_is_left_as_it_is() -> None:
    network = transformers.LlamaForCausalLM(small(hidden_act="gelu"))
    plain, packed = logits_before_and_after(network)
    assert not any(isinstance(m, GatedUnit) for m in network.modules())
    torch.testing.assert_close(packed, plain, rtol=1e-4, atol=1e-4)


def test_a_feed_forward_that_does_more_is_left_as_it_is() -> None:
    network = transformers.LlamaForCausalLM(small())
    first = network.model.layers[0].mlp
    stock = first.forward
    first.forward = lambda x: 2 * stock(x)
    replace_modules(network)
    assert [isinstance(layer.mlp, GatedUnit) for layer in network.model.layers] == [False, True]


@pytest.mark.parametrize("epsilon", [1e-6, 1e-2])
def test_a_root_norm_gives_what_the_stock_one_gave(epsilon: float) -> None:
    network = transformers.LlamaForCausalLM(small(rms_norm_eps=epsilon))
    plain, packed = logits_before_and_after(network)
    assert sum(isinstance(m, RootNorm) for m in network.modules()) == 5
    torch.testing.assert_close(packed, plain, rtol=1e-4, atol=1e-4)


def test_a_norm_that_does_more_is_left_as_it_is() -> None:
    network = transformers.LlamaForCausalLM(small())
    first = network.model.norm
    stock = first.forward
    first.forward = lambda x: stock(x) + 1e-4
    replace_modules(network)
    assert sum(isinstance(m, RootNorm) for m in network.modules()) == 4
    assert network.model.norm is first


class Centred(torch.nn.Module):
    """A norm like Cohere's, which has all that a root norm has and takes the mean off first."""

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = stock.weight, stock.variance_epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x - x.mean(-1, keepdim=True)
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def test_a_norm_that_takes_the_mean_off_is_left_as_it_is() -> None:
    network = transformers.LlamaForCausalLM(small())
    network.model.norm = Centred(network.model.norm)
    plain, packed = logits_before_and_after(network)
    assert type(network.model.norm) is Centred
    torch.testing.assert_close(packed, plain, rtol=1e-4, atol=1e-4)


def test_a_model_that_packing_would_change_is_loaded_as_it_is(
    folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(network: Any) -> list[str]:
        replace_modules(network)
        network.model.norm.weight.mul_(1.01)
        return []

    plain = load(folder("llama"), revision=None, device="cpu", dtype="float32")
    monkeypatch.setattr(replacement, "replace_modules", spoil)
    with pytest.warns(UserWarning, match=r"processor kernels \(it changes the scores\)"):
        model = HFBackend(folder("llama"), device="cpu")
    off = {one.name: one.reason for one in model.capabilities.speedups if one.reason}
    assert off == {"processor kernels": "it changes the scores"}
    assert not any(isinstance(m, PackedLinear) for m in model._model.modules())
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(model._model(input_ids=ids).logits, plain.model(input_ids=ids).logits)


def test_a_step_that_fails_is_told_and_the_others_are_on(
    folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(_network: Any) -> None:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear'\nand more")

    monkeypatch.setattr(replacement, "_replace_norms", gone)
    with pytest.warns(UserWarning, match=r"slower than it could be.*no attribute '_linear'"):
        model = HFBackend(folder("llama"), device="cpu")
    assert any(isinstance(m, PackedLinear) for m in model._model.modules())
    assert not any(isinstance(m, RootNorm) for m in model._model.modules())


def test_a_private_part_that_is_gone_costs_speed_and_no_score(
    folder: Callable[[str], Path], load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = ScoreRequest(TextPrompt("so"), batch_of("{text} {prompt} {label}", ("fine",)), WORDS)
    expected = load("llama").score([request])[0].logprobs
    monkeypatch.delitem(sys.modules, "lmaas_tune_adapters.hf.cpu.replacement", raising=False)
    monkeypatch.setitem(sys.modules, "lmaas_tune_adapters.hf.cpu.kernels", None)
    with pytest.warns(UserWarning, match="processor kernels .*stock"):
        slow = HFBackend(folder("llama"), device="cpu")
    np.testing.assert_allclose(slow.score([request])[0].logprobs, expected, atol=1e-4)


def test_without_speedups_every_module_is_the_stock_one_and_nobody_is_warned(
    folder: Callable[[str], Path], load: Any, recwarn: pytest.WarningsRecorder
) -> None:
    stock = HFBackend(folder("llama"), device="cpu", speedups=False)
    assert not recwarn.list
    ours = {m.__class__.__module__ for m in stock._model.modules()}
    assert not any(name.startswith("lmaas_tune") for name in ours)
    reasons = {one.name: one.reason for one in stock.capabilities.speedups}
    assert reasons == {
        "processor kernels": "speedups=False",
        "shared prefixes": "",
        "joint passes": "",
        "partial last layer": "speedups=False",
        "parallel passes": "speedups=False",
    }
    request = ScoreRequest(TextPrompt("so"), batch_of("{text} {prompt} {label}", ("fine",)), WORDS)
    expected = load("llama").score([request])[0].logprobs
    np.testing.assert_allclose(stock.score([request])[0].logprobs, expected, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "roberta", "t5"])
def test_without_speedups_the_package_of_speedups_is_never_imported(
    name: str, folder: Callable[[str], Path], load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor with them, where it fails to import: then every speedup of it is off."""
    request = ScoreRequest(TextPrompt("so"), batch_of("{text} {prompt} {label}", ("fine",)), WORDS)
    expected = load(name).score([request])[0].logprobs
    for module in [name for name in sys.modules if name.startswith(f"{CPU}.")] + [CPU]:
        monkeypatch.setitem(sys.modules, module, None)  # importing it fails
    stock = HFBackend(folder(name), device="cpu", speedups=False)
    np.testing.assert_allclose(stock.score([request])[0].logprobs, expected, atol=1e-4)
    with pytest.warns(UserWarning, match=r"processor kernels \(ModuleNotFoundError"):
        slow = HFBackend(folder(name), device="cpu")
    np.testing.assert_allclose(slow.score([request])[0].logprobs, expected, atol=1e-4)


@pytest.mark.parametrize("heads", [1, 2])
def test_heads_that_share_keys_and_values_give_what_copies_of_these_gave(heads: int) -> None:
    network = transformers.LlamaForCausalLM(small(num_key_value_heads=heads))
    plain, packed = logits_before_and_after(network)
    assert network.config._attn_implementation != "sdpa"
    torch.testing.assert_close(packed, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("bias", [False, True])
def test_attention_that_turns_in_place_gives_what_the_stock_one_gave(
    heads: int, bias: bool
) -> None:
    network = transformers.LlamaForCausalLM(
        small(num_key_value_heads=heads, attention_bias=bias, rope_parameters=ROPE)
    )
    plain, packed = logits_before_and_after(network)
    assert sum(isinstance(m, RotaryAttention) for m in network.modules()) == 2
    torch.testing.assert_close(packed, plain, rtol=1e-4, atol=1e-4)


def test_attention_that_goes_on_from_a_memory_gives_what_the_stock_one_gave() -> None:
    network = transformers.LlamaForCausalLM(small(num_key_value_heads=2)).eval()
    network.requires_grad_(False)
    ids = torch.arange(12).reshape(2, 6)
    whole = network(input_ids=ids).logits
    replace_modules(network)
    cache = DynamicCache()
    network(input_ids=ids[:, :4], **cache_arguments(network, cache))
    end = network(input_ids=ids[:, 4:], **cache_arguments(network, cache)).logits
    torch.testing.assert_close(end, whole[:, 4:], rtol=1e-4, atol=1e-5)


def test_attention_that_does_more_is_left_as_it_is() -> None:
    network = transformers.LlamaForCausalLM(small())
    first = network.model.layers[0].self_attn
    stock = first.forward

    def doubled(hidden_states: Any, position_embeddings: Any, **options: Any) -> Any:
        mixed, weights = stock(hidden_states, position_embeddings, **options)
        return 2 * mixed, weights

    first.forward = doubled
    replace_modules(network)
    turned = [isinstance(layer.self_attn, RotaryAttention) for layer in network.model.layers]
    assert turned == [False, True]


def test_attention_that_clips_large_numbers_is_left_as_it_is() -> None:
    config = transformers.OlmoConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        vocab_size=64,
        clip_qkv=8.0,
    )
    network = transformers.OlmoForCausalLM(config)
    replace_modules(network.eval().requires_grad_(False))
    assert not any(isinstance(m, RotaryAttention) for m in network.modules())


def test_other_attention_is_left_as_it_is() -> None:
    network = transformers.AutoModelForCausalLM.from_config(small(), attn_implementation="eager")
    logits_before_and_after(network)
    assert network.config._attn_implementation == "eager"
    assert not any(isinstance(m, RotaryAttention) for m in network.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("keys", [40, 300])
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_of_few_to_few_and_to_many_is_that_of_torch(
    heads: int, keys: int, added: bool, dtype: torch.dtype
) -> None:
    network = transformers.LlamaForCausalLM(small(num_key_value_heads=heads)).to(dtype)
    replace_modules(network)
    attend = ALL_ATTENTION_FUNCTIONS[network.config._attn_implementation]
    numbers = torch.Generator().manual_seed(0)
    query = torch.randn(3, 4, 5, 8, generator=numbers).to(dtype)
    key, value = torch.randn(2, 3, heads, keys, 8, generator=numbers).to(dtype)
    mask = torch.rand(3, 1, 5, keys, generator=numbers) > 0.5
    if added:
        mask = torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
    ours, _ = attend(network, query, key, value, mask, scaling=0.3)
    theirs = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=0.3, enable_gqa=True
    )
    rough = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(ours.transpose(1, 2), theirs, rtol=rough, atol=rough)


def test_a_model_with_soft_caps_and_windows_stays_the_same() -> None:
    config = transformers.Gemma2Config(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=64,
        sliding_window=4,
    )
    plain, packed = logits_before_and_after(transformers.Gemma2ForCausalLM(config))
    torch.testing.assert_close(packed, plain, rtol=1e-4, atol=1e-4)
