"""The identity of a deployment: a UUID in its schema, which no other deployment has.

It stays when secrets rotate, a standby is promoted or a disk is restored, and is another one in a copy of the database:
a restored dump, or a clone by `CREATE DATABASE … TEMPLATE`. How a copy is recognised is written at the head of
headrace/sql/0013_deployment.sql.
"""

import uuid
from typing import Any

import psycopg


def identity(connection: psycopg.Connection[Any]) -> uuid.UUID:
    """The identity of the deployment whose database this is, which is a random UUID.

    Writes it where the database is a copy that nobody has asked before, so the connection should be in autocommit, or
    commit afterwards. It works on a standby, and as the role headrace_publisher. Raises psycopg's UndefinedFunction
    for a schema older than version 13.
    """
    with connection.cursor(row_factory=psycopg.rows.tuple_row) as cursor:
        cursor.execute("select headrace.identity()")
        row = cursor.fetchone()
    assert row is not None
    return uuid.UUID(str(row[0]))
