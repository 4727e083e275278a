"""The parts of a model that the client needs: tokenizer, word embeddings, name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import transformers

from lmaas_tune.errors import InputError
from lmaas_tune_adapters.hf.identity import name_of, settings_hash
from lmaas_tune_adapters.hf.loading import family_of, one_sentence, quiet, source_of
from lmaas_tune_adapters.vllm.table import EmbeddingTable, find_table

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Vocabulary:
    """A causal language model without its layers.

    Attributes:
        tokenizer: The model's, of transformers.
        table: Its word embeddings.
        name: Its name, with the commit if it comes from the hub.
        fingerprint: Hash of configuration, tokenizer and table.
        max_tokens: The longest row that it has positions for; None if it sets no limit.
    """

    tokenizer: Any
    table: EmbeddingTable
    name: str
    fingerprint: str
    max_tokens: int | None


def load_vocabulary(model: str | Path, *, revision: str | None) -> Vocabulary:
    """Load tokenizer, configuration and word embeddings of a model, without its other weights.

    Raises:
        InputError: The model cannot be loaded, is not causal, or has no readable table.
    """
    source, options = source_of(model, revision)
    if "gguf_file" in options:
        raise InputError(
            f"the word embeddings of {str(model)!r} cannot be read alone: give the folder that "
            "HFBackend.convert_gguf writes for it"
        )
    with quiet(), one_sentence(model):
        config = transformers.AutoConfig.from_pretrained(source, **options)
        family = family_of(config, model)
        if family != "causal":
            raise InputError(
                f"the model {str(model)!r} is a {family} one, which vLLM does not serve for text: "
                "run it with the backend 'hf', or behind `lmaas-tune serve`"
            )
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
        table = find_table(source, config, **options)
        sha = settings_hash(config, tokenizer)
        sha.update(table.digest.encode())
    return Vocabulary(
        tokenizer=tokenizer,
        table=table,
        name=name_of(model, config, revision),
        fingerprint=sha.hexdigest()[:16],
        max_tokens=getattr(config.get_text_config(), "max_position_embeddings", None),
    )
