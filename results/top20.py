"""What a head gains on a server that returns the twenty likeliest tokens only.

    python results/top20.py --url http://127.0.0.1:8080 --model smollm2 --out runs/top20

The backend is `openai` with ``scores="logprobs"`` and 20 of them; a label word that is not among
them has an upper bound as its score. So the starting words name the four label words, which makes
the model likelier to say one. The rows are those of the demo: 128 messages to learn from, 200
others to judge. Prints accuracy and loss of the starting words with each head, then of a
search over texts. Answers are kept in OUT, so that the command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lmaas_tune import Client, Settings, Text, TextPrompt, TunedPrompt, Tuner, load_backend
from lmaas_tune.demo import TASK, demo_rows
from lmaas_tune.heads import make_head
from lmaas_tune.journal import FILE_NAME
from lmaas_tune.prompts.phrases import BUILT_IN
from lmaas_tune.scores import Score


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--calls", type=int, default=40, help="of the search (default: 40)")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    backend = load_backend("openai")(
        arguments.model, url=arguments.url, scores="logprobs", top_logprobs=20
    )
    client = Client(backend, cache=arguments.out / "answers.sqlite", on_note=print)
    labelled, test = demo_rows("train") + demo_rows("dev"), demo_rows("test")
    named = ", ".join(TASK.verbalizer.candidates)
    words = f"Which word fits, {named}? The word is"
    plain = TunedPrompt.without_head(TextPrompt(words), TASK)
    known, new = plain.scores(client, labelled), plain.scores(client, test)
    learned, right = (TASK.verbalizer.targets(rows) for rows in (labelled, test))
    for name in ("none", "bias", "affine"):
        head = (
            make_head(name, words=0, most=0).fit(known, learned, len(TASK.verbalizer.labels)).head
        )
        print(f"{name:8}", Score.of(head(new), right), flush=True)
    tuner = Tuner(
        client,
        settings=Settings(
            prompt=Text(prompt_init=(words, BUILT_IN)), allow_bounds=True, averaged=1
        ),
        template=TASK.template,
        labels=TASK.verbalizer.words,
        budget=f"calls={arguments.calls}",
        out=arguments.out,
    )
    print("search  ", tuner.fit(labelled, resume=(arguments.out / FILE_NAME).exists()).score(test))


if __name__ == "__main__":
    main()
