"""Reads the variables `HEADRACE_*` of an environment by the fields that describe them; settings.py has the fields."""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from headrace.errors import SettingsError

# What Kubernetes, and Docker's links, tell each container of a service whose name begins with `headrace`.
_SERVICE_LINK = re.compile(
    r"HEADRACE_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)=.*"
    r"|HEADRACE_(\w+_)?PORT=(tcp|udp|sctp)://.*"
)


def read_variables(environ: Mapping[str, str], fields: Iterable["dataclasses.Field[Any]"]) -> dict[str, Any]:
    """The values of the fields that environ has a variable for, by the name of the field.

    An empty variable counts as unset. Each field has a SettingParser as `parse` and a bool as `secret` in its metadata.
    Raises SettingsError, which names the variable, for a value that is not allowed, and for a variable that no field
    describes.
    """
    described = {f"HEADRACE_{each.name.upper()}": each for each in fields}
    values: dict[str, Any] = {}
    for variable, text in environ.items():
        if not variable.startswith("HEADRACE_") or not text:
            continue
        if variable not in described:
            if _SERVICE_LINK.fullmatch(f"{variable}={text}"):
                continue
            raise SettingsError(f"unknown setting {variable}; {_instead(variable, described)}")
        spec = described[variable]
        try:
            values[spec.name] = spec.metadata["parse"](text)
        except ValueError as error:
            shown = "a value that is not shown here" if spec.metadata["secret"] else repr(text)
            raise SettingsError(f"{variable} is {shown}; allowed is {error}") from None
    return values


def _instead(variable: str, allowed: Iterable[str]) -> str:
    near = difflib.get_close_matches(variable, allowed, n=1, cutoff=0.8)
    return f"perhaps {near[0]} is meant; else unset it" if near else f"allowed are {', '.join(sorted(allowed))}"
