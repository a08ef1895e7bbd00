"""The settings, the database and the way to publish that all users of one locust process share."""

import random
import time
from collections.abc import Sequence
from typing import Any

import psycopg

import headrace
from headrace.settings import Settings
from loadtests.checker import Problem
from loadtests.database import Database
from loadtests.payload import Writer

MOST_DETAILS = 100


class LoadRun:
    """One run of locust as its users see it. Shared by all greenlets of the process."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings.require("database_url", "secret")
        self.database = Database(settings.database_url)
        self._details = 0

    def detail(self, problem: Problem) -> str:
        """A failure's text, in full for the first hundred only, since locust keeps every text that differs."""
        self._details += 1
        return f"{problem.kind}: {problem.detail}" if self._details <= MOST_DETAILS else f"{problem.kind}, and more"

    def publish(
        self, environment: Any, writer: Writer, streams: Sequence[str], size: int, *, phantom: bool = False
    ) -> bool:
        """Publish one event on each of the streams, in one transaction, by one of three functions; returns success.

        phantom rolls the transaction back instead. Reported as the request `SQL publish`. Yields.
        """
        error: Exception | None = None
        began = time.monotonic()
        try:
            with self.database.connection() as connection:
                texts = writer.texts(streams, size, phantom=phantom)
                if len(texts) == 1 and random.random() < 0.5:
                    headrace.publish_now(connection, streams[0], texts[0])
                elif random.random() < 0.5:
                    headrace.publish_many(connection, streams, texts)
                else:
                    for stream, text in zip(streams, texts, strict=True):
                        headrace.publish(connection, stream, text)
                if phantom:
                    connection.rollback()
        except psycopg.Error as failure:
            error = failure
        else:
            if not phantom:
                writer.committed(streams)
        environment.events.request.fire(
            request_type="SQL",
            name="rollback" if phantom else "publish",
            response_time=(time.monotonic() - began) * 1000,
            response_length=size * len(streams),
            exception=error,
            context={},
        )
        return error is None
