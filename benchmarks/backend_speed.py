"""Speed of the backend `hf` on a generation, as a ratio to a plain loop.

The plain loop is what one writes first: one candidate at a time, 32 rows padded to the longest
under an attention mask, logits of the whole vocabulary at every position, in float32. Both sides
score the same soft prompts in one run, turn by turn. In float32 they must agree to 1e-4, or to
three times the distance of the plain loop from its own scores in float64. In bfloat16 the
difference is printed.

    python benchmarks/backend_speed.py                       # random weights, shapes as measured
    python benchmarks/backend_speed.py --causal FOLDER       # a causal model of your own
    python benchmarks/backend_speed.py --device cuda         # on an accelerator
    python benchmarks/backend_speed.py --dtype bfloat16      # against the plain loop in float32
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import platform
import random
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from lmaas_tune_adapters.hf import HFBackend
from lmaas_tune_adapters.hf.cpu.kernels import PackedLinear
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from lmaas_tune.backend import ScoreRequest
from lmaas_tune.prompts import FloatArray, SoftPrompt
from lmaas_tune.task import Batch, Example, Slot, Template

CANDIDATES = ("bad", "great")
WORDS = (  # noqa: SIM905
    "the film is a slow dull gripping tender story that never quite finds its way and yet an "
    "honest cast with warm music some bright jokes but too much talk about love loss money"
).split()

TOKENS = 512  # of a typical pass of the backend
SQUARE = 2048  # width of the matrix whose product is the processor's rate

LENGTHS = [5, 7, 7, 9, 10, 11, 11, 12, 16, 17, 18, 18, 19, 20, 21, 22]
LENGTHS += [23, 23, 23, 26, 26, 27, 28, 29, 29, 32, 38, 41, 47, 47, 53, 55]


@dataclass
class Times:
    """Seconds a candidate, wall and processor, of each turn."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def measure(self, count: int, work: Callable[[], Any]) -> Any:
        """Time work on `count` candidates."""
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        self.wall.append((time.perf_counter() - wall) / count)
        self.cpu.append((time.process_time() - cpu) / count)
        return result


def sentences() -> list[str]:
    """32 rows of as many tokens as the rows of SST-2 that 16-shot tuning sees (split 13)."""
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS, k=length)) for length in LENGTHS]


