-- Steps of an owner: turns that were cut off.

do
  -- `decide_interruption` of `_lifecycle.py`.
  local function decide_interruption(stamp, interruptions, recovering)
    local policy, limit = sub(stamp, 2, 2), tonumber(sub(stamp, 4))
    if (limit > 0 and interruptions >= limit) or recovering then
      return "interrupt"
    end
    if is_transactional(stamp) or policy == "r" then
      return "requeue"
    end
    if policy == "m" then
      return "recover"
    end
    return "interrupt"
  end

  -- The answer to a turn that was settled already.
  local function settle_again(P, record_key, letters_key, entity, turn, uid)
    local settled = call("HGET", record_key, "r") or ""
    local old_turn, word = match(settled, "^(%d+)\n[^\n]+\nsettled\n(%a+)$")
    if not old_turn or tonumber(old_turn) ~= turn then
      return { DONE, "gone" }
    end
    local letter = word == "interrupt" and uid and read_letter(P, letters_key, entity .. "/" .. uid)
    return { DONE, word, letter and letter.body or nil }
  end

  local function interrupt(P, k, a, stop)
    -- <generated: read interrupt>
    local record_key, log_key, letters_key, index_key = K[k], K[k + 1], K[k + 2], K[k + 3]
    local outcome_key = K[k + 4]
    local entity, claim = A[a], A[a + 1]
    local turn = integer(A[a + 2], "turn")
    local began = A[a + 3] == "1"
    local at, key_at = a + 4, k + 5
    -- </generated>
    if not is_current(P, claim) then
      return { STALE, "claim" }
    end
    local record = read_record(record_key)
    local dispatch = record.dispatch and read_dispatch(record.dispatch)
    if not dispatch or dispatch.turn ~= turn then
      return settle_again(P, record_key, letters_key, entity, turn, A[at])
    end
    local messages = dispatch.messages
    for j = 1, max(#messages, stop - at + 1) do
      if not messages[j] or messages[j].uid ~= A[at + j - 1] then
        refuse("uids: they must name the messages of the turn, in order")
      end
    end
    local head, settlement, histories = messages[1], "requeue", {}
    if began and #messages > 1 then
      for j, message in ipairs(messages) do
        message.interruptions, message.not_before = message.interruptions + 1, 0
        histories[2 * j - 1], histories[2 * j] = "h:" .. message.uid, write_history(message)
      end
    elseif began then
      head.interruptions = head.interruptions + 1
      settlement = decide_interruption(dispatch.stamp, head.interruptions, dispatch.recovering)
      head.recovering, head.not_before = settlement == "recover", 0
      histories = { "h:" .. head.uid, write_history(head) }
    end
    local answer = { DONE, settlement }
    local fields = { record_key, "r", format("%.0f\n%s\nsettled\n%s", turn, claim, settlement) }
    call("LLEN", log_key)
    call("ZCARD", P.ready)
    if settlement == "interrupt" then
      local body = call("HGET", record_key, "m:" .. head.uid)
      local old, room = old_letters(P, letters_key, index_key), room_for_letters(P, index_key)
      -- Written even where there is no room: it must not run again unnoticed.
      local text = format_letter(
        "interrupted", decimal(head.attempts), decimal(head.interruptions), decimal(P.now), "", "", body
      )
      answer[3] = body
      forget_letters(letters_key, index_key, old)
      bury(P, letters_key, index_key, entity .. "/" .. head.uid, text)
      keep(outcome_key, "interrupted\n", result_ttl)
      call("HDEL", record_key, "m:" .. head.uid, "h:" .. head.uid)
      if room < 1 or sub(dispatch.stamp, 3, 3) == "p" then
        record.parked = true
        extend(fields, { "p", "1" })
      end
      count(P, "dispatched", "interrupt", 1)
    else
      put_back(record_key, log_key, messages, histories)
      record.waiting = record.waiting + #messages
      count(P, "dispatched", "requeue", #messages)
    end
    record.dispatch = nil
    close_turn(P, record, entity, fields, { NOTHING })
    P.owned = true
    return answer
  end

  local function settle_lost(P, k, a)
    -- <generated: read settle_lost>
    local record_key, log_key, outcome_key, letters_key = K[k], K[k + 1], K[k + 2], K[k + 3]
    local index_key = K[k + 4]
    local entity, claim, uid = A[a], A[a + 1], A[a + 2]
    local policy = read_policy(texts[tonumber(A[a + 3])])
    local attempt = integer(A[a + 4], "attempt")
    local interruptions = integer(A[a + 5], "interruptions")
    local recovering = A[a + 6] == "1"
    -- </generated>
    if not is_current(P, claim) then
      return { STALE, "claim" }
    end
    local state, body, message = find_message(record_key, uid)
    if state ~= "enqueued" then
      if state == "dispatched" or sub(call("GET", outcome_key) or "", 1, 12) ~= "interrupted\n" then
        return { DONE, "gone" }
      end
      local letter = read_letter(P, letters_key, entity .. "/" .. uid)
      return { DONE, "interrupt", letter and letter.body or nil }
    end
    local _, _, name = read_head(body)
    local stamp, before = stamp_of(policy, name), write_history(message)
    message.attempts = max(message.attempts, attempt)
    message.interruptions = max(message.interruptions, interruptions + 1)
    local settlement = decide_interruption(stamp, message.interruptions, recovering)
    if settlement ~= "interrupt" then
      message.recovering = settlement == "recover"
      local history = write_history(message)
      if history ~= before then
        call("HSET", record_key, "h:" .. uid, history)
        P.owned = true
      end
      return { DONE, settlement }
    end
    local record, head = read_record(record_key), call("LINDEX", log_key, 0)
    local old, room = old_letters(P, letters_key, index_key), room_for_letters(P, index_key)
    local text = format_letter(
      "interrupted", decimal(message.attempts), decimal(message.interruptions), decimal(P.now), "", "", body
    )
    call("ZCARD", P.ready)
    if room < 1 or sub(stamp, 3, 3) == "p" then
      record.parked = true
      call("HSET", record_key, "p", "1")
      call("ZREM", P.ready, entity)
    end
    remove_waiting(P, record_key, log_key, entity, uid, record, head == uid)
    forget_letters(letters_key, index_key, old)
    bury(P, letters_key, index_key, entity .. "/" .. uid, text)
    keep(outcome_key, "interrupted\n", result_ttl)
    -- The lost take is made up for.
    count(P, "enqueued", "take", 1)
    count(P, "dispatched", "interrupt", 1)
    P.owned = true
    return { DONE, "interrupt", body }
  end

  STEPS.interrupt.run = interrupt
  STEPS.settle_lost.run = settle_lost
end
