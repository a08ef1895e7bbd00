-- What each function is for, for people and for the reference of the SQL functions: a sentence, its arguments, what it
-- returns, and what it raises, as SQLSTATEs. headrace/sql/schema.sql has the comments beside the definitions.

comment on table headrace.migration is
    'The migrations that this database has: one row for each.';
comment on column headrace.migration.version is
    'The number at the beginning of the file''s name.';
comment on column headrace.migration.applied_at is
    'When it was applied.';
comment on column headrace.migration.oldest is
    'Programs that know fewer migrations than this do not work with the schema any more; 0: all work.';

-- Publishing.
comment on function headrace.publish(text, text, text, text) is
'Publishes one event with this transaction: it exists when the transaction commits, and vanishes when it rolls back.

The id is given out at commit. So an open transaction holds up no other publisher, and the order of publishing cannot
deadlock.

stream: its name, 1 to 512 bytes of UTF-8; a stream begins with its first event.
data: the payload, at most headrace.max_payload_bytes() bytes of UTF-8.
event: the type that browsers dispatch on, 1 to 512 bytes without a line break, not beginning with "headrace:"; null
means "message".
visible_to: the audience label that a client must have to see the event, 1 to 512 bytes; null means everybody.
Raises 22023 for an argument that is not allowed; 25006 in a read-only transaction.';
comment on function headrace.publish_many(text[], text[], text[], text[]) is
'Publishes one event per position of the arrays with this transaction, numbered at commit in the order of the arrays.

streams, data: as in headrace.publish, one entry per event. Empty arrays publish nothing.
events, visible_to: as in headrace.publish, one entry per event; null means null for each.
Raises 22023 for arrays of different lengths, and for an event that is not allowed, with its position; 25006 in a
read-only transaction.';
comment on function headrace.publish_now(text, text, text, text) is
'Publishes one event like headrace.publish, but numbers it at once and returns its id.

For a transaction of its own: the stream stays locked until the transaction ends, so all others that publish to it
wait, and two transactions that call this for the same streams in different orders may deadlock (40P01).

Returns the id of the event. Raises 22023 for an argument that is not allowed; 25006 in a read-only transaction.';
comment on function headrace.publish_many_now(text[], text[], text[], text[]) is
'Publishes like headrace.publish_many, but numbers at once and returns the ids. For a transaction of its own.

The streams stay locked until the transaction ends. Two transactions that call this once each do not deadlock, since
the streams are locked in the order of their names.

Returns the ids, in the order of the arrays. Raises like headrace.publish_many.';
comment on function headrace.publish_once(bytea, bytea, text[], text[], text[], text[]) is
'Publishes like headrace.publish_many_now, but for one key only once. For the router''s POST /publish.

A second call with the key returns the same ids and publishes nothing; while another transaction with the key is open,
it waits for that. The key is remembered until headrace.forget_publications removes it.

key: sha256 of the publisher and the key that it gave; null publishes each time.
digest: sha256 of the events.
Returns the ids, in the order of the arrays. Raises 22HR1 if the key was used for other events; 25001 in a transaction
that is not READ COMMITTED; and like headrace.publish_many.';
comment on function headrace.max_payload_bytes() is
'How many bytes of UTF-8 the data of an event may have: 1,048,576 unless headrace.set_max_payload_bytes has changed it.';
comment on function headrace.set_max_payload_bytes(bigint) is
'Sets how many bytes of UTF-8 the data of an event may have, for every statement that begins after the commit.

For the owner of the schema. An event costs each shard with a client of its stream several times its size.

bytes: from 1,000 to 67,108,864 (64 MiB). Raises 22023 for another number.';
comment on function headrace.fault(text, text, text, text) is
    'Why an event with these arguments of headrace.publish is refused, as a sentence; null if it is allowed.';
comment on function headrace.rings(xid8) is
'Whether the row that is about to be staged must get the mark `rings`: true for the first row of a transaction, and
again after each numbering. Notes that it did.';
comment on function headrace.number_staged() is
    'Constraint trigger of headrace.stage: numbers, at commit, what the transaction has staged, and announces it.';

-- Reading.
comment on function headrace.head(text) is
'The head of a stream: its last id, 0 if nothing was ever published to it.

