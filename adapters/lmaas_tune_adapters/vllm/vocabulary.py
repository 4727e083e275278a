"""What the client has of a model: its tokenizer, its word embeddings, and its name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers

from lmaas_tune.errors import InputError
from lmaas_tune_adapters.hf.identity import name_of, settings_hash
from lmaas_tune_adapters.hf.loading import family_of, one_sentence, quiet, source_of
from lmaas_tune_adapters.vllm.table import EmbeddingTable, find_table


@dataclass(frozen=True)
class Vocabulary:
    """A causal language model without its layers.

    Attributes:
        tokenizer: Of transformers.
        table: Its word embeddings.
        name: Its name, and the commit if it is the hub's.
        fingerprint: Hash of configuration, tokenizer and table.
        max_tokens: The longest row that it has places for; None if it sets no limit.
    """

    tokenizer: Any
    table: EmbeddingTable
    name: str
    fingerprint: str
    max_tokens: int | None


def load_vocabulary(model: str | Path, *, revision: str | None) -> Vocabulary:
    """Read tokenizer, configuration and word embeddings of a model, and nothing else.

    Raises:
        InputError: The model cannot be had, is not causal, or has no table that can be read.
    """
    source, options = source_of(model, revision)
    if "gguf_file" in options:
        raise InputError(
            f"the word embeddings of {str(model)!r} cannot be read alone: give the folder that "
            "HFBackend.convert_gguf makes of it"
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
