"""A prompt and a response as the token ids that a scoring model reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sppo.oracle import OracleError, excerpt


@dataclass
class TextCounts:
    """How many texts have been encoded, and how many of them were changed.

    Attributes:
        texts: prompts with a response.
        texts_truncated: those that were longer than the limit.
        markup: those in which a special token was written out, which was made plain text.
    """

    texts: int = 0
    texts_truncated: int = 0
    markup: int = 0


class Row(NamedTuple):
    """An exchange as token ids; `types` says of which text each is, where the model is told."""

    ids: list[int]
    types: list[int] | None = None


class Transcript:
    """Encodes a prompt and a response as one exchange between user and assistant.

    With the tokenizer's chat template, or, where it has none, as a pair of texts, as encoders are trained on. A
    special token that is written out in a text must not be read as one: a space is put behind its first character.

    Args:
        tokenizer: transformers'.
        limit: the most tokens; the rest is cut off on the right.
        bos_again: encode the template's text with the tokenizer's own special tokens around it.
    """

    def __init__(self, tokenizer: Any, limit: int, *, bos_again: bool = False) -> None:
        self.tokenizer = tokenizer
        self.limit = limit
        self.bos_again = bos_again
        self.counts = TextCounts()
        added = tokenizer.added_tokens_decoder.values()
        special = {str(token) for token in added if token.special} | set(tokenizer.all_special_tokens)
        # the longest first: one may hold another
        self._special = sorted((token for token in special if len(token) > 1), key=len, reverse=True)

    def row(self, prompt: str, response: str) -> Row:
        """An exchange.

        Raises:
            OracleError: a text cannot be encoded, or the template refuses it.
        """
        shown, said = self._plain(prompt), self._plain(response)
        try:
            row = self._pair(shown, said) if self.tokenizer.chat_template is None else self._chat(shown, said)
        except Exception as error:  # jinja's, the tokenizers library's and Python's, of no common class
            raise OracleError(
                f"the oracle's tokenizer cannot encode {excerpt(response)} in answer to {excerpt(prompt)}: {error}"
            ) from error
        self.counts.texts += 1
        self.counts.markup += (shown, said) != (prompt, response)
        return row

    def _chat(self, prompt: str, response: str) -> Row:
        ids = self._rendered(
            [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        )
        self.counts.texts_truncated += len(ids) > self.limit
        return Row(ids[: self.limit])

    def _pair(self, prompt: str, response: str) -> Row:
        # counted apart: the tokenizer does not say whether it cut, and keeps the last [SEP] where it does
        whole = sum(
            len(self.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (prompt, response)
        )
        self.counts.texts_truncated += (
            whole + self.tokenizer.num_special_tokens_to_add(pair=True) > self.limit
        )
        encoded = self.tokenizer(prompt, response, truncation=True, max_length=self.limit)
        return Row(list(encoded["input_ids"]), encoded.get("token_type_ids"))

    def prompt_length(self, prompt: str) -> int:
        """Tokens of the user's turn alone, within the limit."""
        ids = self._rendered([{"role": "user", "content": self._plain(prompt)}])
        return min(len(ids), self.limit)

    def _rendered(self, messages: Sequence[dict[str, str]]) -> list[int]:
        text = self.tokenizer.apply_chat_template(messages, tokenize=False)
        return list(self.tokenizer(text, add_special_tokens=self.bos_again)["input_ids"])

    def _plain(self, text: str) -> str:
        for token in self._special:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a folder.

    Raises:
        OracleError: it does not load.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers raises what it meets
        raise OracleError(f"{folder}: its tokenizer does not load: {error}") from error


def token_limit(wanted: int | None, config: Any, tokenizer: Any) -> int:
    """The most tokens of an exchange: as wanted, or as the model and its tokenizer say.

    Raises:
        OracleError: more are wanted than the model holds.
    """
    text_config = config.get_text_config()
    held = getattr(text_config, "max_position_embeddings", None) or 1 << 20
    if getattr(text_config, "model_type", "") in ("roberta", "xlm-roberta", "camembert"):
        held -= 2  # their positions are counted from behind the padding's
    if wanted is not None and wanted > held:
        raise OracleError(f"max_tokens: {wanted}, but the model holds {held}; lower it")
    return int(wanted or min(held, tokenizer.model_max_length))


def batches(rows: Sequence[Row], batch_tokens: int) -> list[list[int]]:
    """Indices of rows in batches, the longest first; a batch holds at most so many tokens, padding included."""
    found: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(rows)), key=lambda index: -len(rows[index].ids)):
        if not found or longest * (len(found[-1]) + 1) > batch_tokens:
            found.append([])
            longest = len(rows[index].ids)
        found[-1].append(index)
    return found


def padding_for(rows: Sequence[Row], declared: int | None, vocabulary: int) -> int:
    """An id to pad with that stands in none of the rows: classifiers find a row's end by it."""
    present = {token for row in rows for token in row.ids}
    if declared is not None and declared not in present:
        return declared
    return next(token for token in range(vocabulary) if token not in present)
