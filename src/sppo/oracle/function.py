"""A Python function as a preference oracle."""

import contextlib
import hashlib
import importlib
import inspect
import os
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from jaxtyping import Float
from pydantic import Field, field_validator

from sppo.oracle import OracleError, OracleSection, excerpt
from sppo.recipe.oracle import Text
from sppo.winrates import Array


class FunctionOracle(OracleSection):
    """A Python function `(prompts, responses) -> [N, K, K]` named as `module:function`."""

    settings_without_effect: ClassVar[frozenset[str]] = frozenset({"timeout_seconds"})

    type: Literal["function"] = "function"
    function: str = Field(description="module:function")
    text: Text = Field("prompt", description="what it sees as the prompt: plain or templated")
    timeout_seconds: float = Field(600, gt=0, description="for one call, of at most 64 prompts")

    @field_validator("function")
    @classmethod
    def _names_a_function(cls, value: str) -> str:
        module, _, function = value.partition(":")
        if not all(part.isidentifier() for part in [*module.split("."), *function.split(".")]):
            raise ValueError("must name a Python function as module:function, e.g. my_oracle:compare")
        return value

    def load(self) -> "Function":
        """The function as an oracle.

        Raises:
            OracleError: there is no such function.
        """
        return Function(self.function, self.timeout_seconds)

    def identity(self) -> dict[str, Any]:
        """The settings, and a digest of the function's source."""
        return super().identity() | {"source": source_digest(self.function)}

    @property
    def label(self) -> str:
        """The function's name."""
        return self.function


class Function:
    """Calls ``function(prompts, responses)``, which answers like :meth:`sppo.oracle.Oracle.compare`.

    Args:
        name: ``module:function``; modules in the working folder are found.
        timeout_seconds: for one call.

    Raises:
        OracleError: there is no such function.
    """

    def __init__(self, name: str, timeout_seconds: float = 600) -> None:
        self.name = name
        self.timeout_seconds = timeout_seconds
        self._function = find_function(name)

    def compare(
        self, prompts: Sequence[str], responses: Sequence[Sequence[str]]
    ) -> Float[Array, "prompts K K"]:
        """Like :meth:`sppo.oracle.Oracle.compare`.

        Raises:
            OracleError: the function raises, or does not answer in time.
        """
        outcome: list[Any] = []
        failure: list[BaseException] = []

        def call() -> None:
            try:
                outcome.append(self._function(list(prompts), [list(of_prompt) for of_prompt in responses]))
            except BaseException as error:  # whatever the user's code raises, SystemExit included
                failure.append(error)

        # A daemon: a function that never returns must not keep the program from ending.
        thread = threading.Thread(target=call, daemon=True, name=f"oracle {self.name}")
        thread.start()
        thread.join(min(self.timeout_seconds, threading.TIMEOUT_MAX))
        among = f"among {len(prompts)} prompts, the first of them {excerpt(prompts[0])}"
        if failure:
            error = failure[0]
            raise OracleError(f"the oracle {self.name} raised {_said(error)}; {among}") from error
        if not outcome:
            raise OracleError(
                f"the oracle {self.name} has not answered within {self.timeout_seconds:g} s; {among};"
                " raise oracle.timeout_seconds if it needs longer"
            )
        answer: Array = outcome[0]
        return answer


def find_function(name: str) -> Callable[..., Any]:
    """The function that ``module:function`` names.

    Raises:
        OracleError: there is none.
    """
    module_name, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    importlib.invalidate_caches()  # a module written a moment ago is found
    try:
        value: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a module is a program: it may raise anything
        raise OracleError(
            f"oracle.function: {name!r}: the module {module_name!r} cannot be imported: {_said(error)}; it is"
            " looked for in the working folder and among the installed packages"
        ) from error
    for part in attribute.split("."):
        value = getattr(value, part, None)
    if not callable(value):
        raise OracleError(f"oracle.function: {name!r}: {module_name} has no function {attribute!r}")
    function: Callable[..., Any] = value
    return function


def source_digest(name: str) -> str:
    """SHA-256 of the files of the module and of the function, so that an edited oracle is another oracle."""
    function = inspect.unwrap(find_function(name))
    digests = []
    for source in (function, sys.modules[name.partition(":")[0]]):
        with contextlib.suppress(TypeError):  # an object that is called, or a module written in C
            path = inspect.getsourcefile(source)
            digests += [hashlib.sha256(Path(path).read_bytes()).hexdigest()] if path else []
    return "+".join(dict.fromkeys(digests))


def _said(error: BaseException) -> str:
    """An exception in a line, with the place in the user's code that it came from."""
    said = traceback.format_exception_only(error)[-1].strip()
    ours = ("<", __file__, importlib.__file__)
    frames = traceback.extract_tb(error.__traceback__)
    places = [(frame.filename, frame.lineno) for frame in frames if not frame.filename.startswith(ours)]
    if isinstance(error, SyntaxError) and error.filename:
        places.append((error.filename, error.lineno))
    return f"{said} ({Path(places[-1][0]).name}, line {places[-1][1]})" if places else said
