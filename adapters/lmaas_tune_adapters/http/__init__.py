"""HTTP for the backends behind a server: one request, its usage, and failures as our errors."""

from lmaas_tune_adapters.http.endpoint import AT_START, Answer, Endpoint
from lmaas_tune_adapters.http.errors import BusyError, RefusedError, ServerError, retry_after
from lmaas_tune_adapters.http.key import Key, quoted
from lmaas_tune_adapters.http.usage import NO_USAGE, joined, paid, tokens_read

__all__ = [
    "AT_START",
    "NO_USAGE",
    "Answer",
    "BusyError",
    "Endpoint",
    "Key",
    "RefusedError",
    "ServerError",
    "joined",
    "paid",
    "quoted",
    "retry_after",
    "tokens_read",
]
