-- The directory of shards in Redis: who serves what on which node. Its five files are one script; this is the first.
--
-- Every key, with its shape; each begins with the prefix, `headrace` unless it is set:
--
--   :deployment       string  the identity of the deployment whose directory this is, set by its first shard. As long as
--                             a shard of it lives, every call in the name of another deployment is refused
--   :epoch            hash    generation   random hex, made by the first writer that finds none
--                             count        changes of the directory in this generation
--   :shards           hash    id of each registered shard -> its node; one whose entry has expired is dead and is removed
--                             at the next claim
--   :shard:<id>       hash    the fields of ShardEntry, in headrace/node/shard_entry.py, but its id; all text.
--                             Expires: each register() is one heartbeat
--   :crowds:<id>      hash    stream -> connections that it leads on this shard: the hot streams of its node, and those
--                             that may become hot; at most 128. Written anew by each report; expires like the entry
--   :held:<id>        hash    who -> connections that it has on this shard, who being `user:<name>` or `address:<host>`;
--                             and "" -> "<pid> <serial>" of the last report. Changed by each report; expires like the
--                             entry
--   :admitted:<who>   zset    request id -> until when (ms) it counts, of clients that a router has let in and no shard
--                             has counted yet; at most as many as the limit. Expires 10 s after the last
--   :slots:<node>     hash    slot number -> id of the shard that owns it on that node. Expires a day after the node's
--                             last claim, since nodes may have a new name each time
--   :hot:<node>       hash    hot stream -> connections that it leads on that node, at most 64. Expires with the slots
--   :newcomers:<node> set     ids of shards that have appeared on the node and not owned a slot since. Expires with the
--                             slots
--   :drained          set     ids of the shards that an operator wants without clients
--   :drained:nodes    hash    node that an operator wants without clients -> over how many seconds they leave
--   :node:<node>      hash    joined_ms    when a shard of this node last appeared, left, died or changed
--                             complete     the epoch ("<generation> <count>") in which every slot was last found to have
--                                          a live owner; unless the epoch has moved since, there is nothing to claim
--                             stopped      shards of this node that have left,
--                             died         were found dead by another,
--                             silent       whose entry has expired, since they said nothing for so long, and
--                             replaced     whose entry another process of their id has overwritten, ever
--                             Expires with the slots
--   :turn:<what>      string  "1" while somebody has had the turn to do it. Expires when it is the next one's
--   :ended:<id>       string  "1" for a session of the operations page that was ended. Expires when the session would
--   :written          string  "1", written by each reading to see whether Redis takes writes. Expires
--   :changes:<db>     channel "<generation> <count>" after each change, a hint to read again. Channels are the same in
--                             all databases of a server, so its number is in the name
--   :changes          channel the same, for processes of versions before 0.3
--
-- :epoch never expires: without it, Redis was emptied. A slot table changes only together with the epoch.

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

-- A shard's process has ended, in one of the four ways.
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

-- The other deployment whose directory this is, "" for none.
local function other_deployment()
  local holder = redis.call("GET", key("deployment")) or ""
  return deployment ~= "" and holder ~= deployment and holder or ""
end

-- Whether a registered process lives, but for the one with this id and pid.
local function anybody_lives(but_id, but_pid)
  local lives = false
  each_shard(function(id)
    local pid = redis.call("HGET", key("shard", id), "pid")
    lives = lives or pid and not (id == but_id and pid == but_pid)
  end)
  return lives
end

-- Why a call in the name of this deployment is refused, as an error that the caller knows by its first word.
local function refusal()
  return redis.error_reply("FOREIGN " .. other_deployment())
end

-- Take over what a deployment without a living shard has left, with nothing that was in it. What is named after shards
-- has expired with them, or is about to.
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
