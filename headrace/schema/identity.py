"""The identity of a deployment: a UUID in its schema, which no other deployment has.

The identity stays the same when secrets rotate, a standby is promoted or a disk is restored. A copy of the database, by
a restored dump or by `CREATE DATABASE … TEMPLATE`, gets another identity. Chapter 3 of headrace/sql/schema.sql tells
how a copy is recognised.
"""

import uuid
from typing import Any

import psycopg


def identity(connection: psycopg.Connection[Any]) -> uuid.UUID:
    """Return the identity, a random UUID, of the deployment whose database this is.

    The first call in a new database, or in a copy, writes the identity, so the connection should be in autocommit, or
    commit afterwards. The call works on a standby, and as the role headrace_publisher. Raises psycopg's
    UndefinedFunction for a schema older than version 13.
    """
    with connection.cursor(row_factory=psycopg.rows.tuple_row) as cursor:
        cursor.execute("select headrace.identity()")
        row = cursor.fetchone()
    assert row is not None
    return uuid.UUID(str(row[0]))
