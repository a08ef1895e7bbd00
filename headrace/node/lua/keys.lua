-- The directory of shards in Redis: which shard serves which slots on which node. The five files of this folder are one
-- script; this is the first.
--
-- Every key, with its shape; each begins with the prefix, `headrace` unless it is set:
--
--   :deployment       string  the identity of the deployment whose directory this is, set by its first shard. As long
--                             as a shard of that deployment lives, every call in the name of another is refused
--   :epoch            hash    generation   random hex, made by the first writer that finds none
--                             count        how many changes the directory has had in this generation
--   :shards           hash    id of each registered shard -> its node. A shard whose entry has expired is dead; its id
--                             is removed at the next claim
--   :shard:<id>       hash    the shard's entry: the fields of ShardEntry (headrace/node/shard_entry.py) without the
--                             id, all of them text. Expires unless register() writes it again in time
--   :crowds:<id>      hash    stream -> how many connections the stream leads on this shard, for the hot streams of the
--                             shard's node and for streams that may become hot; at most 128. Each report writes it
--                             anew; expires like the entry
--   :held:<id>        hash    limit key -> how many connections it has on this shard; a limit key is `user:<name>` or
--                             `address:<host>`. And "" -> "<pid> <serial>" of the last report. Each report changes it;
--                             expires like the entry
--   :admitted:<key>   zset    for a limit key: request id -> until when (ms) the client counts that a router has
--                             admitted and no shard has counted yet; at most as many as the limit. Expires 10 s after
--                             the last
--   :slots:<node>     hash    slot number -> id of the shard that owns the slot on that node. Expires a day after the
--                             node's last claim, since nodes may have a new name each time
--   :hot:<node>       hash    hot stream -> how many connections it leads on that node, at most 64. Expires with the
--                             slots
--   :newcomers:<node> set     ids of shards that have appeared on the node and have owned no slot since. Expires with
--                             the slots
--   :drained          set     ids of the shards that an operator drains
--   :drained:nodes    hash    node that an operator drains -> over how many seconds its clients are to leave
--   :node:<node>      hash    joined_ms    when a shard of this node last appeared, left, died or changed
--                             complete     the epoch ("<generation> <count>") in which every slot was last found to
--                                          have a live owner; in that epoch there is nothing to claim
--                             stopped, died, silent, replaced
--                                          how many shards' processes of this node have ever ended in which way: it
--                                          left; another shard found it dead; its entry expired, since it said nothing
--                                          for so long; another process of its id overwrote its entry
--                             Expires with the slots
--   :turn:<what>      string  "1" after a process has had the turn to do it. Expires when the next process may
--   :held_by:<what>   string  who holds it alone, which says so again before this expires
--   :ended:<id>       string  "1" for a session of the operations page that was ended. Expires when the session would
--   :written          string  "1", written by each read() to see whether Redis takes writes. Expires
--   :changes:<db>     channel "<generation> <count>" after each change: a hint to read again. Channels are the same in
--                             all databases of a server, so the database's number is in the name
--   :bus:<db>:<name>  channels of the bus, which the script does not touch: see shard/bus/bulletin.py
--   :changes          channel the same, for processes of versions before 0.3
--
-- :epoch never expires: where it is missing, Redis was emptied. A node's slots change only together with the epoch.

local NODE_EXPIRY_MS = 86400000
local ADMITTED_MS = 10000

local command, seed, prefix, database, deployment = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]

local function key(...)
  return prefix .. ":" .. table.concat({ ... }, ":")
end

local function now_ms()
  local time = redis.call("TIME")
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function epoch()
  local generation = redis.call("HGET", key("epoch"), "generation")
  if not generation then
    generation = seed
    redis.call("HSET", key("epoch"), "generation", generation, "count", 0)
  end
  return generation .. " " .. redis.call("HGET", key("epoch"), "count")
end

local function changed()
  epoch()
  redis.call("HINCRBY", key("epoch"), "count", 1)
  redis.call("PUBLISH", key("changes", database), epoch())
  redis.call("PUBLISH", key("changes"), epoch())
end

local function drained(id)
  return redis.call("SISMEMBER", key("drained"), id) == 1
end

-- Count that a shard's process of the node has ended in one of the four ways.
local function ended(node, how)
  redis.call("HINCRBY", key("node", node), how, 1)
end

local function joined(node)
  redis.call("HSET", key("node", node), "joined_ms", now_ms())
  changed()
end

-- Call action(id, node) for each registered shard.
local function each_shard(action)
  local shards = redis.call("HGETALL", key("shards"))
  for i = 1, #shards, 2 do
    action(shards[i], shards[i + 1])
  end
end

-- The identity of the other deployment that this directory belongs to, "" where it is the caller's or nobody's.
local function other_deployment()
  local owner = redis.call("GET", key("deployment")) or ""
  return deployment ~= "" and owner ~= deployment and owner or ""
end

-- Whether a registered process lives, other than the process with this id and pid.
local function anybody_lives(but_id, but_pid)
  local lives = false
  each_shard(function(id)
    local pid = redis.call("HGET", key("shard", id), "pid")
    lives = lives or pid and not (id == but_id and pid == but_pid)
  end)
  return lives
end

-- The error for a call in the name of this deployment, which the caller knows by its first word.
local function refusal()
  return redis.error_reply("FOREIGN " .. other_deployment())
end

-- Empty the directory of a deployment that has no living shard, so that the caller's deployment can begin anew in it.
-- Keys that are named after shards have expired with the shards' entries, or are about to.
local function take_over()
  local nodes = redis.call("HKEYS", key("drained:nodes"))
  each_shard(function(_, node)
    nodes[#nodes + 1] = node
  end)
  for _, node in ipairs(nodes) do
    redis.call("DEL", key("node", node), key("slots", node), key("hot", node), key("newcomers", node))
  end
  redis.call("DEL", key("epoch"), key("shards"), key("drained"), key("drained:nodes"), key("deployment"))
end
