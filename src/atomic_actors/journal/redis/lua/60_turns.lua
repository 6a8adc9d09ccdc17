-- Steps of an owner: taking, deferring and finishing turns.

do
  -- `unpack` has room for about 8,000 values; three a message stay far below.
  local RUN_MAX = 512
  -- Never written to.
  local NONE = {}
  local OUTCOME_WORDS = {
    complete = "completed\n",
    refuse = "refused\n",
    fail = "failed\n",
    interrupt = "interrupted\n",
  }
  local DEAD_REASONS = { fail = "failed", interrupt = "interrupted" }

  -- A stream may lead to any partition of another service: how many that has is known there.
  local function is_target(target)
    if find(target, "^%d+$") then
      return is_partition(tonumber(target))
    end
    return find(target, "^.+/%d+$") ~= nil
  end

  -- The text of a new dispatch of the first `taken` messages; counts the attempt in them.
  local function make_dispatch(turn, claim, policy, messages, taken)
    local head = messages[1]
    local lines = { decimal(turn), claim, stamp_of(policy, head.name), head.recovering and "1" or "0" }
    for j = 1, taken do
      local message = messages[j]
      message.attempts = message.attempts + 1
      lines[#lines + 1] = message.uid
      lines[#lines + 1] = decimal(message.attempts)
      lines[#lines + 1] = decimal(message.interruptions)
    end
    return table.concat(lines, "\n")
  end

  local function drop_front(log_key, ids, waiting)
    if waiting == 0 then
      call("DEL", log_key)
    elseif ids > 0 then
      call("LTRIM", log_key, ids, -1)
    end
  end

  local function defer(P, k, a)
    -- <generated: read defer>
    local record_key, log_key = K[k], K[k + 1]
    local entity, claim = A[a], A[a + 1]
    local delay_ms = integer(A[a + 2], "delay_ms")
    -- </generated>
    local record = read_record(record_key)
    if delay_ms < 0 then
      refuse("delay_ms must not be negative")
    end
    if not is_current(P, claim) then
      return { STALE, "claim" }
    end
    local waits = record.waiting > 0 and not record.dispatch and not record.parked
    local not_before = waits and head_not_before(record_key, log_key)
    if waits then
      index_ready(P, entity, max(not_before, min(P.now + delay_ms, EXACT_MAX)))
      P.wrote = true
    end
    return { DONE, waits and 1 or 0 }
  end

  -- Take what is next of an entity that is idle by now. Adds to `fields` what its record has to hold then.
  local function take_next(P, record, log_key, entity, claim, policy, held, limit, fields)
    if record.parked then
      return { PARKED }
    end
    if record.waiting == 0 then
      return { NOTHING }
    end
    local messages = peek(record.key, log_key, policy, min(limit, RUN_MAX))
    if #messages == 0 then
      if call("LLEN", log_key) == 0 then
        -- To answer MORE would make the owner ask without end.
        refuse("the log has lost messages that are counted as waiting: " .. decimal(record.waiting))
      end
      if limit > 0 then
        drop_front(log_key, TOMBSTONES_MAX + 1, record.waiting)
      end
      return { MORE }
    end
    local taken, offer = plan(P, messages, policy, limit)
    if taken == 0 then
      return offer, messages[1].not_before
    end
    local turn, recovering = record.turn + 1, messages[1].recovering
    local state = read_state(record, held)
    local dispatch = make_dispatch(turn, claim, policy, messages, taken)
    record.turn, record.dispatch, record.waiting = turn, dispatch, record.waiting - taken
    local n = #fields
    fields[n + 1], fields[n + 2] = "g", dispatch
    fields[n + 3], fields[n + 4] = "t", decimal(turn)
    fields[n + 5], fields[n + 6] = "d", decimal(record.waiting)
    drop_front(log_key, messages[taken].leaves, record.waiting)
    call("HSET", P.run, entity, dispatch)
    count(P, "enqueued", "take", taken)
    return offer_dispatch(turn, recovering, record.version, state, messages, taken)
  end

  local function take(P, k, a)
    -- <generated: read take>
    local record_key, log_key = K[k], K[k + 1]
    local entity, claim = A[a], A[a + 1]
    local policy = read_policy(texts[tonumber(A[a + 2])])
    local held_version = integer(A[a + 3], "held_version")
    local run_limit = integer(A[a + 4], "run_limit")
    -- </generated>
    if not is_current(P, claim) then
      return { STALE, "claim" }
    end
    local record = read_record(record_key)
    if record.dispatch then
      return { DONE, unpack(offer_standing(record, read_dispatch(record.dispatch), claim, held_version)) }
    end
    local fields = { record_key }
    call("ZCARD", P.ready)
    call("HLEN", P.run)
    local offer, not_before =
      take_next(P, record, log_key, entity, claim, policy, held_version, run_limit, fields)
    if offer[1] == DISPATCH then
      call("HSET", unpack(fields))
      call("ZREM", P.ready, entity)
      P.owned = true
    elseif offer[1] == NOT_BEFORE then
      -- Something before it has gone and left its time in the index; a sweep would come back at once.
      call("ZADD", P.ready, decimal(not_before), entity)
    end
    return { DONE, unpack(offer) }
  end

  -- The verdicts, checked against the dispatch; then whether some are dead letters, and where the verdicts end.
  local function read_verdicts(dispatch, at, key_at, verdict_count)
    if verdict_count ~= #dispatch.messages then
      refuse("verdicts: one for each message of the turn is needed")
    end
    local verdicts, dead, rank = {}, false, 1
    for j = 1, verdict_count do
      local message = dispatch.messages[j]
      -- <generated: read verdict>
      local outcome_key = K[key_at]
      local uid, event, reply, error = A[at], A[at + 1], A[at + 2], A[at + 3]
      local delay_ms = integer(A[at + 4], "delay_ms")
      at = at + 5
      key_at = key_at + 1
      -- </generated>
      if uid ~= message.uid then
        refuse("verdicts: they must name the messages of the turn, in order")
      end
      if delay_ms < 0 then
        refuse("verdicts: delay_ms must not be negative")
      end
      advance("dispatched", event)
      local own_rank = OUTCOME_WORDS[event] and 1 or event == "retry" and 2 or 3
      if own_rank < rank or (own_rank == 2 and rank == 2) then
        refuse("verdicts: finals first, then at most one retry, then requeue")
      end
      rank = own_rank
      local dies = DEAD_REASONS[event] ~= nil
      dead = dead or dies
      verdicts[j] = {
        message = message,
        outcome_key = outcome_key,
        event = event,
        reply = reply,
        text = error,
        delay = delay_ms,
        recovering = dispatch.recovering,
        dies = dies,
      }
    end
    return verdicts, dead, at, key_at
  end

  -- A dead letter that has no room goes back to the head and its entity parks. Answers the uids of those,
  -- or nil where something that ran behind it is in the way.
  local function find_room(P, verdicts, index_key)
    local room, unburied = room_for_letters(P, index_key), {}
    for j, verdict in ipairs(verdicts) do
      if DEAD_REASONS[verdict.event] then
        if room >= 1 then
          room = room - 1
        elseif verdicts[j + 1] and verdicts[j + 1].event ~= "requeue" then
          return nil
        else
          verdict.event, verdict.delay, verdict.unburied = "retry", 0, true
          unburied[#unburied + 1] = verdict.message.uid
        end
      end
    end
    return unburied
  end

  local function check_outgoing(seen, entity, uid, body)
    check_uid(uid)
    read_head(body)
    local id = entity .. "/" .. uid
    if seen[id] then
      refuse("outbox: " .. id .. " was sent before")
    end
    seen[id] = true
  end

  -- The outbox, with what has to be known of each target; checked, nothing is written.
  local function read_outbox(P, own, at, key_at, local_count, stream_count)
    local outbox, records, seen = { locals = {}, streams = {} }, { [own.key] = own }, {}
    for j = 1, local_count do
      -- <generated: read message of the same partition>
      local record_key, log_key = K[key_at], K[key_at + 1]
      local entity, uid, body = A[at], A[at + 1], A[at + 2]
      at = at + 3
      key_at = key_at + 2
      -- </generated>
      check_outgoing(seen, entity, uid, body)
      if call("HEXISTS", record_key, "m:" .. uid) == 1 then
        refuse("outbox: " .. uid .. " was sent before")
      end
      if not records[record_key] then
        records[record_key] = read_record(record_key)
      end
      call("LLEN", log_key)
      outbox.locals[j] = {
        record = records[record_key], log_key = log_key, entity = entity, uid = uid, body = body,
      }
    end
    if stream_count == 0 then
      return outbox
    end
    -- <generated: read streams of a turn>
    local streams_key = K[key_at]
    key_at = key_at + 1
    -- </generated>
    outbox.streams_key = streams_key
    for j = 1, stream_count do
      -- <generated: read stream>
      local outbound_key = K[key_at]
      local target = A[at]
      local message_count = integer(A[at + 1], "message_count")
      at = at + 2
      key_at = key_at + 1
      -- </generated>
      if not is_target(target) then
        refuse("outbox: there is no partition " .. target)
      end
      local numbers = call("HMGET", streams_key, "out:" .. target, "left:" .. target)
      local entries = {}
      for i = 1, message_count do
        -- <generated: read message of a stream>
        local entity, uid, body = A[at], A[at + 1], A[at + 2]
        at = at + 3
        -- </generated>
        check_outgoing(seen, entity, uid, body)
        entries[i] = entity .. "\n" .. uid .. "\n" .. body
      end
      call("LLEN", outbound_key)
      outbox.streams[j] = {
        target = target,
        outbound_key = outbound_key,
        entries = entries,
        out = tonumber(numbers[1] or 0) + message_count,
        left = tonumber(numbers[2] or 0) + message_count,
      }
    end
    return outbox
  end

  local function write_outbox(P, own, outbox)
    for _, message in ipairs(outbox.locals) do
      append_waiting(P, own, message)
    end
    for _, stream in ipairs(outbox.streams) do
      -- Lua hands over fewer than eight thousand arguments at once, and this must not fail: others were written.
      local entries = stream.entries
      for first = 1, #entries, 4000 do
        call("RPUSH", stream.outbound_key, unpack(entries, first, min(first + 3999, #entries)))
      end
      call(
        "HSET", outbox.streams_key,
        "out:" .. stream.target, decimal(stream.out), "left:" .. stream.target, decimal(stream.left)
      )
      add(P, "outbound", #stream.entries)
    end
  end

  -- A `requeue` did not count: what its record says of earlier attempts holds again.
  local function go_back(P, verdict, back, histories)
    local message = verdict.message
    back[#back + 1] = message
    if verdict.event == "retry" then
      message.not_before = verdict.unburied and 0 or min(P.now + verdict.delay, EXACT_MAX)
      message.recovering = verdict.unburied and verdict.recovering
      histories[#histories + 1] = "h:" .. message.uid
      histories[#histories + 1] = write_history(message)
    end
  end

  local function write_verdicts(P, record_key, entity, verdicts, deaths)
    if #verdicts == 1 and not verdicts[1].dies and OUTCOME_WORDS[verdicts[1].event] then
      -- Nearly every turn: without a table for each list.
      local verdict = verdicts[1]
      local uid = verdict.message.uid
      keep(verdict.outcome_key, OUTCOME_WORDS[verdict.event] .. verdict.reply, result_ttl)
      call("HDEL", record_key, "m:" .. uid, "h:" .. uid)
      count(P, "dispatched", verdict.event, 1)
      return NONE, NONE
    end
    local gone, back, histories = { record_key }, {}, {}
    for _, verdict in ipairs(verdicts) do
      local uid, word = verdict.message.uid, OUTCOME_WORDS[verdict.event]
      if word then
        keep(verdict.outcome_key, word .. verdict.reply, result_ttl)
        gone[#gone + 1] = "m:" .. uid
        gone[#gone + 1] = "h:" .. uid
        local reason = DEAD_REASONS[verdict.event]
        if reason then
          local text = format_letter(
            reason, decimal(verdict.message.attempts), decimal(verdict.message.interruptions),
            decimal(P.now), "", verdict.text, deaths.bodies[uid]
          )
          bury(P, deaths.letters_key, deaths.index_key, entity .. "/" .. uid, text)
        end
      else
        go_back(P, verdict, back, histories)
      end
      count(P, "dispatched", verdict.event, 1)
    end
    if #gone > 1 then
      call("HDEL", unpack(gone))
    end
    return back, histories
  end

  -- The answer to a turn that this claim has finished already.
  local function finish_again(P, record, log_key, claim, turn, held)
    local answer = call("HGET", record.key, "r") or ""
    local old_turn, old_claim, version, unburied = match(answer, "^(%d+)\n([^\n]+)\nfinished\n(%d+)\n(.*)$")
    if not old_turn or tonumber(old_turn) ~= turn or old_claim ~= claim then
      return { STALE, "turn" }
    end
    local result = { DONE, tonumber(version), 0 }
    for uid in gmatch(unburied, "[^\n]+") do
      result[3] = result[3] + 1
      result[#result + 1] = uid
    end
    local offer
    if record.dispatch then
      offer = offer_standing(record, read_dispatch(record.dispatch), claim, held or tonumber(version))
    else
      offer = offer_dry(P, record, log_key)
    end
    return extend(result, offer)
  end

  local function read_bodies(record_key, verdicts)
    local fields, bodies = {}, {}
    for _, verdict in ipairs(verdicts) do
      fields[#fields + 1] = "m:" .. verdict.message.uid
    end
    local values = call("HMGET", record_key, unpack(fields))
    for j, verdict in ipairs(verdicts) do
      bodies[verdict.message.uid] = values[j]
      if not values[j] then
        refuse("the record of " .. verdict.message.uid .. " is gone")
      end
    end
    return bodies
  end

  -- What is needed where messages die: read, nothing is written. Then where the keys go on.
  local function prepare_deaths(P, record_key, verdicts, key_at)
    -- <generated: read letters of a turn>
    local letters_key, index_key = K[key_at], K[key_at + 1]
    key_at = key_at + 2
    -- </generated>
    local deaths = {
      letters_key = letters_key,
      index_key = index_key,
      bodies = read_bodies(record_key, verdicts),
      old = old_letters(P, letters_key, index_key),
      unburied = find_room(P, verdicts, index_key),
    }
    return deaths, key_at
  end

  -- What the record holds of a turn that was finished, but for what is taken next.
  local function close_record(record, claim, turn, state, parks, unburied)
    local fields = { record.key }
    if state then
      record.version = record.version + 1
      fields = { record.key, "s", state, "v", decimal(record.version) }
    end
    if parks then
      record.parked = true
      fields[#fields + 1], fields[#fields + 2] = "p", "1"
    end
    fields[#fields + 1] = "r"
    fields[#fields + 1] = decimal(turn)
      .. "\n"
      .. claim
      .. "\nfinished\n"
      .. decimal(record.version)
      .. "\n"
      .. (#unburied > 0 and table.concat(unburied, "\n") or "")
    record.dispatch = nil
    return fields
  end

  -- Take what is next after a turn, and write everything that the record holds then.
  local function go_on(P, record, log_key, entity, claim, policy, held_version, run_limit, fields)
    local went, offer, not_before = true, OFFER_NOTHING, 0
    if record.waiting > 0 or record.parked then
      went, offer, not_before =
        pcall(take_next, P, record, log_key, entity, claim, policy, held_version, run_limit, fields)
    end
    if not went then
      -- The turn is committed; the next take answers what is wrong with what waits.
      offer, not_before = { MORE }, 0
    end
    close_turn(P, record, entity, fields, offer, not_before)
    return offer
  end

  local function finish(P, k, a)
    -- <generated: read finish>
    local record_key, log_key = K[k], K[k + 1]
    local entity, claim = A[a], A[a + 1]
    local turn = integer(A[a + 2], "turn")
    local expected_version = integer(A[a + 3], "expected_version")
    local has_state = A[a + 4] == "1"
    local state = A[a + 5]
    local park = A[a + 6] == "1"
    local policy = read_policy(texts[tonumber(A[a + 7])])
    local run_limit = integer(A[a + 8], "run_limit")
    local verdict_count = integer(A[a + 9], "verdict_count")
    local has_letters = A[a + 10] == "1"
    local local_count = integer(A[a + 11], "local_count")
    local stream_count = integer(A[a + 12], "stream_count")
    local at, key_at = a + 13, k + 2
    -- </generated>
    if not is_current(P, claim) then
      return { STALE, "claim" }
    end
    local record = read_record(record_key)
    local dispatch = record.dispatch and read_dispatch(record.dispatch)
    if not dispatch or dispatch.turn ~= turn or dispatch.claim ~= claim then
      return finish_again(P, record, log_key, claim, turn, not has_state and expected_version)
    end
    local verdicts, dead
    verdicts, dead, at, key_at = read_verdicts(dispatch, at, key_at, verdict_count)
    if has_state and expected_version ~= record.version then
      return { REJECTED, "version_conflict", "the version is " .. decimal(record.version) }
    end
    if dead ~= has_letters then
      refuse("verdicts: the keys of dead letters come with deaths, and only then")
    end
    local deaths, unburied = nil, NONE
    if dead then
      deaths, key_at = prepare_deaths(P, record_key, verdicts, key_at)
      unburied = deaths.unburied
      if not unburied then
        return { REJECTED, "dead_letters_full", "finish the messages before the failed one on their own" }
      end
    end
    local outbox
    if local_count > 0 or stream_count > 0 then
      outbox = read_outbox(P, record, at, key_at, local_count, stream_count)
    end
    if record.waiting > 0 or local_count > 0 then
      call("LLEN", log_key)
    end
    -- From here on it only writes.
    if dead then
      forget_letters(deaths.letters_key, deaths.index_key, deaths.old)
    end
    local back, histories = write_verdicts(P, record_key, entity, verdicts, deaths)
    if #back > 0 then
      put_back(record_key, log_key, back, histories)
      record.waiting = record.waiting + #back
    end
    if outbox then
      write_outbox(P, record, outbox)
    end
    local parks, held_version = park or #unburied > 0, has_state and expected_version + 1 or expected_version
    local fields = close_record(record, claim, turn, has_state and state, parks, unburied)
    local offer = go_on(P, record, log_key, entity, claim, policy, held_version, run_limit, fields)
    P.owned = true
    if offer == OFFER_NOTHING and #unburied == 0 then
      return { DONE, record.version, 0, NOTHING }
    end
    return extend(extend({ DONE, record.version, #unburied }, unburied), offer)
  end

  STEPS.take.run = take
  STEPS.defer.run = defer
  STEPS.finish.run = finish
end
