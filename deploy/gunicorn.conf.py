"""gunicorn's settings for a router without `headrace up`: headrace's own, its address and the number of its workers.

    ROUTER_BIND        address and port, or unix:/path; 127.0.0.1:8000 unless set
    WEB_CONCURRENCY    worker processes; gunicorn's own variable, 2 unless set

Their names do not begin with HEADRACE_, since headrace refuses settings that it does not know.
"""

import os

from headrace.router.gunicorn_conf import *  # noqa: F403  # each name there without an underscore is a setting

bind = os.environ.get("ROUTER_BIND") or "127.0.0.1:8000"
workers = int(os.environ.get("WEB_CONCURRENCY") or 2)
