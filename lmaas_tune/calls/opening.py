"""Models that are opened where they are used: in each process of a pool or a cluster, once."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, TypeAlias, cast

from lmaas_tune.backend import Backend
from lmaas_tune.calls.client import Client

Open: TypeAlias = Callable[[], Backend]
"""A function that opens a model, as ``partial(load_backend("hf"), "MODEL")``; it can be pickled."""

_OPEN: dict[bytes, Client] = {}
"""The models of this process, by what opened them."""


def opened(model: Backend | Client | Open) -> Client:
    """A client for a model, which is opened if it is a function that opens one."""
    if hasattr(model, "score"):
        return Client.of(cast("Backend | Client", model))
    open_it: Any = model
    key = pickle.dumps(open_it)
    if key not in _OPEN:
        _OPEN[key] = Client.of(open_it())
    return _OPEN[key]
