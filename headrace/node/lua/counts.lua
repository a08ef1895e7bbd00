-- What shards count: how many connections the streams lead that may be hot, and how many each limit key has.

local MOST_HOT = 64

-- Find out which streams are hot on a node. A stream becomes hot with `high` connections that it leads there, and stays
-- hot until it leads fewer than `low`.
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

-- ARGV[6] is JSON: the process that reports, and the fields of its ShardReport (headrace/node/shard_report.py):
-- {"id", "pid", "node", "expiry_ms", "serial": number, "crowds": {stream: count} or null, "high": number,
--  "low": number, "whole": boolean, "held": {limit key: count}, "arrived": [[limit key, request id]...]}
local function report()
  local told = cjson.decode(ARGV[6])
  local at = key("held", told.id)
  -- A process and its successor have the same id, and so the same keys.
  if redis.call("HGET", key("shard", told.id), "pid") ~= told.pid then
    return 0
  end
  -- A report that the process has given up may arrive after the next one; its counts are out of date.
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
    for limit_key, count in pairs(told.held) do
      if count > 0 then
        redis.call("HSET", at, limit_key, count)
      else
        redis.call("HDEL", at, limit_key)
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
    local limit_key, limit = ARGV[i], tonumber(ARGV[i + 1])
    local at = key("admitted", limit_key)
    redis.call("ZREMRANGEBYSCORE", at, "-inf", now)
    -- A client that was admitted before Redis' clock was set back would count for too long.
    redis.call("ZREMRANGEBYSCORE", at, "(" .. (now + ADMITTED_MS), "+inf")
    local count = redis.call("ZCARD", at)
    each_shard(function(id)
      count = count + tonumber(redis.call("HGET", key("held", id), limit_key) or 0)
    end)
    if count >= limit then
      return limit_key
    end
  end
  for i = 7, #ARGV, 2 do
    local at = key("admitted", ARGV[i])
    -- The request id may be the client's own choice: another client with the same id counts as well.
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

