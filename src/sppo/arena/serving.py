"""`sppo arena RUN`: serves the page on which people vote about the policies of a run."""

import contextlib
import ipaddress
import os
import secrets
import socket
from collections.abc import Sequence
from pathlib import Path

from sppo.arena.ballot import Ballot
from sppo.arena.matches import Matches
from sppo.arena.referee import Referee
from sppo.compare import game as run_games
from sppo.progress import Terminal, counted_text
from sppo.rundir.folder import RunError, RunFolder
from sppo.rundir.reader import RunReader, label

FOLDER = "arena"
ANY = ("0.0.0.0", "::")
"""The addresses that stand for all addresses of a machine."""


def serve(
    run: Path, terminal: Terminal, *, host: str, port: int, policies: Sequence[str] | None, ask_oracle: bool
) -> None:
    """Serves the arena of a run until it is interrupted.

    Args:
        run: the run folder; votes are kept in RUN/arena.
        terminal: shows the address.
        host: the address to listen on.
        port: the port to listen on; 0 for any that is free.
        policies: `base` or the number of an iteration for each policy; None: the base and the last accepted policy.
        ask_oracle: whether to ask the run's oracle about the pairs that people have voted on.

    Raises:
        RunError: there is nothing to compare, another arena serves this run, or the extra is not installed.
    """
    try:
        import uvicorn

        from sppo.arena.server import Arena, access_key
    except ImportError as error:
        raise RunError(f"the arena needs {error.name}; pip install 'sppo[arena]'") from error
    names, responses = run_games.held_out_responses([run])
    named = [label(int(name)) if name.isdigit() else name for name in policies or ()]
    chosen = named or ["base", RunReader(run).last_policy().label]
    if set(chosen) - set(names) or len(set(chosen)) < 2:
        raise RunError(f"--policies {','.join(policies or [])}: name two or more of {', '.join(names)}")
    home = run / FOLDER
    with RunFolder(home).locked():
        key = _key(home / "key")
        matches = Matches(dict(zip(names, responses, strict=True)), chosen, key)
        if not len(matches):
            raise RunError(f"{run}: {' and '.join(chosen)} give the same responses to every held-out prompt")
        ballot = Ballot(home)
        referee = Referee(lambda: run_games.oracle_of(run), ballot, terminal.say) if ask_oracle else None
        listening = _listen(host, port)
        bound = listening.getsockname()[1]
        voted = (lambda vote: None) if referee is None else referee.ask
        arena = Arena(run.resolve().name, matches, ballot, key, _hosts(host, bound), voted)
        shown = _in_url(socket.gethostname() if host in ANY else host)
        votes = len(ballot.votes())
        terminal.say(
            f"{' against '.join(chosen)}: {counted_text(len(matches), 'pair')}, {counted_text(votes, 'vote')} so far. Open this address:"
        )
        address = f"http://{shown}:{bound}/?key={access_key(key)}"
        terminal.show(address, "bold")
        terminal.show_json({"address": address, "votes": str(home)})
        terminal.say(f"Votes are kept in {home}; Ctrl-C ends.")
        if not _is_loopback(host):
            terminal.note("whoever has this address can vote, from other machines too")
        if referee is not None:
            referee.start()
        settings = uvicorn.Config(arena.app(), log_level="warning", access_log=False, server_header=False)
        try:
            with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again once it has ended
                uvicorn.Server(settings).run(sockets=[listening])
        finally:
            if referee is not None:
                referee.finish()
            terminal.say(f"The votes ({len(ballot.votes())}) are in {home}")


_KEY_LENGTH = 64


def _key(path: Path) -> bytes:
    """The arena's secret, which only its owner can read, and which stays the same over restarts."""
    if not path.is_file() or path.stat().st_size < _KEY_LENGTH:  # a power cut may leave an empty file
        temporary = path.with_name(f".key.{os.getpid()}.tmp")
        temporary.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(0o600)
        temporary.write_text(secrets.token_hex(_KEY_LENGTH // 2))
        temporary.replace(path)
    return path.read_bytes()


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = error.strerror or error
        raise RunError(f"--host {host} --port {port}: {reason}; choose another port or address") from error


def _hosts(host: str, port: int) -> set[str]:
    """The names of the host that browsers may send; for port 80 they leave the port out."""
    names = {_in_url(name).lower() for name in _own_names(host)}
    return {f"{name}:{port}" for name in names} | (names if port == 80 else set())


def _own_names(host: str) -> set[str]:
    names = {host} | ({"localhost"} if _is_loopback(host) else set())
    if host in ANY:
        names |= {"localhost", "127.0.0.1", "::1", socket.gethostname(), socket.getfqdn()}
        with contextlib.suppress(OSError):  # the machine may not know its own name
            names |= {str(address[4][0]) for address in socket.getaddrinfo(socket.gethostname(), None)}
    return names


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
