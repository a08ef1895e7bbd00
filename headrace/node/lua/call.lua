-- How the directory is called. ARGV[1] is the command; ARGV[2] is random hex, the generation to begin if there is none;
-- ARGV[3] is the prefix of the keys; ARGV[4] is the number of the database; ARGV[5] is the identity of the deployment
-- in whose name the call is, "" where the caller does not know it. The arguments of each command are ARGV[6] and
-- following:
--
--   register  id expiry_ms (field value)...   returns {1 if the directory changed, else 0; whose directory was taken
--                                                      over, else ""}
--   leave     id pid                          returns 1 if the entry was that process's, else 0
--   bury      id pid                          the same for a process that was found dead
--   orphans   node settle_ms balance          returns {{slot...}, {id of each shard of the node that is up...},
--                                                      {id of each newcomer among these..., none unless balance is 1}}
--   claim     node (slot id)...               returns how many slots were given
--   drain     id                              marks the shard as drained by an operator
--   undrain   id                              takes the mark away
--   assign    node (slot id)...               returns how many slots have a new owner
--   drain_node    node over_s                 marks the whole node as drained by an operator
--   undrain_node  node                        takes the mark away
--   report    json                            what a shard counts, see report(); returns 0 if `held` must be sent
--                                             whole, else 1
--   admit     request_id (limit_key limit)... admits a client, which counts from now on; or returns the first limit key
--                                             that has as many connections as its limit already, else ""
--   release   request_id limit_key...         no shard has accepted the client after all: it counts no more
--   turn      what hold_ms                    returns 1 if it is the caller's turn, then nobody else's for hold_ms;
--                                             else 0
--   hold      what who hold_ms                returns 1 if nobody else holds it, then it is who's for hold_ms, for which
--                                             who may ask again; else 0. hold_ms of 0 gives it up
--   end_session   id life_ms                  remembers for so long that a session of the operations page was ended
--   session_ended id                          returns 1 if the session was ended, else 0
--   occupant                                  returns the identity of another deployment that has living shards here,
--                                             or ""
--   read      epoch (node id)                 returns {generation, count, {{id, field, value...}...},
--                                                      {{node, slot, id...}...}, {drained id...},
--                                                      {drained node, over_s...}, {{node, hot stream, count...}...},
--                                                      {{node, stopped, died, silent, replaced}...},
--                                                      how many shards of all nodes are registered},
--                                                      without the slots if the directory is still in that epoch;
--                                                      with a node, of that node and of the shard with this id alone

local function turn()
  return redis.call("SET", key("turn", ARGV[6]), "1", "NX", "PX", ARGV[7]) and 1 or 0
end

local function hold()
  local held = key("held_by", ARGV[6])
  local holder = redis.call("GET", held)
  if holder and holder ~= ARGV[7] then
    return 0
  end
  if ARGV[8] == "0" then
    redis.call("DEL", held)
  else
    redis.call("SET", held, ARGV[7], "PX", ARGV[8])
  end
  return 1
end

local function end_session()
  redis.call("SET", key("ended", ARGV[6]), "1", "PX", ARGV[7])
end

local function session_ended()
  return redis.call("EXISTS", key("ended", ARGV[6]))
end

local function occupant()
  return anybody_lives() and other_deployment() or ""
end

local function read()
  -- In a Redis that refuses writes the entries of living shards expire: the directory cannot be believed.
  local written = redis.pcall("SET", key("written"), "1", "PX", ADMITTED_MS)
  if written.err then
    return written
  end
  local head = redis.call("HMGET", key("epoch"), "generation", "count")
  local generation, count = head[1] or "", tonumber(head[2] or 0)
  local shards, tables, nodes, hot, ends = {}, {}, {}, {}, {}
  each_shard(function(id, node)
    local wanted = not ARGV[7] or node == ARGV[7] or id == ARGV[8]
    local entry = wanted and redis.call("HGETALL", key("shard", id)) or {}
    if #entry > 0 then
      table.insert(entry, 1, id)
      shards[#shards + 1] = entry
      nodes[node] = true
    end
  end)
  if generation .. " " .. count ~= ARGV[6] then
    for node in pairs(nodes) do
      local slots = redis.call("HGETALL", key("slots", node))
      table.insert(slots, 1, node)
      tables[#tables + 1] = slots
    end
  end
  for node in pairs(nodes) do
    local streams = redis.call("HGETALL", key("hot", node))
    table.insert(streams, 1, node)
    hot[#hot + 1] = streams
    local counts = redis.call("HMGET", key("node", node), "stopped", "died", "silent", "replaced")
    ends[#ends + 1] = { node, counts[1] or 0, counts[2] or 0, counts[3] or 0, counts[4] or 0 }
  end
  local drained_nodes = redis.call("HGETALL", key("drained:nodes"))
  return { generation, count, shards, tables, redis.call("SMEMBERS", key("drained")), drained_nodes, hot, ends, redis.call("HLEN", key("shards")) }
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
  hold = hold,
  end_session = end_session,
  session_ended = session_ended,
  occupant = occupant,
  read = read,
}
-- `register` and `occupant` find out by themselves whether the other deployment still has a living shard.
if command ~= "register" and command ~= "occupant" and other_deployment() ~= "" then
  return refusal()
end
return commands[command]()
