"""Torture: a whole system of real processes under faults, and a judge that knows which events each client is owed.

    publishers ──► PostgreSQL ◄── wires ◄── `headrace up` (shards, router) ──► subscribers ──► histories ─┐
                       │  ledger, history                     ▲                                          ▼
                       └──────────────────────────────────────┼───────────────────────────────────────► judge
                                                            faults

Run it with `python -m loadtests.torture`. The judge does no I/O; everything else is greenlets of one process.
"""
