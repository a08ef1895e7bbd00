-- The directory of shards in Redis: who serves what on which node.
--
-- Every key, with its shape:
--
--   headrace:epoch          hash    generation   random hex, made by the first writer that finds none
--                                   count        changes of the directory in this generation
--   headrace:shards         hash    id of each registered shard -> its node; one whose entry has expired is dead
--                                   and is removed at the next claim
--   headrace:shard:<id>     hash    node, pid, path, state, capacity, connections, streams, version, lag_s,
--                                   last_error, moving, settled, born, started_ms, events_s, deliveries_s, targets, wish,
--                                   database_error, canary, latency_p50_ms, latency_p99_ms, blocked, slowest (all text).
--                                   Expires: each register() is one heartbeat
--   headrace:crowds:<id>    hash    stream -> connections that it leads on this shard: the hot streams of its node, and
--                                   those that may become hot; at most 128. Written anew by each report; expires like
--                                   the entry
--   headrace:held:<id>      hash    who -> connections that it has on this shard, who being `user:<name>` or
--                                   `address:<host>`; and "" -> "<pid> <serial>" of the last report. Changed by each
--                                   report; expires like the entry
--   headrace:admitted:<who> zset    request id -> until when (ms) it counts, of clients that a router has let in and no
--                                   shard has counted yet; at most as many as the limit. Expires 10 s after the last
--   headrace:slots:<node>   hash    slot number -> id of the shard that owns it on that node. Expires a day after
--                                   the node's last claim, since nodes may have a new name each time
--   headrace:hot:<node>     hash    hot stream -> connections that it leads on that node, at most 64. Expires with the
--                                   slots
--   headrace:newcomers:<node>   set    ids of shards that have appeared on the node and not owned a slot since. Expires
--                                   with the slots
--   headrace:drained        set     ids of the shards that an operator wants without clients
--   headrace:drained:nodes  hash    node that an operator wants without clients -> over how many seconds they leave
--   headrace:node:<node>    hash    joined_ms    when a shard of this node last appeared, left, died or changed
--                                   complete     the epoch ("<generation> <count>") in which every slot was last
--                                                found to have a live owner; unless the epoch has moved since,
--                                                there is nothing to claim
--                                   stopped      shards of this node that have left,
--                                   died         were found dead by another,
--                                   silent       whose entry has expired, since they said nothing for so long, and
--                                   replaced     whose entry another process of their id has overwritten, ever
--                                   Expires with the slots
--   headrace:turn:<what>    string  "1" while somebody has had the turn to do it. Expires when it is the next one's
--   headrace:changes        channel "<generation> <count>" after each change, a hint to read again
--
-- headrace:epoch never expires: without it, Redis was emptied. A slot table changes only together with the epoch.
--
-- Called with the command in ARGV[1]. ARGV[2] is random hex, the generation to begin if there is none.
--
--   register  id expiry_ms (field value)...   returns 1 if the directory changed, else 0
--   leave     id pid                          returns 1 if the entry was this process's, else 0
--   bury      id pid                          the same for a process that was found dead
--   orphans   node settle_ms balance          returns {{slot...}, {id of each shard of the node that is up...},
--                                                      {id of each newcomer among these; none unless balance is 1...}}
--   claim     node (slot id)...               returns how many slots were given
--   drain     id                              marks the shard drained
--   undrain   id                              takes the mark away
--   assign    node (slot id)...               returns how many slots have a new owner
--   drain_node    node over_s                 marks all of the node drained
--   undrain_node  node                        takes the mark away
--   report    json                            counts of a shard, see report() below; returns 0 if `held` must be sent
--                                             whole, else 1
--   admit     request_id (who limit)...       lets a client in, counted from now on; returns the first who that has
--                                             as many as its limit already, else ""
--   release   request_id who...               it was not taken after all
--   turn      what hold_ms                    returns 1 if it is the caller's turn, and nobody else's for hold_ms
--   read      epoch                           returns {generation, count, {{id, field, value...}...},
--                                                      {{node, slot, id...}...}, {drained id...},
--                                                      {drained node, over_s...}, {{node, hot stream, count...}...},
--                                                      {{node, stopped, died, silent, replaced}...}},
--                                                      without the slots if the directory is still in that epoch

local SLOTS = 1024
local NODE_EXPIRY_MS = 86400000
local ADMITTED_MS = 10000
local MOST_HOT = 64

local command, seed = ARGV[1], ARGV[2]

local function entry_key(id)
  return "headrace:shard:" .. id
end

local function crowds_key(id)
  return "headrace:crowds:" .. id
end

local function held_key(id)
  return "headrace:held:" .. id
end

local function newcomers_key(node)
  return "headrace:newcomers:" .. node
end

