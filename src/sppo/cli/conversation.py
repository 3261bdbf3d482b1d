"""`sppo chat`: a conversation with a policy in the terminal."""

from sppo import randomness, sampling
from sppo.policy import chat_format
from sppo.policy import load as policies
from sppo.policy.chat_format import Message
from sppo.policy.opening import OpenPolicy
from sppo.progress import Terminal
from sppo.recipe import parse_sampling


def converse(
    policy: OpenPolicy, terminal: Terminal, *, max_new_tokens: int, temperature: float, system: str | None
) -> None:
    """Respond to each line of standard input until it ends."""
    chat, context = policy.chat, policy.context_length
    settings = parse_sampling({"max_new_tokens": min(max_new_tokens, context // 2)})
    room = max(context - settings.max_new_tokens, 1)
    sampler = sampling.load(
        settings,
        policy.folder,
        # a vanishing temperature leaves the most probable token only
        temperature=max(temperature, 1e-4),
        stop_ids=chat.stop_ids,
        decode=chat.decode,
        dtype=policies.default_dtype(),
        **policy.loading,
    )
    terminal.say(f"{policy.folder}; an empty line starts a new conversation, Ctrl-D ends", "bright_black")
    start: list[Message] = [{"role": "system", "content": system}] if system else []
    messages = list(start)
    responses = 0
    while True:
        try:
            text = terminal.console.input("[bold]> [/bold]")
        except EOFError:
            return
        except UnicodeDecodeError as error:
            terminal.say(f"this line is not UTF-8 ({error.reason})", "red")
            continue
        if not text.strip():
            messages = list(start)
            terminal.say("(a new conversation)", "bright_black")
            continue
        asked: list[Message] = [*messages, {"role": "user", "content": text}]
        try:
            prompt = chat.render(asked).token_ids
        except chat_format.ChatError as error:
            terminal.say(str(error), "red")
            continue
        if len(prompt) > room:
            terminal.say(
                f"the conversation has {len(prompt)} tokens, but only {room} leave room for a response of"
                f" {settings.max_new_tokens}; start a new conversation with an empty line, or lower --max-new-tokens",
                "red",
            )
            continue
        responses += 1
        sampled = sampler.sample([prompt], [("chat", randomness.seed(text, responses))], 1)[0][0]
        response = chat.decode(sampled.token_ids)
        messages = [*asked, {"role": "assistant", "content": response, "token_ids": sampled.token_ids}]
        terminal.say(response + (" [truncated]" if sampled.finish_reason == "length" else ""), "green")
