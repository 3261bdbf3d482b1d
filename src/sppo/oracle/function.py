"""A Python function as a preference oracle."""

import importlib
import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from sppo.oracle import OracleError, OracleSection, Preferences, Prompts, Responses, excerpt, own_process
from sppo.oracle.source_code import code_digest, files_digest
from sppo.progress import shortened
from sppo.recipe.oracle import Text


class FunctionOracle(OracleSection):
    """A Python function `(prompts, responses) -> [N, K, K]` named as `module:function`."""

    settings_without_effect: ClassVar[frozenset[str]] = frozenset({"timeout_seconds", "own_process"})

    type: Literal["function"] = "function"
    function: str
    """The function's name as module:function; modules in the working folder are found."""
    depends_on: list[str] = Field(default_factory=list)
    """Further files and folders that the answers depend on, such as tables that the function reads."""
    text: Text = "prompt"
    """The form in which the function sees prompts: plain or templated."""
    timeout_seconds: float = Field(600, gt=0)
    """How long one call may take, which is for at most 64 prompts; importing the function's module likewise."""
    own_process: bool = True
    """Run the function in a process of its own, which can crash, exit or hang without harm to the run."""

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
        return Function(self.function, self.timeout_seconds, own_process=self._has_own_process)

    def identity(self) -> dict[str, Any]:
        """The settings, and digests of the function's code and of the files that it depends on."""
        return super().identity() | {
            "source": self._source_digest(),
            "depends_on": files_digest(self.depends_on),
        }

    @property
    def label(self) -> str:
        """The function's name."""
        return self.function

    @property
    def _has_own_process(self) -> bool:
        # A function of a program or notebook that is running cannot be imported anywhere else.
        return self.own_process and not self.function.startswith("__main__:")

    def _source_digest(self) -> str:
        if not self._has_own_process:
            return source_digest(self.function)
        digest: str = _asked(self.function, "digest", self.timeout_seconds)
        return digest


class Function:
    """Calls ``function(prompts, responses)``, which returns what :meth:`sppo.oracle.Oracle.compare` returns.

    Args:
        name: ``module:function``; modules in the working folder are found.
        timeout_seconds: how long one call may take.
        own_process: import and call the function in a process of its own.

    Raises:
        OracleError: there is no such function.
    """

    def __init__(self, name: str, timeout_seconds: float = 600, *, own_process: bool = False) -> None:
        self.name = name
        self.timeout_seconds = timeout_seconds
        self.own_process = own_process
        if own_process:
            _asked(name, "find", timeout_seconds)
        else:
            find_function(name)

    def compare(self, prompts: Prompts, responses: Responses) -> Preferences:
        """Like :meth:`sppo.oracle.Oracle.compare`.

        Raises:
            OracleError: the function raises, or does not return in time.
        """
        try:
            if self.own_process:
                return own_process.of(self.name).compare(prompts, responses, self.timeout_seconds)
            answer: Preferences = _called_in_time(self.name, prompts, responses, self.timeout_seconds)
            return answer
        except own_process.NoAnswer:
            reason = f"the oracle {self.name} has not answered within {self.timeout_seconds:g} s"
            way_out = "; raise oracle.timeout_seconds if it needs longer"
        except OracleError as error:
            reason, way_out = str(error), ""
        raise OracleError(
            f"{reason}; among {len(prompts)} prompts, the first of them {excerpt(prompts[0])}{way_out}"
        )


def call(name: str, prompts: Prompts, responses: Responses) -> Any:
    """What a function returns for copies of the texts.

    Raises:
        OracleError: it raises anything, an exit of the program included.
    """
    function = find_function(name)
    try:
        return function(list(prompts), [list(of_prompt) for of_prompt in responses])
    except BaseException as error:  # whatever the user's code raises, SystemExit included
        raise OracleError(f"the oracle {name} raised {_in_one_line(error)}") from error


def _called_in_time(name: str, prompts: Prompts, responses: Responses, seconds: float) -> Any:
    """What a function of this process returns, in a thread that is left alone when the time is over."""
    outcome: list[Any] = []
    failure: list[OracleError] = []

    def work() -> None:
        try:
            outcome.append(call(name, prompts, responses))
        except OracleError as error:
            failure.append(error)

    # A daemon: a function that never returns must not keep the program from ending.
    thread = threading.Thread(target=work, daemon=True, name=f"oracle {name}")
    thread.start()
    thread.join(min(seconds, threading.TIMEOUT_MAX))
    if failure:
        raise failure[0]
    if not outcome:
        raise own_process.NoAnswer
    return outcome[0]


def _asked(name: str, question: str, seconds: float) -> Any:
    """The answer of a function's own process to a question about its module."""
    try:
        return own_process.of(name).ask(question, seconds)
    except own_process.NoAnswer:
        raise OracleError(
            f"oracle.function: {name!r}: its module was not imported within {seconds:g} s; raise oracle.timeout_seconds if"
            " it needs longer"
        ) from None


def find_function(name: str) -> Callable[..., Any]:
    """The function that ``module:function`` names.

    Raises:
        OracleError: there is none.
    """
    module_name, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    importlib.invalidate_caches()  # so that a module written a moment ago is found
    try:
        value: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a module is a program: it may raise anything
        raise OracleError(
            f"oracle.function: {name!r}: the module {module_name!r} cannot be imported: {_in_one_line(error)}; it is"
            " looked for in the working folder and among the installed packages"
        ) from error
    for part in attribute.split("."):
        value = getattr(value, part, None)
    if not callable(value):
        elsewhere = (
            ": it was defined in a program or notebook that is not running here; put it into a module of its own"
            if module_name == "__main__"
            else ""
        )
        raise OracleError(
            f"oracle.function: {name!r}: {module_name} has no function {attribute!r}{elsewhere}"
        )
    function: Callable[..., Any] = value
    return function


def named(function: Callable[..., Any]) -> str:
    """The name by which :func:`find_function` finds a function again.

    Raises:
        OracleError: it finds none, because the function does not stand at the top level of its module.
    """
    name = f"{getattr(function, '__module__', None)}:{getattr(function, '__qualname__', None)}"
    try:
        found = find_function(name) is function
    except (OracleError, ValueError):
        found = False
    if not found:
        raise OracleError(
            f"oracle: {name} cannot be found by its name when the run continues; define the function with `def` at the top"
            " level of a module, a program or a notebook"
        )
    return name


def source_digest(name: str) -> str:
    """The digest of a named function's code, so that an edited oracle is another oracle.

    Raises:
        OracleError: there is no such function.
    """
    return code_digest(find_function(name), sys.modules[name.partition(":")[0]])


def _in_one_line(error: BaseException) -> str:
    """An exception in a line, with the place in the user's code that it came from."""
    message = shortened(traceback.format_exception_only(error)[-1].strip())
    ours = ("<", __file__, importlib.__file__)
    frames = traceback.extract_tb(error.__traceback__)
    places = [(frame.filename, frame.lineno) for frame in frames if not frame.filename.startswith(ours)]
    if isinstance(error, SyntaxError) and error.filename:
        places.append((error.filename, error.lineno))
    return f"{message} ({Path(places[-1][0]).name}, line {places[-1][1]})" if places else message
