"""Versions of servers that are known to fail, with what fails and where it is described."""

from __future__ import annotations

from dataclasses import dataclass

from lmaas_tune.errors import LMaaSError
from lmaas_tune_adapters.http import Endpoint


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault of one version of a server.

    Attributes:
        server: Its name.
        version: As ``GET /version`` gives it, without a part behind ``+``.
        what: What fails, as the end of a sentence.
        link: Where it is described.
    """

    server: str
    version: str
    what: str
    link: str

    def __str__(self) -> str:
        return f"{self.server} {self.version} {self.what}: take another version ({self.link})"


FAULTS = (
    Fault(
        server="vLLM",
        version="0.14.1",
        what="fails at every request with embeddings, by a misspelt name in its code",
        link="https://github.com/vllm-project/vllm/issues/33294",
    ),
)


def known_fault(endpoint: Endpoint) -> Fault | None:
    """The known fault of the version that a server says it is; None also if it does not say."""
    try:
        version = str(endpoint.get("/version").json()["version"])
    except (LMaaSError, KeyError, TypeError):
        return None
    return next((f for f in FAULTS if f.version == version.partition("+")[0]), None)
