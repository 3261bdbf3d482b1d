"""Trees whose prompts begin alike, joined so that what they share is computed only once.

A tree is a prompt with responses to it. Trees share tokens in three ways: prompts begin with the same system message or
document; the prompt of a later turn of a conversation contains the prompt of an earlier one, and often a response to it; and
a prompt occurs twice. A forest cuts the sequences of all trees into runs of tokens, the nodes, such that each shared run is
there once:

    tree 1    S a        responses p, q       node        tokens   follows   shared by
    tree 2    S a p b    response r           S                    -         1, 2, 3
    tree 3    S c        response s           a                    S         1, 2
                                              p                    a         1 (its response), 2 (part of its prompt)
                                              q                    a         1
                                              b, then r            p         2
                                              c, then s            S         3

Sequences branch only at nodes, and every node is a call of the attention kernel of its own on a CPU. So prompts share a run
only if it has a number of tokens for which that pays; the responses of a tree always share its prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

LEAST_SHARED = 32
"""The least number of tokens of a run that prompts share. A shorter one saves less than its calls cost, and is what any two
prompts have in common: the beginning of a chat template."""

SHARED_WITH_NONE = 1 << 62
"""The least number of tokens with which each tree stands for itself."""


@dataclass(frozen=True)
class Tree:
    """A prompt and some responses to it, as token ids."""

    prompt: list[int]
    responses: list[list[int]]

    @property
    def tokens(self) -> int:
        """The number of tokens of the prompt, counted once, and of all responses."""
        return len(self.prompt) + sum(map(len, self.responses))

    def sequences(self) -> "list[Tree]":
        """One tree for each response, each with a copy of the prompt."""
        return [Tree(self.prompt, [response]) for response in self.responses]


@dataclass(eq=False, repr=False)
class Node:
    """A run of tokens that the sequences through it have in common.

    Attributes:
        tokens: the token ids, at least one.
        start: the position of the first token in its sequences.
        parent: the node that precedes it in its sequences; None at their beginning.
        children: the nodes that follow it.
        shared: whether it belongs to several trees.
    """

    tokens: list[int]
    start: int
    parent: "Node | None"
    children: "list[Node]" = field(default_factory=list)
    shared: bool = False

    @property
    def stop(self) -> int:
        """The position that follows the last token."""
        return self.start + len(self.tokens)


class Forest:
    """The nodes of some trees.

    Args:
        trees: prompts with their responses, in any order.
        least_shared: the least number of tokens of a run that prompts share.

    Attributes:
        roots: the nodes at which sequences begin, in the order of their first trees.
        ends: for each tree, the last node of each of its responses (that of the prompt if the response is empty).
    """

    def __init__(self, trees: Sequence[Tree], least_shared: int = LEAST_SHARED) -> None:
        self._least = least_shared
        # The nodes of prompts by what they follow and by their first tokens. Of the nodes that follow the same one, no two
        # begin with the same `least` tokens, because such prompts share a node.
        self._onward: dict[tuple[Node | None, tuple[int, ...]], Node] = {}
        first_tree: dict[Node, int] = {}
        prompts = self._join_prompts(trees, first_tree)
        self.roots = sorted(first_tree, key=first_tree.__getitem__)
        self.ends = [
            [self._grow_response(node, response) for response in tree.responses]
            for node, tree in zip(prompts, trees, strict=True)
        ]

    @property
    def tokens(self) -> int:
        """The number of tokens, each shared run counted once."""
        return sum(len(node.tokens) for node in self.nodes())

    @property
    def copies(self) -> int:
        """The number of tokens that nodes of one tree follow and other trees share, counted for each such node."""
        before: dict[Node | None, int] = {None: 0}
        for node in self.nodes():
            before[node] = before[node.parent] + (len(node.tokens) if node.shared else 0)
        return sum(before[node.parent] for node in before if node is not None)

    def nodes(self) -> list[Node]:
        """All nodes, depth first: each is followed by all that descend from it."""
        nodes, waiting = [], self.roots[::-1]
        while waiting:
            nodes.append(waiting.pop())
            waiting.extend(reversed(nodes[-1].children))
        return nodes

    def _join_prompts(self, trees: Sequence[Tree], first_tree: dict[Node, int]) -> list[Node]:
        """Make the nodes of all prompts, and return the last one of each."""
        # Among prompts in lexicographic order, those that begin alike are neighbours, and what a run of them has in common is
        # the least of what its neighbours have. So sorting replaces comparing each prompt with every other.
        order = lexicographic(trees)
        common = [common_tokens(trees[i].prompt, trees[j].prompt, self._least) for i, j in pairwise(order)]
        last: dict[int, Node] = {}
        waiting: list[tuple[range, Node | None]] = [(range(len(order)), None)]
        while waiting:
            places, parent = waiting.pop()
            start = parent.stop if parent else 0
            for run in _runs(places, common, start + self._least):
                prompt = trees[order[run[0]]].prompt
                stop = min(common[place] for place in run[:-1]) if len(run) > 1 else len(prompt)
                # A prompt that others continue, or that occurs twice, ends with the node that they share.
                node = self._grow_prompt(prompt[start:stop], parent) if stop > start else parent
                assert node is not None, "a prompt has at least one token"
                if parent is None:
                    first_tree[node] = min(order[place] for place in run)
                if len(run) > 1:
                    node.shared = True
                    waiting.append((run, node))
                else:
                    last[order[run[0]]] = node
        return [last[number] for number in range(len(trees))]

    def _grow_prompt(self, tokens: list[int], parent: Node | None) -> Node:
        node = Node(tokens, parent.stop if parent else 0, parent)
        if parent is not None:
            parent.children.append(node)
        if len(tokens) >= self._least:
            self._onward[parent, tuple(tokens[: self._least])] = node
        return node

    def _grow_response(self, node: Node, response: list[int]) -> Node:
        """Let a response follow the last node of its prompt; return the response's own last node."""
        # The prompts of later turns may contain the response, or its beginning. Two responses are never joined.
        while len(response) >= self._least:
            onward = self._onward.get((node, tuple(response[: self._least])))
            if onward is None:
                break
            count = common_tokens(onward.tokens, response, 0)
            node = onward if count == len(onward.tokens) else self._divide(onward, count)
            node.shared = True
            response = response[count:]
        if not response:
            return node
        node.children.append(Node(response, node.stop, node))
        return node.children[-1]

    def _divide(self, node: Node, count: int) -> Node:
        """Make the first tokens of a node a node of their own, and return it."""
        # The given node keeps the rest, so that it stays the last node of whatever ends with it.
        assert node.parent is not None
        first = Node(node.tokens[:count], node.start, node.parent, [node], node.shared)
        node.parent.children[node.parent.children.index(node)] = first
        self._onward[node.parent, tuple(first.tokens[: self._least])] = first
        node.tokens, node.start, node.parent = node.tokens[count:], first.stop, first
        if len(node.tokens) >= self._least:
            self._onward[first, tuple(node.tokens[: self._least])] = node
        return first


