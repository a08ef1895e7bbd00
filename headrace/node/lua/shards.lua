-- The shards of the directory: which of them live, which have ended, and which an operator drains.

-- Forget the shards whose entries have expired.
local function prune()
  each_shard(function(id, node)
    if redis.call("EXISTS", key("shard", id)) == 0 then
      redis.call("HDEL", key("shards"), id)
      ended(node, "silent")
      joined(node)
    end
  end)
end

-- Returns {1 if the directory changed, else 0; the identity of the deployment whose directory was taken over, or ""}.
local function register()
  local id, expiry_ms = ARGV[6], ARGV[7]
  local at = key("shard", id)
  local given = {}
  for i = 8, #ARGV, 2 do
    given[ARGV[i]] = ARGV[i + 1]
  end
  local former = other_deployment()
  if former ~= "" then
    if anybody_lives(id, given.pid) then
      return refusal()
    end
    take_over()
  end
  if deployment ~= "" then
    redis.call("SETNX", key("deployment"), deployment)
  end
  local before = redis.call("HMGET", at, "node", "pid", "path", "state")
  local known = before[1] == given.node and before[2] == given.pid and before[3] == given.path
  local same = known and before[4] == given.state
  -- A living entry whose id is not in :shards, or without an epoch beside it, is in a damaged directory. Registering
  -- mends it.
  local listed = redis.call("HSET", key("shards"), id, given.node) == 0
  local begun = redis.call("EXISTS", key("epoch")) == 1
  -- The hash is replaced as a whole, so that no field stays that only another process of this id knows.
  redis.call("DEL", at)
  redis.call("HSET", at, unpack(ARGV, 8))
  redis.call("PEXPIRE", at, expiry_ms)
  if not before[1] then
    redis.call("SADD", key("newcomers", given.node), id)
  end
  if before[1] and before[2] ~= given.pid then
    ended(before[1], "replaced")
  elseif not before[1] and listed then
    ended(given.node, "silent")
  end
  -- A directory that was emptied learns from the shards which of them, and which nodes, operators drain. A directory
  -- that was not emptied is right where a shard that was cut off from it wishes otherwise.
  local emptied = string.match(given.settled or "", "^%S+") ~= redis.call("HGET", key("epoch"), "generation")
  if not before[1] and emptied and given.wish == "shard" then
    redis.call("SADD", key("drained"), id)
  elseif not before[1] and emptied and given.wish and given.wish ~= "" then
    redis.call("HSETNX", key("drained:nodes"), given.node, given.wish)
  end
  if same and listed and begun then
    return { 0, former }
  end
  joined(given.node)
  return { 1, former }
end

-- Remove the keys that a process has written, unless another process of its id has written them since; returns the
-- process's node, or nil if nothing was removed.
local function removed(id, pid)
  local entry = redis.call("HMGET", key("shard", id), "pid", "node")
  if entry[1] ~= pid then
    return nil
  end
  redis.call("DEL", key("shard", id), key("crowds", id), key("held", id))
  redis.call("HDEL", key("shards"), id)
  return entry[2]
end

local function leave()
  local node = removed(ARGV[6], ARGV[7])
  if node then
    ended(node, "stopped")
    joined(node)
  end
  return node and 1 or 0
end

-- No time passes before the slots of a dead shard can be claimed, unlike those of a shard that leaves.
local function bury()
  local node = removed(ARGV[6], ARGV[7])
  if node then
    ended(node, "died")
    changed()
  end
  return node and 1 or 0
end

local function mark()
  if redis.call("SADD", key("drained"), ARGV[6]) == 1 then
    changed()
  end
end

local function unmark()
  if redis.call("SREM", key("drained"), ARGV[6]) == 1 then
    changed()
  end
end

local function mark_node()
  if redis.call("HSET", key("drained:nodes"), ARGV[6], ARGV[7]) == 1 then
    changed()
  end
end

local function unmark_node()
  if redis.call("HDEL", key("drained:nodes"), ARGV[6]) == 1 then
    changed()
  end
end
