-- The door for tenants' keys in Envoy, as the workers have it (apis/authentication.py), and their quotas (data/quotas.py).
--
-- The quotas are in the same table of shared memory, with the same lock per tenant, so they hold over Envoy and the
-- workers together. Envoy's own rate limits would each count for themselves. LuaJIT reaches the table by its FFI. Each
-- thread opens it anew: a lock of an open file (F_OFD_SETLK) excludes threads from each other, and the workers.
--
-- Only hashes of keys are here. A request's tokens are estimated from its bytes, since nothing here reads an answer.
-- Requests of tenants with a weight go to the workers, which have fair queues.
--
-- The manager puts its settings in front: TABLE (the path of the table), WIDTH and OWN (cells of a row, and Envoy's cell
-- for requests in flight), NOBODY (the lock of what is in no row), the names of the other cells, TENANTS (a line per key), the messages of refusals, and
-- CLIENTS_FAULT (gRPC statuses that cost a request).

local ffi, bit = require("ffi"), require("bit")
local band, bxor, bnot, ror, rshift, tobit = bit.band, bit.bxor, bit.bnot, bit.ror, bit.rshift, bit.tobit
local MINUTE_S, SOON_S, LEAST = 60, 1, 1e-6
local LONGEST_KEY = 256

ffi.cdef [[
  struct tritonembed_lock { short type; short whence; int64_t start; int64_t length; int pid; };
  struct tritonembed_time { int64_t seconds; int64_t nanoseconds; };
  int open(const char *path, int flags);
  int close(int fd);
  void *mmap(void *at, size_t size, int protection, int flags, int fd, int64_t offset);
  int munmap(void *at, size_t size);
  int fcntl(int fd, int command, struct tritonembed_lock *lock);
  int clock_gettime(int clock, struct tritonembed_time *time);
  int sched_yield(void);
]]
local O_RDWR_CLOEXEC, PROT_READ_WRITE, MAP_SHARED, CLOCK_MONOTONIC = 0x80002, 3, 1, 1
local F_OFD_SETLK, F_WRLCK, F_UNLCK, MOST_TRIES = 37, 1, 2, 2000

-- SHA-256 (FIPS 180-4) of a short string, in hexadecimal digits.
local ROUNDS, INITIAL = {}, {}
do
  local count, candidate = 0, 2
  local function fraction(root) return tobit(math.floor((root % 1) * 4294967296)) end
  while count < 64 do
    local is_prime = true
    for divisor = 2, math.floor(math.sqrt(candidate)) do
      if candidate % divisor == 0 then is_prime = false break end
    end
    if is_prime then
      count = count + 1
      ROUNDS[count] = fraction(candidate ^ (1 / 3))
      if count <= 8 then INITIAL[count] = fraction(math.sqrt(candidate)) end
    end
    candidate = candidate + 1
  end
end

