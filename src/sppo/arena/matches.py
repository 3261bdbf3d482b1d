"""Which two responses are shown to whom, and a seal that ties a vote to what was shown, even after a restart."""

import base64
import hashlib
import hmac
import json
import random
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sppo.reading import parse

Candidate = tuple[str, str, str]
"""A prompt and two policies."""


class RefusedVote(ValueError):
    """A vote on something that was not shown."""


@dataclass(frozen=True)
class Shown:
    """Two responses to a prompt, as the page shows them.

    Attributes:
        vote_id: the id of the vote on them.
        voter: the person whom they are shown to.
        prompt_id: the id of the prompt.
        prompt: the prompt as text.
        policies: the policies whose responses are on the left and on the right.
        texts: the responses on the left and on the right.
    """

    vote_id: str
    voter: str
    prompt_id: str
    prompt: str
    policies: tuple[str, str]
    texts: tuple[str, str]


class Matches:
    """The pairs of responses that can be shown.

    Prompts to which two policies give the same responses are left out for these two.

    Args:
        responses: for each policy and prompt, the prompt's text and the policy's responses.
        policies: the policies to compare, two or more.
        key: the secret that seals are made with.
    """

    def __init__(
        self,
        responses: Mapping[str, Mapping[str, tuple[str, Sequence[str]]]],
        policies: Sequence[str],
        key: bytes,
    ) -> None:
        self._responses = responses
        self._key = key
        self._candidates = [
            (prompt, first, second)
            for index, first in enumerate(policies)
            for second in policies[index + 1 :]
            for prompt in sorted(responses[first].keys() & responses[second].keys())
            if set(responses[first][prompt][1]) != set(responses[second][prompt][1])
        ]

    def __len__(self) -> int:
        return len(self._candidates)

    def unseen(self, voter: str, seen: Sequence[Mapping[str, Any]]) -> list[Candidate]:
        """The candidates that a person has not seen, given all votes and skips so far."""
        mine = {
            _match(row["prompt_id"], row["policy_a"], row["policy_b"])
            for row in seen
            if row["voter"] == voter
        }
        return [candidate for candidate in self._candidates if _match(*candidate) not in mine]

    def choose(self, voter: str, seen: Sequence[Mapping[str, Any]]) -> Shown | None:
        """Chooses a pair that a person has not seen, among those with the fewest votes; None when all were seen.

        The order of the prompts, the sides and the responses are drawn at random each time.
        """
        unseen = self.unseen(voter, seen)
        if not unseen:
            return None
        counts = Counter(_match(row["prompt_id"], row["policy_a"], row["policy_b"]) for row in seen)
        fewest = min(counts[_match(*candidate)] for candidate in unseen)
        draw = random.SystemRandom()
        prompt_id, *policies = draw.choice([match for match in unseen if counts[_match(*match)] == fewest])
        draw.shuffle(policies)
        left, right = policies
        prompt, responses = self._responses[left][prompt_id]
        texts = [(a, b) for a in responses for b in self._responses[right][prompt_id][1] if a != b]
        return Shown(secrets.token_hex(16), voter, prompt_id, prompt, (left, right), draw.choice(texts))

    def seal(self, shown: Shown) -> str:
        """A sealed description of the match, which a vote must return. Without the key, nothing in it tells the policies apart."""
        places = [
            place
            for policy, text in zip(shown.policies, shown.texts, strict=True)
            for place in (policy, list(self._responses[policy][shown.prompt_id][1]).index(text))
        ]
        content = json.dumps([shown.vote_id, shown.voter, shown.prompt_id, *places]).encode()
        text = base64.urlsafe_b64encode(self._masked(shown.vote_id, content)).decode()
        return f"{shown.vote_id}.{text}.{self._digest(shown.vote_id, text, *shown.texts, shown.prompt)}"

    def opened(self, seal: Any) -> Shown:
        """The match that a seal describes.

        Raises:
            RefusedVote: the seal was not made here, or the run's responses have changed since.
        """
        try:
            vote_id, text, digest = seal.split(".")
            content = parse(self._masked(vote_id, base64.urlsafe_b64decode(text)))
            sealed_id, voter, prompt_id, left, k_left, right, k_right = content
            prompt, responses = self._responses[left][prompt_id]
            texts = (responses[k_left], self._responses[right][prompt_id][1][k_right])
        except (AttributeError, ValueError, KeyError, IndexError, TypeError):
            raise RefusedVote("this pair was not shown by this arena") from None
        given, own = digest.encode("utf-8", "replace"), self._digest(vote_id, text, *texts, prompt).encode()
        if sealed_id != vote_id or not hmac.compare_digest(given, own):
            raise RefusedVote("this pair was not shown by this arena")
        return Shown(vote_id, voter, prompt_id, prompt, (left, right), texts)

    def _digest(self, *parts: str) -> str:
        return hmac.new(self._key, json.dumps(parts).encode(), hashlib.sha256).hexdigest()

    def _masked(self, vote_id: str, content: bytes) -> bytes:
        """Encrypts or decrypts by exclusive or with a stream made of the key and the vote's id, which is used once."""
        stream = hashlib.shake_256(self._key + vote_id.encode()).digest(len(content))
        return bytes(a ^ b for a, b in zip(content, stream, strict=True))


def _match(prompt_id: str, first: str, second: str) -> Candidate:
    """A prompt and two policies, whichever of them stood on the left."""
    return (prompt_id, *sorted((first, second)))  # type: ignore[return-value]