def lexicographic(trees: Sequence[Tree]) -> list[int]:
    """The indices of trees, ordered by their prompts: those that begin alike are neighbours, an earlier turn first."""
    return sorted(range(len(trees)), key=lambda index: trees[index].prompt)


def families(trees: Sequence[Tree], least_shared: int) -> list[list[int]]:
    """Divide trees into those whose prompts begin alike; each family in lexicographic order, as indices."""
    found: list[list[int]] = []
    for index in lexicographic(trees):
        prompt = trees[index].prompt
        if found and common_tokens(trees[found[-1][-1]].prompt, prompt, least_shared):
            found[-1].append(index)
        else:
            found.append([index])
    return found


def common_tokens(one: Sequence[int], other: Sequence[int], least: int) -> int:
    """The number of tokens that two sequences have in common at their beginning; 0 if there are fewer than `least`."""
    shorter = min(len(one), len(other))
    if shorter < least or one[:least] != other[:least]:
        return 0
    return next((place for place in range(least, shorter) if one[place] != other[place]), shorter)


def _runs(places: range, common: Sequence[int], least: int) -> list[range]:
    """Divide neighbouring places where neighbours have fewer than `least` tokens in common."""
    begins = [place for place in places if place == places[0] or common[place - 1] < least]
    return [range(begin, end) for begin, end in pairwise([*begins, places.stop])]
