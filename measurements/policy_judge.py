"""How a policy judges responses whose better one is plain: the probability of the letters, the order's effect, and who wins.

    python measurements/policy_judge.py --policy HuggingFaceTB/SmolLM2-135M-Instruct

To each prompt there are a true answer, an answer to something else and a refusal. The true one should win.
"""

import argparse
from typing import Any

import numpy as np

from sppo import oracle
from sppo.endpoint.exchange import chat
from sppo.oracle.behaviour import check
from sppo.oracle.judge_template import verdict_probabilities

GROUPS = {
    "How do I boil an egg?": "Put the egg in boiling water for eight minutes, then cool it.",
    "Tell me about foxes.": "Foxes are clever wild animals with red fur that live in forests.",
    "What is rain?": "Rain is water that falls from clouds in drops.",
    "Name three colours.": "Red, green and blue.",
}
OTHERS = ("A train runs on rails from one station to the next.", "I am sorry, I cannot help with that.")


def main() -> None:
    """Print the measures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policy", required=True)
    config = {"type": "policy_judge", "policy": parser.parse_args().policy, "min_mass": 1e-6}
    judge = oracle.load(config)
    inner: Any = judge.inner
    prompts, responses = list(GROUPS), [[answer, *OTHERS] for answer in GROUPS.values()]
    found = check(judge, prompts, responses)
    matrices = judge.compare(prompts, responses)
    letters = [
        verdict_probabilities(answer.choices[0])
        for prompt, texts in zip(prompts, responses, strict=True)
        for answer in inner.answers.ask(
            [
                chat(
                    [{"role": "user", "content": inner.template.render(prompt, texts[0], other)}],
                    max_tokens=1,
                    logprobs=True,
                )
                for other in texts[1:]
            ]
        )
    ]
    print(f"probability of A, B and C together: {np.mean([sum(of.values()) for of in letters]):.3f}")
    for letter in "ABC":
        print(f"  {letter}, where A is the true answer: {np.mean([of[letter] for of in letters]):.3f}")
    (orders,) = found.orders.values()
    print(f"pairs whose winner depends on the order: {orders.flips:.0%} of {found.pairs}")
    print(f"mean P of the response that stands first: {orders.first_wins:.3f}")
    print(f"mean |P - 1/2|: {found.mean_margin:.4f}")
    won = matrices[:, 0, 1:]
    print(
        f"mean P of the true answer: {won.mean():.3f}; it is preferred in {(won > 0.5).sum()} of {won.size} pairs"
    )


if __name__ == "__main__":
    main()
