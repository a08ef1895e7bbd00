"""gunicorn's settings for the router: `gunicorn -c python:router.gunicorn_conf "router.app:create_application()"`.

What concerns headrace itself is in `headrace.settings`; bind and workers come from the command line.
"""

worker_class = "router.worker.HeadraceWorker"
preload_app = False

# Requests in progress in one worker, not connections: a hand-off takes about a millisecond.
worker_connections = 4000
backlog = 4096

# The only bound on the time for reading a request's head, and for an idle connection: 0 would be no bound.
keepalive = 5
timeout = 30
# Above the hand-off deadline, so that a restart cuts none short.
graceful_timeout = 4

# 56 KiB: a token has up to 48 KiB; `router.worker` raises gunicorn's cap.
limit_request_line = 56 * 1024
limit_request_fields = 64
limit_request_field_size = 16 * 1024

# A descriptor can be handed over, an HTTP/2 stream cannot.
http_protocols = "h1"
http2_cleartext = "off"

# The access log would contain tokens, and misses hand-offs; the router logs those itself.
accesslog = None
errorlog = "-"
loglevel = "info"
control_socket_disable = True
