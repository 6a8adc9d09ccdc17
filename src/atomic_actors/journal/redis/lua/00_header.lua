#!lua name=atomic_actors_1
-- revision: 24
-- Raise it with every change of a part: of two revisions of one protocol a store keeps the newer one.

-- The steps of `_protocol.py`, inside the store. The same meaning, word for word, as `memory/_journal.py`.
--
-- The parts of this folder are joined in the order of their names into one library. A name that stands outside of
-- a part's `do ... end` can be used by every part behind it; Lua allows 200 of them, so there are few. What stands
-- between the marks of a generated block is written by `python -m atomic_actors.tools.codegen`: names and places of keys
-- and arguments come from `_forms.py`.
--
-- Keys of a partition, T = {namespace:service:partition}, all of one slot:
--   T:L             hash    lease: c claim, e epoch, r renewals, n node, s claim that found no older dispatch
--   T:C             hash    books: one number a state, accepted, refused, commit, incarnation, time, outbound;
--                           claim, a copy of the lease's that is read with the numbers
--   T:run           hash    entity -> its dispatch (the same text as field g of its record)
--   T:ready         zset    entities that are idle, not parked, and have something waiting, by when to look
--   T:e:<entity>    hash    s state, v version, t turns taken, g dispatch or "", d waiting, p parked ("1")
--                           r answer of the last turn that ended, m:<uid> body, h:<uid> history
--   T:q:<entity>    list    uids in order; one without a body was withdrawn
--   T:o:<entity>/<uid>   outcome, expires
--   T:k:<entity>:<key>      uid and digest of the first message with this key, expires
--   T:dl            hash    message id -> dead letter
--   T:dlx           zset    message id by time of death
--   T:x:<target>    list    outbound messages, oldest first; its numbers end at out:<target> of T:w. A target is a
--                           partition of this service, or one of another: "service/partition"
--   T:w             hash    out:<target> last number given in this incarnation, left:<target> length of T:x:<target>
--                           old:<target> what of that is of earlier incarnations: lines "incarnation last left"
--   T:i             hash    <source>:<incarnation> last number taken; a source is written as a target is
--
-- What the code calls them: record_key T:e, log_key T:q, outcome_key T:o, used_key T:k, letters_key T:dl,
-- index_key T:dlx, outbound_key T:x, streams_key T:w, inbound_key T:i.
--
-- Keys of a namespace, M = {namespace:meta}:
--   M               hash    <service>:partitions, <service>:protocol
--   M:kinds         hash    kind -> the service that it belongs to, for good
--   M:contracts     hash    kind -> the contract that its service wrote last
--   M:before        hash    kind -> "replaced at\n" and the contract before that: the release that is being replaced
--
-- A dispatch is lines: turn, claim, stamp, recovering, then three a message: uid, attempt, interruptions.
-- A history is "attempts interruptions recovering not_before"; none means that all are zero.
--
-- Every key that a step may touch is in KEYS. A step reads and checks everything first and writes then:
-- Lua does not roll back. Numbers are written with %.0f, because tostring rounds above 14 digits.
-- A step is called with its partition, the places of its first key and its first argument (`k` and `a`), and those of
-- its last argument and its last key. What it reads there has names in a generated block; in a list, `at` and `key_at`
-- go from member to member.

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

-- Each step by its name: how many keys and arguments of its own it has; -1 where its two first arguments say so.
-- Of one with a list of members: how many arguments stand before its `first` member, and how many `each` one has. Its
-- part adds `run`.
-- <generated: steps>
local STEPS = {
  append_key = { keys = 4, arguments = 9 },
  append = { keys = 3, arguments = 8 },
  append_run = { keys = -1, arguments = -1, first = 5, each = 2 },
  withdraw = { keys = 4, arguments = 3 },
  outcome = { keys = 2, arguments = 2 },
  replay_claimed = { keys = 4, arguments = 7 },
  replay = { keys = 4, arguments = 4 },
  purge = { keys = -1, arguments = -1 },
  letters = { keys = 2, arguments = 5 },
  park = { keys = 2, arguments = 2 },
  inspect = { keys = 2, arguments = 1 },
  count = { keys = 1, arguments = 1 },
  audit = { keys = -1, arguments = -1 },
  take = { keys = 2, arguments = 5 },
  finish = { keys = -1, arguments = -1 },
  push = { keys = 0, arguments = 2 },
  interrupt = { keys = -1, arguments = -1 },
  settle_lost = { keys = 5, arguments = 7 },
  defer = { keys = 2, arguments = 3 },
  expire = { keys = 6, arguments = 3 },
  sweep_own = { keys = 1, arguments = 4 },
  sweep_ahead = { keys = 1, arguments = 3 },
  sweep = { keys = 1, arguments = 2 },
  relay_read = { keys = 2, arguments = 3 },
  relay_in = { keys = -1, arguments = -1, first = 2, each = 4 },
  relay_in_after_loss = { keys = -1, arguments = -1 },
  relay_ack_of = { keys = 2, arguments = 4 },
  relay_ack = { keys = 2, arguments = 3 },
  claim_anew = { keys = 1, arguments = 5 },
  claim = { keys = 0, arguments = 4 },
  renew = { keys = 0, arguments = 1 },
  release = { keys = 0, arguments = 1 },
  lease = { keys = 0, arguments = 0 },
}
-- </generated>

local PROTOCOL = "1"
local TOMBSTONES_MAX = 32
-- 2^53 - 1: above it, a number is not told from its neighbours.
local EXACT_MAX = 9007199254740991
-- What a stored message begins with: deadline, a for an ask or t for a tell, wire name, idempotency key.
local HEAD = "^(%d+)\n([at])\n([^\n]*)\n([^\n]*)\n"

-- First element of each step's answer.
local DONE, STALE, REJECTED, HELD, SAME = 0, 1, 2, 3, 4
-- First element of an offer.
local NOTHING, DISPATCH, NOT_BEFORE, PARKED, EXPIRED, UNSETTLED, MORE = 0, 1, 2, 3, 4, 5, 6
local OFFER_NOTHING = { NOTHING }

-- Set at the start of each call: while the library is loaded, there is no `redis.call`, `string` or `math`.
local call, K, A
local floor, max, min, byte, find, format, gmatch, match, sub
-- The times to live of outcomes and keys are texts, or nil for no end.
local result_ttl, dedupe_ttl, partition_depth_limit, letter_limit, letter_ttl, partition_count
-- Policies of this call by position.
local texts
