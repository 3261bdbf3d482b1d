"""`sppo chat`: a conversation with a policy in the terminal."""

import contextlib
import re
import sys
from collections.abc import Callable

from sppo import randomness, sampling
from sppo.policy import chat_format
from sppo.policy import load as policies
from sppo.policy.chat_format import Message
from sppo.policy.opening import OpenPolicy
from sppo.progress import Terminal
from sppo.recipe import parse_sampling

HELP = """\
/new, or an empty line: start a new conversation
/help: show this list
/quit, or Ctrl-D: end
Ctrl-C: give up the line that is being written, or the response that is being sampled
The arrow keys move in the line and bring back earlier lines."""


class Conversation:
    """The messages so far, and the policy that responds to them.

    Args:
        policy: the policy.
        max_new_tokens: the longest response, in tokens; at most half of the context.
        temperature: of the sampling; 0 always takes the most probable token.
        system: a system message that each conversation starts with.
    """

    def __init__(
        self, policy: OpenPolicy, *, max_new_tokens: int, temperature: float, system: str | None
    ) -> None:
        self.chat, context = policy.chat, policy.context_length
        self.settings = parse_sampling({"max_new_tokens": min(max_new_tokens, context // 2)})
        self.room = max(context - self.settings.max_new_tokens, 1)
        self.sampler = sampling.load(
            self.settings,
            policy.folder,
            # a vanishing temperature leaves the most probable token only
            temperature=max(temperature, 1e-4),
            stop_ids=self.chat.stop_ids,
            decode=self.chat.decode,
            dtype=policies.default_dtype(),
            **policy.loading,
        )
        self.start: list[Message] = [{"role": "system", "content": system}] if system else []
        self.messages = list(self.start)
        self.responses = 0

    def restart(self) -> None:
        """Forget what has been said."""
        self.messages = list(self.start)

    def respond(self, text: str) -> tuple[str, bool]:
        """Sample the response to a further message, and keep both.

        Returns:
            The response, and whether it is truncated.

        Raises:
            ChatError: the message cannot be rendered, or the conversation is too long.
        """
        asked: list[Message] = [*self.messages, {"role": "user", "content": text}]
        prompt = self.chat.render(asked).token_ids
        if len(prompt) > self.room:
            raise chat_format.ChatError(
                f"the conversation has {len(prompt)} tokens, but only {self.room} leave room for a response of"
                f" {self.settings.max_new_tokens}; start a new conversation with an empty line, or lower"
                " --max-new-tokens"
            )
        self.responses += 1
        key = ("chat", randomness.seed(text, self.responses))
        sampled = self.sampler.sample([prompt], [key], 1)[0][0]
        response = self.chat.decode(sampled.token_ids)
        self.messages = [*asked, {"role": "assistant", "content": response, "token_ids": sampled.token_ids}]
        return response, sampled.finish_reason == "length"


def converse(
    policy: OpenPolicy, terminal: Terminal, *, max_new_tokens: int, temperature: float, system: str | None
) -> None:
    """Respond to each line of standard input until it ends."""
    conversation = Conversation(policy, max_new_tokens=max_new_tokens, temperature=temperature, system=system)
    for note in policy.chat.notes:
        terminal.note(note)
    terminal.say(f"{policy.folder}; /help lists what can be written, Ctrl-D ends", "bright_black")
    read = _reader()
    while True:
        try:
            text = read().strip()
            if text == "/quit":
                return
            if text in ("", "/new"):
                conversation.restart()
                terminal.say("(a new conversation)", "bright_black")
            elif text == "/help":
                terminal.say(HELP, "bright_black")
            elif re.fullmatch(r"/[a-z]+", text):
                terminal.warn(f"{text} is unknown; /help lists what can be written", "red")
            else:
                response, is_truncated = conversation.respond(text)
                terminal.show(response + (" [truncated]" if is_truncated else ""), "green")
                terminal.show_json({"message": text, "response": response, "truncated": is_truncated})
        except EOFError:
            return
        except KeyboardInterrupt:
            terminal.say("\n(given up; Ctrl-D or /quit ends the chat)", "bright_black")
        except UnicodeDecodeError as error:
            terminal.warn(f"this line is not UTF-8 ({error.reason})", "red")
        except chat_format.ChatError as error:
            terminal.warn(str(error), "red")


def _reader() -> Callable[[], str]:
    """The function that reads a line; a person at a terminal gets a prompt, can edit the line, and recall others."""
    if not sys.stdin.isatty():
        return input
    with contextlib.suppress(ImportError):  # there is none on Windows
        import readline

        readline.set_auto_history(True)
    return lambda: input("> ")
