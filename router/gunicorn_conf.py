"""gunicorn's settings for the router.

    gunicorn -c python:headrace.router.gunicorn_conf "headrace.router.app:create_application()"

What an operator may want otherwise is in `headrace.settings`; bind and workers come from the command line.
"""

import os
import sys

from headrace.node import server_extra

server_extra.require()

from headrace.errors import HeadraceError
from headrace.node import logs, runtime_directory
from headrace.settings import Settings

try:
    _settings = Settings.from_environ(os.environ).require("secret", "redis_url")
    # A worker's name has at most three digits.
    runtime_directory.prepare(_settings.runtime_dir, "router-999")
except HeadraceError as error:
    # gunicorn would print a traceback for each worker, again and again.
    sys.exit(f"headrace: {error}")

worker_class = "headrace.router.worker.HeadraceWorker"
preload_app = False

# Requests in progress in one worker, not connections: a hand-off takes about a millisecond.
worker_connections = _settings.request_limit()
backlog = 4096

# gunicorn's name for the only bound on the time for reading a request's head, the first one too, and for an idle
# connection; 0 would be no bound.
keepalive = _settings.request_deadline_s
timeout = 30
# Above the hand-off deadline, so that a restart cuts none short.
graceful_timeout = 4

# 56 KiB: a token has up to 48 KiB; `headrace.router.worker` raises gunicorn's cap.
limit_request_line = 56 * 1024
limit_request_fields = _settings.max_headers
limit_request_field_size = _settings.max_header_bytes

# A descriptor can be handed over, an HTTP/2 stream cannot.
http_protocols = "h1"
http2_cleartext = "off"

# The access log would contain tokens, and misses hand-offs; the router logs those itself.
accesslog = None
errorlog = "-"
loglevel = "info"
logconfig_dict = logs.gunicorn_config(_settings, "router")
control_socket_disable = True
