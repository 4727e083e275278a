"""Every architecture with a language-model head that transformers knows, as a tiny random model.

A configuration is shrunk by the names of its fields: what one name means is the same in most of
them. `OWN` says what an architecture needs beside that.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers.models.auto import modeling_auto

MAPPINGS = {
    "causal": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "masked": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "seq2seq": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
}
AUTO = {
    "causal": transformers.AutoModelForCausalLM,
    "masked": transformers.AutoModelForMaskedLM,
    "seq2seq": transformers.AutoModelForSeq2SeqLM,
}
LARGEST = 5_000_000
"""Most weights of a tiny model: a field that was not shrunk is noticed."""

WIDTH, HEADS, LAYERS, INNER, PLACES = 32, 4, 2, 48, 256

_BY_VALUE = {
    WIDTH: "hidden_size d_model n_embd dim emb_dim embedding_size word_embed_proj_dim "
    "attention_hidden_size lru_width embedding_dim pooler_hidden_size backbone_hidden_size "
    "true_hidden_size embedding_rank d_latents entity_emb_size",
    HEADS: "num_attention_heads n_head n_heads num_heads decoder_attention_heads "
    "encoder_attention_heads swa_num_attention_heads attention_heads index_n_heads "
    "num_encoder_attention_heads num_decoder_attention_heads num_self_attention_heads "
    "num_cross_attention_heads linear_num_heads mamba_n_heads mamba_num_heads rel_extent "
    "num_experts n_routed_experts num_local_experts moe_num_experts rotary_dim zero_expert_num",
    LAYERS: "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers "
    "num_decoder_layers num_encoder_layers num_key_value_heads num_kv_heads "
    "swa_num_key_value_heads num_experts_per_tok num_experts_per_token linear_num_key_heads "
    "linear_num_value_heads moe_topk moe_k num_blocks num_local_experts_per_tok "
    "num_self_attends_per_block n_input_layers n_output_layers n_recurrent_layers "
    "num_layers_per_stack mamba_n_groups",
    INNER: "intermediate_size decoder_ffn_dim encoder_ffn_dim n_inner d_ff d_inner dff dim_ff "
    "hidden_dim ffn_dim ffn_hidden_size intermediate_size_mlp dense_intermediate_size",
    PLACES: "index_topk max_position_embeddings n_positions n_ctx max_seq_len context_length "
    "max_encoder_position_embeddings max_decoder_position_embeddings model_max_length "
    "max_source_positions max_target_positions original_max_position_embeddings",
    8: "head_dim d_kv d_head dim_head v_head_dim qk_rope_head_dim qk_nope_head_dim index_head_dim "
    "kv_channels linear_key_head_dim linear_value_head_dim linear_head_dim swa_head_dim "
    "global_head_dim swa_v_head_dim mamba_d_state state_size ssm_state_size q_lora_rank "
    "kv_lora_rank o_lora_rank query_pre_attn_scalar laurel_rank time_step_rank mamba_dt_rank "
    "local_radius d_rel hidden_size_per_layer_input adapter_rank loop_gate_rank gated_norm_rank",
    16: "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size "
    "moe_shared_expert_intermediate_size shared_experts_intermediate_size mamba_d_head "
    "mamba_head_dim mamba_chunk_size chunk_size sliding_window attention_window_size block_size "
    "window_size local_attention attention_window attention_chunk_size sliding_window_size "
    "keep_window_size qk_head_dim",
    1: "n_shared_experts topk_group n_group num_expert_group num_shared_experts "
    "moe_num_shared_experts n_groups first_k_dense_replace num_dense_layers n_langs",
    20: "t2u_vocab_size entity_vocab_size unit_hifi_gan_vocab_size num_latents",
}
SMALL = {name: value for value, names in _BY_VALUE.items() for name in names.split()}

_MIXED = {"layer_types": ["linear_attention", "full_attention"]}

OWN: dict[str, dict[str, Any]] = {
    "bailing_hybrid": _MIXED,
    "bamba": {"attn_layer_indices": [1]},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}
    },
    "cpmant": {"prompt_types": 4, "segment_types": 4, "prompt_length": 4},
    "dory": {
        "num_hidden_layers": 6,
        "n_input_layers": 2,
        "n_recurrent_layers": 2,
        "n_output_layers": 2,
        "layer_types": ["sliding_attention", "mlp"] * 3,
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": INNER, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {"topk_method": "greedy", "num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "dots3_note_text": {"per_layer_config": None},
    "nemotron": {"num_key_value_heads": 2},
    "esm": {"mask_token_id": 3, "vocab_size": 420},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},
    "falcon_h1": {"mamba_d_ssm": 64},
    "fsmt": {"src_vocab_size": 420, "tgt_vocab_size": 420},
    "gemma3n_text": {"num_kv_shared_layers": 0, "vocab_size_per_layer_input": 420},
    "gemma4_text": {"vocab_size_per_layer_input": 420},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "hrm_text": {"num_layers_per_stack": None},
    "inkling2_text": {"unpadded_vocab_size": 420},
    "inkling2_loop_text": {
        "unpadded_vocab_size": 420,
        "num_hidden_layers": 3,
        "n_layers_per_attn_res_block": 1,
        "loop_layer_index_start": 1,
        "loop_layer_index_end": 2,
    },
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": _MIXED,
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "mobilebert": {
        "embedding_size": 32,
        "intra_bottleneck_size": 32,
        "true_hidden_size": 32,
        "use_bottleneck": False,
    },
    "neomme": {
        "rope_parameters": {
            "full_attention": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.5,
            },
            "sliding_attention": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.5,
            },
        }
    },
    "qwen3_5_text": _MIXED,
    "qwen3_5_moe_text": _MIXED,
    "qwen3_next": _MIXED,
    "qwen4_exp_text": {
        "layer_types": ["linear_attention", "indexed_attention"],
        "indexer_n_heads": HEADS,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": PLACES,
        "indexer_compress_ratio": 4,
    },
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"axial_pos_embds": False},
    "roc_bert": {
        "shape_vocab_size": 20,
        "pronunciation_vocab_size": 20,
        "pronunciation_embed_dim": 8,
        "shape_embed_dim": 8,
    },
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "num_hidden_layers": 3,
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
    },
    "zamba2": {
        "num_hidden_layers": 3,
        "layers_block_type": ["linear_attention", "linear_attention", "hybrid"],
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "n_mamba_heads": 4,
        "mamba_headdim": 16,
    },
    "zaya": {"num_experts_per_tok": 1},
}


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "falcon-alibi": (
        "falcon",
        {"alibi": True, "multi_query": False, "parallel_attn": False, "num_kv_heads": HEADS},
    ),
    "qwen2-windows": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
    ),
    "xlm-causal": ("xlm", {"causal": True}),
    "bert-decoder": ("bert", {"is_decoder": True}),
    "mbart-without-start": ("mbart", {"decoder_start_token_id": None}),
}
"""Settings that make another architecture of one: its type, and its own fields."""

NOT_BUILT = {
    ("causal", "blt"): "its tables of byte groups have a fixed size of 96 million weights",
    ("causal", "dots3_note"): "its parts cannot be shrunk; its text model is dots3_note_text",
    ("causal", "gemma3n"): "it needs the package timm; its text model is gemma3n_text",
    ("causal", "gemma4_assistant"): "it drafts for another model, whose states it is given",
    ("causal", "gemma4_unified_assistant"): "it drafts for another model, whose states it is given",
    ("causal", "musicgen"): "it says sounds; its configuration builds no causal model",
    ("causal", "musicgen_melody"): "it says sounds; its configuration builds no causal model",
    ("masked", "bart"): "its class is the sequence-to-sequence one",
    ("masked", "mbart"): "its class is the sequence-to-sequence one",
    ("masked", "mvp"): "its class is the sequence-to-sequence one",
    ("masked", "mra"): "its attention needs a CUDA kernel and gives zeros without it",
    ("seq2seq", "nemo_speechlm"): "it reads speech; its parts cannot be shrunk",
    ("seq2seq", "vibevoice_asr"): "it reads speech; its parts cannot be shrunk",
}
"""What transformers cannot build as a tiny model that reads text, and why."""


def names() -> list[tuple[str, str]]:
    """(family, name) of every architecture and variant that is built."""
    known = [(family, kind) for family, kinds in MAPPINGS.items() for kind in kinds]
    own = {"mbart-without-start": "seq2seq"}
    known += [(own.get(name, "causal"), name) for name in VARIANTS]
    return [one for one in known if one not in NOT_BUILT]


def _fields(kind: str, vocabulary: dict[str, int]) -> dict[str, Any]:
    source = transformers.CONFIG_MAPPING[kind]
    return _shrunk(source().to_dict(), vocabulary) | OWN.get(kind, {})


def _shrunk(known: dict[str, Any], vocabulary: dict[str, int]) -> dict[str, Any]:
    """The fields of a configuration that are made small, and those of its parts."""
    small = SMALL | vocabulary
    if known.get("num_key_value_heads") == known.get("num_attention_heads"):
        small["num_key_value_heads"] = HEADS
    fields: dict[str, Any] = {}
    for name, value in known.items():
        if isinstance(value, dict) and "model_type" in value:
            kind = value["model_type"]
            if kind in transformers.CONFIG_MAPPING:
                fields[name] = {"model_type": kind, **_fields(kind, vocabulary)}
            else:
                fields[name] = _shrunk(value, vocabulary)
        elif name in small and (isinstance(value, int) or name in ("head_dim", "vocab_size")):
            fields[name] = small[name]
    return fields | {name: i for name, i in vocabulary.items() if name.endswith("_token_id")}


def network(name: str, family: str, vocabulary: dict[str, int], *, seed: int = 0) -> Any:
    """A tiny model with random weights, its answers far from flat.

    Args:
        name: A model type of transformers, or a variant.
        family: What it is built as.
        vocabulary: ``vocab_size`` and the ids of special tokens, by the configuration's names.
    """
    kind, own = VARIANTS.get(name, (name, {}))
    config = transformers.CONFIG_MAPPING[kind](**(_fields(kind, vocabulary) | own))
    if kind == "reformer":
        config.is_decoder = family == "causal"
    with torch.device("meta"):
        size = AUTO[family].from_config(config).num_parameters()
    assert size <= LARGEST, f"{name} has {size} weights: a field of its configuration is not shrunk"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _spread(AUTO[family].from_config(config)).eval()


def _spread(model: Any) -> Any:
    """Weights large enough that answers differ: fresh models say nearly the same everywhere."""
    with torch.no_grad():
        for module in model.modules():
            for name, weight in module.named_parameters(recurse=False):
                if isinstance(module, torch.nn.Embedding):
                    weight.normal_(0, 0.6)
                elif weight.dim() in (2, 3) and isinstance(
                    module,
                    torch.nn.Linear | transformers.pytorch_utils.Conv1D | torch.nn.Conv1d,
                ):
                    weight.normal_(0, 1.2 / weight.shape[-1] ** 0.5)
                elif name == "bias":
                    weight.normal_(0, 0.1)
    return model
