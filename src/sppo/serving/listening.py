"""The addresses that a server listens on, and its loop."""

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from sppo.rundir.folder import RunError

ANY = ("0.0.0.0", "::")
"""The addresses that stand for all addresses of a machine."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        RunError: the address or the port cannot be had.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = error.strerror or error
        raise RunError(f"--host {host} --port {port}: {reason}; choose another port or address") from error


def run(app: Starlette, listening: socket.socket, on_interruption: Callable[[], None] = lambda: None) -> None:
    """Serves an application until it is interrupted.

    Args:
        app: the application.
        listening: the socket that it answers on.
        on_interruption: called within the event loop when the server is told to end, before it waits for the requests
            that are being answered.
    """
    settings = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again once it has ended
        _Server(settings, on_interruption).run(sockets=[listening])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_interruption: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_interruption = on_interruption

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._loop.call_soon_threadsafe(self._on_interruption)
        super().handle_exit(sig, frame)


def address(host: str, port: int) -> str:
    """The URL, without a path, under which a server is reached."""
    return f"http://{_in_url(socket.gethostname() if host in ANY else host)}:{port}"


def hosts(host: str, port: int) -> set[str]:
    """The names of the host that browsers may send; for port 80 they leave the port out."""
    names = {_in_url(name).lower() for name in own_names(host)}
    return {f"{name}:{port}" for name in names} | (names if port == 80 else set())


def own_names(host: str) -> set[str]:
    """The names and addresses under which a server that listens on an address is reached."""
    names = {host} | ({"localhost"} if is_loopback(host) else set())
    if host in ANY:
        names |= {"localhost", "127.0.0.1", "::1", socket.gethostname(), socket.getfqdn()}
        with contextlib.suppress(OSError):  # the machine may not know its own name
            names |= {str(address[4][0]) for address in socket.getaddrinfo(socket.gethostname(), None)}
    return names


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
