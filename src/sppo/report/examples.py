"""Typical examples of responses before and after training, with the words that changed marked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

from sppo.report.browser import Span, changes, shared_prompts, shown
from sppo.report.samples import Responses
from sppo.rundir.reader import BASE

QUARTILES = {"lower quartile": 0.25, "median": 0.5, "upper quartile": 0.75}


@dataclass(frozen=True)
class Example:
    """A held-out prompt with the first response of the base policy and of the last policy.

    Attributes:
        rank: why this prompt was chosen, such as `median`.
        win_rate: the last policy's win rate against the base on this prompt; None where none is recorded.
        prompt: the prompt.
        before: the base policy's response; words that the other does not have are in `del`.
        after: the last policy's response; words that are new are in `ins`.
    """

    rank: str
    win_rate: float | None
    prompt: str
    before: Markup
    after: Markup


def examples(held_out: Mapping[int, Responses]) -> list[Example]:
    """The prompts at the quartiles of the last policy's win rate; without win rates, three prompts at random.

    The quartiles are typical by construction: a quarter of the prompts came out worse than the first example, and a
    quarter came out better than the last.
    """
    last = max(held_out, default=BASE)
    if last == BASE or BASE not in held_out:
        return []
    rates = held_out[last].win_rates
    names = shared_prompts({BASE: held_out[BASE], last: held_out[last]})
    ranked = sorted(
        (name for name in names if np.isfinite(rates.get(name, np.nan))), key=lambda name: rates[name]
    )
    if ranked:
        chosen = {
            ranked[round(place * (len(ranked) - 1))]: rank for rank, place in reversed(QUARTILES.items())
        }
        chosen = dict(reversed(chosen.items()))
    else:
        chosen = dict.fromkeys(names[: len(QUARTILES)], "random")
    return [
        _example(held_out[BASE], held_out[last], name, rank, rates.get(name)) for name, rank in chosen.items()
    ]


def _example(base: Responses, last: Responses, name: str, rank: str, rate: float | None) -> Example:
    places = [policy.prompt_ids.index(name) for policy in (base, last)]
    before, after = (
        shown(policy.texts[place][0]) for policy, place in zip((base, last), places, strict=True)
    )
    removed, added = changes(before, after)
    prompt = shown(base.prompts[places[0]])
    return Example(rank, rate, prompt, _marked(before, removed, "del"), _marked(after, added, "ins"))


def _marked(text: str, spans: Sequence[Span], tag: str) -> Markup:
    """The text, escaped, with its spans inside elements of this tag."""
    pieces, end = [], 0
    for start, stop in spans:
        pieces += [escape(text[end:start]), Markup(f"<{tag}>"), escape(text[start:stop]), Markup(f"</{tag}>")]
        end = stop
    return Markup("").join([*pieces, escape(text[end:])])
