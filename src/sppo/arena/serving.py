"""`sppo arena RUN`: serves the page on which people vote about the policies of a run."""

import os
import secrets
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
        from sppo.arena.server import Arena, access_key
        from sppo.serving import listening
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
        socket = listening.listen(host, port)
        bound = socket.getsockname()[1]
        voted = (lambda vote: None) if referee is None else referee.ask
        arena = Arena(run.resolve().name, matches, ballot, key, listening.hosts(host, bound), voted)
        votes = len(ballot.votes())
        terminal.say(
            f"{' against '.join(chosen)}: {counted_text(len(matches), 'pair')}, {counted_text(votes, 'vote')} so far. Open this address:"
        )
        address = f"{listening.address(host, bound)}/?key={access_key(key)}"
        terminal.show(address, "bold")
        terminal.show_json({"address": address, "votes": str(home)})
        terminal.say(f"Votes are kept in {home}; Ctrl-C ends.")
        if not listening.is_loopback(host):
            terminal.note("whoever has this address can vote, from other machines too")
        if referee is not None:
            referee.start()
        try:
            listening.run(arena.app(), socket)
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
