"""The published numbers: RoBERTa-large, 16 rows a class, three splits, in per cent.

Sun et al., "Black-Box Tuning for Language-Model-as-a-Service", ICML 2022, table 3. Accuracy, but
for MRPC the F1 score. The row of BBTv2 is from the follow-up's table (Sun et al., EMNLP 2022).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

Cell: TypeAlias = tuple[float, float | None]
"""Mean and, if there is one, standard deviation; per cent."""

TASKS = ("sst2", "yelpp", "agnews", "dbpedia", "mrpc", "snli", "rte")
"""The seven tasks, in the order of the table's columns."""

_TABLE = """
prompt-tuning   68.23±3.78  61.02±6.65  84.81±0.66   87.75±1.48  51.61±8.67  36.13±1.51  54.69±3.79
prompt-tuning-pretrained  /  /  /  /                 77.48±4.85  64.55±2.43  77.13±0.83
p-tuning-v2     64.33±3.05  92.63±1.39  83.46±1.01   97.05±0.41  68.14±3.89  36.89±0.79  50.78±2.28
model-tuning    85.39±2.84  91.82±0.79  86.36±1.85   97.98±0.14  77.35±5.70  54.64±5.29  58.60±6.21
manual          79.82       89.65       76.96        41.33       67.40       31.11       51.62
icl             79.79±3.06  85.38±3.92  62.21±13.46  34.83±7.59  45.81±6.67  47.11±0.63  60.36±1.56
feature-mlp     64.80±1.78  79.20±2.26  70.77±0.67   87.78±0.61  68.40±0.86  42.01±0.33  53.43±1.57
feature-bilstm  65.95±0.99  74.68±0.10  77.28±2.83   90.37±3.10  71.55±7.10  46.02±0.38  52.17±0.25
bbt             89.56±0.25  91.50±0.16  81.51±0.79   87.80±1.53  61.56±4.34  46.58±1.33  52.59±2.21
bbt-pretrained  /           /           /            /           75.51±5.54  83.83±0.21  77.62±1.30
bbtv2           90.33±1.73  92.86±0.62  85.28±0.49   93.64±0.68  77.01±4.73  57.27±2.27  56.68±3.32
"""
"""A line for each method, a column for each of `TASKS`; the paper leaves out the cells ``/``."""


def _cell(text: str) -> Cell:
    mean, _, std = text.partition("±")
    return float(mean), float(std) if std else None


PUBLISHED: Mapping[str, Mapping[str, Cell]] = {
    method: {task: _cell(text) for task, text in zip(TASKS, cells, strict=True) if text != "/"}
    for method, *cells in map(str.split, _TABLE.strip().splitlines())
}
"""``PUBLISHED[method][task]``."""
