"""Every architecture, one line each: exact, refused in one sentence, or a fault.

python -m tests.families [NAME ...]
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections import Counter

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is there
warnings.simplefilter("ignore")

import torch  # noqa: E402
import transformers  # noqa: E402

from . import architectures  # noqa: E402
from .sweep import try_architecture  # noqa: E402


def main(wanted: list[str]) -> int:
    """The number of faults."""
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    counts: Counter[str] = Counter()
    for family, name in architectures.names():
        if wanted and name not in wanted:
            continue
        try:
            outcome = str(try_architecture(name, family))
        except Exception as error:
            traceback.print_exc()
            outcome = f"FAULT: {type(error).__name__}: {error}"
        counts[outcome.partition(":")[0].partition(",")[0]] += 1
        print(f"{family:8} {name:28} {outcome}", flush=True)
    if not wanted:
        for (family, name), reason in architectures.NOT_BUILT.items():
            print(f"{family:8} {name:28} not built: {reason}")
    print(
        f"transformers {transformers.__version__}: {counts['exact']} exact, "
        f"{counts['refused']} refused, {counts['FAULT']} faults"
    )
    return counts["FAULT"]


if __name__ == "__main__":
    sys.exit(min(1, main(sys.argv[1:])))
