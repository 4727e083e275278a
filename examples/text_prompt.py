"""Tune a text prompt, for models that take only text.

    python examples/text_prompt.py [HUB_NAME_OR_FOLDER]

The default is the model of `lmaas-tune demo`, which is downloaded once. Any other backend works
too, because the search uses only scores of texts.
"""

import sys

from lmaas_tune_adapters.hf import HFBackend

from lmaas_tune import Settings, Text, Tuner
from lmaas_tune.demo import demo_rows
from lmaas_tune.demo_model import SMOLLM2, ready_model

if len(sys.argv) > 1:
    model = sys.argv[1]
else:
    model = str(ready_model(SMOLLM2, HFBackend.convert_gguf, say=print))
backend = HFBackend(model)

# the search chooses a built-in instruction, and up to two distinctive words of the rows
settings = Settings(prompt=Text(words="train", slots=2))
train, test = demo_rows("train"), demo_rows("test")[:40]
result = Tuner(backend, settings=settings, budget="calls=45", seed=1).fit(train)

comparison = result.compare(test)
print(f"the instruction alone: {comparison.baseline.accuracy:.0%} of {len(test)} test messages")
print(f"with its head:         {comparison.start.accuracy:.0%}")
print(f"the tuned prompt:      {comparison.tuned.accuracy:.0%}")
print(f"in full: {result.prompt.prompt!r}")