local function now_ms()
  local time = redis.call("TIME")
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function epoch()
  local generation = redis.call("HGET", "headrace:epoch", "generation")
  if not generation then
    generation = seed
    redis.call("HSET", "headrace:epoch", "generation", generation, "count", 0)
  end
  return generation .. " " .. redis.call("HGET", "headrace:epoch", "count")
end

local function changed()
  epoch()
  redis.call("HINCRBY", "headrace:epoch", "count", 1)
  redis.call("PUBLISH", "headrace:changes", epoch())
end

local function drained(id)
  return redis.call("SISMEMBER", "headrace:drained", id) == 1
end

-- A shard's process has ended, in one of the four ways.
local function ended(node, how)
  redis.call("HINCRBY", "headrace:node:" .. node, how, 1)
end

local function joined(node)
  redis.call("HSET", "headrace:node:" .. node, "joined_ms", now_ms())
  changed()
end

-- Call action(id, node) for each registered shard.
local function each_shard(action)
  local shards = redis.call("HGETALL", "headrace:shards")
  for i = 1, #shards, 2 do
    action(shards[i], shards[i + 1])
  end
end

-- Forget the shards whose entries have expired.
local function prune()
  each_shard(function(id, node)
    if redis.call("EXISTS", entry_key(id)) == 0 then
      redis.call("HDEL", "headrace:shards", id)
      ended(node, "silent")
      joined(node)
    end
  end)
end

local function register()
  local id, expiry_ms = ARGV[3], ARGV[4]
  local key = entry_key(id)
  local given = {}
  for i = 5, #ARGV, 2 do
    given[ARGV[i]] = ARGV[i + 1]
  end
  local before = redis.call("HMGET", key, "node", "pid", "path", "state")
  local known = before[1] == given.node and before[2] == given.pid and before[3] == given.path
  local same = known and before[4] == given.state
  -- Without its id or an epoch beside a living entry the directory is damaged; registering mends it.
  local listed = redis.call("HSET", "headrace:shards", id, given.node) == 0
  local begun = redis.call("EXISTS", "headrace:epoch") == 1
  -- Whole: no field stays of another process that knows more of them.
  redis.call("DEL", key)
  redis.call("HSET", key, unpack(ARGV, 5))
  redis.call("PEXPIRE", key, expiry_ms)
  if not before[1] then
    redis.call("SADD", newcomers_key(given.node), id)
  end
  if before[1] and before[2] ~= given.pid then
    ended(before[1], "replaced")
  elseif not before[1] and listed then
    ended(given.node, "silent")
  end
  -- A directory that was emptied learns what operators want from those who knew. One that was not knows better than
  -- a shard that was cut off from it.
  local emptied = string.match(given.settled or "", "^%S+") ~= redis.call("HGET", "headrace:epoch", "generation")
  if not before[1] and emptied and given.wish == "shard" then
    redis.call("SADD", "headrace:drained", id)
  elseif not before[1] and emptied and given.wish and given.wish ~= "" then
    redis.call("HSETNX", "headrace:drained:nodes", given.node, given.wish)
  end
  if same and listed and begun then
    return 0
  end
  joined(given.node)
  return 1
end

-- Remove what a process has written, unless it is another's by now; returns its node, or nil.
local function removed(id, pid)
  local entry = redis.call("HMGET", entry_key(id), "pid", "node")
  if entry[1] ~= pid then
    return nil
  end
  redis.call("DEL", entry_key(id), crowds_key(id), held_key(id))
  redis.call("HDEL", "headrace:shards", id)
  return entry[2]
end

local function leave()
  local node = removed(ARGV[3], ARGV[4])
  if node then
    ended(node, "stopped")
    joined(node)
  end
  return node and 1 or 0
end

-- Unlike a shard that leaves, one that was found dead is not waited for: its slots can be claimed at once.
local function bury()
  local node = removed(ARGV[3], ARGV[4])
  if node then
    ended(node, "died")
    changed()
  end
  return node and 1 or 0
end

