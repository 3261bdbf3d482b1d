"""The options that say what every command prints."""

from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print the results as JSON.")]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Show no progress, only results, warnings and errors.")
]
