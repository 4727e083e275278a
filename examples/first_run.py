"""A first run on a real model: 16 rows a class, a small budget, accuracy before and after.

    python examples/first_run.py [HUB_NAME_OR_FOLDER]

The default is the model of `lmaas-tune demo`, which is downloaded once.
"""

import sys

from lmaas_tune_adapters.hf import HFBackend

from lmaas_tune import Tuner
from lmaas_tune.demo import demo_rows
from lmaas_tune.demo_model import SMOLLM2, ready_model

if len(sys.argv) > 1:
    model = sys.argv[1]
else:
    model = str(ready_model(SMOLLM2, HFBackend.convert_gguf, say=print))
backend = HFBackend(model)

# 16 labelled texts a class, here as dicts with "text" and "label"
train, test = demo_rows("train"), demo_rows("test")[:40]
result = Tuner(backend, optimizer="cma", budget="calls=40", seed=1).fit(train)

comparison = result.compare(test)
print(f"starting words:         {comparison.baseline.accuracy:.0%} of {len(test)} test messages")
print(f"with a head:            {comparison.start.accuracy:.0%}")
print(f"tuned prompt:           {comparison.tuned.accuracy:.0%}")
print(f"stopped by: {result.stop_reason}")
print(result.predict(["The app crashes when I open my orders."]))
