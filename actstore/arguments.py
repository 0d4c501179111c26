"""The door of the public functions: arguments are checked before anything happens.

A function says what its arguments take:

    @checked(out=folder, rows=optional(count), resume=flag)
    def train(out, *, rows=None, resume=False): ...

What comes through is of one type: a path is text, a count is an int. Whatever cannot be
used is a SpecError that names the function, the argument, what it takes and what came.

Errors that come from deeper down speak of a command's options. To a caller in Python
they are told by the names of arguments: `trust_remote_code`, not --trust-remote-code.
"""

from __future__ import annotations

import functools
import inspect
import math
import numbers
import operator
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

from actstore.errors import ActstoreError, SpecError

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

Check = Callable[[Any], Any]
"""Returns the value that a function gets, or raises Refused."""

_SHOWN = 80  # characters of a value that a message repeats
_OPTION = re.compile(r"(?<![\w-])--([a-z][a-z0-9]*(?:-[a-z0-9]+)*)(?![\w-])")

_BOTH_NAMES = re.compile(r"\b([a-z_]+) \(--[a-z-]+\)")


class Refused(Exception):  # noqa: N818 (it never leaves this module)
    """A value that an argument does not take; the text says what it takes."""


_options_are_known: ContextVar[bool] = ContextVar("options_are_known", default=False)


@contextmanager
def options_are_known() -> Iterator[None]:
    """Within this a command line runs: its user knows options, and not arguments."""
    token = _options_are_known.set(True)
    try:
        yield
    finally:
        _options_are_known.reset(token)


def checked(
    **checks: Check,
) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Return a decorator that checks arguments of a function.

    Args:
        checks: What each argument takes, by its name. Arguments that are not named
            are the function's own to check.
    """

    def decorate(
        function: Callable[Parameters, Result],
    ) -> Callable[Parameters, Result]:
        signature = inspect.signature(function)
        unknown = set(checks) - set(signature.parameters)
        assert not unknown, f"{function.__name__} has no {unknown}"

        @functools.wraps(function)
        def wrapper(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
            bound = signature.bind(*args, **kwargs)
            for name, check in checks.items():
                if name in bound.arguments:
                    value = bound.arguments[name]
                    where = _called(function.__name__, signature.parameters[name])
                    bound.arguments[name] = _through(check, value, where)
            try:
                return function(*bound.args, **bound.kwargs)
            except ActstoreError as error:
                _tell_arguments(error)
                raise

        # For the test that holds every public function to its checks.
        wrapper.__dict__["checks"] = checks
        return wrapper

    return decorate


def _called(function: str, parameter: inspect.Parameter) -> str:
    """Return what whoever called knows an argument as."""
    if not _options_are_known.get():
        return f"{function}: {parameter.name}"
    if parameter.default is not inspect.Parameter.empty:
        return f"--{parameter.name.replace('_', '-')}"
    return parameter.name.upper()


def _through(check: Check, value: Any, where: str) -> Any:
    try:
        return check(value)
    except Refused as refusal:
        raise SpecError(f"{where}: wanted {refusal}, got {_shown(value)}") from None


def _tell_arguments(error: ActstoreError) -> None:
    """Replace the options that an error's message names by arguments, in place."""
    if error.args:
        error.args = (for_caller(str(error.args[0])), *error.args[1:])


def for_caller(message: str) -> str:
    """Return a message in the words of who called.

    The user of a command line reads of options, a caller in Python of arguments:
    `--all-rows` is `all_rows`.
    """
    if _options_are_known.get():
        return message
    # `revision (--revision)` is one name in both languages.
    message = _BOTH_NAMES.sub(r"\1", message)
    return _OPTION.sub(lambda option: option[1].replace("-", "_"), message)


def _shown(value: Any) -> str:
    """Return a value as a message repeats it: cut, or a type where it says more."""
    if isinstance(value, (str, bytes, int, float, list, tuple, dict)) or value is None:
        text = repr(value)
        return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 4]} ..."
    return f"{type(value).__name__}"


def optional(check: Check) -> Check:
    """Return a check that also takes None."""

    def taken(value: Any) -> Any:
        return None if value is None else check(value)

    return taken


def folder(value: Any) -> str:
    """Take a path or a URL, and return it as text."""
    if isinstance(value, (str, os.PathLike)):
        text = os.fspath(value)
        if isinstance(text, str) and text.strip() and "\0" not in text:
            return text
    raise Refused("a path or a URL")


def path_or_none(path: str | os.PathLike[str] | None) -> str | None:
    """Return a path that was checked as text; None stays None."""
    return None if path is None else os.fspath(path)


