-- Connects to the loopback whatever the name in the URL is (it stays the SNI), and reports in one line of JSON.
wrk.resolve = function(host, service)
   wrk.addrs = wrk.lookup("127.0.0.1", service)
end

local rest = tonumber(os.getenv("BENCH_REST") or "0")
if rest > 0 then
   delay = function()
      return math.random(rest / 2, rest * 3 / 2)
   end
end

-- Every request with another query, Cookie, Referer and X-Trace, so that no head repeats; the other fields stay.
if os.getenv("BENCH_VARIED") then
   local MARK = "@@@@"
   local parts = {}

   local fresh = function()
      return string.format("%07x%07x", math.random(0, 0xfffffff), math.random(0, 0xfffffff))
   end

   init = function()
      math.randomseed(os.time())
      wrk.headers["Cookie"] = "session=" .. MARK .. "; theme=dark"
      wrk.headers["Referer"] = "https://bench.test/dashboard/orders/" .. MARK
      wrk.headers["X-Trace"] = MARK
      local template = wrk.format(nil, wrk.path .. "?cursor=" .. MARK) .. MARK
      for part in template:gmatch("(.-)" .. MARK) do
         parts[#parts + 1] = part
      end
   end

   request = function()
      return parts[1] .. fresh() .. parts[2] .. fresh() .. parts[3] .. fresh() .. parts[4] .. fresh() .. parts[5]
   end
end

done = function(summary, latency, requests)
   local errors = summary.errors
   io.write(string.format(
      'RESULT {"microseconds":%d,"requests":%d,"bytes":%d,"connect":%d,"read":%d,"write":%d,"timeout":%d,"status":%d,"p50":%d,"p99":%d}\n',
      summary.duration, summary.requests, summary.bytes, errors.connect, errors.read, errors.write,
      errors.timeout, errors.status, latency:percentile(50), latency:percentile(99)))
end
