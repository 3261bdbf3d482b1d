"""The thoughts of a policy: text that it writes before its answer and that oracles and benchmarks need not read."""

from dataclasses import dataclass

KNOWN_THOUGHTS = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<reasoning>": "</reasoning>",
    "<seed:think>": "</seed:think>",
    "[THINK]": "[/THINK]",
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "<|channel|>analysis": "<|channel|>final<|message|>",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "<|inner_prefix|>": "<|inner_suffix|>",
    "\u25c1think\u25b7": "\u25c1/think\u25b7",
}
"""The texts that begin and end thoughts of known models; a judge's reply is read behind them."""


@dataclass(frozen=True)
class Thought:
    """The texts between which a policy thinks.

    Attributes:
        start: the text that begins a thought, such as ``<think>``.
        end: the text that ends it, such as ``</think>``.
        opened: whether the chat template itself begins a thought, so that responses begin within one.
    """

    start: str
    end: str
    opened: bool = False

    def answer(self, response: str) -> str | None:
        """Return a response without its thoughts, or None if a thought has no end, so that there is no answer.

        A thought also begins where the response begins if the template has opened it or the response ends a thought that
        it has not started.
        """
        before_end = response.partition(self.end)[0]
        if self.start not in before_end and (self.opened or before_end != response):
            response = self.start + response
        answer, thoughts = "", 0
        while self.start in response:
            before, _, thought = response.partition(self.start)
            _, ended, response = thought.partition(self.end)
            if not ended:
                return None
            answer, thoughts = answer + before, thoughts + 1
        answer += response
        return answer.strip() if thoughts else answer
