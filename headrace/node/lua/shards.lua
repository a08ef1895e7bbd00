-- The shards of the directory: who lives, who has ended, and whom an operator wants without clients.

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

-- Returns {1 if the directory changed, else 0; the deployment that has left its directory to this one, "" for none}.
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
  -- Without its id or an epoch beside a living entry the directory is damaged; registering mends it.
  local listed = redis.call("HSET", key("shards"), id, given.node) == 0
  local begun = redis.call("EXISTS", key("epoch")) == 1
  -- Whole: no field stays of another process that knows more of them.
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
  -- A directory that was emptied learns what operators want from those who knew. One that was not knows better than
  -- a shard that was cut off from it.
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

-- Remove what a process has written, unless it is another's by now; returns its node, or nil.
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

-- Unlike a shard that leaves, one that was found dead is not waited for: its slots can be claimed at once.
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
