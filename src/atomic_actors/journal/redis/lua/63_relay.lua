-- Steps of an owner: streams between partitions.

local format_old

do
  function format_old(incarnation, last, left)
    return decimal(incarnation) .. " " .. decimal(last) .. " " .. decimal(left) .. "\n"
  end

  -- The part of a stream that goes next: what an earlier incarnation left behind, else this one's.
  local function read_oldest(P, streams_key, target)
    local numbers = call("HMGET", streams_key, "out:" .. target, "left:" .. target, "old:" .. target)
    local total = tonumber(numbers[2] or 0)
    if not numbers[3] or numbers[3] == "" then
      local last = tonumber(numbers[1] or 0)
      return { incarnation = book(P, "incarnation"), last = last, left = total, total = total }
    end
    local incarnation, last, left, newer = match(numbers[3], "^(%d+) (%d+) (%d+)\n(.*)$")
    return {
      incarnation = tonumber(incarnation),
      last = tonumber(last),
      left = tonumber(left),
      total = total,
      newer = newer,
    }
  end

  local function relay_read(P, k, a)
    -- <generated: read relay_read>
    local streams_key, outbound_key = K[k], K[k + 1]
    local claim, target = A[a], A[a + 1]
    local limit = integer(A[a + 2], "limit")
    -- </generated>
    if limit <= 0 then
      refuse("limit must be positive")
    end
    if not is_current(P, claim) then
      return { STALE, "claim" }
    end
    local stream = read_oldest(P, streams_key, target)
    local answer = { DONE, stream.incarnation, stream.last - stream.left + 1 }
    for _, entry in ipairs(call("LRANGE", outbound_key, 0, min(limit, stream.left) - 1)) do
      local entity, uid, body = match(entry, "^([^\n]*)\n([^\n]*)\n(.*)$")
      if not entity and #answer > 3 then
        break
      elseif not entity then
        -- Left out, those behind it would get its number, and run again later.
        refuse("the oldest message to " .. target .. " is damaged")
      end
      extend(answer, { entity, uid, body })
    end
    return answer
  end

  local function relay_in(P, k, a, stop, after_loss)
    -- <generated: read relay_in>
    local inbound_key = K[k]
    local source = A[a]
    local incarnation = integer(A[a + 1], "incarnation")
    local at, key_at = a + 2, k + 1
    -- </generated>
    local field = source .. ":" .. decimal(incarnation)
    local last = tonumber(call("HGET", inbound_key, field) or 0)
    local records, fresh, entities = {}, {}, {}
    while at <= stop do
      -- <generated: read entry>
      local record_key, log_key = K[key_at], K[key_at + 1]
      local number = integer(A[at], "number")
      local entity, uid, body = A[at + 1], A[at + 2], A[at + 3]
      at = at + 4
      key_at = key_at + 2
      -- </generated>
      if after_loss then
        -- What came before the first one was here, and is gone.
        last, after_loss = max(last, number - 1), false
      end
      if number > last + 1 then
        return { REJECTED, "stream_gap", "the next number is " .. decimal(last + 1) }
      end
      if number == last + 1 then
        last = number
        check_uid(uid)
        read_head(body)
        call("LLEN", log_key)
        if not records[record_key] then
          records[record_key] = read_record(record_key)
          entities[#entities + 1] = entity
        end
        if call("HEXISTS", record_key, "m:" .. uid) == 0 then
          fresh[#fresh + 1] = {
            record = records[record_key], log_key = log_key, entity = entity, uid = uid, body = body,
          }
        end
      end
    end
    call("ZCARD", P.ready)
    if #entities > 0 then
      call("HSET", inbound_key, field, decimal(last))
      P.wrote = true
    end
    for _, message in ipairs(fresh) do
      append_waiting(P, nil, message)
    end
    for _, entity in ipairs(entities) do
      ring(P, entity)
    end
    return extend({ DONE, last }, entities)
  end

  local function relay_in_order(P, k, a, stop)
    return relay_in(P, k, a, stop)
  end

  local function relay_in_after_loss(P, k, a, stop)
    return relay_in(P, k, a, stop, true)
  end

  local function relay_ack(P, k, a, incarnation)
    -- <generated: read relay_ack>
    local streams_key, outbound_key = K[k], K[k + 1]
    local claim, target = A[a], A[a + 1]
    local last = integer(A[a + 2], "last")
    -- </generated>
    if not is_current(P, claim) then
      return { STALE, "claim" }
    end
    local stream, forgotten = read_oldest(P, streams_key, target), 0
    if not incarnation or incarnation == stream.incarnation then
      forgotten = min(last, stream.last) - (stream.last - stream.left)
    end
    call("LLEN", outbound_key)
    if forgotten > 0 then
      stream.left, stream.total = stream.left - forgotten, stream.total - forgotten
      call("LTRIM", outbound_key, forgotten, -1)
      call("HSET", streams_key, "left:" .. target, decimal(stream.total))
      if stream.newer then
        local old = stream.left > 0 and format_old(stream.incarnation, stream.last, stream.left) or ""
        call("HSET", streams_key, "old:" .. target, old .. stream.newer)
      end
      add(P, "outbound", -forgotten)
      P.owned = true
    end
    return { DONE, stream.total }
  end

  local function relay_ack_any(P, k, a)
    return relay_ack(P, k, a)
  end

  local function relay_ack_of(P, k, a)
    -- <generated: read relay_ack_of>
    local incarnation = integer(A[a + 3], "incarnation")
    -- </generated>
    return relay_ack(P, k, a, incarnation)
  end

  STEPS.relay_read.run = relay_read
  STEPS.relay_in.run = relay_in_order
  STEPS.relay_in_after_loss.run = relay_in_after_loss
  STEPS.relay_ack.run = relay_ack_any
  STEPS.relay_ack_of.run = relay_ack_of
end
