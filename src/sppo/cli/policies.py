"""Commands that use one policy: `chat` and `export`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sppo.cli import options

app = typer.Typer()
OpeningOverrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE")]


@app.command(rich_help_panel=options.LOOK, epilog="Example: sppo chat runs/quickstart --temperature 0")
@options.described_by_docstring
def chat(
    policy: options.PolicyArgument,
    common: options.OutputOptions,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 512,
    temperature: Annotated[float, typer.Option(min=0.0)] = 1.0,
    system: str | None = None,
    iteration: Annotated[int | None, typer.Option("--iteration", "-t", min=0)] = None,
    set_: OpeningOverrides = None,
) -> None:
    """Talk to a policy in the terminal; /help lists what can be written there.

    Args:
        max_new_tokens: The longest response, in tokens.
        temperature: The sampling temperature; 0 always takes the most probable token.
        system: A system message to start each conversation with.
        iteration: With a run: the policy that this iteration has trained; 0: the base policy. [default: the last accepted
            policy]
        set_: How the policy is opened, by the recipe's keys: policy.trust_remote_code=true, policy.chat_template=FILE
            or prompts.system=merge. [default: as the recipe of the policy's run says]
    """
    from sppo.cli.conversation import converse
    from sppo.policy.opening import open_policy
    from sppo.recipe import read_overrides
    from sppo.rundir.reader import RunReader

    overrides = read_overrides(set_)
    if iteration is None:
        opened = open_policy(policy, overrides)
    else:
        folder = RunReader(policy).named_policy(iteration).folder
        opened = open_policy(folder, overrides, run=policy)
    converse(opened, common.terminal, max_new_tokens=max_new_tokens, temperature=temperature, system=system)


@app.command(
    rich_help_panel=options.LOOK, epilog="Example: sppo export runs/quickstart exported --dtype bfloat16"
)
@options.described_by_docstring
def export(
    policy: options.PolicyArgument,
    common: options.OutputOptions,
    out: Annotated[Path, typer.Argument(metavar="OUT")],
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    max_shard_size: str = "5GB",
    push_to_hub: Annotated[str | None, typer.Option(metavar="OWNER/NAME")] = None,
    public: Annotated[bool, typer.Option("--public")] = False,
    set_: OpeningOverrides = None,
) -> None:
    """Write a policy as an ordinary transformers folder; an adapter is merged into its base.

    Args:
        out: The folder to write; it must not exist.
        dtype: The data type of the exported weights. [default: as they are stored; an adapter's as its run saves policies]
        max_shard_size: The largest size of one file of weights.
        push_to_hub: Also upload the folder to the hub as a private model; OWNER must be your own account.
        public: With --push-to-hub: let everybody see the model.
        set_: How the policy is opened, by the recipe's keys, such as policy.trust_remote_code=true. [default: as the
            recipe of the policy's run says]
    """
    from sppo.policy import export as exports
    from sppo.policy import hub
    from sppo.policy.opening import open_policy
    from sppo.recipe import read_overrides
    from sppo.report import model_card
    from sppo.rundir.folder import RunError

    if push_to_hub is not None:
        hub.check_owner(push_to_hub)
    elif public:
        raise RunError("--public works only with --push-to-hub")
    opened = open_policy(policy, read_overrides(set_))
    exported = exports.export(opened, out, model_card.card, dtype=dtype, max_shard_size=max_shard_size)
    common.terminal.show(f"{out}: {exports.describe(exported)}")
    if (note := exports.note_on_settings(opened)) is not None:
        common.terminal.note(note)
    address = None if push_to_hub is None else hub.push(out, push_to_hub, public=public)
    if address is not None:
        common.terminal.show(address)
    common.terminal.show_json({"folder": str(out), "policy": str(exported), "hub": address})
