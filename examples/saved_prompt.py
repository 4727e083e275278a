"""Tune and save a prompt; load it later from its folder, and predict with a cache."""

import tempfile

from lmaas_tune import Client, Settings, Soft, TunedPrompt, Tuner
from lmaas_tune.testing.toy import ToyBackend

TRAIN = [
    (f"a {mood} {thing}", mood)
    for thing in ("day", "meal", "film", "book", "walk", "song", "talk", "trip")
    for mood in ("good", "bad")
]

with tempfile.TemporaryDirectory() as folder:
    tuner = Tuner(
        ToyBackend(),
        settings=Settings(prompt=Soft(intrinsic_dim=8)),
        budget="calls=201",
        out=folder,
    )
    tuner.fit(TRAIN)

    # later, in another process
    prompt = TunedPrompt.load(folder)
    client = Client(ToyBackend(), cache=f"{folder}/scores.sqlite")
    texts = ["a good start", "such a bad end"]
    for text, label in zip(texts, prompt.predict(client, texts), strict=True):
        print(f"{text!r} is {label}")
    prompt.predict(client, texts)  # from the cache: a hit is free
    print(f"{client.spent.sequences} rows paid for, {client.spent.hits} request from the cache")
    print(
        f"tuned in {prompt.provenance['spent']['calls']} calls: {prompt.provenance['stop_reason']}"
    )
