"""A service that runs: its socket, its threads, its end."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import math
import socket
import threading
import time
from typing import Any, TextIO, cast

import uvicorn

from lmaas_tune.backend import Backend
from lmaas_tune.errors import InputError
from lmaas_tune.service.app import build_app
from lmaas_tune.service.bounds import Bounds
from lmaas_tune.service.connections import BACKLOG, Connections
from lmaas_tune.service.gate import Gate
from lmaas_tune.service.keys import Keyring
from lmaas_tune.service.log import Log, Relay
from lmaas_tune.service.metrics import Metrics
from lmaas_tune.service.model import Model
from lmaas_tune.service.scheduler import Scheduler

_KEEP_ALIVE = 75  # seconds; longer than clients and proxies leave a connection idle
_LAST_BYTES = 10  # seconds for answers that are ready to reach slow readers


def bind(host: str, port: int) -> socket.socket:
    """A socket for `Service`, bound but not listening: nobody connects before the model is loaded.

    Args:
        host: Name or address of this machine's interface.
        port: 0 takes a free one.

    Raises:
        InputError: It cannot be had.
    """
    try:
        if not 0 <= port < 1 << 16:
            raise OverflowError("ports go from 0 to 65535")
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except BaseException:
            bound.close()
            raise
    except (OSError, OverflowError) as error:
        raise InputError(
            f"cannot listen on {host} port {port} ({error}): take another --host or --port"
        ) from error
    return bound


def is_loopback(host: str) -> bool:
    """Whether nobody outside this machine reaches that host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Service:
    """A model behind HTTP, in threads of its own. Use it with ``with``.

    Args:
        backend: The model.
        socket: Bound, from `bind`.
        keyring: Who may use it.
        bounds: What it takes on.
        log: Where its log goes, as JSON lines.

    Attributes:
        url: Where it listens.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        socket: socket.socket,
        keyring: Keyring,
        bounds: Bounds,
        log: TextIO,
    ) -> None:
        host, port = socket.getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self._socket, self._bounds = socket, bounds
        self._log = Log(log)
        self._model = Model(backend, bounds, [key.name for key in keyring.keys])
        self._metrics = Metrics(
            inside=lambda: self._gate.inside,
            waiting=lambda: self._scheduler.waiting,
            drawing=lambda: self._model.draws.taken,
            drawn_bytes=lambda: self._model.drawn.taken,
            registered_bytes=lambda: self._model.registered_bytes,
        )
        self._connections = Connections(bounds, self._log)
        self._scheduler = Scheduler(backend, bounds, self._metrics)
        self._gate = Gate(
            build_app(self._model, self._scheduler, self._metrics),
            keyring=keyring,
            bounds=bounds,
            connections=self._connections,
            metrics=self._metrics,
            log=self._log,
        )
        self._server = uvicorn.Server(
            uvicorn.Config(
                self._gate,
                http=cast(Any, self._connections.protocol),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                proxy_headers=False,
                backlog=BACKLOG,
                timeout_keep_alive=_KEEP_ALIVE,
            )
        )
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)
        self._ended = threading.Event()
        self._logger, self._relay = logging.getLogger("uvicorn"), Relay(self._log)
        self._failure: OSError | None = None

    def __enter__(self) -> Service:
        self._logger.addHandler(self._relay)
        self._logger.propagate = False
        self._thread.start()
        while self._thread.is_alive() and not self._server.started:
            time.sleep(0.005)
        if not self._server.started:
            raise InputError(f"cannot listen on {self.url} ({self._failure}): take another --port")
        self._log.write("listening", url=self.url)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait(self) -> None:
        """Return when the service has ended; a signal's exception gets through."""
        # not by `join`: interrupted, it takes a running thread for ended (python/cpython#90882)
        self._ended.wait()

    def close(self) -> None:
        """Refuse what comes now, finish what was taken on, and end."""
        self._log.write("stopping", inside=self._gate.inside)
        self._gate.closing = True
        self._model.stop()
        end = time.monotonic() + self._bounds.grace_seconds
        self._scheduler.close(self._bounds.grace_seconds)
        left = math.ceil(min(_LAST_BYTES, end - time.monotonic()))
        self._server.config.timeout_graceful_shutdown = max(1, left)
        self._server.should_exit = True  # ends when every answer is sent
        self._thread.join()
        self._model.close()
        self._logger.removeHandler(self._relay)
        self._logger.propagate = True
        self._log.write("stopped")
        self._log.close()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except OSError as error:
            self._failure = error
        finally:
            self._ended.set()

    async def _serve(self) -> None:
        asyncio.get_running_loop().set_exception_handler(self._connections.failed)
        await self._server.serve(sockets=[self._socket])
