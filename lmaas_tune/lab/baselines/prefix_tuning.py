"""P-Tuning v2: keys and values before the row in every layer, by gradient, through peft."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import peft
import torch
from lmaas_tune_adapters.hf.kv_cache import cache_arguments
from lmaas_tune_adapters.hf.source import quiet
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from lmaas_tune.errors import InputError
from lmaas_tune.lab.baselines.fitted import FittedBaseline, Job
from lmaas_tune.lab.baselines.settings import PrefixTuningSettings
from lmaas_tune.lab.baselines.training import seeded
from lmaas_tune.lab.baselines.tuned_words import tune_on_words

if TYPE_CHECKING:
    from lmaas_tune_adapters.hf.loading import Family
    from lmaas_tune_adapters.hf.whitebox import WhiteBox

_TASK_TYPES: dict[Family, str] = {
    "causal": "CAUSAL_LM",
    "masked": "FEATURE_EXTRACTION",  # peft has no name for a head that says words
    "seq2seq": "SEQ_2_SEQ_LM",
}


def fit(job: Job, settings: PrefixTuningSettings) -> FittedBaseline:
    """Tune a prefix; the scores of label words and the positions of the row's tokens stay the same.

    It has L x layers x 2 x (attention heads of keys x their width) parameters: of the decoder, if
    there is an encoder too.
    """
    box = job.backend.open_box()
    with seeded(job.seed):
        tuned = with_prefix(box, _starting_tokens(job, settings.length))
    return tune_on_words(job, settings, box, tuned, before=settings.length)


def _starting_tokens(job: Job, length: int) -> list[int]:
    """The words' tokens, repeated or cut; without words, some of the vocabulary."""
    ids = job.backend.tokenize(job.words)
    if not ids:
        drawn = np.random.default_rng(job.seed).integers(job.backend.vocabulary_size, size=length)
        return [int(token) for token in drawn]
    return [ids[place % len(ids)] for place in range(length)]


def with_prefix(box: WhiteBox, tokens: Sequence[int]) -> Any:
    """Wrap the box's model with peft, so that it always reads a prefix first.

    The prefix starts as the keys and values of tokens, which are better to start from where rows
    are few than random ones are (Li and Liang, 2021).

    Raises:
        InputError: The model keeps no keys and values that a prefix could stand among.
    """
    network = box.loaded.model
    states = _states(box, tokens)
    layers, _, heads, _, width = states.shape
    with quiet():
        tuned: Any = peft.get_peft_model(
            network,
            peft.PrefixTuningConfig(
                task_type=_TASK_TYPES[box.family],
                num_virtual_tokens=len(tokens),
                # peft guesses these from the configuration, wrongly for some models
                num_layers=layers,
                num_attention_heads=heads,
                token_dim=heads * width,
                num_transformer_submodules=2 if box.family == "seq2seq" else 1,
            ),
        )
    with torch.no_grad():
        # peft has one vector a token: of each layer the keys of all heads, then the values
        start = states.permute(3, 0, 1, 2, 4).reshape(len(tokens), -1)
        tuned.prompt_encoder["default"].embedding.weight.copy_(start)

    # peft's own forward takes token ids and gives the logits of every place: here its prefix goes
    # into the passes that read label words only where they stand
    def put_before(_module: Any, args: Any, inputs: dict[str, Any]) -> Any:
        said = "decoder_inputs_embeds" if "decoder_inputs_embeds" in inputs else "inputs_embeds"
        return args, {**inputs, **cache_arguments(network, tuned.get_prompt(len(inputs[said])))}

    network.register_forward_pre_hook(put_before, with_kwargs=True)
    return tuned


def _states(box: WhiteBox, tokens: Sequence[int]) -> torch.Tensor:
    """(layers, 2, heads, tokens, width) keys and values; the decoder's, if there is an encoder.

    Raises:
        InputError: There are none, or not alike in each layer.
    """
    network = box.loaded.model
    ids = torch.tensor([tokens], device=network.device)
    kept: Any = DynamicCache()
    inputs = {"input_ids": ids}
    cache: Any = kept
    if box.family == "seq2seq":
        cache = EncoderDecoderCache(kept, DynamicCache())
        inputs["decoder_input_ids"] = ids
    with torch.no_grad(), contextlib.suppress(TypeError):  # of a model that takes none
        network(**inputs, **cache_arguments(network, cache))
    if len({layer.keys.shape for layer in kept.layers}) != 1:
        raise InputError(
            f"p-tuning-v2 puts keys and values of one shape before every layer, and the model "
            f"{box.loaded.name!r} ({network.config.model_type}) has none: choose another baseline"
        )
    return torch.stack([torch.cat([layer.keys, layer.values]) for layer in kept.layers])
