"""How alike a policy's hidden states find responses: near-duplicates, paraphrases, contradictions, other answers, refusals.

    python measurements/hidden_states.py --policy HuggingFaceTB/SmolLM2-135M-Instruct

Each line is the similarity to the first response of its group, by hidden states and by the overlap of words.
"""

import argparse

from sppo.oracle.hidden_states import HiddenStates
from sppo.oracle.wrappers import word_overlap
from sppo.recipe import Policy

GROUPS = {
    "Tell me about foxes.": {
        "itself": "Foxes are clever wild animals with red fur that live in forests.",
        "no full stop": "Foxes are clever wild animals with red fur that live in forests",
        "paraphrase": "Foxes are smart wild creatures with reddish coats living in woods.",
        "paraphrase, reordered": "The red-furred fox, a clever animal of the wild, makes its home in forests.",
        "contradiction": "Foxes are not clever wild animals with red fur.",
        "other true answer": "Foxes eat mice, birds and berries, and they hunt at night.",
        "refusal": "I am sorry, I cannot help with that.",
    },
    "How do I boil an egg?": {
        "itself": "Put the egg in boiling water for eight minutes, then cool it.",
        "exclamation mark": "Put the egg in boiling water for eight minutes, then cool it!",
        "paraphrase": "Place the egg in water that boils for 8 minutes and afterwards let it cool.",
        "paraphrase, shorter": "Boil it for eight minutes; cool it afterwards.",
        "contradiction": "Put the egg in boiling water for three minutes, then cool it.",
        "other answer": "An egg comes from a chicken and has a shell.",
        "refusal": "Sorry, I cannot help.",
    },
}


def main() -> None:
    """Print a table for each prompt."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policy", required=True)
    states = HiddenStates.of_policy(Policy(model=parser.parse_args().policy))
    for prompt, responses in GROUPS.items():
        texts = list(responses.values())
        hidden = states.similarity([prompt], [texts])[0, 0]
        words = word_overlap([texts])[0, 0]
        print(f"\n{prompt}\n| | hidden states | words |\n|---|---|---|")
        for name, by_states, by_words in zip(responses, hidden, words, strict=True):
            print(f"| {name} | {by_states:.3f} | {by_words:.2f} |")


if __name__ == "__main__":
    main()
