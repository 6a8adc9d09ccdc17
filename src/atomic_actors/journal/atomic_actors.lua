#!lua name=atomic_actors_1
-- revision: 21
-- Raise it with every change of this file: of two revisions of one protocol a store keeps the newer one.

-- The steps of `_protocol.py`, inside the store. The same meaning, word for word, as `_memory.py`.
--
-- Keys of a partition, T = {namespace:service:partition}, all of one slot:
--   T:L             hash    lease: c claim, e epoch, r renewals, n node, s claim that found no older dispatch
--   T:C             hash    books: one number a state, accepted, refused, commit, incarnation, time, outbound;
--                           claim, a copy of the lease's that is read with the numbers
--   T:run           hash    entity -> its dispatch (the same text as field g of its record)
--   T:ready         zset    entities that are idle, not parked, and have something waiting, by when to look
--   T:e:<entity>    hash    s state, v version, t turns taken, g dispatch or "", d waiting, p parked ("1")
--                           r answer of the last turn that ended, m:<unique> body, h:<unique> history
--   T:q:<entity>    list    uniques in order; one without a body was withdrawn
--   T:o:<entity>/<unique>   outcome, expires
--   T:k:<entity>:<key>      unique and digest of the first message with this key, expires
--   T:dl            hash    message id -> dead letter
--   T:dlx           zset    message id by time of death
--   T:x:<target>    list    outbound messages, oldest first; its numbers end at out:<target> of T:w. A target is a
--                           partition of this service, or one of another: "service/partition"
--   T:w             hash    out:<target> last number given in this incarnation, left:<target> length of T:x:<target>
--                           old:<target> what of that is of earlier incarnations: lines "incarnation last left"
--   T:i             hash    <source>:<incarnation> last number taken; a source is written as a target is
--
-- Keys of a namespace, M = {namespace:meta}:
--   M               hash    <service>:partitions, <service>:protocol
--   M:kinds         hash    kind -> the service that it belongs to, for good
--   M:contracts     hash    kind -> what its service said of it last
--   M:before        hash    kind -> "replaced at\n" and what was said before that: the release that is being replaced
--
-- A dispatch is lines: turn, claim, stamp, recovering, then three a message: unique, attempt, interruptions.
-- A history is "attempts interruptions recovering not_before"; none means that all are zero.
--
-- Every key that a step may touch is in KEYS. A step reads and checks everything first and writes then:
-- Lua does not roll back. Numbers are written with %.0f, because tostring rounds above 14 digits.

-- <generated: transitions>
local TRANSITIONS = {
  absent = { append = "enqueued" },
  enqueued = { take = "dispatched", withdraw = "withdrawn", expire = "expired" },
  dispatched = {
    complete = "completed",
    refuse = "completed",
    retry = "enqueued",
    fail = "failed",
    requeue = "enqueued",
    interrupt = "interrupted",
  },
  completed = {},
  failed = {},
  interrupted = {},
  withdrawn = {},
  expired = {},
}
-- </generated>

local BOOKS = {
  "accepted", "enqueued", "dispatched", "completed", "failed", "interrupted", "withdrawn", "expired",
  "refused", "commit", "incarnation", "time", "outbound",
}
local PROTOCOL = "1"
local TOMBSTONES_MAX = 32
-- `unpack` has room for about 8,000 values; three a message stay far below.
local RUN_MAX = 512
local POLICIES_MAX = 256
-- 2^53 - 1: above it, a number is not told from its neighbours.
local EXACT_MAX = 9007199254740991
local DEFAULT_STAMP = "edc3"
-- What a stored message begins with: deadline, a for an ask or t for a tell, wire name, idempotency key.
local HEAD = "^(%d+)\n([at])\n([^\n]*)\n([^\n]*)\n"
-- Never written to.
local NONE = {}

-- First element of each step's answer.
local DONE, STALE, REJECTED, HELD, SAME = 0, 1, 2, 3, 4
-- First element of an offer.
local NOTHING, DISPATCH, NOT_BEFORE, PARKED, EXPIRED, UNSETTLED, MORE = 0, 1, 2, 3, 4, 5, 6
local OFFER_NOTHING, OFFER_MORE = { NOTHING }, { MORE }

-- Set at the start of each call: while the library is loaded, there is no `redis.call`, `string` or `math`.
local call, K, A
local floor, max, min, byte, find, format, gmatch, match, sub
-- The times to live of outcomes and keys are texts, or nil for no end.
local result_ttl, dedupe_ttl, depth_limit, letter_limit, letter_ttl, partition_count
-- Policies of this call by position; those that were read, by text.
local texts
local policies, policies_kept = {}, 0
local decimals, padded = {}, {}

-- Checks and small readings.

local function extend(list, more)
  local n = #list
  for j = 1, #more do
    list[n + j] = more[j]
  end
  return list
end

-- Exact up to 2^53, unlike tostring, and from kept pieces of four digits: formatting takes a microsecond.
local function decimal(number)
  if number < 0 then
    return format("%.0f", number)
  end
  local low = number % 10000
  if number < 10000 then
    local text = decimals[low]
    if not text then
      text = format("%.0f", low)
      decimals[low] = text
    end
    return text
  end
  local text = padded[low]
  if not text then
    text = format("%04.0f", low)
    padded[low] = text
  end
  return decimal((number - low) / 10000) .. text
end

-- Only before the first write of a step.
local function refuse(text)
  error({ refused = text })
end

local function failure(problem)
  local text = problem
  if type(problem) == "table" then
    text = problem.refused or problem.err
  end
  return { REJECTED, "bad_step", tostring(text) }
end

local function integer(text, name)
  local number = tonumber(text)
  if not number or number ~= floor(number) then
    refuse(name .. " is no whole number")
  end
  return number
end

local function advance(state, event)
  local edges = TRANSITIONS[state]
  local next_state = edges and edges[event]
  if not next_state then
    refuse("a message that is " .. tostring(state) .. " cannot " .. tostring(event))
  end
  return next_state
end

local function add(P, name, number)
  P.moved[name] = (P.moved[name] or 0) + number
  P.wrote = true
end

local function count(P, state, event, times)
  local next_state = advance(state, event)
  if state == "absent" then
    add(P, "accepted", times)
  else
    add(P, state, -times)
  end
  add(P, next_state, times)
  if event == "refuse" then
    add(P, "refused", times)
  end
end

-- A number of the books, with what this call has added so far.
local function book(P, name)
  local stored = P.stored[name] or call("HGET", P.books, name) or 0
  P.stored[name] = stored
  -- What is no number any more counts from 0, and audits show it: to fail here would leave a step half written.
  return (tonumber(stored) or 0) + (P.moved[name] or 0)
end

local function read_head(body)
  local deadline, waited, name, key = match(body, HEAD)
  if not deadline then
    refuse("not a stored message")
  end
  return tonumber(deadline), waited, name, key
end

local function check_unique(unique)
  if not find(unique, "^%w+$") then
    refuse("unique: only letters and digits")
  end
end

-- A policy's stamps by wire name. The same text comes with every step of a kind, so a few are kept.
local function read_policy(text)
  local policy = policies[text]
  if not policy then
    policy = {}
    for line in gmatch(text, "[^\n]+") do
      local name, stamp = match(line, "^(.*)=([te][drm][cp]%d+)$")
      if not name then
        refuse("policy: " .. line .. " is not of the form name=stamp")
      end
      policy[name] = stamp
    end
    if policies_kept >= POLICIES_MAX then
      policies, policies_kept = {}, 0
    end
    policies[text], policies_kept = policy, policies_kept + 1
  end
  return policy
end

local function stamp_of(policy, name)
  return policy[name] or policy["*"] or DEFAULT_STAMP
end

local function is_partition(number)
  return number >= 0 and number < partition_count
end

-- A stream may lead to any partition of another service: how many that has is known there.
local function is_target(target)
  if find(target, "^%d+$") then
    return is_partition(tonumber(target))
  end
  return find(target, "^.+/%d+$") ~= nil
end

local function is_transactional(stamp)
  return sub(stamp, 1, 1) == "t"
end

-- `_wal.decide_interruption`.
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

local function is_current(P, claim)
  if claim == "" then
    return false
  end
  return P.claim == claim
end

