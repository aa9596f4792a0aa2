-- One chat completion of about a kilobyte, and the figures of a run as one line of JSON.

wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
wrk.headers["authorization"] = "Bearer unused"
wrk.body = string.format('{"model":"bench","messages":[{"role":"user","content":"%s"}]}', string.rep("word ", 200))

function done(summary, latency)
  local errors = summary.errors
  print(string.format(
    'RESULT {"p50_us":%d,"p99_us":%d,"per_second":%.1f,"requests":%d,"errors":%d}',
    latency:percentile(50), latency:percentile(99), summary.requests / (summary.duration / 1e6), summary.requests,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
