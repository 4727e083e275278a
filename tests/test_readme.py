"""The first program of the README runs as it stands, without a network, once the demo has run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lmaas_tune.demo_model import SMOLLM2, cached

README = Path(__file__).parents[1] / "README.md"


def test_the_first_program_labels_a_message(tmp_path: Path) -> None:
    if cached(SMOLLM2) is None:
        pytest.skip("the demo's model is not here: `make demo` fetches it")
    program = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[0]
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PIP_NO_INDEX": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == "['delivery']\n"
