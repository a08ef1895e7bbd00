-- The slots of each node: which of them have no live owner, and which shards get them.

local SLOTS = 1024

local function orphans()
  local node, settle_ms, balance = ARGV[6], tonumber(ARGV[7]), ARGV[8] == "1"
  prune()
  redis.call("PEXPIRE", key("node", node), NODE_EXPIRY_MS)
  redis.call("PEXPIRE", key("slots", node), NODE_EXPIRY_MS)
  redis.call("PEXPIRE", key("hot", node), NODE_EXPIRY_MS)
  redis.call("PEXPIRE", key("newcomers", node), NODE_EXPIRY_MS)
  local state = redis.call("HMGET", key("node", node), "joined_ms", "complete")
  local current = epoch()
  if state[2] == current then
    return { {}, {}, {} }
  end
  local settled_ms = state[1] and now_ms() - tonumber(state[1]) or settle_ms
  if settled_ms < 0 then
    -- Redis' clock was set back. The time since a shard joined begins anew, or it might not pass for years.
    redis.call("HSET", key("node", node), "joined_ms", now_ms())
  end
  if settled_ms < settle_ms then
    return { {}, {}, {} }
  end
  local alive, up = {}, {}
  each_shard(function(id, at)
    if at == node and not drained(id) then
      alive[id] = true
      if redis.call("HGET", key("shard", id), "state") == "up" then
        up[#up + 1] = id
      end
    end
  end)
  local owners = {}
  local pairs_ = redis.call("HGETALL", key("slots", node))
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
      redis.call("SREM", key("newcomers", node), id)
    elseif balance and #slots == 0 and redis.call("SISMEMBER", key("newcomers", node), id) == 1 then
      newcomers[#newcomers + 1] = id
    end
  end
  if #slots == 0 and #newcomers == 0 then
    redis.call("HSET", key("node", node), "complete", current)
  end
  return { slots, up, newcomers }
end

local function claim()
  local node, given = ARGV[6], 0
  local at = key("slots", node)
  local states = {}
  local function state(id)
    if states[id] == nil then
      local entry = redis.call("HMGET", key("shard", id), "node", "state")
      states[id] = entry[1] == node and not drained(id) and entry[2] or ""
    end
    return states[id]
  end
  for i = 7, #ARGV, 2 do
    local slot, id = ARGV[i], ARGV[i + 1]
    local owner = redis.call("HGET", at, slot)
    if (not owner or state(owner) == "") and state(id) == "up" then
      redis.call("HSET", at, slot, id)
      given = given + 1
    end
  end
  if given > 0 then
    changed()
  end
  return given
end

local function assign()
  local node, given = ARGV[6], 0
  local at = key("slots", node)
  for i = 7, #ARGV, 2 do
    local slot, id = ARGV[i], ARGV[i + 1]
    local at_node = redis.call("HGET", key("shard", id), "node") == node
    if at_node and not drained(id) and redis.call("HGET", at, slot) ~= id then
      redis.call("HSET", at, slot, id)
      -- A shard that has owned a slot is no newcomer: if an operator takes the slot away again, it stays away.
      redis.call("SREM", key("newcomers", node), id)
      given = given + 1
    end
  end
  if given > 0 then
    changed()
  end
  return given
end

