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
    """Register a function of (context, stream) for events published with `visible_to=label`.

    It MUST be pure: it is asked once per connection, stream and label, or once for several connections with equal
    contexts, and its answer is kept. Only True shows the event; anything else, an exception and a late answer hide
    it. Raises SettingsError for a label that no event can have and for one that is taken.
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

    It is looked for where Python looks, and last in the working directory: first there, a file that happens to be
    called like a module of Python's or of headrace's would be run instead of it. Raises SettingsError if it cannot be
    imported.
    """
    if module:
        try:
            if (here := os.getcwd()) not in sys.path:
                sys.path.append(here)
            importlib.import_module(module)
        except (ImportError, OSError) as error:
            raise SettingsError(f"HEADRACE_FILTERS is {module!r}, which cannot be imported: {error}") from error
    return dict(_registered)
