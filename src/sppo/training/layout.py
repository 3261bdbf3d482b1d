"""The arrangement of prompts and their responses in one batch, such that what they share is computed only once.

A prompt x with responses y_1 .. y_R is laid out as the tree x y_1 y_2 .. y_R: the prompt once, followed by the responses
as branches. Trees whose prompts begin alike, such as the turns of a conversation, are joined to a forest (`forest.py`), of
which each node is laid out once, followed by all that descends from it. The model computes the same as for separate
sequences x y_r, because three things are made to agree with those sequences: the positions, the tokens that each token attends
to, and the hidden state from which each token is predicted.

    column     0   1   2   3   4            a prompt of 2 tokens with responses of 2 tokens and of 1 token
    token     x0  x1  a0  a1  b0
    position   0   1   2   3   2            b0 follows x1 in its own sequence
    node       0   0   1   1   2
    end        5   5   4   4   5            x0 and x1 are seen by all columns before 5, a0 and a1 by those before 4
    source             1   2   1            x1 predicts both a0 and b0

The next turn of that conversation has the prompt x0 x1 a0 a1 u0, in which u0 is the next message, and the response c0. Together
they are laid out as

    column     0   1   2   3   4   5   6
    token     x0  x1  a0  a1  u0  c0  b0
    position   0   1   2   3   4   5   2
    node       0   0   1   1   2   3   4    a0 a1 is a response of the first turn and part of the second turn's prompt
    end        7   7   6   6   6   6   7
    source             1   2       4   1    u0 belongs to a prompt and is not predicted

A token attends to those at its left whose `end` is beyond it: what precedes it in its own sequence, and nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sppo.training.forest import LEAST_SHARED, Forest, Node, Tree


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
    """Trees in a batch: all in a single row without padding, or a row for each, padded on the right.

    Args:
        trees: the trees; their responses are numbered in this order.
        in_one_row: put all trees into one row, in which those that begin alike share tokens; otherwise each tree gets a row.
        least_shared: the least number of tokens of a run that prompts share.

    Attributes:
        ids, positions: [rows, columns] token ids, and the position of each token in its own sequence.
        node: [rows, columns] the number of the node that a token belongs to; -1 for padding.
        end: [rows, columns] the column that follows the last token that can attend to this one.
        responses: the number of responses in all trees.
    """

    def __init__(self, trees: Sequence[Tree], *, in_one_row: bool, least_shared: int = LEAST_SHARED) -> None:
        forests = [
            Forest(row, least_shared) for row in ([trees] if in_one_row else [[tree] for tree in trees])
        ]
        shape = (len(forests), max(forest.tokens for forest in forests))
        self.ids, self.positions = (torch.zeros(shape, dtype=torch.long) for _ in range(2))
        self.node = torch.full(shape, -1, dtype=torch.long)
        self.end = torch.full(shape, shape[1], dtype=torch.long)
        self.responses = 0
        self._targets: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for row, forest in enumerate(forests):
            begins = self._place(forest, row)
            for tree, ends in zip([trees[row]] if not in_one_row else trees, forest.ends, strict=True):
                for response, end in zip(tree.responses, ends, strict=True):
                    self._aim(response, end, begins, row)

    def _place(self, forest: Forest, row: int) -> dict[Node, int]:
        """Fill a row with the nodes of a forest, and return the column at which each begins."""
        nodes = forest.nodes()
        begins = dict(zip(nodes, accumulate((len(node.tokens) for node in nodes), initial=0), strict=False))
        ends: dict[Node, int] = {}
        for number, node in reversed(list(enumerate(nodes))):
            columns = slice(begins[node], begins[node] + len(node.tokens))
            # Nodes are in depth-first order, so all that descends from a node lies between it and the end of its last child.
            ends[node] = ends[node.children[-1]] if node.children else columns.stop
            self.ids[row, columns] = torch.tensor(node.tokens, dtype=torch.long)
            # The positions of a node continue from those of the node that it follows, as if other branches did not exist. So
            # rotary embeddings and attention windows see the same distances as in the sequence x y_r, and the result for a
            # tree does not depend on its place in the row.
            self.positions[row, columns] = torch.arange(node.start, node.stop)
            self.node[row, columns] = number
            self.end[row, columns] = ends[node]
        return begins

    def _aim(self, response: list[int], end: Node, begins: dict[Node, int], row: int) -> None:
        """Record whence the tokens of a response are predicted, which ends with the node `end`."""
        # A token is predicted from the hidden state of its predecessor in the sequence x y_r. That is the column to its left,
        # except at the beginning of a node: its predecessor is the last token of the node that it follows.
        path: list[Tensor] = []
        node: Node | None = end
        missing = len(response) + 1
        while missing > 0 and node is not None:
            first = begins[node] + max(0, len(node.tokens) - missing)
            path.append(torch.arange(first, begins[node] + len(node.tokens)))
            missing -= len(path[-1])
            node = node.parent
        source = torch.cat(path[::-1])[:-1]
        ones = torch.ones_like(source)
        self._targets.append(
            (ones * row, source, torch.tensor(response, dtype=torch.long), ones * self.responses)
        )
        self.responses += 1

    @property
    def real(self) -> Bool[Tensor, "rows columns"]:
        """True for tokens, False for padding."""
        return self.node >= 0

    def targets(self, device: torch.device) -> Targets:
        """The response tokens, each with the place from which it is predicted."""
        return Targets(*(torch.cat(columns).to(device) for columns in zip(*self._targets, strict=True)))

    def visible(self, window: int | None = None) -> Bool[Tensor, "rows query key"]:
        """Which tokens each token attends to: those that precede it in its own sequences, and itself."""
        rows, columns = (torch.arange(size) for size in self.ids.shape)
        return self.sees(rows[:, None, None], columns[:, None], columns, window)

    def sees(self, row: Tensor, query: Tensor, key: Tensor, window: int | None) -> Tensor:
        """Whether the token in column `query` of a row attends to the one in column `key`; shapes are broadcast."""
        # What descends from a node lies between it and `end`, so a column in between continues each sequence that the key is
        # in. Padding lies behind the end of every node; its own `end` is the last column, so that it attends to itself and to
        # earlier padding. A softmax over no key would be NaN, and its gradient would spread.
        seen = (query >= key) & (query < self.end[row, key])
        if window is not None:
            # The distance is that of positions, not of columns, because other branches can lie between a response and
            # its prompt. A matrix of distances would take eight times the memory of what is seen.
            seen = seen & (self.positions[row, query] < self.positions[row, key] + window)
        return seen

    def to(self, device: torch.device) -> "Layout":
        """Move the tensors to a device, in place, and return the layout."""
        for name in ("ids", "positions", "node", "end"):
            setattr(self, name, getattr(self, name).to(device))
        return self
