"""A trial of the oracles before anything is sampled, so that a wrong answer or an absent server is found at once."""

from sppo.oracle import OracleError
from sppo.recipe import OracleSection, Recipe
from sppo.recipe.run_policies import check
from sppo.rundir.summary import flatten
from sppo.rundir.tables import PromptRow
from sppo.stages.models import Models

PROMPTS = ("This is a trial. Name a colour.", "This is a trial. What is two and two?")
RESPONSES = (
    ("Blue.", "A colour is green.", "Red, for instance."),
    ("Four.", "It is 4.", "Two and two is 4."),
)


def try_oracles(models: Models, *, local_only: bool = False) -> None:
    """Ask the oracle, and the held-out oracle, once about two toy prompts.

    Oracles that hold a model are not asked: their code is this program's, and loading the model would take long. What they need
    is looked for.

    Args:
        models: the models of this process, whose oracles are asked.
        local_only: do not ask oracles that call a server.

    Raises:
        OracleError: an oracle cannot be loaded, fails, or gives a wrong answer.
    """
    for key, section in _sections(models.recipe).items():
        if not local_only:
            _check(models, key, section)
        calls_a_server = any("endpoint" in name.split(".") for name in flatten(section.model_dump()))
        if section.holds_a_model or not section.answers_any_prompt or (local_only and calls_a_server):
            continue
        rows = [
            PromptRow(f"trial {n}", [{"role": "user", "content": text}], [], None)
            for n, text in enumerate(PROMPTS, 1)
        ]
        # A server is asked about a single pair of each prompt. Three responses to two prompts tell all axes apart.
        k = 2 if calls_a_server else 3
        try:
            models.compare(rows, [texts[:k] for texts in RESPONSES], held_out=key != "oracle")
        except OracleError as error:
            raise OracleError(
                f"{key}: a trial before the run, with two prompts of {k} responses, failed: {error}"
            ) from error


def _check(models: Models, key: str, section: OracleSection) -> None:
    try:
        check(models.in_run(section))
    except OracleError as error:
        raise OracleError(f"{key}: {str(error).removeprefix('oracle.')}") from error


def _sections(recipe: Recipe) -> dict[str, OracleSection]:
    """The recipe's oracles by their keys."""
    sections = {"oracle": recipe.oracle, "evaluation.oracle": recipe.evaluation.oracle}
    return {key: section for key, section in sections.items() if section is not None}
