-- What an owner is offered next, and the ways of a message into its log and out of it.

local is_expired, plan, read_state, offer_dispatch, offer_standing, offer_dry, index_ready,
  head_not_before, remove_waiting, append_waiting, put_back, close_turn

do
  function is_expired(P, message)
    return message.attempts == 0 and message.deadline ~= 0 and P.now >= message.deadline
  end

  -- How many of the messages to take, or 0 and the offer that says why none.
  function plan(P, messages, policy, limit)
    local head = messages[1]
    if head.not_before > P.now then
      return 0, { NOT_BEFORE, head.not_before }
    end
    if is_expired(P, head) then
      return 0, { EXPIRED, head.uid, head.idempotency_key }
    end
    if limit <= 0 then
      return 0, { MORE }
    end
    local taken = 1
    if may_lead(policy, head, limit) then
      for j = 2, min(limit, #messages) do
        local message = messages[j]
        if
          message.attempts > 0
          or message.not_before > P.now
          or is_expired(P, message)
          or not is_transactional(stamp_of(policy, message.name))
        then
          break
        end
        taken = j
      end
    end
    return taken
  end

  function read_state(record, held)
    if record.version == 0 or record.version == held then
      return false
    end
    return call("HGET", record.key, "s")
  end

  function offer_dispatch(turn, recovering, version, state, messages, taken)
    local offer = { DISPATCH, turn, recovering and 1 or 0, version, state }
    local n = 5
    for j = 1, taken do
      local message = messages[j]
      offer[n + 1], offer[n + 2] = message.uid, message.body
      offer[n + 3], offer[n + 4] = message.attempts, message.interruptions
      n = n + 4
    end
    return offer
  end

  -- A dispatch that stands: its own claim gets it again, another one gets what to settle.
  function offer_standing(record, dispatch, claim, held)
    local messages = dispatch.messages
    if dispatch.claim ~= claim then
      local offer = { UNSETTLED, dispatch.turn }
      for j = 1, #messages do
        offer[j + 2] = messages[j].uid
      end
      return offer
    end
    local fields = {}
    for j = 1, #messages do
      fields[j] = "m:" .. messages[j].uid
    end
    local bodies = call("HMGET", record.key, unpack(fields))
    for j = 1, #messages do
      messages[j].body = bodies[j]
    end
    return offer_dispatch(
      dispatch.turn, dispatch.recovering, record.version, read_state(record, held), messages, #messages
    )
  end

  -- What a take would say, without taking.
  function offer_dry(P, record, log_key)
    if record.parked then
      return { PARKED }
    end
    if record.waiting == 0 then
      return { NOTHING }
    end
    local messages = peek(record.key, log_key, nil, 1)
    if #messages == 0 then
      return { MORE }
    end
    local _, offer = plan(P, messages, nil, 0)
    return offer
  end

  -- After a write: the ready index says when to look at an idle entity.
  function index_ready(P, entity, not_before)
    call("ZADD", P.ready, decimal(max(not_before, P.now)), entity)
  end

  function head_not_before(record_key, log_key)
    local messages = peek(record_key, log_key, nil, 1)
    return #messages > 0 and messages[1].not_before or 0
  end

  -- Take a waiting message out, for good; its id stays behind in the list.
  function remove_waiting(P, record_key, log_key, entity, uid, record, was_head)
    call("HDEL", record_key, "m:" .. uid, "h:" .. uid)
    call("HSET", record_key, "d", decimal(record.waiting - 1))
    if record.waiting == 1 then
      call("DEL", log_key)
      call("ZREM", P.ready, entity)
    elseif was_head and not record.dispatch and not record.parked then
      local went, not_before = pcall(head_not_before, record_key, log_key)
      index_ready(P, entity, went and not_before or 0)
    end
  end

  function append_waiting(P, own, message)
    local record = message.record
    record.waiting = record.waiting + 1
    if record == own then
      call("HSET", record.key, "m:" .. message.uid, message.body)
    else
      call("HSET", record.key, "m:" .. message.uid, message.body, "d", decimal(record.waiting))
    end
    call("RPUSH", message.log_key, message.uid)
    if record ~= own and record.waiting == 1 and not record.dispatch and not record.parked then
      index_ready(P, message.entity, 0)
    end
    count(P, "absent", "append", 1)
  end

  -- Put messages of a dispatch back at the head, in order.
  function put_back(record_key, log_key, messages, histories)
    local ids, n = {}, #messages
    for j = 1, n do
      ids[j] = messages[n + 1 - j].uid
    end
    if n > 0 then
      call("LPUSH", log_key, unpack(ids))
    end
    if #histories > 0 then
      call("HSET", record_key, unpack(histories))
    end
  end

  -- Everything the record holds after a turn, in one write; then the two indexes.
  function close_turn(P, record, entity, fields, offer, not_before)
    local n = #fields
    if offer[1] ~= DISPATCH then
      fields[n + 1], fields[n + 2] = "g", ""
      if record.waiting ~= record.was_waiting then
        fields[n + 3], fields[n + 4] = "d", decimal(record.waiting)
      end
    end
    call("HSET", unpack(fields))
    if offer[1] ~= DISPATCH then
      call("HDEL", P.run, entity)
      if record.waiting > 0 and not record.parked then
        index_ready(P, entity, not_before or 0)
      end
    end
  end
end