def folders(value: Any) -> list[str]:
    """Take a path or URL, or several, and return a list."""
    if isinstance(value, (str, os.PathLike)):
        return [folder(value)]
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        try:
            return [folder(one) for one in value]
        except Refused:
            pass
    raise Refused("paths or URLs")


def flag(value: Any) -> bool:
    """Take True or False, also those of numpy."""
    if isinstance(value, bool):
        return value
    if type(value).__module__ == "numpy" and type(value).__name__ in {"bool", "bool_"}:
        return bool(value)
    raise Refused("True or False")


def count(value: Any) -> int:
    """Take a whole number from 1, also as text: 50_000, "50k"."""
    return _whole(value, 1, 'a count above 0, such as 50_000 or "50k"')


def count_from_0(value: Any) -> int:
    """Take a whole number from 0, also as text."""
    return _whole(value, 0, 'a count from 0, such as 12 or "1k"')


def count_up_to(most: int) -> Check:
    """Return a check that takes a whole number from 1 to a largest one."""

    def taken(value: Any) -> int:
        wanted = f"a count from 1 to {most:,}"
        number = _whole(value, 1, wanted)
        if number > most:
            raise Refused(wanted)
        return number

    return taken


def _whole(value: Any, least: int, wanted: str) -> int:
    from schemas.base import parse_count

    number = value
    if isinstance(value, str):
        try:
            number = parse_count(value)
        except ValueError:
            raise Refused(wanted) from None
    # True is an int to Python, but no count.
    if isinstance(number, bool) or not hasattr(number, "__index__"):
        raise Refused(wanted)
    whole = operator.index(number)
    if whole < least:
        raise Refused(wanted)
    return whole


def size(value: Any) -> int:
    """Take a number of bytes, also as text: "20GB", and return an int above 0."""
    from schemas.base import parse_size

    wanted = 'a size in bytes, such as "20GB"'
    number = value
    if isinstance(value, str):
        try:
            number = parse_size(value)
        except ValueError:
            raise Refused(wanted) from None
    return _whole(number, 1, wanted)


def positive(value: Any) -> float:
    """Take a finite number above 0, whole or not."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not 0 < value < math.inf:
        raise Refused("a number above 0")
    number: float = value
    return number


def text(value: Any) -> str:
    """Take text that is not empty."""
    if isinstance(value, str) and value.strip():
        return value
    raise Refused("text that is not empty")


def text_such_as(example: str) -> Check:
    """Return a check that takes text, which the function itself makes sense of."""

    def taken(value: Any) -> str:
        if isinstance(value, str):
            return value
        raise Refused(f"text, such as {example!r}")

    return taken


def device(value: Any) -> str:
    """Take the name of a device, or torch's own object, and return its name.

    `auto` is one. Tensors of the device `meta` have no values, so it is none.
    """
    name = value
    if type(value).__module__ == "torch" and type(value).__name__ == "device":
        name = str(value)
    if isinstance(name, str) and name.strip() and name.partition(":")[0] != "meta":
        return name
    raise Refused('a device, such as "cpu" or "cuda:1"')


def texts(value: Any) -> tuple[str, ...]:
    """Take text, or several, none of them empty, and return a tuple."""
    if isinstance(value, str):
        return (text(value),)
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        try:
            return tuple(text(one) for one in value)
        except Refused:
            pass
    raise Refused("names")


def names(value: Any) -> tuple[str, ...]:
    """Take a name or pattern, or at least one in a sequence, and return a tuple."""
    taken = texts(value)
    if not taken:
        raise Refused("a name, or several")
    return taken


def choice(*words: str) -> Check:
    """Return a check that takes one of some words."""

    def taken(value: Any) -> str:
        if isinstance(value, str) and value in words:
            return value
        raise Refused(" or ".join(words))

    return taken


def module(value: Any) -> Any:
    """Take a module of torch's in memory."""
    from torch import nn

    if isinstance(value, nn.Module):
        return value
    raise Refused("a module in memory (torch.nn.Module; a name goes into the spec)")


def one_of(kind: type) -> Check:
    """Return a check that takes an instance of a class."""

    def taken(value: Any) -> Any:
        if isinstance(value, kind):
            return value
        raise Refused(f"a {kind.__name__}")

    return taken


def mapping(value: Any) -> dict[str, Any]:
    """Take keys and values, whose keys are text, and return a dict."""
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return dict(value)
    raise Refused("a dict, such as {'anon': True}")


def callback(value: Any) -> Callable[..., Any]:
    """Take something that can be called."""
    if callable(value):
        taken: Callable[..., Any] = value
        return taken
    raise Refused("a function")
