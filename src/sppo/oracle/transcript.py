"""Encodes a prompt and a response as the token ids that a scoring model reads."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sppo.oracle import OracleError, Prompts, Responses, excerpt
from sppo.policy import model_files
from sppo.policy.messages import ChatError, Message
from sppo.policy.model_files import load_errors
from sppo.policy.template import Template

if TYPE_CHECKING:
    from torch import Tensor

_log = logging.getLogger(__name__)


@dataclass
class TextCounts:
    """The numbers of texts that have been encoded, and of those that were changed.

    Attributes:
        texts: how many prompts with a response.
        texts_truncated: how many of them were longer than the limit and were truncated.
        markup: how many of them contained a special token written out, which was made plain text.
    """

    texts: int = 0
    texts_truncated: int = 0
    markup: int = 0


class Row(NamedTuple):
    """An exchange as token ids; `types` says which text each token belongs to, for models that are told."""

    ids: list[int]
    types: list[int] | None = None


class Transcript:
    """Encodes a prompt and a response as one exchange between user and assistant.

    It uses the tokenizer's chat template. A tokenizer without one encodes a pair of texts, as encoders are trained on.
    A special token that is written out in a text must not be read as one, so a space is put behind its first character.

    Args:
        tokenizer: a tokenizer of transformers.
        limit: the most tokens; what is longer is truncated on the right.
        bos_again: encode the template's text with the tokenizer's own special tokens around it.
        date: the date that the template takes for today's, as YYYY-MM-DD; None: the clock's.

    Raises:
        OracleError: the template does not read the date, or there is no template.
    """

    def __init__(
        self, tokenizer: Any, limit: int, *, bos_again: bool = False, date: str | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.limit = limit
        self.bos_again = bos_again
        self.counts = TextCounts()
        self._template = None if tokenizer.chat_template is None else _template(tokenizer, date)
        if self._template is None and date is not None:
            raise OracleError(
                f"oracle.template_date: {date}, but the tokenizer has no chat template; remove this setting"
            )
        self._plain = Markup(tokenizer).as_text

    def row(self, prompt: str, response: str) -> Row:
        """Encode an exchange.

        Raises:
            OracleError: a text cannot be encoded, or the template refuses it.
        """
        shown, said = self._plain(prompt), self._plain(response)
        try:
            row = self._pair(shown, said) if self._template is None else self._chat(shown, said)
        except Exception as error:  # jinja's, the tokenizers library's and Python's, of no common class
            raise OracleError(
                f"the oracle's tokenizer cannot encode {excerpt(response)} in answer to {excerpt(prompt)}: {error}"
            ) from error
        self.counts.texts += 1
        self.counts.markup += (shown, said) != (prompt, response)
        return row

    def _chat(self, prompt: str, response: str) -> Row:
        ids = self._rendered(
            [Message(role="user", content=prompt), Message(role="assistant", content=response)]
        )
        self.counts.texts_truncated += len(ids) > self.limit
        return Row(ids[: self.limit])

    def _pair(self, prompt: str, response: str) -> Row:
        # counted apart: the tokenizer does not say whether it truncated, and keeps the last [SEP] if it did
        whole = sum(
            len(self.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (prompt, response)
        )
        self.counts.texts_truncated += (
            whole + self.tokenizer.num_special_tokens_to_add(pair=True) > self.limit
        )
        encoded = self.tokenizer(prompt, response, truncation=True, max_length=self.limit)
        return Row(list(encoded["input_ids"]), encoded.get("token_type_ids"))

    def prompt_length(self, prompt: str) -> int:
        """The number of tokens of the user's message alone, within the limit."""
        ids = self._rendered([Message(role="user", content=self._plain(prompt))])
        return min(len(ids), self.limit)

    def response_begin(self, prompt: str, row: Row) -> int:
        """The place in a row of this prompt at which the response begins, behind what every response begins with."""
        before = self._rendered([Message(role="user", content=self._plain(prompt))], generation_prompt=True)
        pairs = zip(before, row.ids, strict=False)
        return next(
            (place for place, (one, other) in enumerate(pairs) if one != other),
            min(len(before), len(row.ids)),
        )

    def _rendered(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> list[int]:
        assert self._template is not None
        text = self._template.render(messages, generation_prompt=generation_prompt)
        return list(self.tokenizer(text, add_special_tokens=self.bos_again)["input_ids"])


class Markup:
    """The special tokens of a tokenizer, which texts must not be read as.

    Args:
        tokenizer: a tokenizer of transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        added = tokenizer.added_tokens_decoder.values()
        special = {str(token) for token in added if token.special} | set(tokenizer.all_special_tokens)
        # the longest first: one may hold another
        self._special = sorted((token for token in special if len(token) > 1), key=len, reverse=True)

    def as_text(self, text: str) -> str:
        """The text with a space behind the first character of each special token that is written out in it."""
        for token in self._special:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text


def _template(tokenizer: Any, date: str | None) -> Template:
    try:
        template = Template(tokenizer, {}, date, "oracle")
    except ChatError as error:
        raise OracleError(str(error)) from error
    if template.note_on_date is not None:
        _log.warning("%s: %s", tokenizer.name_or_path, template.note_on_date)
    return template


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer of a folder.

    Raises:
        OracleError: it does not load.
    """
    with load_errors(f"{folder}: its tokenizer does not load", OracleError):
        return model_files.load_tokenizer(folder, trust_remote_code=trust_remote_code)


def positions(config: Any) -> int:
    """The most tokens that a model has positions for; 2^20 if its configuration sets no limit."""
    text_config = config.get_text_config()
    held: int = getattr(text_config, "max_position_embeddings", None) or 1 << 20
    if getattr(text_config, "model_type", "") in ("roberta", "xlm-roberta", "camembert"):
        held -= 2  # in these models positions are counted from the padding id + 1
    return held


def token_limit(wanted: int | None, config: Any, tokenizer: Any) -> int:
    """The most tokens of an exchange: the number wanted, or else what the model and its tokenizer hold.

    Raises:
        OracleError: more tokens are wanted than the model holds.
    """
    held = positions(config)
    if wanted is not None and wanted > held:
        raise OracleError(f"max_tokens: {wanted}, but the model holds {held}; lower it")
    return int(wanted or min(held, tokenizer.model_max_length))


def batches(rows: Sequence[Row], batch_tokens: int) -> list[list[int]]:
    """The indices of rows in batches, the longest rows first; a batch has at most `batch_tokens`, padding included."""
    grouped: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(rows)), key=lambda index: -len(rows[index].ids)):
        if not grouped or longest * (len(grouped[-1]) + 1) > batch_tokens:
            grouped.append([])
            longest = len(rows[index].ids)
        grouped[-1].append(index)
    return grouped


