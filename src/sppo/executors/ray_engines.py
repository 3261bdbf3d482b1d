"""The vLLM engines of a Ray cluster's nodes, which live for the whole run although actors come and go with each stage.

On every node an actor without a reservation, a :class:`sppo.sampling.engine_keepers.EngineLender`, is the parent of the
node's engines. The actors of a stage, which hold the reservation of CPUs, borrow them. Ray ends the lenders when the run's
process ends, and the engines end with the lenders.
"""

import secrets
from collections.abc import Sequence
from typing import Any

from sppo.sampling.engine_keepers import BorrowedEngines, EngineLender

# How long the nodes may take to answer, and the actors of a stage to end. Without an answer the run goes on.
_SECONDS = 30.0


class NodeEngines:
    """The lenders of a cluster's nodes, as the run's process sees them."""

    def __init__(self) -> None:
        self._lenders: dict[str, Any] = {}
        self._key = secrets.token_bytes(32)

    def keepers(self, nodes: Sequence[str]) -> dict[str, BorrowedEngines]:
        """What the processes of each node borrow engines with; a node that does not answer is left out.

        Args:
            nodes: the ids of the nodes that are alive.
        """
        import ray
        import ray.exceptions

        self._lenders = {node: self._lenders.get(node) or self._started(node) for node in nodes}
        asked = {lender.address.remote(): node for node, lender in self._lenders.items()}
        found = {}
        for answer in ray.wait(list(asked), num_returns=len(asked), timeout=_SECONDS)[0]:
            try:
                found[asked[answer]] = BorrowedEngines(ray.get(answer), self._key)
            except ray.exceptions.RayError:  # the lender does not start
                continue
        return found

    def _started(self, node: str) -> Any:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        lender = ray.remote(EngineLender).options(
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=1,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        )
        return lender.remote(self._key)

    def wait_for_returns(self) -> None:
        """Wait until the actors of a stage have ended, so that the next stage finds all engines in their places."""
        self._tell("wait_for_returns", _SECONDS)

    def make_room(self) -> None:
        """End the engines of the nodes that have too little free memory to keep them during training."""
        self._tell("make_room")

    def end(self) -> None:
        """End the engines."""
        self._tell("end")

    def _tell(self, what: str, *arguments: Any) -> None:
        import ray

        answers = [getattr(lender, what).remote(*arguments) for lender in self._lenders.values()]
        if answers:
            ray.wait(answers, num_returns=len(answers), timeout=_SECONDS)
