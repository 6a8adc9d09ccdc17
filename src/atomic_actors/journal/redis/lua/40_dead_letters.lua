-- Dead letters.

local letters_alive_after, count_letters, room_for_letters, old_letters, forget_letters,
  format_letter, read_letter, bury

do
  function letters_alive_after(P)
    return letter_ttl > 0 and "(" .. decimal(P.now - letter_ttl) or "-inf"
  end

  function count_letters(P, index_key)
    return call("ZCOUNT", index_key, letters_alive_after(P), "+inf")
  end

  function room_for_letters(P, index_key)
    if letter_limit == 0 then
      return math.huge
    end
    return max(letter_limit - count_letters(P, index_key), 0)
  end

  -- Letters whose time is over, some of them. Reads both keys, so that writing them cannot fail afterwards.
  function old_letters(P, letters_key, index_key)
    call("HLEN", letters_key)
    if letter_ttl == 0 then
      call("ZCARD", index_key)
      return {}
    end
    return call("ZRANGEBYSCORE", index_key, "-inf", decimal(P.now - letter_ttl), "LIMIT", 0, 100)
  end

  function forget_letters(letters_key, index_key, ids)
    if #ids == 0 then
      return 0
    end
    call("ZREM", index_key, unpack(ids))
    return call("HDEL", letters_key, unpack(ids))
  end

  function format_letter(reason, attempts, interruptions, died, replayed, text, body)
    local head = format("%s\n%s\n%s\n%s\n%s\n%d\n", reason, attempts, interruptions, died, replayed, #text)
    return head .. text .. body
  end

  function read_letter(P, letters_key, id)
    local letter = call("HGET", letters_key, id)
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

  function bury(P, letters_key, index_key, id, letter)
    call("HSET", letters_key, id, letter)
    call("ZADD", index_key, decimal(P.now), id)
  end
end
