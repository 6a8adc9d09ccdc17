-- Steps of the lease.

do
  -- Number the streams anew. What waits in them keeps its incarnation and numbers, because it may have arrived
  -- already.
  local function begin_incarnation(P, streams_key)
    local before, streams = book(P, "incarnation"), call("HGETALL", streams_key)
    local values = {}
    for j = 1, #streams, 2 do
      values[streams[j]] = streams[j + 1]
    end
    for name, last in pairs(values) do
      local target = match(name, "^out:(.+)$")
      if target then
        local old, left = values["old:" .. target] or "", tonumber(values["left:" .. target] or 0)
        for older in gmatch(old, "%d+ %d+ (%d+)\n") do
          left = left - tonumber(older)
        end
        if left > 0 then
          old = old .. format_old(before, tonumber(last), left)
        end
        call("HSET", streams_key, name, "0", "old:" .. target, old)
      end
    end
    add(P, "incarnation", max(before + 1, P.now) - before)
  end

  -- `streams_key` and `epoch_above` come with a new incarnation.
  local function claim_partition(P, k, a, streams_key, epoch_above)
    -- <generated: read claim>
    local claim, node, expected_claim = A[a], A[a + 1], A[a + 2]
    local expected_renewals = integer(A[a + 3], "expected_renewals")
    -- </generated>
    if not find(claim, "^[^%s%c]+$") then
      refuse("claim: must not be empty or contain spaces")
    end
    local values = call("HMGET", P.lease, "c", "e", "r", "n")
    local held, epoch = values[1] or "", tonumber(values[2] or 0)
    if held ~= claim then
      if held ~= "" and (held ~= expected_claim or tonumber(values[3]) ~= expected_renewals) then
        return { HELD, values[4], epoch, held, tonumber(values[3]) }
      end
      if epoch_above then
        epoch = max(epoch, epoch_above)
        call("HLEN", streams_key)
      end
      epoch = epoch + 1
      local is_first = book(P, "incarnation") == 0
      call("HSET", P.lease, "c", claim, "e", decimal(epoch), "r", "0", "n", node, "s", "")
      call("HSET", P.books, "claim", claim)
      P.claim = claim
      P.wrote = true
      if epoch_above then
        begin_incarnation(P, streams_key)
      elseif is_first then
        add(P, "incarnation", max(P.now, 1))
      end
    end
    return { DONE, epoch, book(P, "incarnation"), book(P, "commit") }
  end

  local function claim_free(P, k, a)
    return claim_partition(P, k, a)
  end

  local function claim_anew(P, k, a)
    -- <generated: read claim_anew>
    local streams_key = K[k]
    local epoch_above = integer(A[a + 4], "epoch_above")
    -- </generated>
    return claim_partition(P, k, a, streams_key, epoch_above)
  end

  local function renew(P, k, a)
    -- <generated: read renew>
    local claim = A[a]
    -- </generated>
    if not is_current(P, claim) then
      return { STALE, "claim" }
    end
    return { DONE, call("HINCRBY", P.lease, "r", 1) }
  end

  local function release(P, k, a)
    -- <generated: read release>
    local claim = A[a]
    -- </generated>
    if P.claim == "" then
      return { DONE }
    end
    if not is_current(P, claim) then
      return { STALE, "claim" }
    end
    if call("HLEN", P.run) > 0 then
      return { REJECTED, "dispatched", "settle the partition's turns first" }
    end
    call("HSET", P.lease, "c", "", "r", "0", "n", "", "s", "")
    call("HSET", P.books, "claim", "")
    P.claim = ""
    return { DONE }
  end

  local function read_lease(P)
    local values = call("HMGET", P.lease, "n", "e", "c", "r")
    return { DONE, values[1] or "", tonumber(values[2] or 0), values[3] or "", tonumber(values[4] or 0) }
  end

  STEPS.claim.run = claim_free
  STEPS.claim_anew.run = claim_anew
  STEPS.renew.run = renew
  STEPS.release.run = release
  STEPS.lease.run = read_lease
end
