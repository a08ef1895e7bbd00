"""The router: reads one request, chooses a shard, gives it the client's socket, and forgets the client.

Empty on purpose: gunicorn's master imports this package before gevent has patched anything.
"""
