-- Which requests Envoy may send to a tritonserver itself: plain ones. All others go to the manager's workers.
--
-- Triton checks some parts of a request only after it has formed a batch, and `classification` of an output kills it
-- (router/data/envelope.py). This script therefore accepts only the form that nearly all requests have: one BYTES input
-- with whole frames, outputs without parameters, names and parameters in ASCII. Whatever it does not know goes to the
-- workers, which check it completely and refuse it with a reason. So this script needs no errors of its own, and an
-- error in it is safe: the route without its mark leads to the workers.
--
-- The manager puts its settings in front: PLAIN (the header that marks a plain request), MODEL (the only name of the
-- model), SPACE (the parameter of the embedding space), MAX_BYTES (of a request), and SIZES, a set. Requests like one in quarantine have one of these sizes, and only
-- the workers can compare them.

local byte = string.byte
local VARINT, FIXED64, BYTES = 0, 1, 2
local LONGEST_NAME, LONGEST_ID, LONGEST_TEXT, MOST_ELEMENTS, MOST_FIELDS = 255, 1024, 16384, 1024, 256

-- The varint that begins at `at`, and where it ends; nil if it goes past `last`.
local function varint(s, at, last)
  local value, factor = 0, 1
  for _ = 1, 10 do
    if at > last then return nil end
    local b = byte(s, at)
    at = at + 1
    if b < 128 then return value + b * factor, at end
    value = value + (b - 128) * factor
    factor = factor * 128
  end
  return nil
end

-- The field that begins at `at`: its number, its kind, where its content begins, and where it ends (exclusive).
local function field(s, at, last)
  local tag, from = varint(s, at, last)
  if not tag then return nil end
  local number, kind = math.floor(tag / 8), tag % 8
  if number == 0 then return nil end
  if kind == BYTES then
    local size, begin = varint(s, from, last)
    if not size or begin + size > last + 1 then return nil end
    return number, kind, begin, begin + size
  elseif kind == VARINT then
    local _, stop = varint(s, from, last)
    if not stop then return nil end
    return number, kind, from, stop
  elseif kind == FIXED64 and from + 8 <= last + 1 then
    return number, kind, from, from + 8
  end
  return nil
end

-- Whether a text of at most `longest` bytes is ASCII without NUL.
local function is_text(s, from, stop, longest)
  if stop - from > longest then return false end
  for at = from, stop - 1 do
    local b = byte(s, at)
    if b == 0 or b > 127 then return false end
  end
  return true
end

local function equals(s, from, stop, expected)
  return stop - from == #expected and s:sub(from, stop - 1) == expected
end

-- Whether an entry of `parameters` is plain; and whether it is the timeout.
local function parameter(s, from, stop)
  local at, has_key, has_value, is_timeout = from, false, false, false
  while at < stop do
    local number, kind, begin, after = field(s, at, stop - 1)
    if not number or kind ~= BYTES then return false end
    if number == 1 and not has_key then
      if not is_text(s, begin, after, LONGEST_NAME) then return false end
      -- Only the workers know the servers' embedding spaces, and which tenants may use an adapter.
      if equals(s, begin, after, SPACE) or equals(s, begin, after, "adapter") then return false end
      has_key, is_timeout = true, equals(s, begin, after, "timeout")
    elseif number == 2 and not has_value then
      has_value = true
      local inner = begin
      while inner < after do
        local of, form, content, next_one = field(s, inner, after - 1)
        if not of or of > 5 then return false end
        if form == BYTES and not (of == 3 and is_text(s, content, next_one, LONGEST_TEXT)) then return false end
        if form == FIXED64 and of ~= 4 then return false end
        if form == VARINT and (of == 3 or of == 4) then return false end
        inner = next_one
      end
    else
      return false
    end
    at = after
  end
  return has_key and has_value, is_timeout
end

-- The number of elements of a plain input; nil if it is not plain.
local function elements(s, from, stop)
  local at, is_named, is_bytes, count = from, false, false, nil
  while at < stop do
    local number, kind, begin, after = field(s, at, stop - 1)
    if not number then return nil end
    if kind == BYTES and number == 1 and not is_named and is_text(s, begin, after, LONGEST_NAME) then
      is_named = true
    elseif kind == BYTES and number == 2 and not is_bytes and equals(s, begin, after, "BYTES") then
      is_bytes = true
    elseif kind == BYTES and number == 3 and not count then
      count = 1
      local sizes, place = 0, begin
      while place < after do
        local size
        size, place = varint(s, place, after - 1)
        sizes = sizes + 1
        if not size or sizes > 4 then return nil end
        count = count * size
      end
    else
      return nil
    end
    at = after
  end
  if is_named and is_bytes and count and count >= 1 and count <= MOST_ELEMENTS then return count end
  return nil
end

-- Whether exactly `count` elements, each behind its size (uint32, little-endian), fill the content.
local function is_framed(s, from, stop, count)
  local at = from
  for _ = 1, count do
    if at + 4 > stop then return false end
    local a, b, c, d = byte(s, at, at + 3)
    at = at + 4 + a + b * 256 + c * 65536 + d * 16777216
  end
  return at == stop
end

local function has_no_parameters(s, from, stop)
  local number, kind, begin, after = field(s, from, stop - 1)
  return number == 1 and kind == BYTES and after == stop and is_text(s, begin, after, LONGEST_NAME)
end

-- Whether a body is one plain ModelInferRequest, uncompressed.
function is_plain(s)
  local length = #s
  if length < 5 then return false end
  local flag, a, b, c, d = byte(s, 1, 5)
  if flag ~= 0 or ((a * 256 + b) * 256 + c) * 256 + d ~= length - 5 then return false end
  local at, fields, size = 6, 0, length - 5
  local is_named, has_id, count, raw_from, raw_stop = false, false, nil, nil, nil
  while at <= length do
    local number, kind, begin, after = field(s, at, length)
    fields = fields + 1
    if not number or kind ~= BYTES or fields > MOST_FIELDS then return false end
    if number == 1 and not is_named and equals(s, begin, after, MODEL) then
      is_named = true
    elseif number == 3 and not has_id and is_text(s, begin, after, LONGEST_ID) then
      has_id = true
      size = size - (after - at)
    elseif number == 4 then
      local is_known, is_timeout = parameter(s, begin, after)
      if not is_known then return false end
      if is_timeout then size = size - (after - at) end
    elseif number == 5 and not count then
      count = elements(s, begin, after)
      if not count then return false end
    elseif number == 6 then
      if not has_no_parameters(s, begin, after) then return false end
    elseif number == 7 and not raw_from then
      raw_from, raw_stop = begin, after
    else
      return false
    end
    at = after
  end
  if not (is_named and count and raw_from) or SIZES[size] then return false end
  return is_framed(s, raw_from, raw_stop, count)
end

function envoy_on_request(handle)
  -- With tenants; see tenants.lua.
  local tenant = nil
  if authenticate then
    tenant = authenticate(handle)
    if not tenant then return end
  end
  local body = handle:body()
  if body == nil then return end
  local length = body:length()
  if length > MAX_BYTES or not is_plain(body:getBytes(0, length)) then return end
  if tenant then admit(handle, tenant, length - 5) end
  -- A header costs less than dynamic metadata. Envoy removes it from what clients send, and before it forwards.
  handle:headers():add(PLAIN, "1")
  handle:clearRouteCache()
end
