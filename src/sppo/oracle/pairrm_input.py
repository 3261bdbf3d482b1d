"""The token ids of a pair, in the form that PairRM was trained on.

A pair has three parts, each encoded and truncated by itself::

    [CLS] <|source|> x [SEP]  [CLS] <|candidate1|> y_i [SEP]  [CLS] <|candidate2|> y_j [SEP]

The checkpoint's own tokenizer.json is read by the tokenizers library. transformers' DebertaV2Tokenizer
builds another normaliser from the same files (full-width letters, ligatures, no-break spaces), so it would
not give the ids that the checkpoint knows.
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tokenizers import AddedToken, Tokenizer

from sppo.oracle import OracleError, excerpt
from sppo.policy.model_files import load_errors
from sppo.reading import read_mapping

SOURCE, CANDIDATE_1, CANDIDATE_2, CANDIDATE = PREFIXES = (
    "<|source|>",
    "<|candidate1|>",
    "<|candidate2|>",
    "<|candidate|>",
)
"""The prefixes in the order in which the original adds them to the backbone's vocabulary."""


Reads = Literal["prefixes", "ends"]
"""Whose hidden states are read: an encoder's prefixes, or the ends of a causal model's parts, since no token sees what follows it."""


@dataclass(frozen=True)
class Limits:
    """The largest number of tokens of each part, its three special tokens included.

    A candidate may also use half of what its source leaves: ``candidate + (source - len(source ids)) // 2``.
    """

    source: int = 1224
    candidate: int = 412

    def __post_init__(self) -> None:
        for name in ("source", "candidate"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 3:
                raise ValueError(
                    f"PairRM: {name}_maxlength: {getattr(self, name)!r}; at least 3 are needed,"
                    " the special tokens of each part"
                )

    def of_candidate(self, source_length: int) -> int:
        """The limit of a candidate beside a source of `source_length` ids."""
        return self.candidate + (self.source - source_length) // 2

    @property
    def pair(self) -> int:
        """The most ids of a pair."""
        return self.source + 2 * self.candidate


@dataclass
class Truncation:
    """The numbers of texts that have been encoded, and of those that were truncated at their limit."""

    prompts: int = 0
    prompts_truncated: int = 0
    responses: int = 0
    responses_truncated: int = 0


class PairInput:
    """Encodes a prompt and its responses into parts, and joins parts into pairs.

    A prefix written out in a text, such as ``<|source|>``, is text like any other. ``[CLS]``, ``[MASK]``,
    ``[PAD]`` and ``[UNK]`` in a text become those tokens, as in the original; ``[SEP]`` becomes a space.

    Args:
        tokenizer_json: the tokenizer's file. Prefixes that it lacks are given the ids that follow its vocabulary.
        limits: the lengths that parts are truncated at.
        declared: the ids of prefixes according to the configuration, which must be the tokenizer's.
        markers: the tokens that begin and end each part.
        reads: the positions whose hidden states are read; with `ends`, special tokens in a text are plain text.

    Raises:
        OracleError: the file is no tokenizer, lacks a marker, or has other ids than declared.
    """

    def __init__(
        self,
        tokenizer_json: Path,
        limits: Limits | None = None,
        declared: Mapping[str, int] | None = None,
        markers: tuple[str, str] = ("[CLS]", "[SEP]"),
        reads: Reads = "prefixes",
    ) -> None:
        self.reads = reads
        self.limits = limits or Limits()
        self.truncation = Truncation()
        # Prefixes must be encoded together with their text, as the normaliser sees both, and yet not be found
        # in the text. So they go by names that no text holds; ids and flags stay.
        self._alias = {prefix: f"<|{secrets.token_hex(16)}|>" for prefix in PREFIXES}
        with load_errors(f"{tokenizer_json}: not a tokenizer that can be read", OracleError):
            content = read_mapping(tokenizer_json)
            for token in content["added_tokens"]:
                token["content"] = self._alias.get(token["content"], token["content"])
            self._tokenizer = Tokenizer.from_str(json.dumps(content))
        lacking = [alias for alias in self._alias.values() if self._tokenizer.token_to_id(alias) is None]
        self._tokenizer.add_tokens([AddedToken(alias, normalized=True, special=False) for alias in lacking])
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = reads == "ends"
        self.prefix_ids = {prefix: self._id(alias, tokenizer_json) for prefix, alias in self._alias.items()}
        self._cls, self._sep = (self._id(token, tokenizer_json) for token in markers)
        self._separator = markers[1]
        for prefix, declared_id in (declared or {}).items():
            if self.prefix_ids[prefix] != declared_id:
                raise OracleError(
                    f"{tokenizer_json}: {prefix} has the id {self.prefix_ids[prefix]}, but config.json says"
                    f" {declared_id}; tokenizer and model are not of one checkpoint"
                )

    @property
    def vocabulary(self) -> int:
        """The size of the vocabulary: one more than the largest id."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def parts(self, prompt: str, responses: Sequence[str]) -> tuple[list[int], list[list[int]]]:
        """The ids of a prompt and of its responses, truncated.

        Raises:
            OracleError: a text holds half of a surrogate pair, which is no character.

        Returns:
            The source's ids, and each candidate's with the prefix ``<|candidate|>``.
        """
        source, is_truncated = self._part(SOURCE, prompt, self.limits.source)
        limit = self.limits.of_candidate(len(source))
        candidates = [self._part(CANDIDATE, response, limit) for response in responses]
        self.truncation.prompts += 1
        self.truncation.prompts_truncated += is_truncated
        self.truncation.responses += len(candidates)
        self.truncation.responses_truncated += sum(is_truncated for _, is_truncated in candidates)
        return source, [ids for ids, _ in candidates]

    def pair(
        self, source: Sequence[int], first: Sequence[int], second: Sequence[int]
    ) -> tuple[list[int], tuple[int, int, int]]:
        """The ids of one ordered pair, and the three positions that are read."""
        ids = [*source, *first, *second]
        rows = 1, len(source) + 1, len(source) + len(first) + 1
        for row, prefix in zip(rows, (SOURCE, CANDIDATE_1, CANDIDATE_2), strict=True):
            ids[row] = self.prefix_ids[prefix]
        if self.reads == "ends":
            return ids, (len(source) - 1, len(source) + len(first) - 1, len(ids) - 1)
        return ids, rows

    def _part(self, prefix: str, text: str, limit: int) -> tuple[list[int], bool]:
        text = text.replace(self._separator, " ")
        alias = self._alias[prefix]
        try:
            ids = self._tokenizer.encode(alias + text, add_special_tokens=False).ids
        except (TypeError, UnicodeEncodeError) as error:
            raise OracleError(f"PairRM cannot encode the text {excerpt(text)}: {error}") from error
        if ids[:1] != [self.prefix_ids[prefix]]:
            # a combining mark at the head of the text has merged with the prefix; the original fails here
            ids = [self.prefix_ids[prefix], *self._tokenizer.encode(text, add_special_tokens=False).ids]
        return [self._cls, *ids[: limit - 2], self._sep], len(ids) + 2 > limit

    def _id(self, token: str, file: Path) -> int:
        found: int | None = self._tokenizer.token_to_id(token)
        if found is None:
            raise OracleError(f"{file}: has no token {token}; it is not the tokenizer of a PairRM")
        return found
