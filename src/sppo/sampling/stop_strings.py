"""Stop strings, at which a response ends: every engine recognises them in token ids in the same way."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sppo.sampling import Response

# How many tokens before a stop string may change the text that its first token decodes to.
_CONTEXT = 4


@dataclass(frozen=True)
class StopStrings:
    """The stop strings of a recipe.

    A response ends with the token that completes a stop string. Its ids keep that whole token, since they are what the
    policy drew, even if the token's text goes on beyond the stop string. Its text ends before the stop string
    (:meth:`trim`).

    Attributes:
        strings: the stop strings, none of them empty.
        decode: converts token ids to text.
    """

    strings: tuple[str, ...]
    decode: Callable[[Sequence[int]], str]

    def end(self, token_ids: Sequence[int]) -> bool:
        """Whether the last token completes a stop string."""
        if not self.strings:
            return False
        # Every token except special ones decodes to at least one byte, so a window of this length holds any stop string.
        window = max(len(string.encode()) for string in self.strings) + _CONTEXT
        tail = self.decode(token_ids[-window:])
        return any(string in tail for string in self.strings)

    def length(self, token_ids: Sequence[int]) -> int | None:
        """The number of tokens up to the one that completes the first stop string; None if there is none."""
        if not self.strings or self.trim(text := self.decode(token_ids)) == text:
            return None
        return next((n for n in range(1, len(token_ids) + 1) if self.end(token_ids[:n])), None)

    def trim(self, text: str) -> str:
        """The text before the first stop string in it."""
        starts = [start for string in self.strings if (start := text.find(string)) >= 0]
        return text[: min(starts)] if starts else text

    def shortened(self, response: Response) -> Response:
        """A response of another engine, shortened to the token that completes the first stop string."""
        length = self.length(response.token_ids)
        if length is None:
            return response
        return Response(response.token_ids[:length], "stop", response.token_log_probs[:length])