It is read in the snapshot of the calling statement. So a head and a page''s data that are read in one statement, or
in one REPEATABLE READ transaction, meet exactly. Under READ COMMITTED the head MUST be read before the page''s data:
an event that commits between the two is then delivered though the page shows it already; read after, it would be
lost.';
comment on function headrace.read_after(text[], bigint[], int, bigint) is
'What the streams have after the given ids, all in one snapshot. For shards of versions before 0.3; newer shards call
the function with five arguments.

streams, after: belong together by position; a null in after asks for the head alone.
max_events, max_bytes (of data): bound the page of each stream; its first event is returned even if it has more bytes.
Returns, for each position, at least one row, whose event columns are null if there is no event; in the order of
ordinal and id:
ordinal: position in streams, from 1.
head: the last id of the stream; 0 for a stream that does not exist.
trimmed_to: events up to this id are no longer kept; 0 if all are.
jumps: {from, to, from, to, …}, the recorded jumps that end above after, in order; null if there are none.
id, created_at, type, data, visible_to: the event, as in headrace.event.';
comment on function headrace.read_after(text[], bigint[], int, bigint, bigint) is
'What the streams have after the given ids, all in one snapshot and within a number of bytes. For shards.

streams, after, max_events, max_bytes: as in the function with four arguments.
total_bytes: bounds all pages together, counting 256 bytes for each event beside its data; the first event of the
first page that has any is returned whatever it has.
Returns the rows of the function with four arguments, and further:
audiences, removed_to: with a trimmed_to above after, the audiences whose events above after were removed, '''' for
events that everybody may see, and the newest of each; null if that is not known.
unread: true in the one row of a stream that has events for which the bytes did not suffice; its id is null.';

-- Numbering.
comment on function headrace.slot(text) is
    'The slot of a stream''s name, 0 to 1023: the first two bytes of sha256(name as UTF-8), big-endian, modulo 1024.';
comment on function headrace.server_timeline() is
'The timeline of the server''s write-ahead log: the first 8 hexadecimal digits of the current segment''s name. Raises
55000 during recovery.';
comment on function headrace.begin_numbering() is
'What every numbering MUST call before it takes its first stream.

It makes the commit durable, since an event that a client has seen must survive a crash, or its id would be given out
again. It begins an incarnation if need be: locked later, between two streams, the row of headrace.deployment could
deadlock with another numbering.

Returns the incarnation to number in, for headrace.take_one and headrace.take_all.';
comment on function headrace.make_stream(text, bigint) is
'Makes a stream unless it exists, and waits for another transaction that is making it.

A caller that makes several MUST do so in the order of their names (collation "C"). now_on is from
headrace.begin_numbering.';
comment on function headrace.jump_to(bigint) is
    'Where a stream goes on that was last numbered in another incarnation: the last id of its jump.';
comment on function headrace.take_one(text, int, bigint) is
'Gives out ids before + 1 to before + count of a stream, and makes the stream if need be.

The lock on the stream''s row is held until the transaction ends. The caller announces the new head, and takes no
second stream this way: see headrace.take_all. now_on is from headrace.begin_numbering.';
comment on function headrace.take_all(text[], int[], bigint) is
'Gives out ids of many streams in one statement, of each as many as counts says, and makes those that are missing.

names: sorted (collation "C"), each once. counts: by position. now_on: from headrace.begin_numbering.
Returns stream_ids and befores by position: the ids of a stream are before + 1 and following. The locks on the
streams'' rows are held until the transaction ends; the caller announces the new heads.';
comment on function headrace.take(text, int, bigint) is
'Not called by this version: gives out ids of a stream and notifies its slot, for numberings of older versions that
were under way during the migration.';
comment on function headrace.stream_removed() is
'Row trigger of headrace.stream: remembers the head of a removed stream in headrace.slot_floor, and removes its events,
marks and jumps.';
comment on function headrace.streams_truncated() is
'Statement trigger of headrace.stream: what stream_removed does, for TRUNCATE. Raises 25001 in a transaction that is
not READ COMMITTED.';
comment on table headrace.epoch is
    'Not used: headrace.deployment has taken its place. One row, as older numberings left it.';
comment on table headrace.removed is
'The newest removed event of each audience, for streams of which events with an audience were removed; a stream without
a row has lost events for everybody only, or it is not known. Written by headrace.cut alone.';

-- The deployment.
comment on function headrace.identity() is
'The identity of this deployment, a UUID that no other deployment has.

The first call writes it down. Raises 25006 where there is none yet and nothing can be written, as on a standby.';
comment on function headrace.begin_block(boolean, boolean) is
'Begins an incarnation: ids go on above all that clients may have seen. Call it after a disk, or a snapshot of one, was
restored without a recovery, which cannot be noticed.

new_identity: true if this database is another deployment from now on, beside its original.
forced: false begins an incarnation only if the row of headrace.deployment was not written by this database.
Returns the number of the incarnation. For the owner of the schema.';

-- Announcing.
comment on function headrace.announce(int[]) is
'Notifies the slots of these streams (their stream_ids) of the heads that this transaction has given out, or leaves
that to the announcer if there is one.';
comment on function headrace.defers() is
'Whether this transaction may leave it to an announcer to notify; then no announcer leaves office for good before this
transaction has ended. Takes the lock `deferring` in share.

Each look at a lock gives back at once what it gets, within one expression, which nothing can interrupt half-way. Not
SECURITY DEFINER and without settings of its own, so that PostgreSQL can inline it; its callers have fixed the search
path.';
comment on function headrace.announce_since(pg_snapshot) is
'A round: notifies of the heads of all streams whose events are committed and not announced. For the announcer and the
shards that stand by.

since: what an earlier round of this session has returned as seen, if that round committed; never in a transaction
that itself publishes. null looks at all rows.
Returns transactions, the number of numberings that were announced (most transactions have one); bytes, the size of
headrace.unannounced, in which an old snapshot anywhere in the database keeps removed rows; and seen, for the next
round.';
comment on function headrace.announce_waiting() is
    'headrace.announce_since of all rows, for shards of older versions.';
comment on function headrace.take_office() is
    'Makes this session the announcer, until it leaves office or ends. Returns false if another session is.';
comment on function headrace.leave_office() is
    'Ends this session''s office: publishing transactions notify by themselves from now on.';
comment on function headrace.nobody_defers() is
    'Whether no transaction is open that has left its announcement to others.';

-- Retention.
comment on table headrace.fence is
'The time up to which all events are visible; one row, written by headrace.prune alone. Its lock lets one session
prune.';
comment on column headrace.fence.passed is
    'Every event that was created before this time is visible, or will never be.';
comment on function headrace.set_retention(text, interval, bigint) is
'Sets or removes the rule of retention for the streams whose names match a pattern. Applied when pruning; for the owner
of the schema.

Of several rules that match a stream the one with the longest pattern applies. There is always one for `*`, which
keeps events for 5 minutes unless another is set.

pattern: a glob of 1 to 512 bytes: * is any text, ? any one character, all else is literal.
keep: for how long events are kept, at most 100 years; null removes the rule.
keep_count: how many of each stream''s newest events are kept within that time; null means any number.
Raises 22023 for an argument that is not allowed.';
comment on function headrace.prune(int) is
'Removes at most batch events that no rule keeps. Call it in a loop, each call in a transaction of its own; shards do.

Returns how many were removed; 0 if nothing is left to remove now; -1 if another session is pruning.
Raises 22023 for a batch below 1.';
comment on function headrace.move_fence() is
'Moves the fence forward if it can be moved, and returns where it is: the time up to which no event can still become
visible.';
comment on function headrace.cut(int[], bigint[], int) is
'Removes at most batch of the events up to the given id of each stream, lowest ids first, and raises the streams''
marks.

Ids become visible in order, so what is removed and marked is always a prefix. The audiences of the removed events are
noted in headrace.removed. Events that were removed before a stream''s first row there count as visible to everybody,
and so do the audiences whose marks are oldest when there are more than 64: then a client may be told of a gap where
it missed nothing, but no gap is kept from a client.

stream_ids, up_to: belong together by position. Returns how many events were removed.';

-- Changes of tables.
comment on function headrace.publish_changes(regclass, text, text[], boolean, text) is
'Publishes every change of a table''s rows, from now on, with the transaction that makes the change.

Makes triggers, with the rights of the caller, who needs TRIGGER on the table; roles that write the table need
headrace_publisher. A second call with the same template replaces the options; with another template, it adds events
to other streams.

of_table: the table. Triggers are not inherited: a warning names children, for which this must be called, too.
stream: a template of the stream''s name; {column} stands for that column of the row, {{ and }} for a brace.
columns: the columns that events show; null means all.
old: whether the event of an update has the old row, too.
visible_to: as in headrace.publish.
Events: type insert, update, delete or truncate; data {"op", "schema", "table", "row", "old"}. A row that an update
moves from one stream to another is a delete in the first and an insert in the second. A row that is too large or
cannot be converted is shown by its primary key, with "too_large": true or "failed": SQLSTATE.
Raises 22023 for an argument that is not allowed, 42703 for a column that the table does not have, 42501 without
rights.';
comment on function headrace.unpublish_changes(regclass, text) is
'Removes the triggers that headrace.publish_changes made on a table.

stream: the template; null removes those of all templates. Without such a trigger nothing happens.';
comment on function headrace.publish_change() is
'The trigger that headrace.publish_changes makes, which publishes the events of a changed row. Never make one by hand.';
comment on function headrace.make_trigger(regclass, text, text, text, text) is
'Makes a trigger for headrace.publish_changes, or replaces it; one that also fires in sessions of logical replication
goes on doing so.';
comment on function headrace.template_pieces(text) is
    'A stream template in pieces: text, column, text, column, …, text. Raises 22023 for braces that do not match.';
comment on function headrace.stream_of(jsonb, jsonb) is
'The stream of a row, from the pieces of a template and the row''s columns as JSON.

Returns null if a column of the template is null or missing, if no stream can have the name, and if a row must not
choose
it: headrace''s own streams, and companion streams (presence:) unless the template itself begins so.';
comment on function headrace.shown_columns(jsonb, jsonb) is
    'Not called by this version: the columns of a row that its events show.';
comment on function headrace.columns_now(oid, jsonb, text[]) is
'The names that a trigger''s columns have now.

names: the columns as they were called when the trigger was made; null means all columns of the table. Returns, in the
same order, present, the name that each has now, and expressions, the SQL that takes it from a row $1; both null for a
column that no longer exists.';
comment on function headrace.row_json(record, oid, jsonb, text[]) is
'The columns of a row that are named (null: all), as JSON text; a column that no longer exists is left out. Raises what
the conversion of a value raises.';
comment on function headrace.row_stream(record, oid, jsonb) is
'The stream of a row, whatever became of its table''s columns; null, with a warning, if it cannot be named; null if a
column of the template is null.';
comment on function headrace.row_told(record, oid, jsonb) is
'The columns of a row that its events show, as JSON text; or null and the reason why they cannot be shown, as it stands
in the event.';
comment on function headrace.is_huge(bigint) is
'Whether an event with all of a row of this size in bytes is certainly above the limit: no JSON has less than a
sixteenth of the bytes that it is made from.';
comment on function headrace.row_key(record, oid, text) is
'The event of a row that cannot be shown in full, from its beginning on: with the row''s primary key, as it is now, or
without it if there is none, it cannot be converted, or the event would be above the limit. Without it, the event has
at most 900 bytes, which is never too large.';
comment on function headrace.table_told(oid, name, name) is
'The table of a change, as it stands in the JSON of its event. A partition''s rows are shown under the name of the
partitioned table.';

-- Revocation.
comment on table headrace.revocation is
    'Every call of headrace.disconnect that may still have an effect; read by shards.';
comment on column headrace.revocation.user_name is
    'The user whose tokens are refused and whose connections are closed, or null.';
comment on column headrace.revocation.stream is
    'The stream whose connections are closed, once, or null.';
comment on column headrace.revocation.skew is
    'Tokens issued up to this long after the commit are refused as well.';
comment on column headrace.revocation.issued_to_ms is
'Tokens issued up to this time, in milliseconds since 1970, are refused: the commit''s time and the skew; 0 or -1 until
the commit.';
comment on function headrace.disconnect(text, text, text, interval) is
'Closes connections on every node when, and only if, this transaction commits.

user_name: closes the connections of this user, and refuses its tokens that were issued before the commit; at most
16,384 bytes.
stream: closes the connections that follow this stream; their clients may come back. Give one of the two.
reason: what the clients are told by headrace:goodbye, 1 to 512 bytes.
skew: tokens issued up to this long after the commit are refused as well, for hosts whose clock is ahead; 0 to 1 day.
Raises 22023 for an argument that is not allowed; 25006 in a read-only transaction.';
comment on function headrace.date_revocation() is
    'Constraint trigger of headrace.revocation: sets, at commit, up to when tokens are refused.';
comment on function headrace.read_revocations(xid8) is
'The revocations that transactions from since on have made. For shards.

Returns at least one row, whose columns but the first are null if there is no revocation. floor: what to give as since
the next time, on the same connection. issued_to_ms: milliseconds since 1970. age_ms: how long ago a stream''s
connections were to be closed, in milliseconds.';
comment on function headrace.forget_revocations(interval) is
'Removes the revocations that no token can be hit by: a user''s that a later one covers; a user''s that is older than
any token may live; a stream''s after an hour. An hour is added for clocks that disagree.

token_life: for how long a token may live; null means for ever. Returns how many were removed.';

-- Presence.
comment on table headrace.presence_session is
    'The shards'' processes that hold members; each has a row while it holds any.';
comment on column headrace.presence_session.session is
    'A random id of the process. It takes another one whenever it has to report all its members again.';
comment on column headrace.presence_session.shard is
    'The id of the shard, for people who read the table.';
comment on column headrace.presence_session.serial is
'The number of the last report. It grows every few seconds: a shard that sees the serial of another session unchanged
for long knows that the other process is gone.';
comment on column headrace.presence.stream is
    'Name of the stream. The lock on this row is the lock on the members of the stream.';
comment on table headrace.presence_member is
    'The members of streams: the pairs of stream and user that at least one session holds.';
comment on function headrace.members(text) is
'The members of a stream: the users who are present on it in the snapshot of this statement, each with the time of
joining, in that order.';
comment on function headrace.member_count(text) is
    'How many members a stream has in the snapshot of this statement. One row is read, however many they are.';
comment on function headrace.presence_report(uuid, text, bigint, bigint, boolean, text[], text[], text[], text[]) is
'One report of a shard''s process: which pairs of stream and user it holds now, which it holds no longer, and that it
lives.

session, shard: as in headrace.presence_session.
serial: above that of any earlier report of the session.
after: the newest serial that the process knows to be committed. If the session''s is lower, what was reported is
lost, as by a fail-over, and the report is not taken.
opens: whether the session is new; then it is made if it does not exist.
The four arrays: the streams and users that joined, and those that left, each by position; no pair is in both.

A report whose outcome its sender could not learn may be repeated with a higher serial. If the first one is still
under way, whichever comes first holds the session''s row, and the older, coming second, does nothing.

Returns all sessions with their serials, to be watched. Where the own is missing, the report was not taken.';
comment on function headrace.presence_sessions() is
    'All sessions, and the serial of the last report of each. For a shard that has nothing to report.';
comment on function headrace.presence_expire(uuid, bigint) is
'Ends a session that was seen to stand at this serial for long: users whom no other session holds leave.

Of several shards that notice, the first does it; a session that has reported meanwhile stays.
Returns how many users have left; null if nothing was done.';
comment on function headrace.presence_settle(text[], text[], text[], text[]) is
'Brings the members in line with the holders after these have changed, and publishes joins and leaves.

The pairs of stream and user that joined and that left are given by position. The locks of all these streams MUST be
held.
Returns how many members joined and left.';
comment on function headrace.presence_lock(text[]) is
'Takes the locks of these streams, until the transaction ends: their rows in headrace.presence, which are made if they
are missing. Raises 25001 in a transaction that is not READ COMMITTED.';

-- Publishing over HTTP.
comment on function headrace.forget_publications(interval) is
    'Removes the idempotency keys that were used longer ago than keep; returns how many.';
comment on table headrace.publication is
    'The requests that used an idempotency key, for as long as they may be repeated.';
comment on column headrace.publication.key is
    'sha256 of the publisher and the key that it gave.';
comment on column headrace.publication.created_at is
    'When the key was used; only its removal relies on it.';
