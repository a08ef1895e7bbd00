"""`settings.HEADRACE`: the settings of headrace that stand among Django's own.

    HEADRACE = {"SECRET": "…", "PUBLIC_URL": "https://streams.example.com"}

A key is the name of a setting without `HEADRACE_`. A variable of the environment that is set wins over the dictionary,
and the dictionary over the file that `headrace up` writes. Values that are no text are written as the variable would
be: a list with commas, True as `on`.
"""

from typing import Any

from django.conf import settings

from headrace.errors import SettingsError


def variables() -> dict[str, str]:
    """`settings.HEADRACE` as variables of the environment; none where Django has no settings. Raises SettingsError."""
    given = getattr(settings, "HEADRACE", {}) if settings.configured else {}
    if not isinstance(given, dict):
        raise SettingsError(f"settings.HEADRACE must be a dictionary of settings, not {type(given).__name__}")
    found = {}
    for name, value in given.items():
        if not isinstance(name, str) or name != name.upper() or name.startswith("HEADRACE_"):
            raise SettingsError(
                f"settings.HEADRACE has the key {name!r}; name settings in capitals and without HEADRACE_, as SECRET"
            )
        found[f"HEADRACE_{name}"] = _text(value)
    return found


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list | tuple):
        return ",".join(map(_text, value))
    return str(value)