local function ring(P, entity)
  local bells = P.bells
  if not bells then
    bells = {}
    P.bells = bells
  end
  if not bells[entity] then
    bells[entity] = true
    bells[#bells + 1] = entity
  end
end

local function keep(key, value, ttl)
  if ttl then
    call("SET", key, value, "PX", ttl)
  else
    call("SET", key, value)
  end
end

-- Records.

-- From the values of v, t, g, d and p.
local function to_record(key, values)
  local version, turn, waiting = tonumber(values[1] or 0), tonumber(values[2] or 0), tonumber(values[4] or 0)
  if not version or not turn or not waiting then
    refuse("the record " .. key .. " is damaged: its v, t or d is no number")
  end
  return {
    key = key,
    version = version,
    turn = turn,
    dispatch = values[3] and values[3] ~= "" and values[3] or nil,
    waiting = waiting,
    was_waiting = waiting,
    parked = values[5] == "1",
  }
end

local function read_record(key)
  return to_record(key, call("HMGET", key, "v", "t", "g", "d", "p"))
end

-- Whether a message that is appended now is the next to run.
local function is_idle(record)
  return not record.dispatch and not record.parked and record.waiting == 0
end

local function read_history(message, text)
  if not text then
    message.attempts, message.interruptions, message.not_before = 0, 0, 0
    return
  end
  local attempts, interruptions, recovering, not_before = match(text, "^(%d+) (%d+) (%d) (%d+)$")
  if not attempts then
    refuse("the history of " .. message.unique .. " is damaged")
  end
  message.attempts, message.interruptions = tonumber(attempts), tonumber(interruptions)
  message.recovering, message.not_before = recovering == "1", tonumber(not_before)
end

local function write_history(message)
  local recovering = message.recovering and " 1 " or " 0 "
  return decimal(message.attempts)
    .. " "
    .. decimal(message.interruptions)
    .. recovering
    .. decimal(message.not_before)
end

local function read_dispatch(text)
  local turn, claim, stamp, recovering, unique, attempts, interruptions, rest =
    match(text, "^(%d+)\n([^\n]+)\n([te][drm][cp]%d+)\n(%d)\n([^\n]+)\n(%d+)\n(%d+)(.*)$")
  if not turn then
    refuse("a dispatch is damaged")
  end
  local messages = {
    { unique = unique, attempts = tonumber(attempts), interruptions = tonumber(interruptions) },
  }
  if rest ~= "" then
    for next_unique, next_attempts, next_interruptions in gmatch(rest, "\n([^\n]+)\n(%d+)\n(%d+)") do
      messages[#messages + 1] = {
        unique = next_unique,
        attempts = tonumber(next_attempts),
        interruptions = tonumber(next_interruptions),
      }
    end
  end
  return {
    turn = tonumber(turn),
    claim = claim,
    stamp = stamp,
    recovering = recovering == "1",
    messages = messages,
  }
end

-- Whether a run may begin with this message.
local function may_lead(policy, head, limit)
  return limit > 1 and head.attempts == 0 and is_transactional(stamp_of(policy, head.name))
end

-- The messages of some ids of the list. Each knows how many ids leave the list with it.
local function read_waiting(e, q, from, to, messages)
  local ids = call("LRANGE", q, from, to)
  if #ids == 0 then
    return 0
  end
  local fields = {}
  for j = 1, #ids do
    fields[2 * j - 1] = "m:" .. ids[j]
    fields[2 * j] = "h:" .. ids[j]
  end
  local values = call("HMGET", e, unpack(fields))
  for j = 1, #ids do
    local body = values[2 * j - 1]
    if body then
      local message = { unique = ids[j], body = body, leaves = from + j }
      message.deadline, message.waited, message.name, message.idempotency_key = read_head(body)
      read_history(message, values[2 * j])
      messages[#messages + 1] = message
    end
  end
  return #ids
end

-- The head, and where a run may begin with it, the other messages of the first `limit` ids. None where too
-- many withdrawn ids stand before the head: a step skips only so many, so that no step is long.
local function peek(e, q, policy, limit)
  local messages = {}
  read_waiting(e, q, 0, 0, messages)
  if messages[1] and not may_lead(policy, messages[1], limit) then
    return messages
  end
  if limit > 1 then
    read_waiting(e, q, 1, limit - 1, messages)
  end
  if not messages[1] and limit <= TOMBSTONES_MAX then
    limit = max(limit, 1)
    read_waiting(e, q, limit, limit + TOMBSTONES_MAX, messages)
  end
  if messages[1] and messages[1].leaves > TOMBSTONES_MAX + 1 then
    return {}
  end
  return messages
end

-- Taking.

local function is_expired(P, message)
  return message.attempts == 0 and message.deadline ~= 0 and P.now >= message.deadline
end

-- How many of the messages to take, or 0 and the offer that says why none.
local function plan(P, messages, policy, limit)
  local head = messages[1]
  if head.not_before > P.now then
    return 0, { NOT_BEFORE, head.not_before }
  end
  if is_expired(P, head) then
    return 0, { EXPIRED, head.unique, head.idempotency_key }
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

-- The text of a new dispatch of the first `taken` messages; counts the attempt in them.
local function make_dispatch(turn, claim, policy, messages, taken)
  local head = messages[1]
  local lines = { decimal(turn), claim, stamp_of(policy, head.name), head.recovering and "1" or "0" }
  for j = 1, taken do
    local message = messages[j]
    message.attempts = message.attempts + 1
    lines[#lines + 1] = message.unique
    lines[#lines + 1] = decimal(message.attempts)
    lines[#lines + 1] = decimal(message.interruptions)
  end
  return table.concat(lines, "\n")
end

local function read_state(record, held)
  if record.version == 0 or record.version == held then
    return false
  end
  return call("HGET", record.key, "s")
end

local function offer_dispatch(turn, recovering, version, state, messages, taken)
  local offer = { DISPATCH, turn, recovering and 1 or 0, version, state }
  local n = 5
  for j = 1, taken do
    local message = messages[j]
    offer[n + 1], offer[n + 2] = message.unique, message.body
    offer[n + 3], offer[n + 4] = message.attempts, message.interruptions
    n = n + 4
  end
  return offer
end

-- A dispatch that stands: its own claim gets it again, another one is told what to settle.
local function offer_standing(record, dispatch, claim, held)
  local messages = dispatch.messages
  if dispatch.claim ~= claim then
    local offer = { UNSETTLED, dispatch.turn }
    for j = 1, #messages do
      offer[j + 2] = messages[j].unique
    end
    return offer
  end
  local fields = {}
  for j = 1, #messages do
    fields[j] = "m:" .. messages[j].unique
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
local function offer_dry(P, record, q)
  if record.parked then
    return { PARKED }
  end
  if record.waiting == 0 then
    return { NOTHING }
  end
  local messages = peek(record.key, q, nil, 1)
  if #messages == 0 then
    return { MORE }
  end
  local _, offer = plan(P, messages, nil, 0)
  return offer
end

-- After a write: the ready index says when to look at an idle entity.
local function index_ready(P, entity, not_before)
  call("ZADD", P.ready, decimal(max(not_before, P.now)), entity)
end

local function drop_front(q, ids, waiting)
  if waiting == 0 then
    call("DEL", q)
  elseif ids > 0 then
    call("LTRIM", q, ids, -1)
  end
end

local function head_not_before(e, q)
  local messages = peek(e, q, nil, 1)
  return #messages > 0 and messages[1].not_before or 0
end

-- Dead letters.

local function letters_alive_after(P)
  return letter_ttl > 0 and "(" .. decimal(P.now - letter_ttl) or "-inf"
end

local function count_letters(P, index)
  return call("ZCOUNT", index, letters_alive_after(P), "+inf")
end

local function room_for_letters(P, index)
  if letter_limit == 0 then
    return math.huge
  end
  return max(letter_limit - count_letters(P, index), 0)
end

-- Letters whose time is over, some of them. Reads both keys, so that writing them cannot fail afterwards.
local function old_letters(P, letters, index)
  call("HLEN", letters)
  if letter_ttl == 0 then
    call("ZCARD", index)
    return {}
  end
  return call("ZRANGEBYSCORE", index, "-inf", decimal(P.now - letter_ttl), "LIMIT", 0, 100)
end

local function forget_letters(letters, index, ids)
  if #ids == 0 then
    return 0
  end
  call("ZREM", index, unpack(ids))
  return call("HDEL", letters, unpack(ids))
end

local function format_letter(reason, attempts, interruptions, died, replayed, text, body)
  local head = format("%s\n%s\n%s\n%s\n%s\n%d\n", reason, attempts, interruptions, died, replayed, #text)
  return head .. text .. body
end

local function read_letter(P, letters, id)
  local letter = call("HGET", letters, id)
  if not letter then
    return nil
  end
  local reason, attempts, interruptions, died, replayed, size, from =
    match(letter, "^(%a+)\n(%d+)\n(%d+)\n(%d+)\n(%x*)\n(%d+)\n()")
  if not reason then
    refuse("the dead letter " .. id .. " is damaged")
  end
  if letter_ttl > 0 and tonumber(died) + letter_ttl <= P.now then
    return nil
  end
  size = tonumber(size)
  return {
    reason = reason,
    attempts = attempts,
    interruptions = interruptions,
    died = died,
    replayed = replayed,
    text = sub(letter, from, from + size - 1),
    body = sub(letter, from + size),
  }
end

local function bury(P, letters, index, id, letter)
  call("HSET", letters, id, letter)
  call("ZADD", index, decimal(P.now), id)
end

-- Steps of a sender.

-- Positions below are those behind the step's head: `k` is its first key, `a` its first own argument.

-- What the owner does next, after the append of `unique` that did not take it.
local function offer_after_append(P, record, q, entity, unique, claim, held)
  if not is_current(P, claim) then
    -- The commit of a turn of the present owner takes what is next; only one that is not to be would not.
    if not record.dispatch or P.claim == "" or not find(record.dispatch, "\n" .. P.claim .. "\n", 1, true) then
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
      if message.unique == unique then
        return offer_standing(record, dispatch, claim, held)
      end
    end
    return OFFER_MORE
  end
  return offer_dry(P, record, q)
end

local function read_birth(unique)
  return not find(unique, "\n", 1, true) and tonumber(sub(unique, 1, 12), 16)
end

local function is_too_old(P, birth)
  return result_ttl and (P.now - birth) * 2 > tonumber(result_ttl)
end

-- `message` has its log, outcome key, entity, unique, body, digest, claim, policy and held version, and where
-- it has a key, that and the key's name.
local function append(P, e, limit, message)
  local entity, unique, body, claim = message.entity, message.unique, message.body, message.claim
  local policy, held = read_policy(texts[tonumber(message.policy)]), integer(message.held, "held_version")
  local q, key_of_key = message.q, message.key_of_key
  local birth = read_birth(unique)
  if not birth then
    refuse("unique: its first 12 characters are no hex digits")
  end
  local deadline, _, name, key = read_head(body)
  if key ~= message.key then
    refuse("key: differs from the body's")
  end
  local values = call("HMGET", e, "v", "t", "g", "d", "p", "m:" .. unique)
  local record = to_record(e, values)
  local outcome = not values[6] and call("GET", message.o)
  if values[6] or outcome then
    local offer = offer_after_append(P, record, q, entity, unique, claim, held)
    return { DONE, unique, 1, outcome, unpack(offer) }
  end
  local used = key_of_key and call("GET", key_of_key)
  if used then
    local first, first_digest = match(used, "^(%w+)\n(.*)$")
    if first_digest ~= message.digest then
      return { REJECTED, "key_reused", "the key was used before, with other content" }
    end
    local offer = offer_after_append(P, record, q, entity, unique, claim, held)
    return { DONE, first, 1, false, unpack(offer) }
  end
  if is_too_old(P, birth) then
    return { REJECTED, "unknown_message", "it is too old to tell whether it ran already" }
  end
  if limit > 0 and record.waiting + 1 > limit then
    local waiting = decimal(record.waiting)
    return { REJECTED, "queue_depth_exceeded", "the entity has " .. waiting .. " messages waiting" }
  end
  if depth_limit > 0 and book(P, "enqueued") + 1 > depth_limit then
    local waiting = decimal(book(P, "enqueued"))
    return { REJECTED, "queue_depth_exceeded", "the partition has " .. waiting .. " messages waiting" }
  end
  local takes = is_idle(record) and is_current(P, claim)
  if takes and (deadline == 0 or P.now < deadline) then
    local stamp, state = stamp_of(policy, name), read_state(record, held)
    local turn = decimal(record.turn + 1)
    local dispatch = turn .. "\n" .. claim .. "\n" .. stamp .. "\n0\n" .. unique .. "\n1\n0"
    call("HSET", e, "m:" .. unique, body, "t", turn, "g", dispatch)
    call("HSET", P.run, entity, dispatch)
    if key_of_key then
      keep(key_of_key, unique .. "\n" .. message.digest, dedupe_ttl)
    end
    count(P, "absent", "append", 1)
    count(P, "enqueued", "take", 1)
    P.owned = true
    -- The caller has the body.
    local version = record.version
    return { DONE, unique, 0, false, DISPATCH, record.turn + 1, 0, version, state, unique, false, 1, 0 }
  end
  -- Where the claim is current, it has expired or something is before it: then it cannot be the head.
  local offer = takes and { EXPIRED, unique, key }
    or offer_after_append(P, record, q, entity, unique, claim, held)
  call("HSET", e, "m:" .. unique, body, "d", decimal(record.waiting + 1))
  call("RPUSH", q, unique)
  if is_idle(record) then
    index_ready(P, entity, 0)
  end
  if key_of_key then
    keep(key_of_key, unique .. "\n" .. message.digest, dedupe_ttl)
  end
  count(P, "absent", "append", 1)
  return { DONE, unique, 0, false, unpack(offer) }
end

-- keys: e q o; entity unique body digest depth_limit claim policy held
local function append_without_key(P, k, a)
  return append(P, K[k], integer(A[a + 4], "depth_limit"), {
    q = K[k + 1], o = K[k + 2], entity = A[a], unique = A[a + 1], body = A[a + 2],
    claim = A[a + 5], policy = A[a + 6], held = A[a + 7], key = "",
  })
end

-- keys: e q o k; entity unique body digest depth_limit claim policy held key
local function append_with_key(P, k, a)
  return append(P, K[k], integer(A[a + 4], "depth_limit"), {
    q = K[k + 1], o = K[k + 2], key_of_key = K[k + 3], entity = A[a], unique = A[a + 1], body = A[a + 2],
    digest = A[a + 3], claim = A[a + 5], policy = A[a + 6], held = A[a + 7], key = A[a + 8],
  })
end

-- Append messages `from` to `n` of a run in one go. Nil, and nothing is written, where the entity is idle or
-- one of them is a copy, malformed, too old or too many: then they go one by one.
local function append_together(P, k, a, from, n)
  local e, q, entity, claim = K[k], K[k + 1], A[a], A[a + 2]
  local limit, held = integer(A[a + 1], "depth_limit"), integer(A[a + 4], "held_version")
  local fields, outcomes, bodies, ids = { "v", "t", "g", "d", "p" }, {}, { e }, { q }
  for j = from, n do
    local unique, body = A[a + 3 + 2 * j], A[a + 4 + 2 * j]
    local birth, key = read_birth(unique), select(4, match(body, HEAD))
    if not birth or is_too_old(P, birth) or key ~= "" or fields[unique] then
      return nil
    end
    fields[unique] = true
    fields[#fields + 1], outcomes[#outcomes + 1] = "m:" .. unique, K[k + 1 + j]
    bodies[#bodies + 1], bodies[#bodies + 2], ids[#ids + 1] = "m:" .. unique, body, unique
  end
  local values = call("HMGET", e, unpack(fields))
  local record, more = to_record(e, values), n - from + 1
  local stored = call("MGET", unpack(outcomes))
  for j = 1, more do
    if values[5 + j] or stored[j] then
      return nil
    end
  end
  if
    is_idle(record)
    or (limit > 0 and record.waiting + more > limit)
    or (depth_limit > 0 and book(P, "enqueued") + more > depth_limit)
  then
    return nil
  end
  local offer = offer_after_append(P, record, q, entity, "", claim, held)
  bodies[#bodies + 1], bodies[#bodies + 2] = "d", decimal(record.waiting + more)
  call("LLEN", q)
  call("HSET", unpack(bodies))
  call("RPUSH", unpack(ids))
  count(P, "absent", "append", more)
  return { SAME, more, unpack(offer) }
end

-- The answers to a run of appends: one each, or SAME, how many, and their common offer.
-- keys: e q, o a message; entity depth_limit claim policy held, unique body a message
local function append_run(P, k, a, stop)
  local limit, n, answers = integer(A[a + 1], "depth_limit"), (stop - a - 4) / 2, {}
  for j = 1, n do
    local whole, together = j <= 2 and j < n, nil
    if whole then
      -- It fails before its first write, if at all; one by one each message is told why.
      whole, together = pcall(append_together, P, k, a, j, n)
    end
    if whole and together then
      answers[j] = together
      break
    end
    local went, result = pcall(append, P, K[k], limit, {
      q = K[k + 1], o = K[k + 1 + j], entity = A[a], unique = A[a + 3 + 2 * j], body = A[a + 4 + 2 * j],
      claim = A[a + 2], policy = A[a + 3], held = A[a + 4], key = "",
    })
    answers[j] = went and result or failure(result)
  end
  return answers
end

-- Where a message stands in its record: absent, dispatched or enqueued, and its body and history.
local function find_message(e, unique)
  local values = call("HMGET", e, "g", "m:" .. unique, "h:" .. unique)
  if not values[2] then
    return "absent"
  end
  if values[1] and find("\n" .. values[1] .. "\n", "\n" .. unique .. "\n", 1, true) then
    return "dispatched", values[2]
  end
  local message = { unique = unique, body = values[2] }
  read_history(message, values[3])
  return "enqueued", values[2], message
end

-- Take a waiting message out, for good; its id stays behind in the list.
local function remove_waiting(P, e, q, entity, unique, record, was_head)
  call("HDEL", e, "m:" .. unique, "h:" .. unique)
  call("HSET", e, "d", decimal(record.waiting - 1))
  if record.waiting == 1 then
    call("DEL", q)
    call("ZREM", P.ready, entity)
  elseif was_head and not record.dispatch and not record.parked then
    local went, not_before = pcall(head_not_before, e, q)
    index_ready(P, entity, went and not_before or 0)
  end
end

local function forget_key(key_of_key, unique)
  local used = call("GET", key_of_key)
  return used and sub(used, 1, #unique + 1) == unique .. "\n"
end

-- keys: e q o k; entity unique key
local function withdraw(P, k, a)
  local e, q, o, key_of_key = K[k], K[k + 1], K[k + 2], K[k + 3]
  local entity, unique, key = A[a], A[a + 1], A[a + 2]
  local state, body, message = find_message(e, unique)
  if state == "absent" then
    local outcome = call("GET", o)
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
  local record, forget = read_record(e), forget_key(key_of_key, unique)
  local head = call("LINDEX", q, 0)
  remove_waiting(P, e, q, entity, unique, record, head == unique)
  keep(o, "withdrawn\n", result_ttl)
  if forget then
    call("DEL", key_of_key)
  end
  count(P, "enqueued", "withdraw", 1)
  return { DONE, "withdrawn", false, "" }
end

-- keys: e q o k dl dlx; entity unique key
local function expire(P, k, a)
  local e, q, o, key_of_key, letters, index = K[k], K[k + 1], K[k + 2], K[k + 3], K[k + 4], K[k + 5]
  local entity, unique, key = A[a], A[a + 1], A[a + 2]
  local state, body, message = find_message(e, unique)
  if state == "absent" then
    local outcome = call("GET", o)
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
  local record, forget = read_record(e), forget_key(key_of_key, unique)
  local head, letter = call("LINDEX", q, 0), waited == "t"
  local old = letter and old_letters(P, letters, index)
  if letter and room_for_letters(P, index) < 1 then
    call("HSET", e, "p", "1")
    call("ZREM", P.ready, entity)
    P.wrote = true
    return { DONE, 0, false }
  end
  remove_waiting(P, e, q, entity, unique, record, head == unique)
  keep(o, "expired\n", result_ttl)
  if forget then
    call("DEL", key_of_key)
  end
  if letter then
    forget_letters(letters, index, old)
    local text = format_letter("expired", "0", "0", decimal(P.now), "", "", body)
    bury(P, letters, index, entity .. "/" .. unique, text)
  end
  count(P, "enqueued", "expire", 1)
  return { DONE, 1, body }
end

-- keys: e o; entity unique
local function read_outcome(P, k, a)
  local state = find_message(K[k], A[a + 1])
  if state ~= "absent" then
    return { DONE, state, false }
  end
  local outcome = call("GET", K[k + 1])
  return { DONE, outcome and "finished" or "unknown", outcome or false }
end

-- keys: e q dl o(new); entity unique new_unique at_head
local function replay(P, k, a)
  local e, q, letters, o = K[k], K[k + 1], K[k + 2], K[k + 3]
  local entity, unique, new_unique, at_head = A[a], A[a + 1], A[a + 2], A[a + 3] == "1"
  check_unique(new_unique)
  local id = entity .. "/" .. unique
  local letter = read_letter(P, letters, id)
  if not letter then
    return { REJECTED, "unknown_message", "there is no dead letter " .. id }
  end
  if letter.replayed ~= "" then
    return { DONE, letter.replayed, 1 }
  end
  if find_message(e, new_unique) ~= "absent" or call("EXISTS", o) == 1 then
    refuse("new_unique: there is a message of this id")
  end
  local _, _, name = read_head(letter.body)
  local envelope = match(letter.body, "^[^\n]*\n[^\n]*\n[^\n]*\n[^\n]*\n(.*)$")
  local record = read_record(e)
  call("LLEN", q)
  local body = "0\nt\n" .. name .. "\n\n" .. envelope
  call("HSET", e, "m:" .. new_unique, body, "d", decimal(record.waiting + 1))
  call(at_head and "LPUSH" or "RPUSH", q, new_unique)
  if not record.dispatch and not record.parked and (at_head or record.waiting == 0) then
    index_ready(P, entity, 0)
  end
  call("HSET", letters, id, format_letter(
    letter.reason, letter.attempts, letter.interruptions, letter.died, new_unique, letter.text, letter.body
  ))
  count(P, "absent", "append", 1)
  ring(P, entity)
  return { DONE, new_unique, 0 }
end

-- keys: dl dlx; message ids
local function purge(P, k, a, stop)
  local ids, old = {}, old_letters(P, K[k], K[k + 1])
  forget_letters(K[k], K[k + 1], old)
  for j = a, stop do
    ids[#ids + 1] = A[j]
  end
  return { DONE, forget_letters(K[k], K[k + 1], ids) }
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

-- keys: dl dlx; kind after_ms after_id limit message_id
local function list_letters(P, k, a)
  local letters, index = K[k], K[k + 1]
  local kind, after, after_id = A[a], integer(A[a + 1], "after_ms"), A[a + 2]
  local limit, one = integer(A[a + 3], "limit"), A[a + 4]
  local answer = { DONE, 1 }
  if limit <= 0 then
    refuse("limit must be positive")
  end
  if one ~= "" then
    if read_letter(P, letters, one) then
      answer[3], answer[4] = one, call("HGET", letters, one)
    end
    return answer
  end
  local prefix, from, found, chunk = kind ~= "" and kind .. "/" or "", 0, 0, 200
  local oldest = letter_ttl > 0 and max(P.now - letter_ttl + 1, after) or after
  while true do
    local ids = call("ZRANGEBYSCORE", index, decimal(oldest), "+inf", "WITHSCORES", "LIMIT", from, chunk)
    for j = 1, #ids, 2 do
      local id = ids[j]
      local behind = tonumber(ids[j + 1]) > after or is_behind(id, after_id)
      if behind and sub(id, 1, #prefix) == prefix then
        if found == limit then
          answer[2] = 0
          return answer
        end
        found = found + 1
        answer[#answer + 1] = id
        answer[#answer + 1] = call("HGET", letters, id)
      end
    end
    if #ids < 2 * chunk then
      return answer
    end
    from = from + chunk
  end
end

-- keys: e q; entity park
local function park(P, k, a)
  local e, q, entity, parking = K[k], K[k + 1], A[a], A[a + 1] == "1"
  local record = read_record(e)
  if parking and not record.parked then
    call("ZCARD", P.ready)
    call("HSET", e, "p", "1")
    call("ZREM", P.ready, entity)
    P.wrote = true
  elseif record.parked and not parking then
    local ready = record.waiting > 0 and not record.dispatch
    local not_before = ready and head_not_before(e, q)
    call("ZCARD", P.ready)
    call("HSET", e, "p", "")
    if ready then
      index_ready(P, entity, not_before)
    end
    P.wrote = true
  end
  if not parking then
    ring(P, entity)
  end
  return { DONE, record.parked and 1 or 0 }
end

-- keys: e q; entity
local function inspect(P, k, a)
  local record = read_record(K[k])
  local running = record.dispatch and #read_dispatch(record.dispatch).messages or 0
  local not_before = 0
  if record.waiting > 0 then
    -- Who looks at an entity because its head cannot be read must see the rest.
    local went, head = pcall(head_not_before, K[k], K[k + 1])
    not_before = went and head > P.now and head or 0
  end
  return { DONE, record.waiting, running, record.parked and 1 or 0, record.version, record.turn, not_before }
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

-- keys: dlx; kind
local function count_kind(P, k, a)
  local prefix = A[a] .. "/"
  return {
    DONE,
    count_prefix(call("HKEYS", P.run), prefix),
    count_prefix(call("ZRANGE", P.ready, 0, -1), prefix),
    count_prefix(call("ZRANGEBYSCORE", K[k], letters_alive_after(P), "+inf"), prefix),
  }
end

-- keys: dlx, the outbound list of each target of this service, w where there is an argument; anything or nothing
local function audit(P, k, a, stop, stop_key)
  local dispatched, outbound = 0, 0
  for _, text in ipairs(call("HVALS", P.run)) do
    dispatched = dispatched + #read_dispatch(text).messages
  end
  if stop >= a then
    -- The targets in other services are not known to the caller, so their lists are no keys of its.
    local streams = call("HGETALL", K[stop_key])
    for j = 1, #streams, 2 do
      if match(streams[j], "^left:.+/%d+$") then
        outbound = outbound + tonumber(streams[j + 1])
      end
    end
    stop_key = stop_key - 1
  end
  for j = k + 1, stop_key do
    outbound = outbound + call("LLEN", K[j])
  end
  local answer = { DONE, dispatched, call("ZCARD", P.ready), count_letters(P, K[k]), outbound }
  for j = 1, #BOOKS do
    answer[j + 5] = book(P, BOOKS[j])
  end
  return answer
end

-- Steps of an owner.

-- keys: e q; entity claim delay
local function defer(P, k, a)
  local record, delay = read_record(K[k]), integer(A[a + 2], "delay_ms")
  if delay < 0 then
    refuse("delay_ms must not be negative")
  end
  if not is_current(P, A[a + 1]) then
    return { STALE, "claim" }
  end
  local waits = record.waiting > 0 and not record.dispatch and not record.parked
  local not_before = waits and head_not_before(K[k], K[k + 1])
  if waits then
    index_ready(P, A[a], max(not_before, min(P.now + delay, EXACT_MAX)))
    P.wrote = true
  end
  return { DONE, waits and 1 or 0 }
end

-- Take what is next of an entity that is idle by now. Adds to `fields` what its record has to hold then.
local function take_next(P, record, q, entity, claim, policy, held, limit, fields)
  if record.parked then
    return { PARKED }
  end
  if record.waiting == 0 then
    return { NOTHING }
  end
  local messages = peek(record.key, q, policy, min(limit, RUN_MAX))
  if #messages == 0 then
    if call("LLEN", q) == 0 then
      -- To answer MORE would make the owner ask without end.
      refuse("the log has lost messages that are said to wait: " .. decimal(record.waiting))
    end
    if limit > 0 then
      drop_front(q, TOMBSTONES_MAX + 1, record.waiting)
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
  drop_front(q, messages[taken].leaves, record.waiting)
  call("HSET", P.run, entity, dispatch)
  count(P, "enqueued", "take", taken)
  return offer_dispatch(turn, recovering, record.version, state, messages, taken)
end

-- keys: e q; entity claim policy held limit
local function take(P, k, a)
  local e, q, entity, claim = K[k], K[k + 1], A[a], A[a + 1]
  local held, limit = integer(A[a + 3], "held_version"), integer(A[a + 4], "run_limit")
  if not is_current(P, claim) then
    return { STALE, "claim" }
  end
  local policy = read_policy(texts[tonumber(A[a + 2])])
  local record = read_record(e)
  if record.dispatch then
    return { DONE, unpack(offer_standing(record, read_dispatch(record.dispatch), claim, held)) }
  end
  local fields = { e }
  call("ZCARD", P.ready)
  call("HLEN", P.run)
  local offer, not_before = take_next(P, record, q, entity, claim, policy, held, limit, fields)
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

local OUTCOME_WORDS = {
  complete = "completed\n",
  refuse = "refused\n",
  fail = "failed\n",
  interrupt = "interrupted\n",
}
local DEAD_REASONS = { fail = "failed", interrupt = "interrupted" }

-- The verdicts, checked against the dispatch; the second answer is whether some are dead letters.
local function read_verdicts(dispatch, a, n)
  if n ~= #dispatch.messages then
    refuse("verdicts: one for each message of the turn is needed")
  end
  local verdicts, dead, rank = {}, false, 1
  for j = 1, n do
    local message, at = dispatch.messages[j], a + 5 * (j - 1)
    local event = A[at + 1]
    if A[at] ~= message.unique then
      refuse("verdicts: they must name the messages of the turn, in order")
    end
    local delay = integer(A[at + 4], "delay_ms")
    if delay < 0 then
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
      event = event,
      reply = A[at + 2],
      text = A[at + 3],
      delay = delay,
      recovering = dispatch.recovering,
      dies = dies,
    }
  end
  return verdicts, dead
end

-- A dead letter that has no room goes back to the head and its entity parks. Answers the uniques of those,
-- or nil where something that ran behind it is in the way.
local function find_room(P, verdicts, index)
  local room, unburied = room_for_letters(P, index), {}
  for j, verdict in ipairs(verdicts) do
    if DEAD_REASONS[verdict.event] then
      if room >= 1 then
        room = room - 1
      elseif verdicts[j + 1] and verdicts[j + 1].event ~= "requeue" then
        return nil
      else
        verdict.event, verdict.delay, verdict.unburied = "retry", 0, true
        unburied[#unburied + 1] = verdict.message.unique
      end
    end
  end
  return unburied
end

local function check_outgoing(seen, entity, unique, body)
  check_unique(unique)
  read_head(body)
  local id = entity .. "/" .. unique
  if seen[id] then
    refuse("outbox: " .. id .. " was sent before")
  end
  seen[id] = true
end

-- The outbox, with what has to be known of each target; checked, nothing is written.
local function read_outbox(P, own, k, a, locals, groups)
  local outbox, records, seen = { locals = {}, groups = {} }, { [own.key] = own }, {}
  for j = 1, locals do
    local e, q = K[k], K[k + 1]
    check_outgoing(seen, A[a], A[a + 1], A[a + 2])
    if call("HEXISTS", e, "m:" .. A[a + 1]) == 1 then
      refuse("outbox: " .. A[a + 1] .. " was sent before")
    end
    if not records[e] then
      records[e] = read_record(e)
    end
    call("LLEN", q)
    outbox.locals[j] = { record = records[e], q = q, entity = A[a], unique = A[a + 1], body = A[a + 2] }
    k, a = k + 2, a + 3
  end
  outbox.streams = K[k]
  for j = 1, groups do
    local target, n, x = A[a], integer(A[a + 1], "outbox"), K[k + j]
    if not is_target(target) then
      refuse("outbox: there is no partition " .. target)
    end
    local numbers = call("HMGET", outbox.streams, "out:" .. target, "left:" .. target)
    local entries = {}
    for i = 1, n do
      local at = a + 2 + 3 * (i - 1)
      check_outgoing(seen, A[at], A[at + 1], A[at + 2])
      entries[i] = A[at] .. "\n" .. A[at + 1] .. "\n" .. A[at + 2]
    end
    call("LLEN", x)
    outbox.groups[j] = {
      target = target,
      x = x,
      entries = entries,
      out = tonumber(numbers[1] or 0) + n,
      left = tonumber(numbers[2] or 0) + n,
    }
    a = a + 2 + 3 * n
  end
  return outbox
end

local function append_waiting(P, own, message)
  local record = message.record
  record.waiting = record.waiting + 1
  if record == own then
    call("HSET", record.key, "m:" .. message.unique, message.body)
  else
    call("HSET", record.key, "m:" .. message.unique, message.body, "d", decimal(record.waiting))
  end
  call("RPUSH", message.q, message.unique)
  if record ~= own and record.waiting == 1 and not record.dispatch and not record.parked then
    index_ready(P, message.entity, 0)
  end
  count(P, "absent", "append", 1)
end

local function write_outbox(P, own, outbox)
  for _, message in ipairs(outbox.locals) do
    append_waiting(P, own, message)
  end
  for _, group in ipairs(outbox.groups) do
    call("RPUSH", group.x, unpack(group.entries))
    call(
      "HSET", outbox.streams,
      "out:" .. group.target, decimal(group.out), "left:" .. group.target, decimal(group.left)
    )
    add(P, "outbound", #group.entries)
  end
end

-- Put messages of a dispatch back at the head, in order.
local function put_back(e, q, messages, histories)
  local ids, n = {}, #messages
  for j = 1, n do
    ids[j] = messages[n + 1 - j].unique
  end
  if n > 0 then
    call("LPUSH", q, unpack(ids))
  end
  if #histories > 0 then
    call("HSET", e, unpack(histories))
  end
end

-- A `requeue` did not count: what its record says of earlier attempts holds again.
local function go_back(P, verdict, back, histories)
  local message = verdict.message
  back[#back + 1] = message
  if verdict.event == "retry" then
    message.not_before = verdict.unburied and 0 or min(P.now + verdict.delay, EXACT_MAX)
    message.recovering = verdict.unburied and verdict.recovering
    histories[#histories + 1] = "h:" .. message.unique
    histories[#histories + 1] = write_history(message)
  end
end

local function write_verdicts(P, e, entity, k, verdicts, bodies, letters, index)
  if #verdicts == 1 and not verdicts[1].dies and OUTCOME_WORDS[verdicts[1].event] then
    -- Nearly every turn: without a table for each list.
    local verdict = verdicts[1]
    local unique = verdict.message.unique
    keep(K[k], OUTCOME_WORDS[verdict.event] .. verdict.reply, result_ttl)
    call("HDEL", e, "m:" .. unique, "h:" .. unique)
    count(P, "dispatched", verdict.event, 1)
    return NONE, NONE
  end
  local gone, back, histories = { e }, {}, {}
  for j, verdict in ipairs(verdicts) do
    local unique, word = verdict.message.unique, OUTCOME_WORDS[verdict.event]
    if word then
      keep(K[k + j - 1], word .. verdict.reply, result_ttl)
      gone[#gone + 1] = "m:" .. unique
      gone[#gone + 1] = "h:" .. unique
      local reason = DEAD_REASONS[verdict.event]
      if reason then
        local text = format_letter(
          reason, decimal(verdict.message.attempts), decimal(verdict.message.interruptions),
          decimal(P.now), "", verdict.text, bodies[unique]
        )
        bury(P, letters, index, entity .. "/" .. unique, text)
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
local function finish_again(P, record, q, claim, turn, held)
  local answer = call("HGET", record.key, "r") or ""
  local old_turn, old_claim, version, unburied = match(answer, "^(%d+)\n([^\n]+)\nfinished\n(%d+)\n(.*)$")
  if not old_turn or tonumber(old_turn) ~= turn or old_claim ~= claim then
    return { STALE, "turn" }
  end
  local result = { DONE, tonumber(version), 0 }
  for unique in gmatch(unburied, "[^\n]+") do
    result[3] = result[3] + 1
    result[#result + 1] = unique
  end
  local offer
  if record.dispatch then
    offer = offer_standing(record, read_dispatch(record.dispatch), claim, held or tonumber(version))
  else
    offer = offer_dry(P, record, q)
  end
  return extend(result, offer)
end

local function read_bodies(e, verdicts)
  local fields, bodies = {}, {}
  for _, verdict in ipairs(verdicts) do
    fields[#fields + 1] = "m:" .. verdict.message.unique
  end
  local values = call("HMGET", e, unpack(fields))
  for j, verdict in ipairs(verdicts) do
    bodies[verdict.message.unique] = values[j]
    if not values[j] then
      refuse("the record of " .. verdict.message.unique .. " is gone")
    end
  end
  return bodies
end

-- Everything the record holds after a turn, in one write; then the two indexes.
local function close_turn(P, record, q, entity, fields, offer, not_before)
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

-- keys: e q, o a verdict, dl dlx, e q a local message, w, x a target;
-- entity claim turn expected has_state state park policy limit verdicts dead locals groups ...
local function finish(P, k, a)
  local e, q, entity, claim, turn = K[k], K[k + 1], A[a], A[a + 1], integer(A[a + 2], "turn")
  if not is_current(P, claim) then
    return { STALE, "claim" }
  end
  local expected, has_state, state = integer(A[a + 3], "expected_version"), A[a + 4] == "1", A[a + 5]
  local parking, limit = A[a + 6] == "1", integer(A[a + 8], "run_limit")
  local policy = read_policy(texts[tonumber(A[a + 7])])
  local n, has_letters = integer(A[a + 9], "verdicts"), A[a + 10] == "1"
  local locals, groups = integer(A[a + 11], "outbox"), integer(A[a + 12], "outbox")
  local record = read_record(e)
  local dispatch = record.dispatch and read_dispatch(record.dispatch)
  if not dispatch or dispatch.turn ~= turn or dispatch.claim ~= claim then
    return finish_again(P, record, q, claim, turn, not has_state and expected)
  end
  local verdicts, dead = read_verdicts(dispatch, a + 13, n)
  if has_state and expected ~= record.version then
    return { REJECTED, "version_conflict", "the version is " .. decimal(record.version) }
  end
  local key_after, letters, index, old, bodies, unburied = k + 2 + n, nil, nil, NONE, nil, NONE
  if has_letters then
    letters, index, key_after = K[k + 2 + n], K[k + 3 + n], k + 4 + n
  end
  if dead then
    bodies, old = read_bodies(e, verdicts), old_letters(P, letters, index)
    unburied = find_room(P, verdicts, index)
    if not unburied then
      return { REJECTED, "dead_letters_full", "finish the messages before the failed one on their own" }
    end
  end
  local outbox
  if locals > 0 or groups > 0 then
    outbox = read_outbox(P, record, key_after, a + 13 + 5 * n, locals, groups)
  end
  if record.waiting > 0 or locals > 0 then
    call("LLEN", q)
  end
  -- From here on it only writes.
  if dead then
    forget_letters(letters, index, old)
  end
  local back, histories = write_verdicts(P, e, entity, k + 2, verdicts, bodies, letters, index)
  if #back > 0 then
    put_back(e, q, back, histories)
    record.waiting = record.waiting + #back
  end
  if outbox then
    write_outbox(P, record, outbox)
  end
  local fields = { e }
  if has_state then
    record.version = record.version + 1
    fields = { e, "s", state, "v", decimal(record.version) }
  end
  if parking or #unburied > 0 then
    record.parked = true
    fields[#fields + 1], fields[#fields + 2] = "p", "1"
  end
  fields[#fields + 1] = "r"
  fields[#fields + 1] = A[a + 2]
    .. "\n"
    .. claim
    .. "\nfinished\n"
    .. decimal(record.version)
    .. "\n"
    .. (#unburied > 0 and table.concat(unburied, "\n") or "")
  record.dispatch = nil
  local held = has_state and record.version or expected
  local went, offer, not_before = true, OFFER_NOTHING, 0
  if record.waiting > 0 or record.parked then
    went, offer, not_before = pcall(take_next, P, record, q, entity, claim, policy, held, limit, fields)
  end
  if not went then
    -- The turn is committed; whoever takes next is told what is wrong with what waits.
    offer, not_before = { MORE }, 0
  end
  close_turn(P, record, q, entity, fields, offer, not_before)
  P.owned = true
  if offer == OFFER_NOTHING and #unburied == 0 then
    return { DONE, record.version, 0, NOTHING }
  end
  return extend(extend({ DONE, record.version, #unburied }, unburied), offer)
end

-- keys: e q dl dlx o; entity claim turn began, uniques
local function interrupt(P, k, a, stop)
  local e, q, letters, index, o = K[k], K[k + 1], K[k + 2], K[k + 3], K[k + 4]
  local entity, claim, turn, began = A[a], A[a + 1], integer(A[a + 2], "turn"), A[a + 3] == "1"
  if not is_current(P, claim) then
    return { STALE, "claim" }
  end
  local record = read_record(e)
  local dispatch = record.dispatch and read_dispatch(record.dispatch)
  if not dispatch or dispatch.turn ~= turn then
    local old_turn, word = match(call("HGET", e, "r") or "", "^(%d+)\n[^\n]+\nsettled\n(%a+)$")
    if not old_turn or tonumber(old_turn) ~= turn then
      return { DONE, "gone" }
    end
    local letter = word == "interrupt" and A[a + 4] and read_letter(P, letters, entity .. "/" .. A[a + 4])
    return { DONE, word, letter and letter.body or nil }
  end
  local messages = dispatch.messages
  for j = 1, max(#messages, stop - a - 3) do
    if not messages[j] or messages[j].unique ~= A[a + 3 + j] then
      refuse("uniques: they must name the messages of the turn, in order")
    end
  end
  local head, settlement, histories = messages[1], "requeue", {}
  if began and #messages > 1 then
    for j, message in ipairs(messages) do
      message.interruptions, message.not_before = message.interruptions + 1, 0
      histories[2 * j - 1], histories[2 * j] = "h:" .. message.unique, write_history(message)
    end
  elseif began then
    head.interruptions = head.interruptions + 1
    settlement = decide_interruption(dispatch.stamp, head.interruptions, dispatch.recovering)
    head.recovering, head.not_before = settlement == "recover", 0
    histories = { "h:" .. head.unique, write_history(head) }
  end
  local answer = { DONE, settlement }
  local fields = { e, "r", format("%.0f\n%s\nsettled\n%s", turn, claim, settlement) }
  call("LLEN", q)
  call("ZCARD", P.ready)
  if settlement == "interrupt" then
    local body = call("HGET", e, "m:" .. head.unique)
    local old, room = old_letters(P, letters, index), room_for_letters(P, index)
    -- Written even where there is no room: it must not run again behind anyone's back.
    local text = format_letter(
      "interrupted", decimal(head.attempts), decimal(head.interruptions), decimal(P.now), "", "", body
    )
    answer[3] = body
    forget_letters(letters, index, old)
    bury(P, letters, index, entity .. "/" .. head.unique, text)
    keep(o, "interrupted\n", result_ttl)
    call("HDEL", e, "m:" .. head.unique, "h:" .. head.unique)
    if room < 1 or sub(dispatch.stamp, 3, 3) == "p" then
      record.parked = true
      extend(fields, { "p", "1" })
    end
    count(P, "dispatched", "interrupt", 1)
  else
    put_back(e, q, messages, histories)
    record.waiting = record.waiting + #messages
    count(P, "dispatched", "requeue", #messages)
  end
  record.dispatch = nil
  close_turn(P, record, q, entity, fields, { NOTHING })
  P.owned = true
  return answer
end

-- keys: e q o dl dlx; entity claim unique policy attempt interruptions recovering
local function settle_lost(P, k, a)
  local e, q, o, letters, index = K[k], K[k + 1], K[k + 2], K[k + 3], K[k + 4]
  local entity, claim, unique = A[a], A[a + 1], A[a + 2]
  if not is_current(P, claim) then
    return { STALE, "claim" }
  end
  local policy = read_policy(texts[tonumber(A[a + 3])])
  local attempt, interruptions = integer(A[a + 4], "attempt"), integer(A[a + 5], "interruptions")
  local state, body, message = find_message(e, unique)
  if state ~= "enqueued" then
    if state == "dispatched" or sub(call("GET", o) or "", 1, 12) ~= "interrupted\n" then
      return { DONE, "gone" }
    end
    local letter = read_letter(P, letters, entity .. "/" .. unique)
    return { DONE, "interrupt", letter and letter.body or nil }
  end
  local _, _, name = read_head(body)
  local stamp, before = stamp_of(policy, name), write_history(message)
  message.attempts = max(message.attempts, attempt)
  message.interruptions = max(message.interruptions, interruptions + 1)
  local settlement = decide_interruption(stamp, message.interruptions, A[a + 6] == "1")
  if settlement ~= "interrupt" then
    message.recovering = settlement == "recover"
    local history = write_history(message)
    if history ~= before then
      call("HSET", e, "h:" .. unique, history)
      P.owned = true
    end
    return { DONE, settlement }
  end
  local record, head = read_record(e), call("LINDEX", q, 0)
  local old, room = old_letters(P, letters, index), room_for_letters(P, index)
  local text = format_letter(
    "interrupted", decimal(message.attempts), decimal(message.interruptions), decimal(P.now), "", "", body
  )
  call("ZCARD", P.ready)
  if room < 1 or sub(stamp, 3, 3) == "p" then
    record.parked = true
    call("HSET", e, "p", "1")
    call("ZREM", P.ready, entity)
  end
  remove_waiting(P, e, q, entity, unique, record, head == unique)
  forget_letters(letters, index, old)
  bury(P, letters, index, entity .. "/" .. unique, text)
  keep(o, "interrupted\n", result_ttl)
  -- The lost take is made up for.
  count(P, "enqueued", "take", 1)
  count(P, "dispatched", "interrupt", 1)
  P.owned = true
  return { DONE, "interrupt", body }
end

local function name_dispatch(answer, entity, dispatch)
  extend(answer, { entity, dispatch.turn, #dispatch.messages })
  for _, message in ipairs(dispatch.messages) do
    answer[#answer + 1] = message.unique
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

-- keys: w; claim limit
local function sweep(P, k, a, ahead, own_from)
  local claim, limit = A[a], integer(A[a + 1], "limit")
  if limit <= 0 then
    refuse("limit must be positive")
  end
  if own_from and (#own_from > 19 or not match(own_from, "^%d+$")) then
    refuse("own_from must be where a page begins")
  end
  if not is_current(P, claim) then
    return { STALE, "claim" }
  end
  local now = decimal(P.now + ahead)
  local due = call("ZRANGEBYSCORE", P.ready, "-inf", now, "LIMIT", 0, limit)
  local later = call("ZRANGEBYSCORE", P.ready, "(" .. now, "+inf", "WITHSCORES", "LIMIT", 0, 1)
  local targets = {}
  if book(P, "outbound") > 0 then
    local streams = call("HGETALL", K[k])
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
        -- One that is damaged can be settled by nobody; the others must be.
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

local function read_ahead(P, text)
  return min(max(integer(text, "ahead_ms"), 0), EXACT_MAX - P.now)
end

-- keys: w; claim limit ahead
local function sweep_ahead(P, k, a)
  return sweep(P, k, a, read_ahead(P, A[a + 2]))
end

-- keys: w; claim limit ahead own_from
local function sweep_own(P, k, a)
  local own_from = A[a + 3]
  return sweep(P, k, a, read_ahead(P, A[a + 2]), own_from == "" and "0" or own_from)
end

local function format_old(incarnation, last, left)
  return decimal(incarnation) .. " " .. decimal(last) .. " " .. decimal(left) .. "\n"
end

-- The part of a stream that goes next: what an earlier incarnation left behind, else this one's.
local function read_oldest(P, w, target)
  local numbers = call("HMGET", w, "out:" .. target, "left:" .. target, "old:" .. target)
  local total = tonumber(numbers[2] or 0)
  if not numbers[3] or numbers[3] == "" then
    return { incarnation = book(P, "incarnation"), last = tonumber(numbers[1] or 0), left = total, total = total }
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

-- keys: w x; claim target limit
local function relay_read(P, k, a)
  local target, limit = A[a + 1], integer(A[a + 2], "limit")
  if limit <= 0 then
    refuse("limit must be positive")
  end
  if not is_current(P, A[a]) then
    return { STALE, "claim" }
  end
  local stream = read_oldest(P, K[k], target)
  local answer = { DONE, stream.incarnation, stream.last - stream.left + 1 }
  for _, entry in ipairs(call("LRANGE", K[k + 1], 0, min(limit, stream.left) - 1)) do
    local entity, unique, body = match(entry, "^([^\n]*)\n([^\n]*)\n(.*)$")
    if not entity and #answer > 3 then
      break
    elseif not entity then
      -- Left out, those behind it would get its number, and run again later.
      refuse("the oldest message to " .. target .. " is damaged")
    end
    extend(answer, { entity, unique, body })
  end
  return answer
end

-- keys: i, e q an entry; source incarnation, then number entity unique body an entry
local function relay_in(P, k, a, stop, after_loss)
  local field = A[a] .. ":" .. A[a + 1]
  local last = tonumber(call("HGET", K[k], field) or 0)
  local records, fresh, entities = {}, {}, {}
  local keys = k + 1
  if after_loss and a + 2 <= stop then
    -- What came before the first one was here, and is gone.
    last = max(last, integer(A[a + 2], "number") - 1)
  end
  for at = a + 2, stop, 4 do
    local number, entity, unique, body = integer(A[at], "number"), A[at + 1], A[at + 2], A[at + 3]
    local e, q = K[keys], K[keys + 1]
    keys = keys + 2
    if number > last + 1 then
      return { REJECTED, "stream_gap", "the next number is " .. decimal(last + 1) }
    end
    if number == last + 1 then
      last = number
      check_unique(unique)
      read_head(body)
      call("LLEN", q)
      if not records[e] then
        records[e] = read_record(e)
        entities[#entities + 1] = entity
      end
      if call("HEXISTS", e, "m:" .. unique) == 0 then
        fresh[#fresh + 1] = { record = records[e], q = q, entity = entity, unique = unique, body = body }
      end
    end
  end
  call("ZCARD", P.ready)
  if #entities > 0 then
    call("HSET", K[k], field, decimal(last))
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

-- keys, arguments: as of relay_in
local function relay_in_after_loss(P, k, a, stop)
  return relay_in(P, k, a, stop, true)
end

-- keys: w x; claim target last
local function relay_ack(P, k, a, incarnation)
  local target, last = A[a + 1], integer(A[a + 2], "last")
  if not is_current(P, A[a]) then
    return { STALE, "claim" }
  end
  local stream, forgotten = read_oldest(P, K[k], target), 0
  if not incarnation or incarnation == stream.incarnation then
    forgotten = min(last, stream.last) - (stream.last - stream.left)
  end
  call("LLEN", K[k + 1])
  if forgotten > 0 then
    stream.left, stream.total = stream.left - forgotten, stream.total - forgotten
    call("LTRIM", K[k + 1], forgotten, -1)
    call("HSET", K[k], "left:" .. target, decimal(stream.total))
    if stream.newer then
      local old = stream.left > 0 and format_old(stream.incarnation, stream.last, stream.left) or ""
      call("HSET", K[k], "old:" .. target, old .. stream.newer)
    end
    add(P, "outbound", -forgotten)
    P.owned = true
  end
  return { DONE, stream.total }
end

local function relay_ack_any(P, k, a)
  return relay_ack(P, k, a)
end

-- keys: w x; claim target last incarnation
local function relay_ack_of(P, k, a)
  return relay_ack(P, k, a, integer(A[a + 3], "incarnation"))
end

-- The lease.

-- Number the streams anew. What waits in them keeps its incarnation and numbers: it may have arrived already.
local function begin_incarnation(P, w)
  local before, streams = book(P, "incarnation"), call("HGETALL", w)
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
      call("HSET", w, name, "0", "old:" .. target, old)
    end
  end
  add(P, "incarnation", max(before + 1, P.now) - before)
end

-- no keys; claim node expected_claim expected_renewals
local function claim_partition(P, k, a, epoch_above)
  local claim, node, expected, renewals = A[a], A[a + 1], A[a + 2], integer(A[a + 3], "expected_renewals")
  if not find(claim, "^[^%s%c]+$") then
    refuse("claim: must not be empty nor hold spaces")
  end
  local values = call("HMGET", P.lease, "c", "e", "r", "n")
  local held, epoch = values[1] or "", tonumber(values[2] or 0)
  if held ~= claim then
    if held ~= "" and (held ~= expected or tonumber(values[3]) ~= renewals) then
      return { HELD, values[4], epoch, held, tonumber(values[3]) }
    end
    if epoch_above then
      epoch = max(epoch, epoch_above)
      call("HLEN", K[k])
    end
    epoch = epoch + 1
    local is_first = book(P, "incarnation") == 0
    call("HSET", P.lease, "c", claim, "e", decimal(epoch), "r", "0", "n", node, "s", "")
    call("HSET", P.books, "claim", claim)
    P.claim = claim
    P.wrote = true
    if epoch_above then
      begin_incarnation(P, K[k])
    elseif is_first then
      add(P, "incarnation", max(P.now, 1))
    end
  end
  return { DONE, epoch, book(P, "incarnation"), book(P, "commit") }
end

local function claim_free(P, k, a)
  return claim_partition(P, k, a)
end

-- keys: w; claim node expected_claim expected_renewals epoch_above
local function claim_anew(P, k, a)
  return claim_partition(P, k, a, integer(A[a + 4], "epoch_above"))
end

-- no keys; claim
local function renew(P, _, a)
  if not is_current(P, A[a]) then
    return { STALE, "claim" }
  end
  return { DONE, call("HINCRBY", P.lease, "r", 1) }
end

-- no keys; claim
local function release(P, _, a)
  if P.claim == "" then
    return { DONE }
  end
  if not is_current(P, A[a]) then
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

-- no keys and no arguments
local function read_lease(P)
  local values = call("HMGET", P.lease, "n", "e", "c", "r")
  return { DONE, values[1] or "", tonumber(values[2] or 0), values[3] or "", tonumber(values[4] or 0) }
end

-- Calls.

-- Channel payload. No step of its own: it belongs to the one before, is published only if that is done, and has no
-- answer. A hint: where it is not allowed or not heard, the asker looks the outcome up.
local function push(result, a)
  if result[1] == DONE then
    redis.pcall("PUBLISH", A[a], A[a + 1])
  end
end

-- Each step: how many keys and how many arguments of its own; -1 where the two first arguments say so. `append_run`
-- stands for several appends and has a list of answers.
local STEPS = {
  append = { append_without_key, 3, 8 },
  append_key = { append_with_key, 4, 9 },
  append_run = { append_run, -1 },
  take = { take, 2, 5 },
  finish = { finish, -1 },
  push = { push, 0, 2 },
  interrupt = { interrupt, -1 },
  settle_lost = { settle_lost, 5, 7 },
  expire = { expire, 6, 3 },
  withdraw = { withdraw, 4, 3 },
  outcome = { read_outcome, 2, 2 },
  replay = { replay, 4, 4 },
  purge = { purge, -1 },
  letters = { list_letters, 2, 5 },
  park = { park, 2, 2 },
  inspect = { inspect, 2, 1 },
  defer = { defer, 2, 3 },
  count = { count_kind, 1, 1 },
  audit = { audit, -1 },
  sweep = { sweep_now, 1, 2 },
  sweep_ahead = { sweep_ahead, 1, 3 },
  sweep_own = { sweep_own, 1, 4 },
  relay_read = { relay_read, 2, 3 },
  relay_in = { relay_in_order, -1 },
  relay_in_after_loss = { relay_in_after_loss, -1 },
  relay_ack = { relay_ack_any, 2, 3 },
  relay_ack_of = { relay_ack_of, 2, 4 },
  claim = { claim_free, 0, 4 },
  claim_anew = { claim_anew, 1, 5 },
  renew = { renew, 0, 1 },
  release = { release, 0, 1 },
  lease = { read_lease, 0, 0 },
}

-- The numbers that nearly every call moves; the others are read where they are needed.
local HOT = { "time", "commit", "accepted", "enqueued", "dispatched", "completed", "claim" }

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
    refuse("the books or the lease of partition " .. P.number .. " are damaged: " .. tostring(P.broken))
  end
  refuse("partition: there is no " .. P.number)
end

-- The same to each message of a run.
local function refuse_run(result, size)
  local answers = {}
  for j = 1, (size - 5) / 2 do
    answers[j] = failure(result)
  end
  return answers
end

local function read_settings()
  result_ttl, dedupe_ttl, depth_limit = A[2] ~= "0" and A[2], A[3] ~= "0" and A[3], tonumber(A[4])
  letter_limit, letter_ttl, partition_count = tonumber(A[5]), tonumber(A[6]), tonumber(A[7])
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
    local size_keys, size = step[2], step[3]
    a = a + 2
    if size_keys < 0 then
      size_keys, size = tonumber(A[a]), tonumber(A[a + 1])
      a = a + 2
    end
    if step[1] == push then
      push(answer[#answer], a)
    else
      local went, result = pcall(P.exists and step[1] or no_partition, P, k, a, a + size - 1, k + size_keys - 1)
      if step[1] == append_run then
        extend(answer, went and result or refuse_run(result, size))
      else
        answer[#answer + 1] = went and result or failure(result)
      end
    end
    k, a = k + size_keys, a + size
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

-- KEYS the namespace's record, ARGV service, partitions, protocol: what the store holds of the service now. With one
-- more argument nothing is written.
local function register(keys, arguments)
  local fields = { arguments[1] .. ":partitions", arguments[1] .. ":protocol" }
  local stored = redis.call("HMGET", keys[1], fields[1], fields[2])
  if stored[1] then
    return { stored[1], stored[2] }
  end
  if not arguments[4] then
    redis.call("HSET", keys[1], fields[1], arguments[2], fields[2], arguments[3])
  end
  return { arguments[2], arguments[3] }
end

-- How long what a service said before counts beside what it says now: a deploy takes that long at the most.
local DEPLOY_MS = 3600000

-- KEYS the namespace's record, its kinds, their contracts, those before; ARGV what is asked for, then
--   register  service and its partitions, then kind and contract of each: the service that each belongs to. Nothing
--             is written where one of them belongs to another service.
--   find      kinds: for each nothing, or its service, the service's partitions, its contract, and the one before
--             that where it still counts.
--   list      every kind and its service.
local function kinds(keys, arguments)
  local time = redis.call("TIME")
  local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  local answer = {}
  if arguments[1] == "list" then
    return redis.call("HGETALL", keys[2])
  elseif arguments[1] == "find" then
    for j = 2, #arguments do
      local kind = arguments[j]
      local service = redis.call("HGET", keys[2], kind)
      if service then
        local partitions = redis.call("HGET", keys[1], service .. ":partitions") or ""
        local contract = redis.call("HGET", keys[3], kind) or ""
        local replaced, before = string.match(redis.call("HGET", keys[4], kind) or "", "^(%d+)\n(.*)$")
        if replaced and now - tonumber(replaced) > DEPLOY_MS then
          before = nil
        end
        answer[j - 1] = { service, partitions, contract, before }
      else
        answer[j - 1] = {}
      end
    end
    return answer
  end
  local service, is_free = arguments[2], true
  for j = 4, #arguments, 2 do
    local owner = redis.call("HGET", keys[2], arguments[j]) or service
    answer[#answer + 1] = owner
    is_free = is_free and owner == service
  end
  if not is_free then
    return answer
  end
  redis.call("HLEN", keys[3])
  redis.call("HLEN", keys[4])
  -- Where somebody emptied the store since the service was registered.
  redis.call("HSETNX", keys[1], service .. ":partitions", arguments[3])
  redis.call("HSETNX", keys[1], service .. ":protocol", PROTOCOL)
  for j = 4, #arguments, 2 do
    local kind, contract = arguments[j], arguments[j + 1]
    local known = redis.call("HGET", keys[3], kind)
    if known ~= contract then
      redis.call("HSET", keys[2], kind, service)
      redis.call("HSET", keys[3], kind, contract)
      if known then
        redis.call("HSET", keys[4], kind, string.format("%.0f", now) .. "\n" .. known)
      end
    end
  end
  return answer
end

-- The nodes of a namespace: r:<id> what a node says of itself, b:<id> how often it said so, d:<id> that it shall drain.
local function list_nodes(key)
  local fields, nodes, answer = redis.call("HGETALL", key), {}, {}
  for j = 1, #fields, 2 do
    nodes[fields[j]] = fields[j + 1]
  end
  for field, record in pairs(nodes) do
    if string.sub(field, 1, 2) == "r:" then
      local id = string.sub(field, 3)
      answer[#answer + 1] = { id, tonumber(nodes["b:" .. id]) or 0, record, nodes["d:" .. id] and 1 or 0 }
    end
  end
  return answer
end

-- KEYS the nodes' key, ARGV node, record: all nodes.
local function announce(keys, arguments)
  local id = arguments[1]
  local beats = (tonumber(redis.call("HGET", keys[1], "b:" .. id)) or 0) + 1
  redis.call("HSET", keys[1], "b:" .. id, string.format("%.0f", beats), "r:" .. id, arguments[2])
  return list_nodes(keys[1])
end

-- KEYS the nodes' key: all nodes.
local function read_nodes(keys)
  return list_nodes(keys[1])
end

-- KEYS the nodes' key, ARGV node, the beats that it must still have ("" for any): whether it was taken off.
local function forget_node(keys, arguments)
  local id, beats = arguments[1], redis.call("HGET", keys[1], "b:" .. arguments[1])
  if not beats or (arguments[2] ~= "" and arguments[2] ~= beats) then
    return 0
  end
  return redis.call("HDEL", keys[1], "r:" .. id, "b:" .. id, "d:" .. id) > 0 and 1 or 0
end

-- KEYS the nodes' key, ARGV nodes: those of them that are there, and that are now to drain.
local function drain_nodes(keys, arguments)
  local found = {}
  for j = 1, #arguments do
    if redis.call("HEXISTS", keys[1], "r:" .. arguments[j]) == 1 then
      redis.call("HSET", keys[1], "d:" .. arguments[j], "1")
      found[#found + 1] = arguments[j]
    end
  end
  return found
end

redis.register_function("aa1_announce", announce)
redis.register_function("aa1_nodes", read_nodes)
redis.register_function("aa1_forget", forget_node)
redis.register_function("aa1_drain", drain_nodes)
redis.register_function("aa1_commit", commit)
redis.register_function("aa1_renew", renew_leases)
redis.register_function("aa1_register", register)
redis.register_function("aa1_kinds", kinds)
