-- Checks and small readings.

local extend, decimal, refuse, failure, integer, advance, add, count, book, read_head,
  check_uid, read_policy, stamp_of, is_partition, is_transactional, is_current, ring, keep

do
  local POLICIES_MAX = 256
  local DEFAULT_STAMP = "edc3"
  local decimals, padded = {}, {}
  -- Policies that were read, by text.
  local policies, policies_kept = {}, 0

  function extend(list, more)
    local n = #list
    for j = 1, #more do
      list[n + j] = more[j]
    end
    return list
  end

  -- Exact up to 2^53, unlike tostring, and from kept pieces of four digits: formatting takes a microsecond.
  function decimal(number)
    if number < 0 then
      return format("%.0f", number)
    end
    local low = number % 10000
    if number < 10000 then
      local text = decimals[low]
      if not text then
        text = format("%.0f", low)
        decimals[low] = text
      end
      return text
    end
    local text = padded[low]
    if not text then
      text = format("%04.0f", low)
      padded[low] = text
    end
    return decimal((number - low) / 10000) .. text
  end

  -- Only before the first write of a step.
  function refuse(text)
    error({ refused = text })
  end

  function failure(problem)
    local text = problem
    if type(problem) == "table" then
      text = problem.refused or problem.err
    end
    return { REJECTED, "bad_step", tostring(text) }
  end

  function integer(text, name)
    local number = tonumber(text)
    if not number or number ~= floor(number) then
      refuse(name .. " is not a whole number")
    end
    return number
  end

  function advance(state, event)
    local edges = TRANSITIONS[state]
    local next_state = edges and edges[event]
    if not next_state then
      refuse("a message that is " .. tostring(state) .. " cannot " .. tostring(event))
    end
    return next_state
  end

  function add(P, name, number)
    P.moved[name] = (P.moved[name] or 0) + number
    P.wrote = true
  end

  function count(P, state, event, times)
    local next_state = advance(state, event)
    if state == "absent" then
      add(P, "accepted", times)
    else
      add(P, state, -times)
    end
    add(P, next_state, times)
    if event == "refuse" then
      add(P, "refused", times)
    end
  end

  -- A number of the books, with what this call has added so far.
  function book(P, name)
    local stored = P.stored[name] or call("HGET", P.books, name) or 0
    P.stored[name] = stored
    -- A damaged number counts from 0, and audits show it: to fail here would leave a step half written.
    return (tonumber(stored) or 0) + (P.moved[name] or 0)
  end

  function read_head(body)
    local deadline, waited, name, key = match(body, HEAD)
    if not deadline then
      refuse("not a stored message")
    end
    return tonumber(deadline), waited, name, key
  end

  function check_uid(uid)
    if not find(uid, "^%w+$") then
      refuse("uid: only letters and digits")
    end
  end

  -- A policy's stamps by wire name. The same text comes with every step of a kind, so a few are kept.
  function read_policy(text)
    local policy = policies[text]
    if not policy then
      policy = {}
      for line in gmatch(text, "[^\n]+") do
        local name, stamp = match(line, "^(.*)=([te][drm][cp]%d+)$")
        if not name then
          refuse("policy: " .. line .. " is not of the form name=stamp")
        end
        policy[name] = stamp
      end
      if policies_kept >= POLICIES_MAX then
        policies, policies_kept = {}, 0
      end
      policies[text], policies_kept = policy, policies_kept + 1
    end
    return policy
  end

  function stamp_of(policy, name)
    return policy[name] or policy["*"] or DEFAULT_STAMP
  end

  function is_partition(number)
    return number >= 0 and number < partition_count
  end

  function is_transactional(stamp)
    return sub(stamp, 1, 1) == "t"
  end

  function is_current(P, claim)
    if claim == "" then
      return false
    end
    return P.claim == claim
  end

  function ring(P, entity)
    local bells = P.bells
    if not bells then
      bells = {}
      P.bells = bells
    end
    if not bells[entity] then
      bells[entity] = true
      bells[#bells + 1] = entity
    end
  end

  function keep(key, value, ttl)
    if ttl then
      call("SET", key, value, "PX", ttl)
    else
      call("SET", key, value)
    end
  end
end