def tokenizer(*, masked: bool) -> Any:
    """A byte-level BPE that has every word above as one token."""
    specials = ["<s>", "<pad>", "</s>", "<mask>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    lines = [" ".join(["", *WORDS, *WORDS, "It was bad great ."])] * 3
    trainer = trainers.BpeTrainer(
        special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(lines, trainer)
    if masked:
        bpe.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
        )
    fast: Any = transformers.PreTrainedTokenizerFast
    return fast(
        tokenizer_object=bpe,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        mask_token="<mask>",
    )


def causal_model(folder: Path) -> Path:
    """Random weights in the shape of SmolLM2-135M."""
    config = transformers.LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer(masked=False).save_pretrained(folder)
    return folder


def masked_model(folder: Path) -> Path:
    """Random weights in the shape of RoBERTa-base."""
    config = transformers.RobertaConfig(
        vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5
    )
    transformers.RobertaForMaskedLM(config).save_pretrained(folder)
    tokenizer(masked=True).save_pretrained(folder)
    return folder


def plain_loop(backend: HFBackend, model: Any, tok: Any, batch: Batch) -> Callable[..., FloatArray]:
    """A function from a soft prompt to (rows, words) log-probabilities, the plain way."""
    causal = not hasattr(model.config, "type_vocab_size")
    table = model.get_input_embeddings()
    device = table.weight.device
    words = [tok(f" {word}", add_special_tokens=False)["input_ids"][0] for word in CANDIDATES]
    rows = [_pieces(tok, row, causal=causal) for row in batch.rows]
    masks = torch.tensor([[tok.mask_token_id]]) if not causal else None

    def score(prompt: SoftPrompt) -> FloatArray:
        vectors = torch.tensor(prompt.vectors).to(device, table.weight.dtype)
        length = max(sum(len(part) for part in row if part is not Slot.PROMPT) for row in rows)
        length += prompt.length
        embeddings = vectors.new_zeros(len(rows), length, table.weight.shape[1])
        attention = torch.zeros(len(rows), length, dtype=torch.long, device=device)
        reads = []
        for index, row in enumerate(rows):
            parts = [
                vectors
                if p is Slot.PROMPT
                else table(torch.tensor(p, dtype=torch.long, device=device))
                for p in row
            ]
            joint = torch.cat(parts)
            embeddings[index, : len(joint)] = joint
            attention[index, : len(joint)] = 1
            flat = [i for part in row if part is not Slot.PROMPT for i in part]
            reads.append(
                len(joint) - 1 if masks is None else flat.index(tok.mask_token_id) + prompt.length
            )
        logits = model(inputs_embeds=embeddings, attention_mask=attention).logits
        table_of_all = logits.log_softmax(-1)
        scores: FloatArray = (
            table_of_all[torch.arange(len(rows)), reads][:, words].double().cpu().numpy()
        )
        return scores

    return score


def _pieces(tok: Any, row: tuple[Any, ...], *, causal: bool) -> list[Any]:
    """Token ids of the parts of a row, its prompt left as it is."""
    parts: list[Any] = []
    for index, part in enumerate(row):
        if part is Slot.LABEL:
            if not causal:
                parts.append([tok.mask_token_id])
        elif part is Slot.PROMPT:
            parts.append(part)
        else:
            before_slot = index + 1 < len(row)
            text = part[:-1] if before_slot and part.endswith(" ") else part
            parts.append(tok(text, add_special_tokens=False)["input_ids"])
    return parts if causal else [[tok.bos_token_id], *parts, [tok.eos_token_id]]


def needed_tokens(model: Any, tok: Any, batch: Batch, length: int) -> int:
    """Tokens that have to go through the layers for a candidate, once a run is under way.

    Of a causal model, what stands before the prompt is not read again, and a prompt that comes
    first is read once for all rows.
    """
    causal = not hasattr(model.config, "type_vocab_size")
    rows = [_pieces(tok, row, causal=causal) for row in batch.rows]
    texts = [sum(len(part) for part in row if part is not Slot.PROMPT) for row in rows]
    if not causal:
        return sum(texts) + len(rows) * length
    return sum(texts) + length if rows[0][0] is Slot.PROMPT else len(rows) * length


class MatrixRate:
    """How fast the processor multiplies matrices, all of torch's threads together.

    Args:
        model: Its linear layers are multiplied in turn, each weight coming from memory, with the
            kernel that the backend takes; the vocabulary's head is left out.
        dtype: Of these layers.
    """

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        head = model.get_output_embeddings()
        linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
        self.a_token = 2 * sum(m.weight.numel() for m in linear)
        self._layers = [PackedLinear(m.weight.detach().to(dtype), None) for m in linear]
        widths = {layer.width for layer in self._layers}
        self._inputs = {width: torch.randn(TOKENS, width).to(dtype) for width in widths}
        self._square = torch.randn(SQUARE, SQUARE).to(dtype)
        self.square = self.layers = 0.0

    def measure(self) -> None:
        """Keep the fastest rates so far, in operations a second.

        They are of a large square product by torch itself, and of the layers for as many tokens
        as a forward pass of the backend has.
        """
        self.square = max(self.square, 2 * SQUARE**3 * _rounds(lambda: self._square @ self._square))
        self.layers = max(self.layers, self.a_token * TOKENS * _rounds(self._through))

    def _through(self) -> None:
        for layer in self._layers:
            layer(self._inputs[layer.width])


def _rounds(work: Callable[[], Any]) -> float:
    """How often a second the work is done by as many threads as torch has, one a thread."""
    threads = torch.get_num_threads()

    def alone(_thread: int) -> None:
        torch.set_num_threads(1)
        with torch.inference_mode():
            work()

    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(alone, range(threads)))
    torch.set_num_threads(threads)
    return threads / (time.perf_counter() - began)


