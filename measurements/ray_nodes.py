"""Ray clusters for measurements and tests: several nodes on this machine, one of which can be killed."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil

_CLUSTER = """
import sys
from ray.cluster_utils import Cluster
node = {"num_cpus": 2, "object_store_memory": 80 * 2**20}
cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
for _ in range(1, int(sys.argv[1])):
    cluster.add_node(**node)
print(cluster.address, flush=True)
for line in sys.stdin:
    cluster.add_node(**node)
cluster.shutdown()
"""


class RayNodes:
    """A Ray cluster on this machine, in a process of its own.

    Args:
        folder: the working folder of its processes.
        nodes: the number of its nodes.
        environment: the environment variables of its processes.
    """

    def __init__(self, folder: Path, nodes: int = 2, environment: Mapping[str, str] = os.environ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _CLUSTER, str(nodes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=folder,
            env={**environment, "RAY_USAGE_STATS_ENABLED": "0"},
        )
        self.address = self.process.stdout.readline().strip()
        assert self.address, "there is no cluster"

    def find(self, words: str) -> list[psutil.Process]:
        """The cluster's processes whose command line contains the words, the oldest first."""
        found = psutil.Process(self.process.pid).children(recursive=True)
        named = []
        for process in found:
            with contextlib.suppress(psutil.Error):
                if words in " ".join(process.cmdline()):
                    named.append((process.create_time(), process.pid, process))
        return [process for *_, process in sorted(named, key=lambda item: item[:2])]

    def kill_node(self) -> bool:
        """Kill the raylet of the node that is not the head, and add another node."""
        raylets = self.find("raylet/raylet")
        if len(raylets) < 2:
            return False
        raylets[-1].kill()
        self.process.stdin.write("add\n")
        self.process.stdin.flush()
        return True

    def close(self) -> None:
        """End the cluster."""
        with contextlib.suppress(Exception):
            self.process.communicate("", timeout=60)
        self.process.kill()
