-- What the functions of 0021 to 0024 are for, and what has changed about others.

comment on function headrace.publish(text, text, text, text) is
'Publishes one event with this transaction: it exists when the transaction commits, and vanishes when it rolls back.

Publishing is an insert: it waits for no other publisher, and holds up none. The event gets its id at commit where no
shard numbers for all, else from that shard a moment later.

stream: its name, 1 to 512 bytes of UTF-8; a stream begins with its first event.
data: the payload, at most headrace.max_payload_bytes() bytes of UTF-8.
event: the type that browsers dispatch on, 1 to 512 bytes without a line break, not beginning with "headrace:"; null
means "message".
visible_to: the audience label that a client must have to see the event, 1 to 512 bytes; null means everybody.
Raises 22023 for an argument that is not allowed; 25006 in a read-only transaction.';
comment on function headrace.publish_many(text[], text[], text[], text[]) is
'Publishes one event per position of the arrays with this transaction; they get their ids in the order of the arrays.

streams, data: as in headrace.publish, one entry per event. Empty arrays publish nothing.
events, visible_to: as in headrace.publish, one entry per event; null means null for each.
Raises 22023 for arrays of different lengths, and for an event that is not allowed, with its position; 25006 in a
read-only transaction.';
comment on function headrace.publish_now(text, text, text, text) is
'Publishes one event like headrace.publish, but numbers it at once and returns its id.

For a transaction of its own: the stream stays locked until the transaction ends. Others who number in it at commit, or
call this, wait; two transactions that call this for the same streams in different orders may deadlock (40P01). Where a
shard numbers for all, it passes over the locked stream, and headrace.publish waits for nothing. Events that were
published before with headrace.publish in this transaction come after it.

Returns the id of the event. Raises 22023 for an argument that is not allowed; 25001 in a transaction that is not READ
COMMITTED; 25006 in a read-only transaction.';
comment on function headrace.publish_many_now(text[], text[], text[], text[]) is
'Publishes like headrace.publish_many, but numbers at once and returns the ids. For a transaction of its own.

The streams stay locked until the transaction ends. Two transactions that call this once each do not deadlock, since
the streams are locked in the order of their names.

Returns the ids, in the order of the arrays. Raises like headrace.publish_many, and 25001 in a transaction that is not
READ COMMITTED.';
comment on function headrace.check_many(text[], text[], text[], text[]) is
'Raises 22023 if the arrays of a headrace.publish_many have different lengths, or if an event of theirs is not allowed.';
comment on function headrace.require_read_committed(text) is
'Raises 25001 in a transaction that is not READ COMMITTED. what: the name of the function that numbers at once.';
comment on function headrace.rings(xid8) is
'Whether the row of headrace.payload that is about to be inserted must get the mark `rings`, and so have a trigger.

True for the first row of a transaction, and again after a trigger has fired. True for each row of a SERIALIZABLE
transaction, whose trigger must read nothing: transactions fail for what they have read of each other''s rows. Once in a
session it calls headrace.pass_old_numbers, which costs half as much as an event. For callers that have fixed the search
path. headrace.publish spares most transactions the call.';
comment on function headrace.pass_old_numbers() is
'Where no numbering has begun this database''s incarnation yet, lets headrace.payload.seq go on above all that any other
incarnation has given out.

It waits for no transaction that begins the incarnation, since a publisher would wait for that.';
comment on function headrace.raise_numbers(bigint) is
'Lets headrace.payload.seq go on above up_to; if it is above that already, at least 2^20 higher.

The lock on the row of headrace.epoch keeps two sessions from setting the sequence back. Nobody must hold it until a
transaction ends, since publishers take it, so the function undoes all that it has done but the sequence, which nothing
undoes.';
comment on function headrace.adopt_turns() is
'Leaves the turns that wait, in a log that was restored from a dump or replicated row by row, as turns of the transaction
2: the transactions that left them belong to another server. PostgreSQL gives the id 2 to no transaction.

What waits is told by headrace.event: it has no place there. For headrace.begin_block, while nobody can number.';
comment on function headrace.begin_numbering() is
'What every numbering MUST call before it takes its first stream.

It makes the commit durable, since an event that a client has seen must survive a crash, or its id would be given out
again. It begins an incarnation if need be: locked later, between two streams, the row of headrace.deployment could
deadlock with another numbering.

Returns the incarnation to number in, for headrace.take_one, headrace.take_all and headrace.make_streams.';
comment on function headrace.take_turn() is
'Constraint trigger of headrace.payload: at commit it leaves a turn for each stream of the transaction, or numbers.

It fires earlier by SET CONSTRAINTS and by PREPARE TRANSACTION. A transaction above READ COMMITTED leaves turns, since
its snapshot may be older than what waits in its streams. If nobody is in office, such a transaction wakes a shard.

It makes the commit durable: the seq of an event that a page has shown must survive a crash, or it would be given out
again, and the page''s client would not be sent the event that has it then.';
comment on function headrace.turns_since() is
'The highest number of any turn, as it was when the statement, or COMMIT, first called this. Turns with higher numbers
were taken since then.

The setting headrace.turning, local to the transaction, has the time at which the statement began, and this number.';
comment on function headrace.leave_turns(xid8, bigint) is
'Leaves a turn for each stream in which the transaction own has an event from the seq own_from on.

A transaction that leaves a turn for a stream twice has the later turn, from the earlier from_seq on.';
comment on function headrace.number_own(xid8, bigint) is
'Numbers what waits in the streams of the transaction own, then its own events from the seq own_from on, and notifies.

