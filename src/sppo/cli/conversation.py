"""`sppo chat`: a conversation with a policy in the terminal."""

from pathlib import Path

from sppo import randomness, sampling
from sppo.policy import chat_format
from sppo.policy import load as policies
from sppo.policy.chat_format import Message
from sppo.policy.locate import policy_of
from sppo.progress import Terminal
from sppo.recipe import Sampling


def converse(
    path: Path, terminal: Terminal, *, max_new_tokens: int, temperature: float, system: str | None
) -> None:
    """Read messages from standard input and answer them until it ends."""
    folder = policy_of(path)
    chat = chat_format.load(
        str(policies.tokenizer_folder(folder)), config=str(policies.config_folder(folder))
    )
    length = min(max_new_tokens, policies.context_length(folder) // 2)
    settings = Sampling.model_validate({"max_new_tokens": length})
    dtype = "bfloat16" if policies.default_device() != "cpu" else "float32"
    room = policies.context_length(folder) - settings.max_new_tokens
    sampler = sampling.load(
        settings,
        folder,
        # the most probable token is the limit of a vanishing temperature
        temperature=max(temperature, 1e-4),
        stop_ids=chat.stop_ids,
        decode=chat.decode,
        dtype=dtype,
    )
    terminal.say(f"{folder}; an empty line begins anew, Ctrl-D ends", "bright_black")
    start: list[Message] = [{"role": "system", "content": system}] if system else []
    messages = list(start)
    turn = 0
    while True:
        try:
            text = terminal.console.input("[bold]> [/bold]")
        except EOFError:
            return
        except UnicodeDecodeError as error:
            terminal.say(f"that was not UTF-8 ({error.reason})", "red")
            continue
        if not text.strip():
            messages = list(start)
            terminal.say("(a new conversation)", "bright_black")
            continue
        messages.append({"role": "user", "content": text})
        try:
            prompt = chat.render(messages).token_ids
        except chat_format.ChatError as error:
            terminal.say(str(error), "red")
            messages.pop()
            continue
        if len(prompt) > max(room, 1):
            terminal.say(
                f"the conversation has {len(prompt)} tokens; {room} leave room for an answer of"
                f" {settings.max_new_tokens}. An empty line begins anew; --max-new-tokens makes more room",
                "red",
            )
            messages.pop()
            continue
        turn += 1
        drawn = sampler.sample([prompt], [("chat", randomness.seed(text, turn))], 1)[0][0]
        answer = chat.decode(drawn.token_ids)
        messages.append({"role": "assistant", "content": answer})
        terminal.say(answer + (" [cut]" if drawn.finish_reason == "length" else ""), "green")
