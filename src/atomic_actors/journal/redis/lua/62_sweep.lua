-- Steps of an owner: finding work.

do
  local function name_dispatch(answer, entity, dispatch)
    extend(answer, { entity, dispatch.turn, #dispatch.messages })
    for _, message in ipairs(dispatch.messages) do
      answer[#answer + 1] = message.uid
    end
  end

  -- Dispatches of this claim: their number, where the next page begins, and the page.
  local function name_own(P, answer, claim, limit, cursor)
    local page = call("HSCAN", P.run, cursor, "COUNT", limit)
    local running, number_at, found = page[2], #answer + 1, 0
    extend(answer, { 0, page[1] == "0" and "" or page[1] })
    for j = 1, #running, 2 do
      local went, dispatch = pcall(read_dispatch, running[j + 1])
      if went and dispatch.claim == claim then
        found = found + 1
        name_dispatch(answer, running[j], dispatch)
      end
    end
    answer[number_at] = found
  end

  local function sweep(P, k, a, ahead_ms, own_from)
    -- <generated: read sweep>
    local streams_key = K[k]
    local claim = A[a]
    local limit = integer(A[a + 1], "limit")
    -- </generated>
    if limit <= 0 then
      refuse("limit must be positive")
    end
    if own_from and (#own_from > 19 or not match(own_from, "^%d+$")) then
      refuse("own_from must be where a page begins")
    end
    if not is_current(P, claim) then
      return { STALE, "claim" }
    end
    local now = decimal(P.now + ahead_ms)
    local due = call("ZRANGEBYSCORE", P.ready, "-inf", now, "LIMIT", 0, limit)
    local later = call("ZRANGEBYSCORE", P.ready, "(" .. now, "+inf", "WITHSCORES", "LIMIT", 0, 1)
    local targets = {}
    if book(P, "outbound") > 0 then
      local streams = call("HGETALL", streams_key)
      for j = 1, #streams, 2 do
        local target = match(streams[j], "^left:(.+)$")
        if target and streams[j + 1] ~= "0" then
          targets[#targets + 1] = target
        end
      end
    end
    local answer = { DONE, later[2] and tonumber(later[2]) or 0, #due, #targets }
    extend(answer, due)
    extend(answer, targets)
    if own_from then
      name_own(P, answer, claim, limit, own_from)
    end
    -- Dispatches of other claims are there only after a takeover, and no new ones come.
    if call("HGET", P.lease, "s") ~= claim then
      local found, running = 0, call("HGETALL", P.run)
      for j = 1, #running, 2 do
        local went, dispatch = pcall(read_dispatch, running[j + 1])
        if not went then
          -- A damaged one cannot be settled; the others must be.
          found = found + 1
        elseif dispatch.claim ~= claim then
          found = found + 1
          if found > limit then
            break
          end
          name_dispatch(answer, running[j], dispatch)
        end
      end
      if found == 0 then
        call("HSET", P.lease, "s", claim)
      end
    end
    return answer
  end

  local function sweep_now(P, k, a)
    return sweep(P, k, a, 0)
  end

  local function limit_ahead(P, ahead_ms)
    return min(max(ahead_ms, 0), EXACT_MAX - P.now)
  end

  local function sweep_ahead(P, k, a)
    -- <generated: read sweep_ahead>
    local ahead_ms = integer(A[a + 2], "ahead_ms")
    -- </generated>
    return sweep(P, k, a, limit_ahead(P, ahead_ms))
  end

  local function sweep_own(P, k, a)
    -- <generated: read sweep_own>
    local ahead_ms = integer(A[a + 2], "ahead_ms")
    local own_from = A[a + 3]
    -- </generated>
    return sweep(P, k, a, limit_ahead(P, ahead_ms), own_from == "" and "0" or own_from)
  end

  STEPS.sweep.run = sweep_now
  STEPS.sweep_ahead.run = sweep_ahead
  STEPS.sweep_own.run = sweep_own
end
