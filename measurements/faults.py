"""Attacks run folders and running processes, and counts what goes wrong unnoticed.

    python measurements/faults.py damage [--count 1000] [--seconds 3600] [--seed 0] [--folder FOLDER]
    python measurements/faults.py kills [--count 300] ...

`damage` damages single files of run folders at random; the same command must then notice it, mend it, or end in the same
results. `kills` sends SIGKILL to runs and their workers at random moments, in one process, with worker processes, on Ray and
on remote storage; the same command again must end in the same bytes. Both are seeded, keep what they have tried in FOLDER,
and go on from there. The figures stand in docs/reliability.md.
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))  # the judge's server

import attack


def judge(announce) -> None:
    """Serve a judge whose verdicts depend on the question alone."""
    import hashlib
    import math
    import threading

    from chat_server import said, serve

    def answer(path, body):
        share = 0.05 + 0.9 * hashlib.sha256(body["messages"][-1]["content"].encode()).digest()[0] / 255
        tops = [
            {"token": letter, "logprob": math.log(mass), "bytes": None}
            for letter, mass in (("A", share * 0.99), ("B", (1 - share) * 0.99), ("C", 0.005))
        ]
        return said("A", logprobs={"content": [{**tops[0], "top_logprobs": tops}]})

    with serve(answer) as server:
        announce(server.url)
        threading.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("attack", choices=["damage", "kills"])
    parser.add_argument("--count", type=int, default=None, help="damages (1,000) or kills (300)")
    parser.add_argument("--seconds", type=float, default=3600.0, help="stop after this time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--states", default=None, help="damage: the states to damage, separated by commas")
    parser.add_argument("--place", default=None, help="kills: the place to kill at")
    parser.add_argument("--folder", type=Path, default=None, help="keep states and verdicts here")
    parser.add_argument("--again", action="store_true", help="try the cases that have failed again")
    arguments = parser.parse_args()
    folder = (arguments.folder or Path(tempfile.mkdtemp(prefix="faults-"))).resolve()
    attack.import_everything()
    limits = (arguments.seconds, arguments.seed)
    ledger = attack.Ledger(folder / f"{arguments.attack}.jsonl", arguments.again)
    if arguments.attack == "damage":
        from faults_damage import attack_files

        with attack.served(judge) as url:
            names = arguments.states.split(",") if arguments.states else None
            failures = attack_files(ledger, arguments.count or 1000, *limits, url, names)
    else:
        from faults_kills import attack_processes

        failures = attack_processes(ledger, arguments.count or 300, *limits, arguments.place)
    print(f"verdicts: {folder}")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
