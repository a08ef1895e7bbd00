"""The torture of the log: concurrent sessions use headrace's SQL functions, faults hit them, and a judge compares.

No shard runs here. Threads of this package play everybody who meets the log:

    publishers   transactions of every kind: isolation levels, savepoints, prepared, long, …
    sequencers   take the office, do rounds, leave it politely or not at all, stop for a while
    pages        read rows of the application and a watermark in one snapshot
    followers    read the log as a shard does, from the beginning
    killers      end sessions at random, and at the points where a round or a commit can be made to wait

The main thread owns PostgreSQL, and kills and restarts it, or promotes a standby in its place.

What is true is written down by the transactions themselves, in tables of the application (`application.sql`): each
publication, and each *link*. A link is one place in a *chain*. A chain is a row that transactions update, or an
advisory lock that they take, so that the transactions of one chain wait for each other and know their order. So the
outcome of a transaction whose COMMIT was never answered is known as well. What only a client can know (when a
transaction began, and when its commit was answered) is in the notes (`notes.py`). The judge (`judge.py`) knows nothing
of how the log works.
"""