Events from the next row on that rings are left to that row''s trigger: after RESET ALL a transaction rings twice. A
transaction that has left turns before, while a shard was in office, leaves these events to others as well.';
comment on function headrace.waiting(text[]) is
'The turns that wait in these streams: visible to the calling statement, and not covered by the bound of their stream.

Not the caller''s own.';
comment on function headrace.number_waiting(text[], integer[], bigint[]) is
'Numbers what waits in streams whose rows the caller has locked: in the order of turns, from befores + 1 on.

It raises the heads of the streams by as many, and removes the turns. It MUST be called at READ COMMITTED, so that it
looks after the locks were taken.
streams, stream_ids, befores: by position, from headrace.take_one or headrace.take_all.
Returns befores, raised likewise: the caller''s own events follow.';
comment on function headrace.make_streams(text[], bigint) is
'Makes those of the streams that do not exist. A stream that another transaction is making is left out.';
comment on function headrace.sequence() is
'A round: numbers all turns that have become visible since the last round, except in streams that others have locked.

It waits for nobody. MUST be called at READ COMMITTED, in a transaction of its own.
Returns transactions, how many turns were numbered, or -1 if another session does a round; skipped, how many streams
were passed over; seen, the snapshot up to which all others are numbered.';
comment on function headrace.forget_turns(xid8) is
'Removes turns that rounds have numbered, of transactions from since on.

since: what the last call of this session has returned, so that no call comes across the removed rows that an old
snapshot keeps in the table.';
comment on function headrace.announce(integer[]) is
'Notifies the slots of these streams (their stream_ids) of the heads that this transaction has given out.';
comment on function headrace.defers() is
'Whether a shard is in office, which numbers for this transaction; then it does not leave office for good before this
transaction has ended. Takes the lock `deferring` in share.

Each look at a lock gives back at once what it gets, within one expression, which nothing can interrupt half-way. Not
SECURITY DEFINER and without settings of its own, so that PostgreSQL can inline it; its callers have fixed the search
path.';
comment on function headrace.nobody_defers() is
'Whether no transaction is open that has left its events to a shard in office.';
comment on function headrace.take_office() is
'Makes this session the one that numbers for all, until it leaves office or ends. Returns false if another session is.';
comment on function headrace.leave_office() is
'Ends this session''s office: publishing transactions number at commit from now on.';
comment on function headrace.number_staged() is
'Constraint trigger of headrace.stage, which this version does not write to: transactions that had staged events when the
database was migrated go on as if they had published at their commit.';
comment on table headrace.stage is
'Not used: headrace.payload has taken its place. Events of transactions that were open during the migration.';
comment on table headrace.unannounced is
'Not used: what older versions left to the announcer.';
comment on function headrace.announce_since(pg_snapshot) is
'headrace.sequence, for shards of older versions, which call it when they are in office.';
comment on function headrace.announce_waiting() is
'headrace.sequence, for shards of versions before 0.2.';
comment on function headrace.head(text) is
'The head of a stream: its last id, 0 if nothing was ever published to it.

It is read in the snapshot of the calling statement. The head MUST be read before a page''s data, or in one REPEATABLE
READ transaction with them: then no event is lost, and one that commits at that time may be delivered although the page
shows it already. headrace.watermark is exact.';
comment on function headrace.read_events(text[], bigint[], integer, bigint, bigint) is
'What the streams have after the given ids, all in one snapshot and within a number of bytes. For shards.

streams, after: belong together by position; a null in after asks for the head alone.
max_events, max_bytes (of data): bound the page of each stream; its first event is returned even if it has more bytes.
total_bytes: bounds all pages together, counting 256 bytes for each event beside its data; the first event of the
first page that has any is returned whatever it has.
Returns, for each position, at least one row, whose event columns are null if there is no event; in the order of
ordinal and id:
ordinal: position in streams, from 1.
head: the last id of the stream; 0 for a stream that does not exist.
trimmed_to: events up to this id are no longer kept; 0 if all are.
jumps: {from, to, from, to, …}, the recorded jumps that end above after, in order; null if there are none.
audiences, removed_to: with a trimmed_to above after, the audiences whose events above after were removed, '''' for
events that everybody may see, and the newest of each; null if that is not known.
unread: true in the one row of a stream that has events for which the bytes did not suffice; its id is null.
id, created_at: the event''s place, as in headrace.event.
seq: as in headrace.payload, by which a watermark names an event without an id; null for an event that never was one.
type, data, visible_to: what was published.';
comment on function headrace.read_after(text[], bigint[], integer, bigint, bigint) is
'headrace.read_events without seq, for shards of older versions.';
comment on function headrace.read_after(text[], bigint[], integer, bigint) is
'headrace.read_events without seq, audiences and unread, for shards of versions before 0.3.';
comment on function headrace.stream_removed() is
'Row trigger of headrace.stream: remembers the head of a removed stream in headrace.slot_floor, and removes its events,
their payloads, its marks and jumps. Events without an id are not removed: for them the stream is made again.';
comment on function headrace.streams_truncated() is
'Statement trigger of headrace.stream: what stream_removed does, for TRUNCATE. Raises 25001 in a transaction that is
not READ COMMITTED. Payloads are deleted one by one: publishers use the table, and take locks in the other order.';
comment on column headrace.event.created_at is
'The clock when the id was given out; only retention relies on it.';
comment on function headrace.kept_events() is
'All events that the log has, with the names of their streams. For people, and for the owner of the schema.';
comment on table headrace.epoch is
    'Its row is locked for a moment by headrace.raise_numbers. What is in it is as older numberings left it.';
