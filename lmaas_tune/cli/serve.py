"""``lmaas-tune serve``: provides a model as an HTTP service."""

from __future__ import annotations

import contextlib
import json
import sys
import warnings
from typing import TYPE_CHECKING, Any

from lmaas_tune.cli.arguments import (
    Commands,
    Outcome,
    add_command,
    add_model,
    open_backend,
    parse_options,
)
from lmaas_tune.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    import argparse

    from lmaas_tune.service.keys import Keyring


def add_to(commands: Commands) -> None:
    """Add the command."""
    command = add_command(commands, "serve", "Provide a model as an HTTP service")
    add_model(command)
    service = command.add_argument_group("the service")
    service.add_argument(
        "--host", default="127.0.0.1", help="name or address of the network interface (127.0.0.1)"
    )
    service.add_argument(
        "--port", type=int, default=8000, help="port; 0 takes a free one and prints it (8000)"
    )
    service.add_argument(
        "--api-key-file",
        metavar="FILE",
        help="file of the API keys that may use it: a key a line, or a name, a key and its limits",
    )
    service.add_argument(
        "--limits",
        default="",
        metavar="NAME=N,...",
        help="the default quota of a key: requests and tokens a minute, concurrent requests, "
        "as requests=600,tokens=200000,concurrent=8",
    )
    service.add_argument(
        "--bounds",
        default="",
        metavar="NAME=N,...",
        help="the limits of the service, as rows=64,queue=100,wait_seconds=30",
    )
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> Outcome:
    """Serve until a signal stops it."""
    try:
        from lmaas_tune.service.server import Service, bind
        from lmaas_tune.service.server_limits import ServerLimits
    except ImportError as error:
        raise MissingExtraError(
            "lmaas-tune serve", package=error.name or str(error), extra="serve"
        ) from error
    limits = ServerLimits.of(parse_options(arguments.bounds))
    keyring = _keyring(arguments)
    with bind(arguments.host, arguments.port) as socket:  # fails at once if the port is taken
        options = parse_options(arguments.backend_options)
        backend = open_backend(arguments.backend, arguments.model, options)
        with (
            warnings.catch_warnings(),
            Service(
                backend, socket=socket, keyring=keyring, limits=limits, log=sys.stderr
            ) as service,
            contextlib.suppress(KeyboardInterrupt),  # Ctrl-C, or SIGTERM
        ):
            warnings.simplefilter("ignore")  # they may quote what a client sent
            names = None if keyring.open else [key.name for key in keyring.keys]
            _announce({"url": service.url, "identity": backend.identity, "keys": names}, arguments)
            service.wait()
    return Outcome(None, "stopped")


def _keyring(arguments: argparse.Namespace) -> Keyring:
    from lmaas_tune.service.key_quota import KeyQuota
    from lmaas_tune.service.keys import Keyring, read_keys
    from lmaas_tune.service.server import is_loopback

    quota = KeyQuota.of(parse_options(arguments.limits))
    if arguments.api_key_file is not None:
        return read_keys(arguments.api_key_file, quota=quota, on_note=arguments.on_note)
    if not is_loopback(arguments.host):
        raise InputError(
            f"--host {arguments.host} can be reached from other machines: give the keys of the "
            "service with --api-key-file"
        )
    arguments.on_note("no keys are given: everybody on this machine may use the service")
    return Keyring(None, quota=quota)


def _announce(content: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Print the address while the service runs."""
    line = json.dumps(content) if arguments.json else f"listening on {content['url']}"
    print(line, file=arguments.stdout, flush=True)
