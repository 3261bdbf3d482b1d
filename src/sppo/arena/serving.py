"""`sppo arena RUN`: from a run folder to a page that people vote on."""

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
from sppo.progress import Terminal
from sppo.rundir.folder import RunError, RunFolder
from sppo.rundir.reader import RunReader, label

FOLDER = "arena"


def serve(
    run: Path, terminal: Terminal, *, host: str, port: int, policies: Sequence[str] | None, ask_oracle: bool
) -> None:
    """Serve the arena of a run until it is interrupted.

    Args:
        run: its folder; votes are kept in RUN/arena.
        terminal: told the address.
        host: to bind to.
        port: 0 for any that is free.
        policies: `base` or the number of an iteration each; None: the base and the last accepted policy.
        ask_oracle: whether the run's oracle is asked about what people have voted on.

    Raises:
        RunError: nothing to compare, another arena is at work there, or the extra is not installed.
    """
    try:
        import uvicorn

        from sppo.arena.server import Arena, access_key
    except ImportError as error:
        raise RunError(f"the arena needs {error.name}; pip install 'sppo[arena]'") from error
    names, answers = run_games.answers([run])
    chosen = [_label(name) for name in policies] if policies else ["base", RunReader(run).last_policy().label]
    unknown = [name for name in chosen if name not in names]
    if unknown or len(set(chosen)) < 2:
        raise RunError(f"--policies {','.join(policies or [])}: two or more of {', '.join(names)}")
    home = run / FOLDER
    with RunFolder(home).locked():
        key = _key(home / "key")
        matches = Matches(dict(zip(names, answers, strict=True)), chosen, key)
        if not len(matches):
            raise RunError(f"{run}: {' and '.join(chosen)} say the same to every held-out prompt")
        ballot = Ballot(home)
        referee = Referee(lambda: run_games.oracle_of(run), ballot, terminal.say) if ask_oracle else None
        listening = _listen(host, port)
        bound = listening.getsockname()[1]
        voted = (lambda vote: None) if referee is None else referee.ask
        arena = Arena(run.resolve().name, matches, ballot, key, _hosts(host, bound), voted)
        shown = _in_url(socket.gethostname() if host in ("0.0.0.0", "::") else host)
        terminal.say(
            f"{' against '.join(chosen)}, {len(matches)} pairs, {len(ballot.votes())} votes so far; open"
        )
        terminal.say(f"http://{shown}:{bound}/?key={access_key(key)}", "bold")
        terminal.say(f"votes are kept in {home}; Ctrl-C ends")
        if not _is_loopback(host):
            terminal.say("note: whoever has this address can vote, from other machines too", "yellow")
        if referee is not None:
            referee.start()
        settings = uvicorn.Config(arena.app(), log_level="warning", access_log=False, server_header=False)
        try:
            uvicorn.Server(settings).run(sockets=[listening])
        except KeyboardInterrupt:  # which it hands on when it has ended
            pass
        finally:
            if referee is not None:
                referee.finish()
            terminal.say(f"{len(ballot.votes())} votes are in {home}")


def _label(name: str) -> str:
    return label(int(name)) if name.isdigit() else name


_KEY_LENGTH = 64


def _key(path: Path) -> bytes:
    """The arena's secret, for its owner's eyes only; the same over restarts."""
    if not path.is_file() or path.stat().st_size < _KEY_LENGTH:  # a power cut may leave an empty one
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".key.{os.getpid()}.tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(_KEY_LENGTH // 2))
        os.replace(temporary, path)
    return path.read_bytes()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise RunError(f"--host {host} --port {port}: {error.strerror or error}; choose another") from error
    return listening


def _hosts(host: str, port: int) -> set[str]:
    """What browsers may name as the host; of port 80 they say nothing."""
    names = {_in_url(name).lower() for name in _own_names(host)}
    return {f"{name}:{port}" for name in names} | (names if port == 80 else set())


def _own_names(host: str) -> set[str]:
    names = {host} | ({"localhost"} if _is_loopback(host) else set())
    if host in ("0.0.0.0", "::"):
        names |= {"localhost", "127.0.0.1", "::1", socket.gethostname(), socket.getfqdn()}
        with contextlib.suppress(OSError):  # a machine whose own name is not known to it
            names |= {str(found[4][0]) for found in socket.getaddrinfo(socket.gethostname(), None)}
    return names


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