local function orphans()
  local node, settle_ms, balance = ARGV[3], tonumber(ARGV[4]), ARGV[5] == "1"
  prune()
  redis.call("PEXPIRE", "headrace:node:" .. node, NODE_EXPIRY_MS)
  redis.call("PEXPIRE", "headrace:slots:" .. node, NODE_EXPIRY_MS)
  redis.call("PEXPIRE", "headrace:hot:" .. node, NODE_EXPIRY_MS)
  redis.call("PEXPIRE", newcomers_key(node), NODE_EXPIRY_MS)
  local state = redis.call("HMGET", "headrace:node:" .. node, "joined_ms", "complete")
  local current = epoch()
  if state[2] == current then
    return { {}, {}, {} }
  end
  local settled_ms = state[1] and now_ms() - tonumber(state[1]) or settle_ms
  if settled_ms < 0 then
    -- The clock was set back; waiting for it to get there again could take for ever.
    redis.call("HSET", "headrace:node:" .. node, "joined_ms", now_ms())
  end
  if settled_ms < settle_ms then
    return { {}, {}, {} }
  end
  local alive, up = {}, {}
  each_shard(function(id, at)
    if at == node and not drained(id) then
      alive[id] = true
      if redis.call("HGET", entry_key(id), "state") == "up" then
        up[#up + 1] = id
      end
    end
  end)
  local owners = {}
  local pairs_ = redis.call("HGETALL", "headrace:slots:" .. node)
  for i = 1, #pairs_, 2 do
    owners[tonumber(pairs_[i])] = pairs_[i + 1]
  end
  local slots, owning = {}, {}
  for slot = 0, SLOTS - 1 do
    local owner = owners[slot] or false
    if alive[owner] then
      owning[owner] = true
    else
      slots[#slots + 1] = slot
    end
  end
  local newcomers = {}
  for _, id in ipairs(up) do
    if owning[id] then
      redis.call("SREM", newcomers_key(node), id)
    elseif balance and #slots == 0 and redis.call("SISMEMBER", newcomers_key(node), id) == 1 then
      newcomers[#newcomers + 1] = id
    end
  end
  if #slots == 0 and #newcomers == 0 then
    redis.call("HSET", "headrace:node:" .. node, "complete", current)
  end
  return { slots, up, newcomers }
end

local function claim()
  local node, given = ARGV[3], 0
  local key = "headrace:slots:" .. node
  local states = {}
  local function state(id)
    if states[id] == nil then
      local entry = redis.call("HMGET", entry_key(id), "node", "state")
      states[id] = entry[1] == node and not drained(id) and entry[2] or ""
    end
    return states[id]
  end
  for i = 4, #ARGV, 2 do
    local slot, id = ARGV[i], ARGV[i + 1]
    local owner = redis.call("HGET", key, slot)
    if (not owner or state(owner) == "") and state(id) == "up" then
      redis.call("HSET", key, slot, id)
      given = given + 1
    end
  end
  if given > 0 then
    changed()
  end
  return given
end

local function mark()
  if redis.call("SADD", "headrace:drained", ARGV[3]) == 1 then
    changed()
  end
end

local function unmark()
  if redis.call("SREM", "headrace:drained", ARGV[3]) == 1 then
    changed()
  end
end

local function mark_node()
  if redis.call("HSET", "headrace:drained:nodes", ARGV[3], ARGV[4]) == 1 then
    changed()
  end
end

local function unmark_node()
  if redis.call("HDEL", "headrace:drained:nodes", ARGV[3]) == 1 then
    changed()
  end
end

-- Find out which streams are hot on a node: those that lead `high` connections or more, until it is fewer than `low`.
local function weigh(node, crowds, high, low)
  local key = "headrace:hot:" .. node
  local hot = redis.call("HKEYS", key)
  local streams, hot_now = {}, {}
  for _, stream in ipairs(hot) do
    streams[stream], hot_now[stream] = true, true
  end
  for stream in pairs(crowds) do
    streams[stream] = true
  end
  for stream in pairs(streams) do
    local total = 0
    each_shard(function(id, at)
      if at == node then
        total = total + tonumber(redis.call("HGET", crowds_key(id), stream) or 0)
      end
    end)
    if hot_now[stream] and total < low then
      redis.call("HDEL", key, stream)
      changed()
    elseif hot_now[stream] then
      redis.call("HSET", key, stream, total)
    elseif total >= high and redis.call("HLEN", key) < MOST_HOT then
      redis.call("HSET", key, stream, total)
      changed()
    end
  end
end

-- {"id", "pid", "node", "expiry_ms", "serial": rising, "crowds": {stream: count} or null, "high", "low", "whole": whether
--  `held` is all of it, "held": {who: count, 0 for none}, "arrived": [[who, request id]...], whose connections are in `held`}
local function report()
  local told = cjson.decode(ARGV[3])
  local key = held_key(told.id)
  -- A process and its successor have one id between them, and keys of one name.
  if redis.call("HGET", entry_key(told.id), "pid") ~= told.pid then
    return 0
  end
  -- One that was given up may still be on its way when the next has arrived, and what it tells is true no more.
  local serial = told.serial or 0
  local pid, last = string.match(redis.call("HGET", key, "") or "", "^(%S+) (%d+)$")
  if pid == told.pid and serial > 0 and serial <= tonumber(last) then
    return 1
  end
  if told.whole then
    redis.call("DEL", key)
  end
  local known = told.whole and 1 or redis.call("EXISTS", key)
  if known == 1 then
    redis.call("HSET", key, "", string.format("%s %d", told.pid, serial))
    redis.call("PEXPIRE", key, told.expiry_ms)
    for who, count in pairs(told.held) do
      if count > 0 then
        redis.call("HSET", key, who, count)
      else
        redis.call("HDEL", key, who)
      end
    end
    for _, pair in ipairs(told.arrived) do
      redis.call("ZREM", "headrace:admitted:" .. pair[1], pair[2])
    end
  end
  if type(told.crowds) == "table" then
    redis.call("DEL", crowds_key(told.id))
    for stream, count in pairs(told.crowds) do
      redis.call("HSET", crowds_key(told.id), stream, count)
    end
    redis.call("PEXPIRE", crowds_key(told.id), told.expiry_ms)
    weigh(told.node, told.crowds, told.high, told.low)
  end
  return known
end

local function admit()
  local request_id, now = ARGV[3], now_ms()
  for i = 4, #ARGV, 2 do
    local who, limit = ARGV[i], tonumber(ARGV[i + 1])
    local key = "headrace:admitted:" .. who
    redis.call("ZREMRANGEBYSCORE", key, "-inf", now)
    -- A clock that was set back would let what was written before count for longer than it should.
    redis.call("ZREMRANGEBYSCORE", key, "(" .. (now + ADMITTED_MS), "+inf")
    local count = redis.call("ZCARD", key)
    each_shard(function(id)
      count = count + tonumber(redis.call("HGET", held_key(id), who) or 0)
    end)
    if count >= limit then
      return who
    end
  end
  for i = 4, #ARGV, 2 do
    local key = "headrace:admitted:" .. ARGV[i]
    -- The id may be the client's own: one that gives the same id again is no less of a client.
    local member = redis.call("ZSCORE", key, request_id) and request_id .. " " .. seed or request_id
    redis.call("ZADD", key, now + ADMITTED_MS, member)
    redis.call("PEXPIRE", key, ADMITTED_MS)
  end
  return ""
end

local function release()
  for i = 4, #ARGV do
    redis.call("ZREM", "headrace:admitted:" .. ARGV[i], ARGV[3])
  end
end

local function assign()
  local node, given = ARGV[3], 0
  local key = "headrace:slots:" .. node
  for i = 4, #ARGV, 2 do
    local slot, id = ARGV[i], ARGV[i + 1]
    local at_node = redis.call("HGET", entry_key(id), "node") == node
    if at_node and not drained(id) and redis.call("HGET", key, slot) ~= id then
      redis.call("HSET", key, slot, id)
      -- Whoever was given a slot by an operator and loses it again is not to be given it back.
      redis.call("SREM", newcomers_key(node), id)
      given = given + 1
    end
  end
  if given > 0 then
    changed()
  end
  return given
end

local function turn()
  return redis.call("SET", "headrace:turn:" .. ARGV[3], "1", "NX", "PX", ARGV[4]) and 1 or 0
end

local function read()
  local head = redis.call("HMGET", "headrace:epoch", "generation", "count")
  local generation, count = head[1] or "", tonumber(head[2] or 0)
  local shards, tables, nodes, hot, ends = {}, {}, {}, {}, {}
  each_shard(function(id, node)
    local entry = redis.call("HGETALL", entry_key(id))
    if #entry > 0 then
      table.insert(entry, 1, id)
      shards[#shards + 1] = entry
      nodes[node] = true
    end
  end)
  if generation .. " " .. count ~= ARGV[3] then
    for node in pairs(nodes) do
      local slots = redis.call("HGETALL", "headrace:slots:" .. node)
      table.insert(slots, 1, node)
      tables[#tables + 1] = slots
    end
  end
  for node in pairs(nodes) do
    local streams = redis.call("HGETALL", "headrace:hot:" .. node)
    table.insert(streams, 1, node)
    hot[#hot + 1] = streams
    local counts = redis.call("HMGET", "headrace:node:" .. node, "stopped", "died", "silent", "replaced")
    ends[#ends + 1] = { node, counts[1] or 0, counts[2] or 0, counts[3] or 0, counts[4] or 0 }
  end
  local drained_nodes = redis.call("HGETALL", "headrace:drained:nodes")
  return { generation, count, shards, tables, redis.call("SMEMBERS", "headrace:drained"), drained_nodes, hot, ends }
end

local commands = {
  register = register,
  leave = leave,
  bury = bury,
  orphans = orphans,
  claim = claim,
  drain = mark,
  undrain = unmark,
  drain_node = mark_node,
  undrain_node = unmark_node,
  report = report,
  admit = admit,
  release = release,
  assign = assign,
  turn = turn,
  read = read,
}
return commands[command]()
