"""A running service: its socket, its threads, and its graceful end."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import math
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, TextIO, cast

import uvicorn

from lmaas_tune.errors import InputError
from lmaas_tune.service.app import build_app
from lmaas_tune.service.auth_middleware import AuthMiddleware
from lmaas_tune.service.connections import BACKLOG, Connections
from lmaas_tune.service.log import Log, Relay
from lmaas_tune.service.metrics import Metrics
from lmaas_tune.service.model import ServedModel
from lmaas_tune.service.scheduler import Scheduler

if TYPE_CHECKING:
    from lmaas_tune.backend import Backend
    from lmaas_tune.service.keys import Keyring
    from lmaas_tune.service.server_limits import ServerLimits

_KEEP_ALIVE = 75  # seconds; longer than clients and proxies keep a connection idle
_LAST_BYTES = 10  # seconds for finished answers to reach slow readers


def bind(host: str, port: int) -> socket.socket:
    """A socket for `Service`, bound but not listening until the model is loaded.

    Args:
        host: Name or address of this machine's interface.
        port: 0 takes a free one.

    Raises:
        InputError: The address is not available.
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
    """Whether the host is reachable from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Service:
    """A model behind HTTP, in separate threads. Use it with ``with``.

    Args:
        backend: The model.
        socket: Bound, from `bind`.
        keyring: The keys that may use it.
        limits: The largest requests, queue and memory.
        log: Receives the log, as JSON lines.

    Attributes:
        url: Its address.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        socket: socket.socket,
        keyring: Keyring,
        limits: ServerLimits,
        log: TextIO,
    ) -> None:
        host, port = socket.getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self._socket, self._limits = socket, limits
        self._log = Log(log)
        self._model = ServedModel(backend, limits, [key.name for key in keyring.keys])
        self._metrics = Metrics(
            inside=lambda: self._middleware.inside,
            waiting=lambda: self._scheduler.waiting,
            drawing=lambda: self._model.drawing.tasks,
            drawn_bytes=lambda: self._model.drawn.taken,
            registered_bytes=lambda: self._model.registered_bytes,
        )
        self._connections = Connections(limits, self._log)
        self._scheduler = Scheduler(backend, limits, self._metrics)
        self._middleware = AuthMiddleware(
            build_app(self._model, self._scheduler, self._metrics),
            keyring=keyring,
            limits=limits,
            connections=self._connections,
            metrics=self._metrics,
            log=self._log,
        )
        self._server = uvicorn.Server(
            uvicorn.Config(
                self._middleware,
                http=cast("Any", self._connections.protocol),
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
        """Return when the service has ended; the exception of a signal is raised."""
        # not by `join`: interrupted, it takes a running thread for ended (python/cpython#90882)
        self._ended.wait()

    def close(self) -> None:
        """Refuse new requests, finish accepted ones, and end."""
        self._log.write("stopping", inside=self._middleware.inside)
        self._middleware.closing = True
        self._model.stop()
        end = time.monotonic() + self._limits.grace_seconds
        self._scheduler.close(self._limits.grace_seconds)
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
