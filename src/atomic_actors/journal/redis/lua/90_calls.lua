-- The calls: `aa1_commit` and `aa1_renew`.

do
  local PUSH, APPEND_RUN = STEPS.push, STEPS.append_run
  -- The numbers that nearly every call moves; the others are read where they are needed.
  local HOT = { "time", "commit", "accepted", "enqueued", "dispatched", "completed", "claim" }

  -- No step of its own: it belongs to the one before, is published only if that is done, and has no answer. A hint:
  -- where it is not allowed or not heard, the asker looks the outcome up.
  local function push(result, a)
    -- <generated: read push>
    local channel, payload = A[a], A[a + 1]
    -- </generated>
    if result[1] == DONE then
      redis.pcall("PUBLISH", channel, payload)
    end
  end

  local function open_partition(number, k, clock)
    local values, stored = redis.pcall("HMGET", K[k + 1], unpack(HOT)), {}
    if values.err then
      -- Not a hash any more: nothing can be done in this partition, but the others go on.
      return { number = number, broken = values.err, exists = false, now = clock }
    end
    -- Books from before there was a copy.
    local claim = values[#HOT] or redis.pcall("HGET", K[k], "c") or ""
    if type(claim) == "table" then
      return { number = number, broken = claim.err, exists = false, now = clock }
    end
    for j = 1, #HOT - 1 do
      stored[HOT[j]] = values[j] or "0"
    end
    return {
      number = number,
      exists = is_partition(tonumber(number)),
      lease = K[k],
      books = K[k + 1],
      run = K[k + 2],
      ready = K[k + 3],
      stored = stored,
      claim = claim,
      moved = {},
      now = max(clock, tonumber(stored.time) or 0),
    }
  end

  -- What the steps of this call added up to. The key was read as a hash, so this cannot fail.
  local function close_partition(P)
    if P.broken then
      return false
    end
    if P.owned then
      add(P, "commit", 1)
    end
    if P.wrote then
      local fields = { P.books, "time", decimal(P.now) }
      for name, number in pairs(P.moved) do
        if number ~= 0 then
          fields[#fields + 1], fields[#fields + 2] = name, decimal(book(P, name))
        end
      end
      call("HSET", unpack(fields))
    end
    if P.bells then
      -- A hint: where it is not allowed or not heard, the owner's sweep finds the work.
      redis.pcall("SPUBLISH", sub(P.lease, 1, -2) .. "bell", table.concat(P.bells, "\n"))
    end
    return book(P, "commit")
  end

  local function no_partition(P)
    if P.broken then
      refuse("the counters or the lease of partition " .. P.number .. " are damaged: " .. tostring(P.broken))
    end
    refuse("partition: there is no " .. P.number)
  end

  -- The same to each message of a run.
  local function refuse_run(result, argument_count)
    local answers = {}
    for j = 1, (argument_count - APPEND_RUN.first) / APPEND_RUN.each do
      answers[j] = failure(result)
    end
    return answers
  end

  local function read_settings()
    result_ttl, dedupe_ttl = A[2] ~= "0" and A[2], A[3] ~= "0" and A[3]
    partition_depth_limit, letter_limit, letter_ttl = tonumber(A[4]), tonumber(A[5]), tonumber(A[6])
    partition_count = tonumber(A[7])
    texts = {}
    local n = tonumber(A[9])
    for j = 1, n do
      texts[j] = A[9 + j]
    end
    return 9 + n
  end

  local function commit(keys, arguments)
    call, K, A = redis.call, keys, arguments
    floor, max, min, byte, find = math.floor, math.max, math.min, string.byte, string.find
    format, gmatch, match, sub = string.format, string.gmatch, string.match, string.sub
    if A[1] ~= PROTOCOL then
      return redis.error_reply("ERR this is protocol " .. PROTOCOL .. ", not " .. tostring(A[1]))
    end
    local a = read_settings()
    local time = call("TIME")
    local clock = tonumber(time[1]) * 1000 + floor(tonumber(time[2]) / 1000)
    local partitions, k = {}, 0
    for j = 1, tonumber(A[8]) do
      partitions[j] = open_partition(A[a + j], 4 * j - 3, clock)
      clock = max(clock, partitions[j].now)
    end
    k, a = 4 * #partitions + 1, a + #partitions + 1
    local commits, answer = {}, { decimal(clock), false }
    while A[a] do
      local step, P = STEPS[A[a]], partitions[tonumber(A[a + 1])]
      local key_count, argument_count = step.keys, step.arguments
      a = a + 2
      if key_count < 0 then
        key_count, argument_count = tonumber(A[a]), tonumber(A[a + 1])
        a = a + 2
      end
      local after_k, after_a = k + key_count, a + argument_count
      if step == PUSH then
        push(answer[#answer], a)
      else
        local went, result = pcall(P.exists and step.run or no_partition, P, k, a, after_a - 1, after_k - 1)
        if step == APPEND_RUN then
          extend(answer, went and result or refuse_run(result, argument_count))
        else
          answer[#answer + 1] = went and result or failure(result)
        end
      end
      k, a = after_k, after_a
    end
    for j = 1, #partitions do
      commits[j] = close_partition(partitions[j])
    end
    answer[2] = commits
    return answer
  end

  -- KEYS lease keys, ARGV claims: the renewals of each, or -1 where the claim is not the lease's.
  local function renew_leases(keys, claims)
    local renewals = {}
    for j = 1, #keys do
      -- One that is damaged must not keep the others from being renewed.
      local held, renewed = redis.pcall("HGET", keys[j], "c"), nil
      if held and held ~= "" and held == claims[j] then
        renewed = redis.pcall("HINCRBY", keys[j], "r", 1)
      end
      renewals[j] = tonumber(renewed) or -1
    end
    return renewals
  end

  redis.register_function("aa1_commit", commit)
  redis.register_function("aa1_renew", renew_leases)
end
