"""The arrangement of prompts and their responses in one batch, such that each prompt is computed only once.

A prompt x with responses y_1 .. y_R is laid out as the tree x y_1 y_2 .. y_R: the prompt once, followed by the responses
as branches. The model computes the same as for the R sequences x y_r, because three things are made to agree with those
sequences: the positions, the tokens that each token attends to, and the hidden state from which each token is predicted.

    column     0   1   2   3   4            a prompt of 2 tokens with responses of 2 tokens and of 1 token
    token     x0  x1  a0  a1  b0
    position   0   1   2   3   2            b0 follows x1 in its own sequence
    branch     0   0   1   1   2
    source             1   2   1            x1 predicts both a0 and b0
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor


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


@dataclass(frozen=True)
class Targets:
    """The response tokens of a layout, in the order of the responses.

    Attributes:
        row, source: the row and the column of the hidden state that predicts the token.
        token: the token's id.
        response: the index of the response that the token belongs to, counted over all trees.
    """

    row: Int[Tensor, " tokens"]
    source: Int[Tensor, " tokens"]
    token: Int[Tensor, " tokens"]
    response: Int[Tensor, " tokens"]


class Layout:
    """Trees in a batch: one after the other in a single row, or a row for each, padded on the right.

    Args:
        trees: the trees; their responses are numbered in this order.
        in_one_row: put all trees into one row without padding; otherwise each tree gets a row.

    Attributes:
        ids, positions: [rows, columns] token ids, and the position of each token in its own sequence.
        tree: [rows, columns] the index of the tree that a token belongs to; -1 for padding.
        branch: [rows, columns] 0 for a prompt, 1, 2, ... for the responses of its tree.
        responses: the number of responses in all trees.
    """

    def __init__(self, trees: Sequence[Tree], *, in_one_row: bool) -> None:
        sizes = [tree.tokens for tree in trees]
        shape = (1, sum(sizes)) if in_one_row else (len(trees), max(sizes))
        self.ids, self.positions, self.branch = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
        self.tree = torch.full(shape, -1, dtype=torch.long)
        self.responses = 0
        self._targets: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        begin = 0
        for number, tree in enumerate(trees):
            self._place(tree, number, 0 if in_one_row else number, begin)
            begin += tree.tokens if in_one_row else 0

    def _place(self, tree: Tree, number: int, row: int, begin: int) -> None:
        prompt = len(tree.prompt)
        ids = [*tree.prompt, *(token for response in tree.responses for token in response)]
        self.ids[row, begin : begin + len(ids)] = torch.tensor(ids, dtype=torch.long)
        self.tree[row, begin : begin + len(ids)] = number
        # Positions restart with each tree, so that the result for a tree does not depend on its place in the row.
        self.positions[row, begin : begin + prompt] = torch.arange(prompt)
        column = begin + prompt
        for branch, response in enumerate(tree.responses, 1):
            columns = slice(column, column + len(response))
            self.branch[row, columns] = branch
            # The positions of every response continue from the prompt's, as if the other branches did not exist. So
            # rotary embeddings and attention windows see the same distances as in the sequence x y_r.
            self.positions[row, columns] = torch.arange(prompt, prompt + len(response))
            # A token is predicted from the hidden state of its predecessor in the sequence x y_r. That is the column to
            # its left, except for a response's first token: its predecessor is the prompt's last token, which all
            # branches share.
            source = torch.arange(column - 1, column - 1 + len(response))
            source[:1] = begin + prompt - 1
            ones = torch.ones_like(source)
            self._targets.append((ones * row, source, self.ids[row, columns], ones * self.responses))
            column += len(response)
            self.responses += 1

    @property
    def real(self) -> Bool[Tensor, "rows columns"]:
        """True for tokens, False for padding."""
        return self.tree >= 0

    def targets(self, device: torch.device) -> Targets:
        """The response tokens, each with the place from which it is predicted."""
        return Targets(*(torch.cat(columns).to(device) for columns in zip(*self._targets, strict=True)))

    def visible(self, window: int | None = None) -> Bool[Tensor, "rows query key"]:
        """Which tokens each token attends to: those of its tree's prompt and its own response, up to itself."""
        rows, columns = (torch.arange(size) for size in self.ids.shape)
        return self.sees(rows[:, None, None], columns[:, None], columns, window)

    def sees(self, row: Tensor, query: Tensor, key: Tensor, window: int | None) -> Tensor:
        """Whether the token in column `query` of a row attends to the one in column `key`; shapes are broadcast."""
        branch, position = self.branch, self.positions
        # Comparing columns gives the causal order: if two tokens belong to the same sequence, the one on the left comes
        # first. Padding has the tree -1, so it attends to itself and to earlier padding; a softmax over no key would be
        # NaN, and its gradient would spread.
        seen = (query >= key) & (self.tree[row, query] == self.tree[row, key])
        seen = seen & ((branch[row, key] == 0) | (branch[row, key] == branch[row, query]))
        if window is not None:
            # The distance is that of positions, not of columns, because other branches can lie between a response and
            # its prompt.
            seen = seen & (position[row, query] - position[row, key] < window)
        return seen

    def to(self, device: torch.device) -> "Layout":
        """Move the tensors to a device, in place, and return the layout."""
        for name in ("ids", "positions", "branch", "tree"):
            setattr(self, name, getattr(self, name).to(device))
        return self
