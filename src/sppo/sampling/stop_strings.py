"""Texts at which a response ends, recognised in its token ids in the same way for every engine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sppo.sampling import Response

# The number of tokens before a stop string that may change how its first token is decoded.
_CONTEXT = 4


@dataclass(frozen=True)
class StopStrings:
    """Texts that end a response.

    A response ends with the token that completes one of them. Its ids keep that token, whatever text it brings beyond
    the stop string: they are what the policy drew. Its text ends before the stop string (:meth:`trim`).

    Attributes:
        strings: none of them empty.
        decode: token ids to text.
    """

    strings: tuple[str, ...]
    decode: Callable[[Sequence[int]], str]

    def end(self, token_ids: Sequence[int]) -> bool:
        """Whether the last token completes a stop string."""
        if not self.strings:
            return False
        # Every token but a special one decodes to one byte or more, so these tokens hold any stop string.
        window = max(len(string.encode()) for string in self.strings) + _CONTEXT
        tail = self.decode(token_ids[-window:])
        return any(string in tail for string in self.strings)

    def length(self, token_ids: Sequence[int]) -> int | None:
        """The number of tokens up to the end of the first stop string; None where none occurs."""
        if not self.strings or self.trim(text := self.decode(token_ids)) == text:
            return None
        return next((n for n in range(1, len(token_ids) + 1) if self.end(token_ids[:n])), None)

    def trim(self, text: str) -> str:
        """The text before the first stop string in it."""
        places = [place for string in self.strings if (place := text.find(string)) >= 0]
        return text[: min(places)] if places else text


def kept(response: Response, stop_strings: StopStrings) -> Response:
    """A response of another engine, shortened to the token that completes a stop string."""
    length = stop_strings.length(response.token_ids)
    if length is None:
        return response
    return Response(response.token_ids[:length], "stop", response.token_log_probs[:length])
