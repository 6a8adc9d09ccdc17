-- Steps of the people who look after a system: dead letters, parking, counts.

do
  local BOOKS = {
    "accepted", "enqueued", "dispatched", "completed", "failed", "interrupted", "withdrawn", "expired",
    "refused", "commit", "incarnation", "time", "outbound",
  }

  -- What an entity has to do next, for the owner who replays one of its letters as `uid`. Takes nothing.
  local function offer_after_replay(P, record, log_key, uid, owner, is_first)
    local dispatch = record.dispatch and read_dispatch(record.dispatch)
    if dispatch and dispatch.claim == owner.claim then
      for _, message in ipairs(dispatch.messages) do
        if message.uid == uid then
          return offer_standing(record, dispatch, owner.claim, owner.held_version)
        end
      end
      return { MORE }
    end
    if dispatch then
      return offer_standing(record, dispatch, owner.claim, owner.held_version)
    end
    if is_first and not record.parked then
      return { MORE }
    end
    return offer_dry(P, record, log_key)
  end

  -- `owner` is what the owner of the partition sends of itself; nil for all other callers.
  local function replay(P, k, a, owner)
    -- <generated: read replay>
    local record_key, log_key, letters_key, new_outcome_key = K[k], K[k + 1], K[k + 2], K[k + 3]
    local entity, uid, new_uid = A[a], A[a + 1], A[a + 2]
    local at_head = A[a + 3] == "1"
    -- </generated>
    check_uid(new_uid)
    local id = entity .. "/" .. uid
    local letter = read_letter(P, letters_key, id)
    if not letter then
      return { REJECTED, "unknown_message", "there is no dead letter " .. id }
    end
    local is_owner = owner ~= nil and is_current(P, owner.claim)
    if letter.replayed ~= "" then
      local offer = is_owner
          and offer_after_replay(P, read_record(record_key), log_key, letter.replayed, owner, false)
        or { NOTHING }
      return { DONE, letter.replayed, 1, unpack(offer) }
    end
    if find_message(record_key, new_uid) ~= "absent" or call("EXISTS", new_outcome_key) == 1 then
      refuse("new_uid: there is a message of this id")
    end
    local _, _, name = read_head(letter.body)
    local envelope = match(letter.body, "^[^\n]*\n[^\n]*\n[^\n]*\n[^\n]*\n(.*)$")
    local record = read_record(record_key)
    call("LLEN", log_key)
    local body = "0\nt\n" .. name .. "\n\n" .. envelope
    local offer = { NOTHING }
    local takes = is_owner and is_idle(record)
    if takes then
      local state = read_state(record, owner.held_version)
      local turn = decimal(record.turn + 1)
      local dispatch = turn .. "\n" .. owner.claim .. "\n" .. stamp_of(owner.policy, name)
        .. "\n0\n" .. new_uid .. "\n1\n0"
      offer = { DISPATCH, record.turn + 1, 0, record.version, state, new_uid, body, 1, 0 }
      call("HSET", record_key, "m:" .. new_uid, body, "t", turn, "g", dispatch)
      call("HSET", P.run, entity, dispatch)
    else
      if is_owner then
        offer = offer_after_replay(P, record, log_key, new_uid, owner, at_head)
      end
      call("HSET", record_key, "m:" .. new_uid, body, "d", decimal(record.waiting + 1))
      call(at_head and "LPUSH" or "RPUSH", log_key, new_uid)
      if not record.dispatch and not record.parked and (at_head or record.waiting == 0) then
        index_ready(P, entity, 0)
      end
    end
    call("HSET", letters_key, id, format_letter(
      letter.reason, letter.attempts, letter.interruptions, letter.died, new_uid, letter.text, letter.body
    ))
    count(P, "absent", "append", 1)
    if takes then
      count(P, "enqueued", "take", 1)
      P.owned = true
    elseif not is_owner then
      ring(P, entity)
    end
    return { DONE, new_uid, 0, unpack(offer) }
  end

  local function replay_unclaimed(P, k, a)
    return replay(P, k, a)
  end

  local function replay_claimed(P, k, a)
    -- <generated: read replay_claimed>
    local claim = A[a + 4]
    local policy = read_policy(texts[tonumber(A[a + 5])])
    local held_version = integer(A[a + 6], "held_version")
    -- </generated>
    return replay(P, k, a, { claim = claim, policy = policy, held_version = held_version })
  end

  local function purge(P, k, a, stop)
    -- <generated: read purge>
    local letters_key, index_key = K[k], K[k + 1]
    local at, key_at = a, k + 2
    -- </generated>
    local ids, old = {}, old_letters(P, letters_key, index_key)
    forget_letters(letters_key, index_key, old)
    for j = at, stop do
      ids[#ids + 1] = A[j]
    end
    return { DONE, forget_letters(letters_key, index_key, ids) }
  end

  -- In the order of bytes, as in a sorted set; `>` would ask the server's locale.
  local function is_behind(left, right)
    for j = 1, min(#left, #right) do
      local one, other = byte(left, j), byte(right, j)
      if one ~= other then
        return one > other
      end
    end
    return #left > #right
  end

  local function list_letters(P, k, a)
    -- <generated: read letters>
    local letters_key, index_key = K[k], K[k + 1]
    local kind = A[a]
    local after_ms = integer(A[a + 1], "after_ms")
    local after_id = A[a + 2]
    local limit = integer(A[a + 3], "limit")
    local message_id = A[a + 4]
    -- </generated>
    local answer = { DONE, 1 }
    if limit <= 0 then
      refuse("limit must be positive")
    end
    if message_id ~= "" then
      if read_letter(P, letters_key, message_id) then
        answer[3], answer[4] = message_id, call("HGET", letters_key, message_id)
      end
      return answer
    end
    local prefix, from, found, chunk = kind ~= "" and kind .. "/" or "", 0, 0, 200
    local oldest = letter_ttl > 0 and max(P.now - letter_ttl + 1, after_ms) or after_ms
    oldest = decimal(oldest)
    while true do
      local ids = call("ZRANGEBYSCORE", index_key, oldest, "+inf", "WITHSCORES", "LIMIT", from, chunk)
      for j = 1, #ids, 2 do
        local id = ids[j]
        local behind = tonumber(ids[j + 1]) > after_ms or is_behind(id, after_id)
        if behind and sub(id, 1, #prefix) == prefix then
          if found == limit then
            answer[2] = 0
            return answer
          end
          found = found + 1
          answer[#answer + 1] = id
          answer[#answer + 1] = call("HGET", letters_key, id)
        end
      end
      if #ids < 2 * chunk then
        return answer
      end
      from = from + chunk
    end
  end

  local function park_or_resume(P, k, a)
    -- <generated: read park>
    local record_key, log_key = K[k], K[k + 1]
    local entity = A[a]
    local park = A[a + 1] == "1"
    -- </generated>
    local record = read_record(record_key)
    if park and not record.parked then
      call("ZCARD", P.ready)
      call("HSET", record_key, "p", "1")
      call("ZREM", P.ready, entity)
      P.wrote = true
    elseif record.parked and not park then
      local ready = record.waiting > 0 and not record.dispatch
      local not_before = ready and head_not_before(record_key, log_key)
      call("ZCARD", P.ready)
      call("HSET", record_key, "p", "")
      if ready then
        index_ready(P, entity, not_before)
      end
      P.wrote = true
    end
    if not park then
      ring(P, entity)
    end
    return { DONE, record.parked and 1 or 0 }
  end

  local function inspect(P, k, a)
    -- <generated: read inspect>
    local record_key, log_key = K[k], K[k + 1]
    local entity = A[a]
    -- </generated>
    local record = read_record(record_key)
    local running = record.dispatch and #read_dispatch(record.dispatch).messages or 0
    local not_before = 0
    if record.waiting > 0 then
      -- Who looks at an entity because its head cannot be read must see the rest.
      local went, head = pcall(head_not_before, record_key, log_key)
      not_before = went and head > P.now and head or 0
    end
    local parked = record.parked and 1 or 0
    return { DONE, record.waiting, running, parked, record.version, record.turn, not_before }
  end

  local function count_prefix(ids, prefix)
    local found = 0
    for j = 1, #ids do
      if sub(ids[j], 1, #prefix) == prefix then
        found = found + 1
      end
    end
    return found
  end

  local function count_kind(P, k, a)
    -- <generated: read count>
    local index_key = K[k]
    local kind = A[a]
    -- </generated>
    local prefix = kind .. "/"
    return {
      DONE,
      count_prefix(call("HKEYS", P.run), prefix),
      count_prefix(call("ZRANGE", P.ready, 0, -1), prefix),
      count_prefix(call("ZRANGEBYSCORE", index_key, letters_alive_after(P), "+inf"), prefix),
    }
  end

  -- Behind the index stand the outbound list of each target of this service and, where there is any argument, the
  -- streams.
  local function audit(P, k, a, stop, stop_key)
    -- <generated: read audit>
    local index_key = K[k]
    local at, key_at = a, k + 1
    -- </generated>
    local dispatched, outbound = 0, 0
    for _, text in ipairs(call("HVALS", P.run)) do
      dispatched = dispatched + #read_dispatch(text).messages
    end
    if stop >= at then
      -- The targets in other services are not known to the caller, so their lists are not among its keys.
      local streams = call("HGETALL", K[stop_key])
      for j = 1, #streams, 2 do
        if match(streams[j], "^left:.+/%d+$") then
          outbound = outbound + tonumber(streams[j + 1])
        end
      end
      stop_key = stop_key - 1
    end
    for j = key_at, stop_key do
      outbound = outbound + call("LLEN", K[j])
    end
    local answer = { DONE, dispatched, call("ZCARD", P.ready), count_letters(P, index_key), outbound }
    for j = 1, #BOOKS do
      answer[j + 5] = book(P, BOOKS[j])
    end
    return answer
  end

  STEPS.replay.run = replay_unclaimed
  STEPS.replay_claimed.run = replay_claimed
  STEPS.purge.run = purge
  STEPS.letters.run = list_letters
  STEPS.park.run = park_or_resume
  STEPS.inspect.run = inspect
  STEPS.count.run = count_kind
  STEPS.audit.run = audit
end
