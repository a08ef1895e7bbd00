-- What shards count: the crowds of streams that may be hot, and the connections of each user and address.

local MOST_HOT = 64

-- Find out which streams are hot on a node: those that lead `high` connections or more, until it is fewer than `low`.
local function weigh(node, crowds, high, low)
  local at = key("hot", node)
  local hot = redis.call("HKEYS", at)
  local streams, hot_now = {}, {}
  for _, stream in ipairs(hot) do
    streams[stream], hot_now[stream] = true, true
  end
  for stream in pairs(crowds) do
    streams[stream] = true
  end
  for stream in pairs(streams) do
    local total = 0
    each_shard(function(id, home)
      if home == node then
        total = total + tonumber(redis.call("HGET", key("crowds", id), stream) or 0)
      end
    end)
    if hot_now[stream] and total < low then
      redis.call("HDEL", at, stream)
      changed()
    elseif hot_now[stream] then
      redis.call("HSET", at, stream, total)
    elseif total >= high and redis.call("HLEN", at) < MOST_HOT then
      redis.call("HSET", at, stream, total)
      changed()
    end
  end
end

-- {"id", "pid", "node", "expiry_ms", "serial": rising, "crowds": {stream: count} or null, "high", "low", "whole": whether
--  `held` is all of it, "held": {who: count, 0 for none}, "arrived": [[who, request id]...], whose connections are in `held`}
local function report()
  local told = cjson.decode(ARGV[6])
  local at = key("held", told.id)
  -- A process and its successor have one id between them, and keys of one name.
  if redis.call("HGET", key("shard", told.id), "pid") ~= told.pid then
    return 0
  end
  -- One that was given up may still be on its way when the next has arrived, and what it tells is true no more.
  local serial = told.serial or 0
  local pid, last = string.match(redis.call("HGET", at, "") or "", "^(%S+) (%d+)$")
  if pid == told.pid and serial > 0 and serial <= tonumber(last) then
    return 1
  end
  if told.whole then
    redis.call("DEL", at)
  end
  local known = told.whole and 1 or redis.call("EXISTS", at)
  if known == 1 then
    redis.call("HSET", at, "", string.format("%s %d", told.pid, serial))
    redis.call("PEXPIRE", at, told.expiry_ms)
    for who, count in pairs(told.held) do
      if count > 0 then
        redis.call("HSET", at, who, count)
      else
        redis.call("HDEL", at, who)
      end
    end
    for _, pair in ipairs(told.arrived) do
      redis.call("ZREM", key("admitted", pair[1]), pair[2])
    end
  end
  if type(told.crowds) == "table" then
    redis.call("DEL", key("crowds", told.id))
    for stream, count in pairs(told.crowds) do
      redis.call("HSET", key("crowds", told.id), stream, count)
    end
    redis.call("PEXPIRE", key("crowds", told.id), told.expiry_ms)
    weigh(told.node, told.crowds, told.high, told.low)
  end
  return known
end

local function admit()
  local request_id, now = ARGV[6], now_ms()
  for i = 7, #ARGV, 2 do
    local who, limit = ARGV[i], tonumber(ARGV[i + 1])
    local at = key("admitted", who)
    redis.call("ZREMRANGEBYSCORE", at, "-inf", now)
    -- A clock that was set back would let what was written before count for longer than it should.
    redis.call("ZREMRANGEBYSCORE", at, "(" .. (now + ADMITTED_MS), "+inf")
    local count = redis.call("ZCARD", at)
    each_shard(function(id)
      count = count + tonumber(redis.call("HGET", key("held", id), who) or 0)
    end)
    if count >= limit then
      return who
    end
  end
  for i = 7, #ARGV, 2 do
    local at = key("admitted", ARGV[i])
    -- The id may be the client's own: one that gives the same id again is no less of a client.
    local member = redis.call("ZSCORE", at, request_id) and request_id .. " " .. seed or request_id
    redis.call("ZADD", at, now + ADMITTED_MS, member)
    redis.call("PEXPIRE", at, ADMITTED_MS)
  end
  return ""
end

local function release()
  for i = 7, #ARGV do
    redis.call("ZREM", key("admitted", ARGV[i]), ARGV[6])
  end
end

