"""The responses that can be trained on: those that ended and fit, unless the recipe takes truncated ones as well."""

from sppo.rundir.tables import PromptRow, ResponsesRow
from sppo.stages.models import Models


def usable_responses(models: Models, row: ResponsesRow) -> dict[int, list[int]]:
    """The token ids of the responses that may be trained on, by the number of the response among the K."""
    usable = {}
    for k, response in enumerate(row.responses):
        truncated = response.finish_reason == "length"
        token_ids = fitting(models, row, response.token_ids, truncated=truncated)
        if token_ids:
            usable[k] = token_ids
    return usable


def fitting(models: Models, row: PromptRow, token_ids: list[int], *, truncated: bool) -> list[int]:
    """The tokens of a response that are trained on: those within the limit, or none if a truncated one only counts."""
    room = max(0, models.training_limit - len(row.prompt_token_ids))
    score_only = models.recipe.training.truncated_responses == "score_only"
    if (truncated or len(token_ids) > room) and score_only:
        return []
    return token_ids[:room]
