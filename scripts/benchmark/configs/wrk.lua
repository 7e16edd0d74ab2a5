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

done = function(summary, latency, requests)
   local errors = summary.errors
   io.write(string.format(
      'RESULT {"microseconds":%d,"requests":%d,"bytes":%d,"connect":%d,"read":%d,"write":%d,"timeout":%d,"status":%d,"p50":%d,"p99":%d}\n',
      summary.duration, summary.requests, summary.bytes, errors.connect, errors.read, errors.write,
      errors.timeout, errors.status, latency:percentile(50), latency:percentile(99)))
end
