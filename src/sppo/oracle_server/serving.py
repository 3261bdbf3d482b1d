"""`sppo oracle serve ORACLE`: serves an oracle until it is interrupted."""

import os
from collections.abc import Sequence
from pathlib import Path

from sppo import oracle as oracles
from sppo.oracle.check import shown_prompts
from sppo.policy.messages import Message, plain_text
from sppo.progress import Terminal
from sppo.recipe import ANSWERS, OracleConfig, keep_answers_in
from sppo.recipe.oracle import oracle_name
from sppo.rundir.folder import RunError
from sppo.rundir.reader import RunReader, with_run_policies


def serve(
    config: OracleConfig,
    terminal: Terminal,
    *,
    run: Path | None,
    host: str,
    port: int,
    cohort: int | None,
    cohort_seconds: float,
    api_key_env: str | None,
    responses: int,
    characters: int,
    waiting: int,
) -> None:
    """Serves an oracle until it is interrupted.

    Args:
        config: the oracle.
        terminal: shows the address.
        run: the run whose oracle it is; a judge's answers are kept with those of the run. None: it is that of no run.
        host: the address to listen on.
        port: the port to listen on; 0 for any that is free.
        cohort: the number of responses that `/verify` compares with each other.
        cohort_seconds: how long a response waits until its cohort is complete.
        api_key_env: the environment variable that holds the key that requests must bring.
        responses: the most responses to a prompt.
        characters: the most characters of a text.
        waiting: the most prompts that wait for the oracle.

    Raises:
        RunError: the extra is not installed, the address cannot be had, or an option does not fit the oracle.
        OracleError: the oracle cannot be loaded.
    """
    try:
        from sppo.oracle_server.desk import Desk
        from sppo.oracle_server.questions import Limits, Questions
        from sppo.oracle_server.server import OracleServer
        from sppo.serving import listening
    except ImportError as error:
        raise RunError(f"sppo oracle serve needs {error.name}; pip install 'sppo[serve]'") from error
    if cohort is not None and cohort > responses:
        raise RunError(f"--cohort {cohort}: it is more than --max-responses {responses}; raise that too")
    key = _key(api_key_env)
    questions = Questions(Limits(responses, characters, waiting), _Shown(config, run))
    if run is not None:
        config = keep_answers_in(with_run_policies(RunReader(run), config), (run / ANSWERS).resolve())
    oracle = oracles.load(config.model_dump(), allow_gaps=True)
    name = oracle_name(config)
    socket = listening.listen(host, port)
    desk = Desk(oracle, waiting)
    server = OracleServer(
        name, desk, questions, cohort=cohort, cohort_seconds=cohort_seconds, key=key, say=terminal.warn
    )
    address = listening.address(host, socket.getsockname()[1])
    _announce(terminal, config, name, address, is_open=key is None and not listening.is_loopback(host))
    try:
        listening.run(server.app(), socket, server.close)
    finally:
        desk.close()


def _announce(terminal: Terminal, config: OracleConfig, name: str, address: str, *, is_open: bool) -> None:
    terminal.say(f"{name} answers at this address:")
    terminal.show(address, "bold")
    terminal.show_json({"address": address, "oracle": name})
    chosen = config.chosen_comparisons()
    if chosen is not None and chosen.type != "all":
        terminal.note("all pairs of responses are compared; oracle.comparisons counts in runs alone")
    if is_open:
        terminal.note(
            "whoever reaches this address can ask the oracle, from other machines too; see --api-key-env"
        )
    terminal.say("Ctrl-C ends.")


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise RunError(
            f"--api-key-env {variable}: there is no such variable, or it is empty; export the key in it"
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise RunError(f"--api-key-env {variable}: it holds a space or a character that no key may have")
    return key


class _Shown:
    """Writes conversations in the form in which the oracle sees prompts.

    Args:
        config: the oracle.
        run: its run, whose policy has the chat template.

    Raises:
        RunError: it sees prompts as a policy's chat template renders them, and there is no policy.
    """

    def __init__(self, config: OracleConfig, run: Path | None) -> None:
        self._run = None
        if config.prompt_form() == "chat":
            if run is None:
                raise RunError(
                    "oracle.text: chat: a prompt would be written by a policy's chat template, and there is no policy; serve"
                    " a run, or set oracle.text: prompt"
                )
            self._run = RunReader(run)

    def __call__(self, messages: Sequence[Message]) -> str:
        if self._run is None:
            return plain_text(messages)
        return shown_prompts(self._run, [list(messages)], "chat")[0]
