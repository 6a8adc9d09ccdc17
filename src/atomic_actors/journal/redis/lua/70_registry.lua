-- What a namespace holds of its services, kinds and nodes. Functions of their own, not steps.

do
  -- How long a service's previous contract counts beside the present one: a deploy takes that long at the most.
  local DEPLOY_MS = 3600000

  -- KEYS the namespace's record, ARGV service, partitions, protocol: what the store holds of the service now. With
  -- one more argument nothing is written.
  local function register(keys, arguments)
    local fields = { arguments[1] .. ":partitions", arguments[1] .. ":protocol" }
    local stored = redis.call("HMGET", keys[1], fields[1], fields[2])
    if stored[1] then
      return { stored[1], stored[2] }
    end
    if not arguments[4] then
      redis.call("HSET", keys[1], fields[1], arguments[2], fields[2], arguments[3])
    end
    return { arguments[2], arguments[3] }
  end

  -- KEYS the namespace's record, its kinds, their contracts, those before; ARGV what is asked for, then
  --   register  service and its partitions, then kind and contract of each: the service that each belongs to.
  --             Nothing is written where one of them belongs to another service.
  --   find      kinds: for each nothing, or its service, the service's partitions, its contract, and the one
  --             before that where it still counts.
  --   list      every kind and its service.
  local function kinds(keys, arguments)
    local time = redis.call("TIME")
    local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
    local answer = {}
    if arguments[1] == "list" then
      return redis.call("HGETALL", keys[2])
    elseif arguments[1] == "find" then
      for j = 2, #arguments do
        local kind = arguments[j]
        local service = redis.call("HGET", keys[2], kind)
        if service then
          local partitions = redis.call("HGET", keys[1], service .. ":partitions") or ""
          local contract = redis.call("HGET", keys[3], kind) or ""
          local replaced, before = string.match(redis.call("HGET", keys[4], kind) or "", "^(%d+)\n(.*)$")
          if replaced and now - tonumber(replaced) > DEPLOY_MS then
            before = nil
          end
          answer[j - 1] = { service, partitions, contract, before }
        else
          answer[j - 1] = {}
        end
      end
      return answer
    end
    local service, is_free = arguments[2], true
    for j = 4, #arguments, 2 do
      local owner = redis.call("HGET", keys[2], arguments[j]) or service
      answer[#answer + 1] = owner
      is_free = is_free and owner == service
    end
    if not is_free then
      return answer
    end
    redis.call("HLEN", keys[3])
    redis.call("HLEN", keys[4])
    -- Where the store was emptied since the service was registered.
    redis.call("HSETNX", keys[1], service .. ":partitions", arguments[3])
    redis.call("HSETNX", keys[1], service .. ":protocol", PROTOCOL)
    for j = 4, #arguments, 2 do
      local kind, contract = arguments[j], arguments[j + 1]
      local known = redis.call("HGET", keys[3], kind)
      if known ~= contract then
        redis.call("HSET", keys[2], kind, service)
        redis.call("HSET", keys[3], kind, contract)
        if known then
          redis.call("HSET", keys[4], kind, string.format("%.0f", now) .. "\n" .. known)
        end
      end
    end
    return answer
  end

  -- The nodes of a namespace: r:<id> a node's record, b:<id> how often it was announced, d:<id> that it
  -- shall drain.
  local function list_nodes(key)
    local fields, nodes, answer = redis.call("HGETALL", key), {}, {}
    for j = 1, #fields, 2 do
      nodes[fields[j]] = fields[j + 1]
    end
    for field, record in pairs(nodes) do
      if string.sub(field, 1, 2) == "r:" then
        local id = string.sub(field, 3)
        answer[#answer + 1] = { id, tonumber(nodes["b:" .. id]) or 0, record, nodes["d:" .. id] and 1 or 0 }
      end
    end
    return answer
  end

  -- KEYS the nodes' key, ARGV node, record: all nodes.
  local function announce(keys, arguments)
    local id = arguments[1]
    local beats = (tonumber(redis.call("HGET", keys[1], "b:" .. id)) or 0) + 1
    redis.call("HSET", keys[1], "b:" .. id, string.format("%.0f", beats), "r:" .. id, arguments[2])
    return list_nodes(keys[1])
  end

  -- KEYS the nodes' key: all nodes.
  local function read_nodes(keys)
    return list_nodes(keys[1])
  end

  -- KEYS the nodes' key, ARGV node, the beats that it must still have ("" for any): whether it was taken off.
  local function forget_node(keys, arguments)
    local id, beats = arguments[1], redis.call("HGET", keys[1], "b:" .. arguments[1])
    if not beats or (arguments[2] ~= "" and arguments[2] ~= beats) then
      return 0
    end
    return redis.call("HDEL", keys[1], "r:" .. id, "b:" .. id, "d:" .. id) > 0 and 1 or 0
  end

  -- KEYS the nodes' key, ARGV nodes: those of them that are there, and that are now to drain.
  local function drain_nodes(keys, arguments)
    local found = {}
    for j = 1, #arguments do
      if redis.call("HEXISTS", keys[1], "r:" .. arguments[j]) == 1 then
        redis.call("HSET", keys[1], "d:" .. arguments[j], "1")
        found[#found + 1] = arguments[j]
      end
    end
    return found
  end

  redis.register_function("aa1_register", register)
  redis.register_function("aa1_kinds", kinds)
  redis.register_function("aa1_announce", announce)
  redis.register_function("aa1_nodes", read_nodes)
  redis.register_function("aa1_forget", forget_node)
  redis.register_function("aa1_drain", drain_nodes)
end
