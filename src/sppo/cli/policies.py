"""Commands that use one policy: `chat` and `export`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sppo.cli import options
from sppo.progress import Terminal
from sppo.rundir.folder import RunError

app = typer.Typer()


@app.command(rich_help_panel=options.LOOK, epilog="Example: sppo chat runs/quickstart --temperature 0")
def chat(
    policy: options.PolicyArgument,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest response, in tokens.")] = 512,
    temperature: Annotated[
        float,
        typer.Option(min=0.0, help="Sampling temperature; 0 always takes the most probable token."),
    ] = 1.0,
    system: Annotated[str | None, typer.Option(help="A system message to start with.")] = None,
) -> None:
    """Talk to a policy in the terminal; an empty line starts a new conversation, Ctrl-D ends."""
    from sppo.cli.conversation import converse

    converse(policy, Terminal(), max_new_tokens=max_new_tokens, temperature=temperature, system=system)


@app.command(
    rich_help_panel=options.LOOK, epilog="Example: sppo export runs/quickstart exported --dtype bfloat16"
)
def export(
    policy: options.PolicyArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write; it must not exist.")],
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="The data type of the exported weights. [default: as they are stored]"),
    ] = None,
    max_shard_size: Annotated[str, typer.Option(help="The largest size of one file of weights.")] = "5GB",
    push_to_hub: Annotated[
        str | None,
        typer.Option(
            metavar="OWNER/NAME",
            help="Also upload the folder to the hub as a private model; OWNER must be your own account.",
        ),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="With --push-to-hub: let everybody see the model.")
    ] = False,
) -> None:
    """Write a policy as an ordinary transformers folder; an adapter is merged into its base."""
    from sppo.policy import export as exports
    from sppo.policy import hub
    from sppo.report import model_card

    if push_to_hub is not None:
        hub.check_owner(push_to_hub)
    elif public:
        raise RunError("--public works only with --push-to-hub")
    exported = exports.export(policy, out, model_card.card, dtype=dtype, max_shard_size=max_shard_size)
    Terminal().say(f"{out}: {exports.describe(exported)}")
    if push_to_hub is not None:
        Terminal().say(hub.push(out, push_to_hub, public=public))