def compare(
    backend: HFBackend, loop: tuple[Any, Any], template: str, length: int, args: Any
) -> dict[str, Any]:
    """Score generations both ways, turn by turn."""
    batch = Template(template).batch([Example({"text": text}) for text in sentences()])
    rng = np.random.default_rng(0)
    width = backend.capabilities.soft_prompt_width or 0
    vectors = rng.standard_normal((args.population, length, width)) * backend.embedding_std
    prompts = [SoftPrompt(v) for v in vectors]
    requests = [ScoreRequest(prompt, batch, CANDIDATES) for prompt in prompts]
    plain = plain_loop(backend, *loop, batch)
    backend.score(requests[:1])  # what a run keeps is there from its second call on
    ours, theirs, difference = Times(), Times(), 0.0
    rate = MatrixRate(loop[0], backend._model.dtype) if args.device == "cpu" else None
    asked: list[tuple[SoftPrompt, FloatArray]] = []
    with torch.inference_mode():
        for turn in range(args.turns):
            prompt = prompts[turn]
            expected = theirs.measure(1, partial(plain, prompt))
            replies = ours.measure(len(requests), partial(backend.score, requests))
            for _ in range(5):
                if rate is not None:
                    rate.measure()
            difference = max(difference, float(np.abs(replies[turn].logprobs - expected).max()))
            asked.append((prompt, expected))
        exact = plain_loop(backend, copy.deepcopy(loop[0]).double(), loop[1], batch)
        rounding = max(float(np.abs(exact(prompt) - scores).max()) for prompt, scores in asked)
    possible = kernels = math.nan
    if rate is not None:
        needed = rate.a_token * needed_tokens(*loop, batch, length)
        possible = min(theirs.wall) / (needed / rate.square)
        kernels = min(theirs.wall) / (needed / rate.layers)
    if args.dtype == "float32" and difference > max(1e-4, 3 * rounding):
        raise SystemExit(f"{template!r}: the scores differ by {difference:.1e}")
    return {
        "template": template,
        "prompt_tokens": length,
        "plain_s": min(theirs.wall),
        "ours_s": min(ours.wall),
        "ratio": min(theirs.wall) / min(ours.wall),
        "possible": possible,
        "kernels": kernels,
        "cpu_ratio": min(theirs.cpu) / min(ours.cpu),
        "difference": difference,
        "rounding": rounding,
    }


def processor() -> str:
    """Its name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor()


def _share(row: dict[str, Any], bound: str) -> str:
    """A bound of the ratio and the share of it that was reached, as two cells."""
    if math.isnan(row[bound]):
        return " | "
    return f"{row[bound]:.1f} | {row['ratio'] / row[bound]:.0%}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--causal", type=Path, help="folder of a causal model, for random weights")
    parser.add_argument("--population", type=int, default=20, help="candidates of a generation")
    parser.add_argument("--turns", type=int, default=2, help="turns a side; the best one counts")
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--device", default="cpu", help="of both sides, as cuda")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    logging: Any = transformers.utils.logging
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as temporary:
        causal = args.causal or causal_model(Path(temporary) / "smollm2-shape")
        masked = masked_model(Path(temporary) / "roberta-base-shape")
        rows = []
        for folder, kind, cases in (
            (
                causal,
                transformers.AutoModelForCausalLM,
                (("{prompt} {text} {label}", 50), ("{text} {prompt} {label}", 5)),
            ),
            (
                masked,
                transformers.AutoModelForMaskedLM,
                (("{prompt} {text} It was {label} .", 50),),
            ),
        ):
            backend = HFBackend(folder, device=args.device, dtype=args.dtype)
            loop = (
                kind.from_pretrained(folder, dtype=torch.float32).eval().to(args.device),
                transformers.AutoTokenizer.from_pretrained(folder),
            )
            rows += [{"model": folder.name} | compare(backend, loop, *case, args) for case in cases]
    machine = {
        "processor": processor() if args.device == "cpu" else torch.cuda.get_device_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{m.__name__: m.__version__ for m in (torch, transformers, tokenizers, np)},
    }
    if args.json:
        print(json.dumps({"machine": machine, "rows": rows}))
        return
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    print(f"32 rows, {args.population} candidates a generation, seconds a candidate")
    print(f"plain loop in float32, hf backend in {args.dtype}\n")
    print("Possible: the ratio if only the linear layers of the tokens that remain took time, at")
    print(
        f"the rate of a {SQUARE} x {SQUARE} product by torch. Kernels: at the rate of these layers"
    )
    print("alone, multiplied with the backend's kernels. Both for a processor only.")
    print("Difference: of the two; rounding: of the plain loop from itself in float64.\n")
    print(
        "| model | template | L | plain loop | hf backend | ratio | by cpu time | possible | of it "
        "| kernels | of it | difference | rounding |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['model']} | `{row['template']}` | {row['prompt_tokens']} | "
            f"{row['plain_s']:.3f} | {row['ours_s']:.3f} | {row['ratio']:.1f} | "
            f"{row['cpu_ratio']:.1f} | "
            f"{_share(row, 'possible')} | {_share(row, 'kernels')} | "
            f"{row['difference']:.0e} | {row['rounding']:.0e} |"
        )


if __name__ == "__main__":
    main()
