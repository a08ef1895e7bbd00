"""Audience predicates: functions that decide by label who sees an event.

The module that HEADRACE_FILTERS names registers them when it is imported:

    from headrace import predicate

    @predicate("staff")
    def is_staff(context, stream):
        return context.user in STAFF
"""

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from typing import TypeVar

from headrace.errors import SettingsError
from headrace.text_limits import MAX_WORD_BYTES, check_text
from headrace.tokens import Context

Predicate = Callable[[Context, str], bool]
_Function = TypeVar("_Function", bound=Predicate)

_registered: dict[str, Predicate] = {}


def predicate(label: str) -> Callable[[_Function], _Function]:
    """Return a decorator that registers a function of (context, stream) for events with `visible_to=label`.

    context is the `headrace.tokens.Context` of the client's token; stream is the stream's name. The function decides
    whether the client sees the events of that stream with that label. Only True shows them; any other answer, an
    exception, and an answer later than HEADRACE_FILTER_DEADLINE_S hide them.

    The function MUST be pure: it is asked once for each connection, stream and label, or once for several connections
    with equal contexts, and its answer is kept. Raises SettingsError for a label without 1 to 512 bytes of UTF-8, and
    for a label that another predicate has.
    """
    check_text("a predicate's label", label, MAX_WORD_BYTES, SettingsError)

    def register(function: _Function) -> _Function:
        if _registered.get(label, function) is not function:
            raise SettingsError(f"two predicates have the label {label!r}; give one of them another")
        _registered[label] = function
        return function

    return register


def load(module: str) -> Mapping[str, Predicate]:
    """Import the module named by HEADRACE_FILTERS, if any, and return all predicates by label.

    The module is looked for on Python's path, and last in the working directory: if that came first, a file there with
    the name of a module of Python's or of headrace's would be run instead of that module. The working directory is
    where the operator has started `headrace up`, or the WorkingDirectory of a shard's unit. Raises SettingsError if the
    module cannot be imported.
    """
    if module:
        try:
            if (here := os.getcwd()) not in sys.path:
                sys.path.append(here)
            importlib.import_module(module)
        except (ImportError, OSError) as error:
            raise SettingsError(f"HEADRACE_FILTERS is {module!r}, which cannot be imported: {error}") from error
    return dict(_registered)
