-- Records, histories and dispatches, as they are stored.

local to_record, read_record, is_idle, write_history, read_dispatch, may_lead, peek, find_message

do
  -- From the values of v, t, g, d and p.
  function to_record(key, values)
    local version, turn, waiting = tonumber(values[1] or 0), tonumber(values[2] or 0), tonumber(values[4] or 0)
    if not version or not turn or not waiting then
      refuse("the record " .. key .. " is damaged: its v, t or d is not a number")
    end
    return {
      key = key,
      version = version,
      turn = turn,
      dispatch = values[3] and values[3] ~= "" and values[3] or nil,
      waiting = waiting,
      was_waiting = waiting,
      parked = values[5] == "1",
    }
  end

  function read_record(key)
    return to_record(key, call("HMGET", key, "v", "t", "g", "d", "p"))
  end

  -- Whether a message that is appended now is the next to run.
  function is_idle(record)
    return not record.dispatch and not record.parked and record.waiting == 0
  end

  local function read_history(message, text)
    if not text then
      message.attempts, message.interruptions, message.not_before = 0, 0, 0
      return
    end
    local attempts, interruptions, recovering, not_before = match(text, "^(%d+) (%d+) (%d) (%d+)$")
    if not attempts then
      refuse("the history of " .. message.uid .. " is damaged")
    end
    message.attempts, message.interruptions = tonumber(attempts), tonumber(interruptions)
    message.recovering, message.not_before = recovering == "1", tonumber(not_before)
  end

  function write_history(message)
    local recovering = message.recovering and " 1 " or " 0 "
    return decimal(message.attempts)
      .. " "
      .. decimal(message.interruptions)
      .. recovering
      .. decimal(message.not_before)
  end

  function read_dispatch(text)
    local turn, claim, stamp, recovering, uid, attempts, interruptions, rest =
      match(text, "^(%d+)\n([^\n]+)\n([te][drm][cp]%d+)\n(%d)\n([^\n]+)\n(%d+)\n(%d+)(.*)$")
    if not turn then
      refuse("a dispatch is damaged")
    end
    local messages = {
      { uid = uid, attempts = tonumber(attempts), interruptions = tonumber(interruptions) },
    }
    if rest ~= "" then
      for next_uid, next_attempts, next_interruptions in gmatch(rest, "\n([^\n]+)\n(%d+)\n(%d+)") do
        messages[#messages + 1] = {
          uid = next_uid,
          attempts = tonumber(next_attempts),
          interruptions = tonumber(next_interruptions),
        }
      end
    end
    return {
      turn = tonumber(turn),
      claim = claim,
      stamp = stamp,
      recovering = recovering == "1",
      messages = messages,
    }
  end

  -- Whether a run may begin with this message.
  function may_lead(policy, head, limit)
    return limit > 1 and head.attempts == 0 and is_transactional(stamp_of(policy, head.name))
  end

  -- The messages of some ids of the list. Each knows how many ids leave the list with it.
  local function read_waiting(record_key, log_key, from, to, messages)
    local ids = call("LRANGE", log_key, from, to)
    if #ids == 0 then
      return 0
    end
    local fields = {}
    for j = 1, #ids do
      fields[2 * j - 1] = "m:" .. ids[j]
      fields[2 * j] = "h:" .. ids[j]
    end
    local values = call("HMGET", record_key, unpack(fields))
    for j = 1, #ids do
      local body = values[2 * j - 1]
      if body then
        local message = { uid = ids[j], body = body, leaves = from + j }
        message.deadline, message.waited, message.name, message.idempotency_key = read_head(body)
        read_history(message, values[2 * j])
        messages[#messages + 1] = message
      end
    end
    return #ids
  end

  -- The head, and where a run may begin with it, the other messages of the first `limit` ids. None where too
  -- many withdrawn ids stand before the head: a step skips only so many, so that no step is long.
  function peek(record_key, log_key, policy, limit)
    local messages = {}
    read_waiting(record_key, log_key, 0, 0, messages)
    if messages[1] and not may_lead(policy, messages[1], limit) then
      return messages
    end
    if limit > 1 then
      read_waiting(record_key, log_key, 1, limit - 1, messages)
    end
    if not messages[1] and limit <= TOMBSTONES_MAX then
      limit = max(limit, 1)
      read_waiting(record_key, log_key, limit, limit + TOMBSTONES_MAX, messages)
    end
    if messages[1] and messages[1].leaves > TOMBSTONES_MAX + 1 then
      return {}
    end
    return messages
  end

  -- Where a message stands in its record: absent, dispatched or enqueued, and its body and history.
  function find_message(record_key, uid)
    local values = call("HMGET", record_key, "g", "m:" .. uid, "h:" .. uid)
    if not values[2] then
      return "absent"
    end
    if values[1] and find("\n" .. values[1] .. "\n", "\n" .. uid .. "\n", 1, true) then
      return "dispatched", values[2]
    end
    local message = { uid = uid, body = values[2] }
    read_history(message, values[3])
    return "enqueued", values[2], message
  end
end
