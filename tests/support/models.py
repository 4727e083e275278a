"""Tiny models with random weights and tokenizers trained on a few lines, saved as folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

LINES = [
    "a gripping film that stays with you for days and it was great",
    "two hours of my life that i will not get back and it was bad",
    "the plot goes nowhere and the acting is terrible but the music is fine",
    "overall the movie is good and the story is told well",
    "great good bad terrible fine wonderful awful",
    "it was a dull and lifeless affair with nothing to say",
    "world sports business technology company school plant village album",
] * 3


def byte_level(*, start: str | None, end: str | None, mask: str | None) -> Any:
    """A byte-level BPE, as of GPT-2, OPT, Qwen (no start or end), RoBERTa and BART."""
    specials = ["<s>", "<pad>", "</s>", "<mask>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        LINES,
        trainers.BpeTrainer(
            vocab_size=420,
            special_tokens=specials,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    template = " ".join(token for token in (start, "$A", end) if token)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(token, i) for i, token in enumerate(specials)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        **({"mask_token": mask} if mask else {}),
    )


def word_piece() -> Any:
    """BERT's."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(
        LINES,
        trainers.WordPieceTrainer(vocab_size=300, special_tokens=specials, show_progress=False),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def old_sentence_piece() -> Any:
    """Llama 2's and Phi-3's: the normalizer restarts after each added token."""
    tokenizer = sentence_piece()
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return tokenizer


def sentence_piece() -> Any:
    """T5's: words begin with a visible space, sentinels are the masks."""
    specials = ["<pad>", "</s>", "<unk>", "<extra_id_0>", "<extra_id_1>"]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.train_from_iterator(
        LINES,
        trainers.UnigramTrainer(
            vocab_size=300, special_tokens=specials, unk_token="<unk>", show_progress=False
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
    )


def save(folder: Path, network: Any, tokenizer: Any) -> Path:
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


_SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}


def build(name: str, folder: Path, *, seed: int = 0) -> Path:
    """Save the tiny model of this name under `folder`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return save(folder, *MODELS[name]())


def _spread(network: Any) -> Any:
    """Weights large enough that answers differ: default weights give nearly equal ones."""
    with torch.no_grad():
        for weight in network.parameters():
            if weight.dim() > 1:
                weight.mul_(6)
    return network.eval()


def _llama() -> tuple[Any, Any]:
    tokenizer = byte_level(start="<s>", end=None, mask=None)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
        **_SMALL,
    )
    return _spread(transformers.LlamaForCausalLM(config)), tokenizer


def _qwen2() -> tuple[Any, Any]:
    tokenizer = byte_level(start=None, end=None, mask=None)
    config = transformers.Qwen2Config(
        vocab_size=len(tokenizer),
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=2,
        **_SMALL,
    )
    return _spread(transformers.Qwen2ForCausalLM(config)), tokenizer


def _qwen3() -> tuple[Any, Any]:
    tokenizer = byte_level(start=None, end=None, mask=None)
    config = transformers.Qwen3Config(
        vocab_size=len(tokenizer),
        num_key_value_heads=2,
        max_position_embeddings=256,
        head_dim=8,
        bos_token_id=0,
        eos_token_id=2,
        **_SMALL,
    )
    return _spread(transformers.Qwen3ForCausalLM(config)), tokenizer


def _mistral() -> tuple[Any, Any]:
    """Attends to a sliding window of 8 tokens, so its cache cannot be shared."""
    tokenizer = byte_level(start=None, end=None, mask=None)
    config = transformers.MistralConfig(
        vocab_size=len(tokenizer),
        num_key_value_heads=2,
        max_position_embeddings=256,
        sliding_window=8,
        bos_token_id=0,
        eos_token_id=2,
        **_SMALL,
    )
    return _spread(transformers.MistralForCausalLM(config)), tokenizer


def _gpt_neo() -> tuple[Any, Any]:
    """Every second layer attends to the last 8 tokens, with a plain cache."""
    tokenizer = byte_level(start=None, end=None, mask=None)
    config = transformers.GPTNeoConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=8,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=2,
    )
    return _spread(transformers.GPTNeoForCausalLM(config)), tokenizer


def _gpt2() -> tuple[Any, Any]:
    tokenizer = byte_level(start=None, end=None, mask=None)
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=256,
        bos_token_id=0,
        eos_token_id=2,
    )
    return _spread(transformers.GPT2LMHeadModel(config)), tokenizer


def _opt() -> tuple[Any, Any]:
    tokenizer = byte_level(start="</s>", end=None, mask=None)
    config = transformers.OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=48,
        word_embed_proj_dim=16,
        max_position_embeddings=256,
        bos_token_id=2,
        eos_token_id=2,
        pad_token_id=1,
    )
    return _spread(transformers.OPTForCausalLM(config)), tokenizer


def _roberta() -> tuple[Any, Any]:
    tokenizer = byte_level(start="<s>", end="</s>", mask="<mask>")
    config = transformers.RobertaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=258,
        type_vocab_size=1,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
        **_SMALL,
    )
    return _spread(transformers.RobertaForMaskedLM(config)), tokenizer


def _bert() -> tuple[Any, Any]:
    tokenizer = word_piece()
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), max_position_embeddings=256, pad_token_id=0, **_SMALL
    )
    return _spread(transformers.BertForMaskedLM(config)), tokenizer


def _distilbert() -> tuple[Any, Any]:
    tokenizer = word_piece()
    config = transformers.DistilBertConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=256,
        dim=32,
        n_layers=2,
        n_heads=4,
        hidden_dim=48,
        pad_token_id=0,
    )
    return _spread(transformers.DistilBertForMaskedLM(config)), tokenizer


def _t5() -> tuple[Any, Any]:
    tokenizer = sentence_piece()
    config = transformers.T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )
    return transformers.T5ForConditionalGeneration(config).eval(), tokenizer


def _bart() -> tuple[Any, Any]:
    tokenizer = byte_level(start="<s>", end="</s>", mask="<mask>")
    config = transformers.BartConfig(
        vocab_size=len(tokenizer),
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=256,
        scale_embedding=True,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
    )
    return _spread(transformers.BartForConditionalGeneration(config)), tokenizer


CAUSAL = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "mistral": _mistral,
    "gpt-neo": _gpt_neo,
    "gpt2": _gpt2,
    "opt": _opt,
}
MASKED = {"roberta": _roberta, "bert": _bert, "distilbert": _distilbert}
SEQ2SEQ = {"t5": _t5, "bart": _bart}
MODELS = CAUSAL | MASKED | SEQ2SEQ
