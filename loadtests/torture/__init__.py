"""Torture: a whole system of real processes under faults, and an oracle that knows what each client is owed.

    publishers ──► PostgreSQL ◄── wires ◄── `headrace up` (shards, router) ──► subscribers ──► histories ─┐
                       │  ledger, history                     ▲                                          ▼
                       └──────────────────────────────────────┼───────────────────────────────────────► judge
                                                            faults

Run it with `python -m loadtests.torture`. The judge has no I/O; all else is one process of greenlets.
"""