def padding_for(rows: Sequence[Row], declared: int | None, vocabulary: int) -> int:
    """A padding id that occurs in none of the rows, since classifiers find the end of a row by it."""
    present = {token for row in rows for token in row.ids}
    if declared is not None and declared not in present:
        return declared
    return next(token for token in range(vocabulary) if token not in present)


class EncodesTexts:
    """A model that reads texts through a transcript, and counts them."""

    transcript: Transcript

    @property
    def counts(self) -> dict[str, int]:
        """The numbers of texts that were encoded, were truncated, and contained special tokens written out."""
        return dict(vars(self.transcript.counts))


def encoded(transcript: Transcript, prompts: Prompts, responses: Responses) -> list[Row]:
    """The rows of all exchanges, prompt by prompt.

    Raises:
        OracleError: a text cannot be encoded.
    """
    rows = []
    for number, (prompt, of_prompt) in enumerate(zip(prompts, responses, strict=True)):
        try:
            rows += [transcript.row(prompt, response) for response in of_prompt]
        except OracleError as error:
            raise OracleError(str(error), number) from error
    return rows


def padded(rows: Sequence[Row], padding: int, device: Any) -> "dict[str, Tensor]":
    """A model's inputs, padded on the right."""
    import torch

    longest = max(len(row.ids) for row in rows)

    def filled(lists: Sequence[Sequence[int]], value: int) -> "Tensor":
        return torch.tensor([[*ids, *[value] * (longest - len(ids))] for ids in lists], device=device)

    inputs = {
        "input_ids": filled([row.ids for row in rows], padding),
        "attention_mask": filled([[1] * len(row.ids) for row in rows], 0),
    }
    if rows[0].types is not None:
        inputs["token_type_ids"] = filled([row.types or [] for row in rows], 0)
    return inputs
