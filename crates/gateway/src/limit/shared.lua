-- One decision of a rate limit that several gateways share: the algorithms of rate.rs, in microseconds of this server's clock.
-- KEYS[1] the limit and its key; ARGV algorithm, requests, period, burst, queue.
-- Answers admitted (1 or 0), wait, remaining, reset; times in microseconds, rounded up where that is the safe side.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local algorithm, requests, period = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local burst, queue = tonumber(ARGV[4]), tonumber(ARGV[5])
local step = math.ceil(period / requests)
local function keep(microseconds) redis.call('PEXPIRE', KEYS[1], math.ceil(microseconds / 1000) + 1) end
local function number(value) return string.format('%.0f', value) end

if algorithm == 'TokenBucket' or algorithm == 'LeakyBucket' then
  local at = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), now)
  local room = burst * step
  local ahead = at + step - now
  if algorithm == 'LeakyBucket' then
    room = queue * step
    ahead = at - now
  end
  if ahead > room then
    return {0, ahead - room, 0, at - now}
  end
  redis.call('SET', KEYS[1], number(at + step))
  keep(at + step - now)
  local wait = 0
  if algorithm == 'LeakyBucket' then wait = at - now end
  return {1, wait, math.max(0, math.floor((room - (at + step - now)) / step)), at + step - now}
end

if algorithm == 'SlidingWindow' then
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', number(now - period))
  local count = redis.call('ZCARD', KEYS[1])
  if count >= requests then
    local oldest = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
    local newest = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')
    return {0, tonumber(oldest[2]) + period - now, 0, tonumber(newest[2]) + period - now}
  end
  -- Two in one microsecond are two members.
  local member = number(now)
  while redis.call('ZSCORE', KEYS[1], member) do member = member .. '+' end
  redis.call('ZADD', KEYS[1], number(now), member)
  keep(period)
  return {1, 0, requests - count - 1, period}
end

local window = math.floor(now / period)
local reset = (window + 1) * period - now
local seen = redis.call('HMGET', KEYS[1], 'window', 'count')
local count = 0
if seen[1] == number(window) then count = tonumber(seen[2]) end
if count >= requests then return {0, reset, 0, reset} end
redis.call('HSET', KEYS[1], 'window', number(window), 'count', count + 1)
keep(reset)
return {1, 0, requests - count - 1, reset}
