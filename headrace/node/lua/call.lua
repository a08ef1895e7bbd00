-- How the directory is called: the command in ARGV[1]; in ARGV[2] random hex, the generation to begin if there is none;
-- in ARGV[3] the prefix of the keys, in ARGV[4] the number of the database, in ARGV[5] the deployment in whose name this
-- is, "" where the caller does not know. In ARGV[6] and behind:
--
--   register  id expiry_ms (field value)...   returns {1 if the directory changed, else 0; whose directory it was}
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
--   report    json                            counts of a shard, see report(); returns 0 if `held` must be sent whole,
--                                             else 1
--   admit     request_id (who limit)...       lets a client in, counted from now on; returns the first who that has
--                                             as many as its limit already, else ""
--   release   request_id who...               it was not taken after all
--   turn      what hold_ms                    returns 1 if it is the caller's turn, and nobody else's for hold_ms
--   end_session   id life_ms                  remembers for so long that a session of the operations page was ended
--   session_ended id                          returns 1 if it was, else 0
--   occupant                                  returns the other deployment, shards of which live here, "" for none
--   read      epoch                           returns {generation, count, {{id, field, value...}...},
--                                                      {{node, slot, id...}...}, {drained id...},
--                                                      {drained node, over_s...}, {{node, hot stream, count...}...},
--                                                      {{node, stopped, died, silent, replaced}...}},
--                                                      without the slots if the directory is still in that epoch

local function turn()
  return redis.call("SET", key("turn", ARGV[6]), "1", "NX", "PX", ARGV[7]) and 1 or 0
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
  -- What cannot be written expires though its shards live; from then on the directory is no more to be believed.
  local written = redis.pcall("SET", key("written"), "1", "PX", ADMITTED_MS)
  if written.err then
    return written
  end
  local head = redis.call("HMGET", key("epoch"), "generation", "count")
  local generation, count = head[1] or "", tonumber(head[2] or 0)
  local shards, tables, nodes, hot, ends = {}, {}, {}, {}, {}
  each_shard(function(id, node)
    local entry = redis.call("HGETALL", key("shard", id))
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
  return { generation, count, shards, tables, redis.call("SMEMBERS", key("drained")), drained_nodes, hot, ends }
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
  end_session = end_session,
  session_ended = session_ended,
  occupant = occupant,
  read = read,
}
-- These two find out by themselves whether the other deployment still has a shard.
if command ~= "register" and command ~= "occupant" and other_deployment() ~= "" then
  return refusal()
end
return commands[command]()
