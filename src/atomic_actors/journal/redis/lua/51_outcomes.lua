-- Steps of a sender: what became of a message, and taking it back.

do
  local function forget_key(used_key, uid)
    local used = call("GET", used_key)
    return used and sub(used, 1, #uid + 1) == uid .. "\n"
  end

  local function withdraw(P, k, a)
    -- <generated: read withdraw>
    local record_key, log_key, outcome_key, used_key = K[k], K[k + 1], K[k + 2], K[k + 3]
    local entity, uid, key = A[a], A[a + 1], A[a + 2]
    -- </generated>
    local state, body, message = find_message(record_key, uid)
    if state == "absent" then
      local outcome = call("GET", outcome_key)
      if not outcome then
        return { DONE, "unknown", false, "" }
      end
      if sub(outcome, 1, 10) == "withdrawn\n" then
        return { DONE, "withdrawn", false, "" }
      end
      return { DONE, "finished", outcome, "" }
    end
    if state == "dispatched" or message.attempts > 0 then
      return { DONE, state, false, "" }
    end
    local _, _, _, stored_key = read_head(body)
    if stored_key ~= key then
      return { DONE, "needs_key", false, stored_key }
    end
    local record, forget = read_record(record_key), forget_key(used_key, uid)
    local head = call("LINDEX", log_key, 0)
    remove_waiting(P, record_key, log_key, entity, uid, record, head == uid)
    keep(outcome_key, "withdrawn\n", result_ttl)
    if forget then
      call("DEL", used_key)
    end
    count(P, "enqueued", "withdraw", 1)
    return { DONE, "withdrawn", false, "" }
  end

  local function expire(P, k, a)
    -- <generated: read expire>
    local record_key, log_key, outcome_key, used_key = K[k], K[k + 1], K[k + 2], K[k + 3]
    local letters_key, index_key = K[k + 4], K[k + 5]
    local entity, uid, key = A[a], A[a + 1], A[a + 2]
    -- </generated>
    local state, body, message = find_message(record_key, uid)
    if state == "absent" then
      local outcome = call("GET", outcome_key)
      return { DONE, outcome and sub(outcome, 1, 8) == "expired\n" and 1 or 0, false }
    end
    if state == "dispatched" then
      return { DONE, 0, false }
    end
    local waited, stored_key
    message.deadline, waited, message.name, stored_key = read_head(body)
    if not is_expired(P, message) then
      return { DONE, 0, false }
    end
    if stored_key ~= key then
      refuse("key: the message has another one")
    end
    local record, forget = read_record(record_key), forget_key(used_key, uid)
    local head, letter = call("LINDEX", log_key, 0), waited == "t"
    local old = letter and old_letters(P, letters_key, index_key)
    if letter and room_for_letters(P, index_key) < 1 then
      call("HSET", record_key, "p", "1")
      call("ZREM", P.ready, entity)
      P.wrote = true
      return { DONE, 0, false }
    end
    remove_waiting(P, record_key, log_key, entity, uid, record, head == uid)
    keep(outcome_key, "expired\n", result_ttl)
    if forget then
      call("DEL", used_key)
    end
    if letter then
      forget_letters(letters_key, index_key, old)
      local text = format_letter("expired", "0", "0", decimal(P.now), "", "", body)
      bury(P, letters_key, index_key, entity .. "/" .. uid, text)
    end
    count(P, "enqueued", "expire", 1)
    return { DONE, 1, body }
  end

  local function read_outcome(P, k, a)
    -- <generated: read outcome>
    local record_key, outcome_key = K[k], K[k + 1]
    local entity, uid = A[a], A[a + 1]
    -- </generated>
    local state = find_message(record_key, uid)
    if state ~= "absent" then
      return { DONE, state, false }
    end
    local outcome = call("GET", outcome_key)
    return { DONE, outcome and "finished" or "unknown", outcome or false }
  end

  STEPS.withdraw.run = withdraw
  STEPS.expire.run = expire
  STEPS.outcome.run = read_outcome
end
