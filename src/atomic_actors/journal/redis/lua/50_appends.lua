-- Steps of a sender: appends.

do
  local OFFER_MORE = { MORE }

  -- What the owner does next, after the append of `uid` that did not take it.
  local function offer_after_append(P, record, log_key, entity, uid, claim, held)
    if not is_current(P, claim) then
      -- The commit of a turn of the present owner takes what is next; only one that is not to be would not.
      local dispatch = record.dispatch
      if not dispatch or P.claim == "" or not find(dispatch, "\n" .. P.claim .. "\n", 1, true) then
        ring(P, entity)
      end
      return OFFER_NOTHING
    end
    if record.dispatch then
      local dispatch = read_dispatch(record.dispatch)
      if dispatch.claim ~= claim then
        return offer_standing(record, dispatch, claim, held)
      end
      for _, message in ipairs(dispatch.messages) do
        if message.uid == uid then
          return offer_standing(record, dispatch, claim, held)
        end
      end
      return OFFER_MORE
    end
    return offer_dry(P, record, log_key)
  end

  local function read_birth(uid)
    return not find(uid, "\n", 1, true) and tonumber(sub(uid, 1, 12), 16)
  end

  local function is_too_old(P, birth)
    return result_ttl and (P.now - birth) * 2 > tonumber(result_ttl)
  end

  -- `message` has what the two forms below read, under the same names.
  local function append(P, record_key, limit, message)
    local entity, uid, body, claim = message.entity, message.uid, message.body, message.claim
    local log_key, used_key, held = message.log_key, message.used_key, message.held_version
    local birth = read_birth(uid)
    if not birth then
      refuse("uid: its first 12 characters are not hex digits")
    end
    local deadline, _, name, key = read_head(body)
    if key ~= message.key then
      refuse("key: differs from the body's")
    end
    local values = call("HMGET", record_key, "v", "t", "g", "d", "p", "m:" .. uid)
    local record = to_record(record_key, values)
    local outcome = not values[6] and call("GET", message.outcome_key)
    if values[6] or outcome then
      local offer = offer_after_append(P, record, log_key, entity, uid, claim, held)
      return { DONE, uid, 1, outcome, unpack(offer) }
    end
    local used = used_key and call("GET", used_key)
    if used then
      local first, first_digest = match(used, "^(%w+)\n(.*)$")
      if first_digest ~= message.digest then
        return { REJECTED, "key_reused", "the key was used before, with other content" }
      end
      local offer = offer_after_append(P, record, log_key, entity, uid, claim, held)
      return { DONE, first, 1, false, unpack(offer) }
    end
    if is_too_old(P, birth) then
      return { REJECTED, "unknown_message", "the id is too old to tell whether it ran already" }
    end
    if limit > 0 and record.waiting + 1 > limit then
      local waiting = decimal(record.waiting)
      return { REJECTED, "queue_depth_exceeded", "the entity has " .. waiting .. " messages waiting" }
    end
    if partition_depth_limit > 0 and book(P, "enqueued") + 1 > partition_depth_limit then
      local waiting = decimal(book(P, "enqueued"))
      return { REJECTED, "queue_depth_exceeded", "the partition has " .. waiting .. " messages waiting" }
    end
    local takes = is_idle(record) and is_current(P, claim)
    if takes and (deadline == 0 or P.now < deadline) then
      local stamp, state = stamp_of(message.policy, name), read_state(record, held)
      local turn = decimal(record.turn + 1)
      local dispatch = turn .. "\n" .. claim .. "\n" .. stamp .. "\n0\n" .. uid .. "\n1\n0"
      call("HSET", record_key, "m:" .. uid, body, "t", turn, "g", dispatch)
      call("HSET", P.run, entity, dispatch)
      if used_key then
        keep(used_key, uid .. "\n" .. message.digest, dedupe_ttl)
      end
      count(P, "absent", "append", 1)
      count(P, "enqueued", "take", 1)
      P.owned = true
      -- The caller has the body.
      local version = record.version
      return { DONE, uid, 0, false, DISPATCH, record.turn + 1, 0, version, state, uid, false, 1, 0 }
    end
    -- Where the claim is current, it has expired or something is before it: then it cannot be the head.
    local offer = takes and { EXPIRED, uid, key }
      or offer_after_append(P, record, log_key, entity, uid, claim, held)
    call("HSET", record_key, "m:" .. uid, body, "d", decimal(record.waiting + 1))
    call("RPUSH", log_key, uid)
    if is_idle(record) then
      index_ready(P, entity, 0)
    end
    if used_key then
      keep(used_key, uid .. "\n" .. message.digest, dedupe_ttl)
    end
    count(P, "absent", "append", 1)
    return { DONE, uid, 0, false, unpack(offer) }
  end

  local function append_without_key(P, k, a)
    -- <generated: read append>
    local record_key, log_key, outcome_key = K[k], K[k + 1], K[k + 2]
    local entity, uid, body, digest = A[a], A[a + 1], A[a + 2], A[a + 3]
    local depth_limit = integer(A[a + 4], "depth_limit")
    local claim = A[a + 5]
    local policy = read_policy(texts[tonumber(A[a + 6])])
    local held_version = integer(A[a + 7], "held_version")
    -- </generated>
    return append(P, record_key, depth_limit, {
      log_key = log_key, outcome_key = outcome_key, entity = entity, uid = uid, body = body,
      claim = claim, policy = policy, held_version = held_version, key = "",
    })
  end

  local function append_with_key(P, k, a)
    -- <generated: read append>
    local record_key, log_key, outcome_key = K[k], K[k + 1], K[k + 2]
    local entity, uid, body, digest = A[a], A[a + 1], A[a + 2], A[a + 3]
    local depth_limit = integer(A[a + 4], "depth_limit")
    local claim = A[a + 5]
    local policy = read_policy(texts[tonumber(A[a + 6])])
    local held_version = integer(A[a + 7], "held_version")
    -- </generated>
    -- <generated: read append_key>
    local used_key = K[k + 3]
    local key = A[a + 8]
    -- </generated>
    return append(P, record_key, depth_limit, {
      log_key = log_key, outcome_key = outcome_key, used_key = used_key, entity = entity, uid = uid,
      body = body, digest = digest, claim = claim, policy = policy, held_version = held_version, key = key,
    })
  end

  -- Append messages `from` to `n` of a run in one go. Nil, and nothing is written, where the entity is idle or
  -- one of them is a copy, malformed, too old or too many: then they go one by one.
  local function append_together(P, k, a, from, n)
    -- <generated: read append_run>
    local record_key, log_key = K[k], K[k + 1]
    local entity = A[a]
    local depth_limit = integer(A[a + 1], "depth_limit")
    local claim = A[a + 2]
    local policy = read_policy(texts[tonumber(A[a + 3])])
    local held_version = integer(A[a + 4], "held_version")
    local at, key_at = a + 5, k + 2
    -- </generated>
    local fields, outcomes, bodies, ids = { "v", "t", "g", "d", "p" }, {}, { record_key }, { log_key }
    at, key_at = at + STEPS.append_run.each * (from - 1), key_at + from - 1
    for _ = from, n do
      -- <generated: read message of a run>
      local outcome_key = K[key_at]
      local uid, body = A[at], A[at + 1]
      at = at + 2
      key_at = key_at + 1
      -- </generated>
      local birth, key = read_birth(uid), select(4, match(body, HEAD))
      if not birth or is_too_old(P, birth) or key ~= "" or fields[uid] then
        return nil
      end
      fields[uid] = true
      fields[#fields + 1], outcomes[#outcomes + 1] = "m:" .. uid, outcome_key
      bodies[#bodies + 1], bodies[#bodies + 2], ids[#ids + 1] = "m:" .. uid, body, uid
    end
    local values = call("HMGET", record_key, unpack(fields))
    local record, more = to_record(record_key, values), n - from + 1
    local stored = call("MGET", unpack(outcomes))
    for j = 1, more do
      if values[5 + j] or stored[j] then
        return nil
      end
    end
    if
      is_idle(record)
      or (depth_limit > 0 and record.waiting + more > depth_limit)
      or (partition_depth_limit > 0 and book(P, "enqueued") + more > partition_depth_limit)
    then
      return nil
    end
    local offer = offer_after_append(P, record, log_key, entity, "", claim, held_version)
    bodies[#bodies + 1], bodies[#bodies + 2] = "d", decimal(record.waiting + more)
    call("LLEN", log_key)
    call("HSET", unpack(bodies))
    call("RPUSH", unpack(ids))
    count(P, "absent", "append", more)
    return { SAME, more, unpack(offer) }
  end

  -- The answers to a run of appends: one each, or SAME, how many, and their common offer.
  local function append_run(P, k, a, stop)
    -- <generated: read append_run>
    local record_key, log_key = K[k], K[k + 1]
    local entity = A[a]
    local depth_limit = integer(A[a + 1], "depth_limit")
    local claim = A[a + 2]
    local policy = read_policy(texts[tonumber(A[a + 3])])
    local held_version = integer(A[a + 4], "held_version")
    local at, key_at = a + 5, k + 2
    -- </generated>
    local n, answers = (stop - at + 1) / STEPS.append_run.each, {}
    for j = 1, n do
      local whole, together = j <= 2 and j < n, nil
      if whole then
        -- It fails before its first write, if at all; one by one each message gets its reason.
        whole, together = pcall(append_together, P, k, a, j, n)
      end
      if whole and together then
        answers[j] = together
        break
      end
      -- <generated: read message of a run>
      local outcome_key = K[key_at]
      local uid, body = A[at], A[at + 1]
      at = at + 2
      key_at = key_at + 1
      -- </generated>
      local went, result = pcall(append, P, record_key, depth_limit, {
        log_key = log_key, outcome_key = outcome_key, entity = entity, uid = uid, body = body,
        claim = claim, policy = policy, held_version = held_version, key = "",
      })
      answers[j] = went and result or failure(result)
    end
    return answers
  end

  STEPS.append.run = append_without_key
  STEPS.append_key.run = append_with_key
  STEPS.append_run.run = append_run
end
