"""What a user is told about label words before the first call (check C18)."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from lmaas_tune_adapters.hf import HFBackend
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers import models as tokenizer_models

from lmaas_tune.backend import ScoreRequest
from lmaas_tune.errors import InputError
from lmaas_tune.prompts import SoftPrompt, TextPrompt
from tests.support import models

from .test_exact import batch_of

DBPEDIA = (
    "Company", "Education", "Artist", "Athlete", "Office", "Transportation", "Building",
    "Natural", "Village", "Animal", "Plant", "Album", "Film", "Written",
)  # fmt: skip
FIRST_PIECES = {
    "Athlete": "A", "Transportation": "Trans", "Village": "Vill", "Plant": "Pl", "Album": "Al",
}  # fmt: skip


def notes(backend: HFBackend, template: str, *words: str) -> str:
    batch = batch_of(template, ("a",))
    return "\n".join(backend.inspect(ScoreRequest(TextPrompt(""), batch, words)).notes)


def dbpedia_tokenizer() -> Any:
    """Cuts the label words of DBPedia as the merges of GPT-2 and RoBERTa do, five into pieces."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    merges: list[tuple[str, str]] = []
    kept = ["Ġ" + word for word in DBPEDIA]  # behind a space, each is a token
    kept += [word for word in DBPEDIA if word not in FIRST_PIECES] + list(FIRST_PIECES.values())
    for word in kept:
        for end in range(2, len(word) + 1):
            if word[:end] not in vocabulary:
                vocabulary[word[:end]] = len(vocabulary)
                merges.append((word[: end - 1], word[end - 1]))
    tokenizer = Tokenizer(tokenizer_models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture(scope="module")
def dbpedia(tmp_path_factory: pytest.TempPathFactory) -> HFBackend:
    folder = tmp_path_factory.mktemp("dbpedia")
    tokenizer = dbpedia_tokenizer()
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=64
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return HFBackend(folder, device="cpu")


def test_c18_five_label_words_of_dbpedia_are_told_by_their_first_piece(dbpedia: HFBackend) -> None:
    told = notes(dbpedia, "{prompt}{text}\n{label}", *DBPEDIA)
    for word, piece in FIRST_PIECES.items():
        assert f"the label word {word!r} is" in told
        assert f"begins with {piece!r}" in told
    for word in set(DBPEDIA) - set(FIRST_PIECES):
        assert f"{word!r} is" not in told


def test_c18_behind_a_space_the_same_words_are_whole(dbpedia: HFBackend) -> None:
    assert notes(dbpedia, "{prompt}{text} It is {label}", *DBPEDIA) == ""


def test_c18_words_that_begin_with_the_same_token_are_told(
    load: Callable[[str], HFBackend],
) -> None:
    told = notes(load("llama"), "{text} It was {prompt}{label}", "wonderful", "wonderfully")
    assert "'wonderful', 'wonderfully' begin with the same token" in told


@pytest.mark.parametrize("name", ["t5", "bert"])
def test_c18_a_word_that_the_model_does_not_know_is_refused(
    name: str, load: Callable[[str], HFBackend]
) -> None:
    with pytest.raises(InputError, match="'電影' is not in the model's vocabulary"):
        notes(load(name), "{text} It was {prompt}{label}", "great", "電影")


def test_c18_words_that_are_the_same_tokens_are_refused(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    tokenizer = models.word_piece()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    network = transformers.AutoModelForMaskedLM.from_pretrained(folder("bert"))
    network.resize_token_embeddings(len(tokenizer))
    models.save(tmp_path / "uncased", network, tokenizer)
    uncased = HFBackend(tmp_path / "uncased", device="cpu")
    with pytest.raises(InputError, match="'great' and 'Great' are the same tokens"):
        notes(uncased, "{text} It was {prompt}{label}", "great", "Great")


def test_a_space_before_the_label_belongs_to_the_word(load: Callable[[str], HFBackend]) -> None:
    model = load("gpt2")
    tokenizer, network = model._tokenizer, model._model
    for template, word in (("{prompt}so {label}", " great"), ("{prompt}so\n{label}", "great")):
        request = ScoreRequest(TextPrompt(""), batch_of(template, ("",)), ("great", "bad"))
        (reply,) = model.score([request])
        text = template.replace("{prompt}", "").replace("{label}", "").rstrip(" ")
        ids = tokenizer(text + word, return_tensors="pt")["input_ids"]
        first = len(tokenizer(text)["input_ids"])
        table = network(input_ids=ids).logits[0].double().log_softmax(-1)
        expected = sum(float(table[i - 1, ids[0, i]]) for i in range(first, ids.shape[1]))
        assert reply.logprobs[0, 0] == pytest.approx(expected, abs=1e-4)


def test_rows_with_and_without_a_space_before_the_label_share_a_batch(
    load: Callable[[str], HFBackend],
) -> None:
    model = load("llama")
    texts = ("so ", "so", "so then ")
    together = model.score([_bare(texts)])[0].logprobs
    alone = np.concatenate([model.score([_bare((text,))])[0].logprobs for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "template",
    [
        "{prompt} {text} so {label}",
        "{text} {prompt} so {label}",
        "{text}\n{prompt}\nso\n{label}",
        "{text} so{prompt} {label}",
    ],
)
def test_a_tokenizer_that_begins_each_stretch_anew_reads_the_text_as_it_stands(
    template: str, folder: Callable[[str], Path], tmp_path: Path
) -> None:
    copy = shutil.copytree(folder("llama"), tmp_path / "old")
    models.old_sentence_piece().save_pretrained(copy)
    model = HFBackend(copy, device="cpu")
    batch, words = batch_of(template, ("a gripping film",)), ("great", "bad")
    text, soft = (
        ScoreRequest(prompt, batch, words)
        for prompt in (TextPrompt("overall"), SoftPrompt(model.embed((7, 8))))
    )
    (row,), (around,) = model._encoder.rows(text), model._encoder.rows(soft)
    (great, _) = model._encoder.words(text, row)
    whole = template.format(text="a gripping film", prompt="overall", label="great")
    assert row.ids + great == tuple(model._tokenizer(whole)["input_ids"][:-1])  # less the end
    before, behind = around.ids[: around.prompt], around.ids[around.prompt + 2 :]
    assert row.ids[: len(before)] == before
    assert row.ids[len(row.ids) - len(behind) :] == behind


def test_a_token_that_only_the_tokenizer_has_is_named(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    copy = shutil.copytree(folder("llama"), tmp_path / "longer")
    tokenizer = transformers.AutoTokenizer.from_pretrained(copy)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(copy)
    model = HFBackend(copy, device="cpu")
    for text, word in (("a <new> film", "great"), ("a film", "<new>")):
        batch = batch_of("{text} {prompt} so {label}", ("fine", text))
        request = ScoreRequest(TextPrompt("so"), batch, ("bad", word))
        with pytest.raises(InputError, match=r"row [12] holds '<new>', a token that the tokenizer"):
            model.score([request])


def _bare(texts: tuple[str, ...]) -> ScoreRequest:
    return ScoreRequest(
        TextPrompt("overall"), batch_of("{prompt} {text}{label}", texts), ("a", "b")
    )


@pytest.mark.parametrize("what", ["text", "word", "prompt"])
def test_half_a_surrogate_pair_is_refused(what: str, load: Callable[[str], HFBackend]) -> None:
    bad = "so \ud800"
    request = ScoreRequest(
        TextPrompt(bad if what == "prompt" else "so"),
        batch_of("{text} {prompt} It was {label}", ("fine", bad if what == "text" else "fine")),
        ("great", bad if what == "word" else "bad"),
    )
    with pytest.raises(InputError, match="surrogate"):
        load("llama").score([request])


def test_inspecting_tells_what_scoring_takes(load: Callable[[str], HFBackend]) -> None:
    for name in ("llama", "roberta", "t5", "bart"):
        model = load(name)
        batch = batch_of("{text} {prompt} It was {label}", ("a", "two hours"))
        request = ScoreRequest(TextPrompt("so"), batch, ("great", "wonderful"))
        assert model.inspect(request).usage == model.score([request])[0].usage


def test_a_label_word_of_several_tokens_is_billed_for_all_but_its_last(
    load: Callable[[str], HFBackend],
) -> None:
    model = load("gpt2")
    batch = batch_of("{text} {prompt} It was {label}", ("a", "two hours"))
    one, two = (
        model.score([ScoreRequest(TextPrompt("so"), batch, words)])[0].usage
        for words in (("great", "bad"), ("great", "wonderful"))
    )
    pieces = len(model._tokenizer(" wonderful")["input_ids"])
    assert pieces > 1
    assert one.tokens == sum(
        len(model._tokenizer(f"{text} so It was")["input_ids"]) for text in ("a", "two hours")
    )
    assert two.tokens == one.tokens + 2 * (pieces - 1)