local words = ffi.new("int32_t[64]")
function sha256(text)
  local a0, b0, c0, d0, e0, f0, g0, h0 = unpack(INITIAL)
  local bits = #text * 8
  local padded = text .. "\128" .. string.rep("\0", (55 - #text) % 64)
    .. string.char(0, 0, 0, 0, band(rshift(bits, 24), 255), band(rshift(bits, 16), 255), band(rshift(bits, 8), 255), band(bits, 255))
  for block = 1, #padded, 64 do
    for i = 0, 15 do
      local p, q, r, s = string.byte(padded, block + 4 * i, block + 4 * i + 3)
      words[i] = tobit(((p * 256 + q) * 256 + r) * 256 + s)
    end
    for i = 16, 63 do
      local x, y = words[i - 15], words[i - 2]
      local s0 = bxor(ror(x, 7), ror(x, 18), rshift(x, 3))
      local s1 = bxor(ror(y, 17), ror(y, 19), rshift(y, 10))
      words[i] = tobit(words[i - 16] + s0 + words[i - 7] + s1)
    end
    local a, b, c, d, e, f, g, h = a0, b0, c0, d0, e0, f0, g0, h0
    for i = 0, 63 do
      local s1 = bxor(ror(e, 6), ror(e, 11), ror(e, 25))
      local t1 = h + s1 + bxor(band(e, f), band(bnot(e), g)) + ROUNDS[i + 1] + words[i]
      local s0 = bxor(ror(a, 2), ror(a, 13), ror(a, 22))
      local t2 = s0 + bxor(band(a, b), band(a, c), band(b, c))
      h, g, f, e, d, c, b, a = g, f, e, tobit(d + t1), c, b, a, tobit(t1 + t2)
    end
    a0, b0, c0, d0 = tobit(a0 + a), tobit(b0 + b), tobit(c0 + c), tobit(d0 + d)
    e0, f0, g0, h0 = tobit(e0 + e), tobit(f0 + f), tobit(g0 + g), tobit(h0 + h)
  end
  local function hex(word) return bit.tohex(word, 8) end
  return hex(a0) .. hex(b0) .. hex(c0) .. hex(d0) .. hex(e0) .. hex(f0) .. hex(g0) .. hex(h0)
end

-- The tenants, by the hashes of their keys and by their slots.
local KEYS, BY_SLOT = {}, {}
for line in TENANTS:gmatch("[^\n]+") do
  local hash, slot, expires, requests, tokens, in_flight, is_allowed, is_direct =
    line:match("^(%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+)$")
  local tenant = {
    slot = tonumber(slot),
    expires = tonumber(expires),
    requests = tonumber(requests),
    tokens = tonumber(tokens),
    in_flight = tonumber(in_flight),
    is_allowed = is_allowed == "1",
    is_direct = is_direct == "1",
  }
  KEYS[hash], BY_SLOT[tenant.slot] = tenant, tenant
end

-- The table; opened by a thread's first request.
local lock, moment = ffi.new("struct tritonembed_lock"), ffi.new("struct tritonembed_time")
local cells, fd
local function opened()
  if cells then return cells end
  fd = ffi.C.open(TABLE, O_RDWR_CLOEXEC)
  if fd < 0 then error("the quota table cannot be opened") end
  local at = ffi.C.mmap(nil, TABLE_BYTES, PROT_READ_WRITE, MAP_SHARED, fd, 0)
  if ffi.cast("intptr_t", at) == -1 then error("the quota table cannot be mapped") end
  cells = ffi.gc(ffi.cast("double *", at), function(mapped)
    ffi.C.munmap(mapped, TABLE_BYTES)
    ffi.C.close(fd)
  end)
  return cells
end

local function now()
  ffi.C.clock_gettime(CLOCK_MONOTONIC, moment)
  return tonumber(moment.seconds) + tonumber(moment.nanoseconds) / 1e9
end

local function set_lock(kind, slot)
  lock.type, lock.whence, lock.start, lock.length, lock.pid = kind, 0, slot, 1, 0
  return ffi.C.fcntl(fd, F_OFD_SETLK, lock) == 0
end

-- As in quotas.py: a lock that takes long is gone without.
local function take_lock(slot)
  for _ = 1, MOST_TRIES do
    if set_lock(F_WRLCK, slot) then return true end
    ffi.C.sched_yield()
  end
  return false
end

-- A bucket's size, and what is used of it now.
local function bucket(limit, used, passed)
  local size = math.max(1, limit / cells[SHARES])
  return size, math.max(0, used - passed * size / MINUTE_S)
end

-- Seconds until `amount` fits.
local function wait(size, used, amount)
  local missing = used + math.min(amount, size) - size
  return missing > LEAST and missing * MINUTE_S / size or 0
end

-- What is used of a tenant's buckets at a time.
local function used(tenant, row, at)
  local passed = math.max(0, at - cells[row + AT])
  local requests, tokens = 0, 0
  if tenant.requests then _, requests = bucket(tenant.requests, cells[row + USED_REQUESTS], passed) end
  if tenant.tokens then _, tokens = bucket(tenant.tokens, cells[row + USED_TOKENS], passed) end
  return requests, tokens
end

-- The limit that a request is over: the cell that counts it, its words, and the seconds to wait; nil if there is none.
local function over(tenant, row, requests, tokens, asked)
  if tenant.in_flight then
    local flying = 0
    for cell = row + FIRST_OWN, row + WIDTH - 1 do flying = flying + cells[cell] end
    if flying >= tenant.in_flight then return OVER_IN_FLIGHT, IN_FLIGHT:format(tenant.in_flight), SOON_S end
  end
  if tenant.requests then
    local seconds = wait(math.max(1, tenant.requests / cells[SHARES]), requests, 1)
    if seconds > 0 then return OVER_REQUESTS, REQUESTS_USED:format(tenant.requests), seconds end
  end
  if tenant.tokens then
    local seconds = wait(math.max(1, tenant.tokens / cells[SHARES]), tokens, asked)
    if seconds > 0 then return OVER_TOKENS, TOKENS_USED:format(tenant.tokens), seconds end
  end
  return nil
end

-- As OpenAI writes it: 120ms, 7.5s, 6m0s.
local function duration(seconds)
  if seconds < 1 then return string.format("%dms", math.floor(seconds * 1000 + 0.5)) end
  local rounded = math.floor(seconds * 100 + 0.5) / 100
  local minutes = math.floor(rounded / 60)
  local rest = string.format("%.12gs", rounded - minutes * 60)
  return minutes > 0 and minutes .. "m" .. rest or rest
end

-- Give each header of a tenant's quotas to `add`.
local function each_limit(tenant, add)
  local row, at = HEADER + tenant.slot * WIDTH, now()
  local requests, tokens = used(tenant, row, at)
  local function one(what, limit, taken)
    local size = math.max(1, limit / cells[SHARES])
    add("x-ratelimit-limit-" .. what, string.format("%d", limit))
    add("x-ratelimit-remaining-" .. what, string.format("%d", math.max(0, math.floor(size - taken + LEAST))))
    add("x-ratelimit-reset-" .. what, duration(wait(size, taken, size)))
  end
  if tenant.requests then one("requests", tenant.requests, requests) end
  if tenant.tokens then one("tokens", tenant.tokens, tokens) end
end

-- Ends the script.
local function refuse(handle, code, message, tenant, seconds)
  local headers = {[":status"] = "200", ["grpc-status"] = code}
  if seconds then headers["grpc-retry-pushback-ms"] = string.format("%d", math.floor(seconds * 1000 + 0.5)) end
  if tenant then each_limit(tenant, function(name, value) headers[name] = value end) end
  handle:respond(headers, message)
end

local function refuse_over(handle, tenant, row, cell, words, seconds)
  cells[row + cell] = cells[row + cell] + 1
  set_lock(F_UNLCK, tenant.slot)
  refuse(handle, RESOURCE_EXHAUSTED, OVER_LIMIT:format(words), tenant, seconds)
end

-- For a request that is no tenant's. Such floods are counted: the manager does not see them.
local function refuse_stranger(handle, message)
  opened()
  take_lock(NOBODY)
  cells[STRANGERS] = cells[STRANGERS] + 1
  set_lock(F_UNLCK, NOBODY)
  refuse(handle, UNAUTHENTICATED, message)
end

local function key_in(headers)
  local authorization = headers:getAtIndex("authorization", 0)
  if authorization then
    local scheme, value = authorization:match("^%s*([^ ]+) %s*(.-)%s*$")
    if value and value ~= "" and scheme:lower() == "bearer" then return value end
  end
  local key = headers:getAtIndex("x-api-key", 0)
  key = key and key:match("^%s*(.-)%s*$")
  return key ~= "" and key or nil
end

-- The tenant of a request, before its body is read; nil if a worker has to find it. Others are refused.
function authenticate(handle)
  local key = key_in(handle:headers())
  if not key then refuse_stranger(handle, NO_KEY) end
  if #key > LONGEST_KEY then return nil end
  local tenant = KEYS[sha256(key)]
  if not tenant then refuse_stranger(handle, UNKNOWN_KEY) end
  if tenant.expires and os.time() >= tenant.expires then refuse_stranger(handle, EXPIRED_KEY) end
  if not tenant.is_direct then return nil end
  opened()
  -- Without the lock, which is taken only for a refusal.
  local row = HEADER + tenant.slot * WIDTH
  local requests, tokens = used(tenant, row, now())
  if over(tenant, row, requests, tokens, 1) then
    take_lock(tenant.slot)
    requests, tokens = used(tenant, row, now())
    local cell, words, seconds = over(tenant, row, requests, tokens, 1)
    if cell then refuse_over(handle, tenant, row, cell, words, seconds) end
    set_lock(F_UNLCK, tenant.slot)
  end
  return tenant
end

-- Charge a plain request of `size` bytes to its tenant, or refuse it.
function admit(handle, tenant, size)
  if not tenant.is_allowed then refuse(handle, PERMISSION_DENIED, OTHER_MODEL, tenant) end
  local asked, row = math.max(1, math.floor(size / BYTES_PER_TOKEN)), HEADER + tenant.slot * WIDTH
  take_lock(tenant.slot)
  local at = now()
  local requests, tokens = used(tenant, row, at)
  local cell, words, seconds = over(tenant, row, requests, tokens, asked)
  if cell then refuse_over(handle, tenant, row, cell, words, seconds) end
  cells[row + AT], cells[row + USED_REQUESTS], cells[row + USED_TOKENS] = at, requests + 1, tokens + asked
  cells[row + SPENT_REQUESTS] = cells[row + SPENT_REQUESTS] + 1
  cells[row + SPENT_TOKENS] = cells[row + SPENT_TOKENS] + asked
  cells[row + OWN] = cells[row + OWN] + 1
  set_lock(F_UNLCK, tenant.slot)
  -- The access log has the streams that end while this has a space: those whose client went away.
  handle:streamInfo():dynamicMetadata():set("tritonembed", HELD, tenant.slot .. " " .. asked)
  -- For a worker, if the server breaks. Envoy removes it from what clients send.
  handle:headers():replace(ADMITTED, tostring(tenant.slot))
end

function envoy_on_response(handle)
  local metadata = handle:streamInfo():dynamicMetadata()
  local found = metadata:get("tritonembed")
  local slot, asked = (found and found[HELD] or ""):match("^(%d+) (%d+)$")
  if not slot then return end
  local tenant = BY_SLOT[tonumber(slot)]
  asked = tonumber(asked)
  local row, headers = HEADER + tenant.slot * WIDTH, handle:headers()
  local status = headers:get("grpc-status")
  local code = status and tonumber(status) or 0
  local is_kept = code == 0 or code == CANCELLED or code == DEADLINE_EXCEEDED
  take_lock(tenant.slot)
  local at = now()
  local requests, tokens = used(tenant, row, at)
  local free_requests, free_tokens = (is_kept or CLIENTS_FAULT[code]) and 0 or 1, is_kept and 0 or asked
  cells[row + AT], cells[row + USED_REQUESTS], cells[row + USED_TOKENS] = at, requests - free_requests, tokens - free_tokens
  cells[row + SPENT_REQUESTS] = cells[row + SPENT_REQUESTS] - free_requests
  cells[row + SPENT_TOKENS] = cells[row + SPENT_TOKENS] - free_tokens
  cells[row + OWN] = cells[row + OWN] - 1
  local counter = code == 0 and ANSWERED or FAILED
  cells[row + counter] = cells[row + counter] + 1
  if code == 0 then cells[row + TOKENS] = cells[row + TOKENS] + asked end
  set_lock(F_UNLCK, tenant.slot)
  metadata:set("tritonembed", HELD, "")
  if not (tenant.requests or tenant.tokens) then return end
  local last = status and headers or handle:trailers()
  if last and not last:get(tenant.requests and "x-ratelimit-limit-requests" or "x-ratelimit-limit-tokens") then
    each_limit(tenant, function(name, value) last:add(name, value) end)
  end
end
