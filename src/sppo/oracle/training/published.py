"""Published files of people's votes, read as they are: PandaLM's, MT-Bench's and llmfao's."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sppo.oracle import OracleError, excerpt
from sppo.policy import chat_format as chat
from sppo.policy.model_files import load_errors
from sppo.prompts import sources
from sppo.recipe.oracle_training import Pairs

_PANDALM = {0: "tie", 1: "a", 2: "b"}
_MT_BENCH = {"model_a": "a", "model_b": "b"}
_LLMFAO = {"left": "a", "right": "b", "tie": "tie"}


def published_votes(row: dict[str, Any], of: Pairs, where: str) -> list[dict[str, Any]]:
    """A row as pairs with a label, if it has the columns of a published file of votes with texts; else the row itself.

    These are PandaLM's test set (`instruction`, `input`, `response1`, `response2`, `annotator1` and so on: a pair for each
    annotator), and MT-Bench's human judgments (`conversation_a`, `conversation_b`, `winner`, and `turn`, by which a
    conversation is read).

    Raises:
        OracleError: a vote, a conversation or a turn is none of those that these files have.
    """
    if {of.response_a, of.prompt} & row.keys():
        return [row]
    if {"instruction", "response1", "response2", "annotator1"} <= row.keys():
        prompt = "\n\n".join(str(row[name]) for name in ("instruction", "input") if row.get(name))
        votes = {name: value for name, value in row.items() if name.startswith("annotator")}
        for name, value in votes.items():
            if type(value) is not int or value not in _PANDALM:
                raise OracleError(f"{where}: {name}: {excerpt(str(value), 60)}; a vote is 0 (tie), 1 or 2")
        # Responses that read True or False stand in the file as JSON's true and false.
        first, second = (
            str(value) if isinstance(value, bool) else value for value in (row["response1"], row["response2"])
        )
        texts = {of.prompt: prompt, of.response_a: first, of.response_b: second}
        return [{**row, **texts, of.label: _PANDALM[value]} for value in votes.values()]
    if {"conversation_a", "conversation_b", "winner"} <= row.keys():
        return [_mt_bench(row, of, where)]
    if {"text_x", "text_y", "winner"} <= row.keys():
        if (label := _LLMFAO.get(row["winner"])) is None:
            raise OracleError(
                f"{where}: winner: {excerpt(str(row['winner']), 60)}; known are left, right and tie"
            )
        texts = {of.response_a: row["text_x"], of.response_b: row["text_y"], of.label: label}
        return [{**row, **texts, of.prompt: row["text"]}]
    return [row]


def _mt_bench(row: dict[str, Any], of: Pairs, where: str) -> dict[str, Any]:
    turn = row.get("turn", 1)
    if type(turn) is not int or turn < 1:
        raise OracleError(f"{where}: turn: {excerpt(str(turn), 60)} is no number of a turn")
    winner = str(row["winner"])
    label = _MT_BENCH.get(winner, "tie" if winner.split(" ")[0] == "tie" else None)
    if label is None:
        raise OracleError(f"{where}: winner: {excerpt(winner, 60)}; known are model_a, model_b and tie")
    sides = []
    for column in ("conversation_a", "conversation_b"):
        messages = row[column]
        if not isinstance(messages, list) or len(messages) < 2 * turn:
            raise OracleError(f"{where}: {column}: it has no turn {turn}")
        sides.append(messages[: 2 * turn])
    # From the second turn on the two conversations differ before the last response as well: the whole is the response.
    texts = {of.prompt: sides[0][:1], of.response_a: _written(sides[0]), of.response_b: _written(sides[1])}
    return {**row, **texts, of.label: label}


def _written(messages: list[Any]) -> Any:
    """What follows the first message: a response, or the rest of a conversation with roles."""
    if len(messages) == 2:
        return messages[1].get("content") if isinstance(messages[1], dict) else None
    try:
        return chat.plain_text(messages[1:])
    except (AttributeError, KeyError, TypeError):
        return None


class Joined:
    """Rows of votes that name their texts by numbers, with the texts of other files beside them.

    These are MT-Bench's judgments (`question_id`, `model_a`, `model_b`, `winner`; `question.jsonl` and `model_answer/*.jsonl`, as
    FastChat keeps them) and llmfao's comparisons (`prompt`, `model_x`, `model_y`, `winner`; `prompts.jsonl` and `results.jsonl`).

    Args:
        texts: the folder of the texts; None: that of the votes.
        leave_out: leave a vote out if a response that it names has no text, and count it.

    Attributes:
        left_out: how many votes were left out.
        lacking: the names of what has no text.
    """

    def __init__(self, texts: str | None, leave_out: bool) -> None:
        self.texts = texts
        self.leave_out = leave_out
        self.left_out = 0
        self.lacking: set[str] = set()
        self._known: dict[tuple[str, Path], tuple[dict[str, Any], dict[tuple[str, str], Any]]] = {}

    def rows(self, row: dict[str, Any], file: Path, where: str) -> Iterator[dict[str, Any]]:
        """The row with its texts; nothing if it is left out; the row itself if it names none.

        Raises:
            OracleError: the texts cannot be read, or one is missing.
        """
        if {"question_id", "model_a", "model_b", "winner"} <= row.keys() and "conversation_a" not in row:
            kind, prompt, sides = "mt_bench", row["question_id"], (row["model_a"], row["model_b"])
        elif {"prompt", "model_x", "model_y", "winner"} <= row.keys():
            kind, prompt, sides = "llmfao", row["prompt"], (row["model_x"], row["model_y"])
        else:
            yield row
            return
        folder = file.parent if self.texts is None else Path(self.texts)
        if (kind, folder) not in self._known:
            self._known[kind, folder] = (
                _mt_bench_texts(folder) if kind == "mt_bench" else _llmfao_texts(folder)
            )
        prompts, responses = self._known[kind, folder]
        lacking = [] if str(prompt) in prompts else [f"prompt {prompt}"]
        lacking += [f"{side} on {prompt}" for side in sides if (str(side), str(prompt)) not in responses]
        if lacking and not self.leave_out:
            raise OracleError(
                f"{where}: {folder} has no text of {' and '.join(lacking)}; add it, name the folder of the texts as pairs.texts,"
                " or leave such votes out with pairs.without_text: leave_out"
            )
        if lacking:
            self.left_out += 1
            self.lacking.update(lacking)
            return
        asked, (x, y) = prompts[str(prompt)], (responses[str(side), str(prompt)] for side in sides)
        if kind == "llmfao":
            yield {**{k: v for k, v in row.items() if k != "prompt"}, "text": asked, "text_x": x, "text_y": y}
        else:
            yield {
                **row,
                "conversation_a": _conversation(asked, x),
                "conversation_b": _conversation(asked, y),
            }


_UNREADABLE = "pairs.texts: {} cannot be read as the texts that votes name"


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        raise OracleError(
            f"pairs.texts: {path} is not there; name the folder of the texts that the votes are about"
        )
    for position, row in sources.read_rows(str(path), columns=lambda known: known, split="train"):
        if not isinstance(row, dict):
            raise OracleError(f"pairs.texts: {position}: not an object")
        yield row


def _conversation(asked: list[str], said: list[str]) -> list[dict[str, str]]:
    return [
        {"role": role, "content": text}
        for question, answer in zip(asked, said, strict=False)
        for role, text in (("user", question), ("assistant", answer))
    ]


def _mt_bench_texts(folder: Path) -> tuple[dict[str, Any], dict[tuple[str, str], Any]]:
    """The turns of each question, and of each model's answer to it."""
    answers = sorted((folder / "model_answer").glob("*.jsonl"))
    if not answers:
        raise OracleError(
            f"pairs.texts: {folder} has no model_answer/*.jsonl; MT-Bench's votes need question.jsonl and model_answer/ in the"
            " folder that pairs.texts names"
        )
    with load_errors(_UNREADABLE.format(folder), OracleError):
        prompts = {str(row["question_id"]): row["turns"] for row in _objects(folder / "question.jsonl")}
        responses = {
            (str(row.get("model_id", path.stem)), str(row["question_id"])): row["choices"][0]["turns"]
            for path in answers
            for row in _objects(path)
        }
    return prompts, responses


def _llmfao_texts(folder: Path) -> tuple[dict[str, Any], dict[tuple[str, str], Any]]:
    with load_errors(_UNREADABLE.format(folder), OracleError):
        prompts = {str(row["id"]): row["text"] for row in _objects(folder / "prompts.jsonl")}
        responses = {
            (str(row["model"]), str(row["prompt"])): row["result"]
            for row in _objects(folder / "results.jsonl")
        }
    return prompts, responses
