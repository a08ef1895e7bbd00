"""Logging of a router process: to standard error, and never with a token in it."""

import logging
import re
import sys
from typing import Final

_TOKEN: Final = re.compile(r"(/streams/)[^\s'\"?]+")


class Redaction(logging.Filter):
    """Removes what follows `/streams/` from every record: whoever reads the log could read the streams."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the record if it has a token; always keep it."""
        text = record.getMessage()
        if "/streams/" in text:
            record.msg, record.args = _TOKEN.sub(r"\1…", text), None
        return True


def set_up(level: str) -> None:
    """Send this process's records of the level and above to standard error, gunicorn's redacted as well."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(Redaction())
    handler.setFormatter(logging.Formatter("%(asctime)s [%(process)d] [%(levelname)s] %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    for name in ("gunicorn.error", "gunicorn.access"):
        logging.getLogger(name).addFilter(Redaction())
