-- Mixed traffic for wrk: every wire format, streamed and not, allowed, refused, and with an upstream that fails. Each request
-- has an id of its own as its model, and of each answer the proxy's id and the status are written to a file.
--
-- wrk ... -s mixed.lua URL -- FOLDER

local threads = {}

function setup(thread)
    thread:set("number", #threads)
    table.insert(threads, thread)
end

local faults = { "reset before the head", "reset in the body", "closed before the last chunk", "slow", "silent", "an error" }

-- What is asked: mostly something harmless.
local function text()
    local dice = math.random(100)
    if dice <= 70 then
        return "What is a llama?"
    elseif dice <= 85 then
        return "Do harm."
    end
    return "fault: " .. faults[math.random(#faults)]
end

local messages = '{"model":"%s","max_tokens":64,"messages":[{"role":"user","content":"%s"}],"stream":%s}'
local prompt = '{"model":"%s","prompt":"%s","stream":%s}'
local input = '{"model":"%s","input":"%s","stream":%s}'
local formats = {
    { "/v1/chat/completions", messages },
    { "/v1/completions", prompt },
    { "/v1/responses", input },
    { "/v1/messages", messages },
    { "/api/chat", messages },
    { "/api/generate", prompt },
}

function init(args)
    math.randomseed(number + 1)
    issued = 0
    answers = io.open(args[1] .. "/answers-" .. number .. ".txt", "w")
    answers:setvbuf("line")
end

function request()
    issued = issued + 1
    local id = "wrk-" .. number .. "-" .. issued
    local stream = math.random(2) == 1
    local headers = { ["content-type"] = "application/json" }
    local kind = formats[math.random(#formats + 1)]
    if kind then
        local body = string.format(kind[2], id, text(), tostring(stream))
        return wrk.format("POST", kind[1], headers, body)
    end
    local path = "/v1beta/models/" .. id .. (stream and ":streamGenerateContent?alt=sse" or ":generateContent")
    local body = string.format('{"contents":[{"role":"user","parts":[{"text":"%s"}]}]}', text())
    return wrk.format("POST", path, headers, body)
end

function delay()
    return math.random(0, 200)
end

function response(status, headers, body)
    answers:write(headers["x-forethought-id"] or "none", " ", status, "\n")
end

function done(summary, latency, requests)
    local all = 0
    for _, thread in ipairs(threads) do
        all = all + thread:get("issued")
    end
    local errors = summary.errors
    print(string.format("issued %d\nanswered %d\nconnect %d\nread %d\nwrite %d\ntimeout %d", all, summary.requests,
        errors.connect, errors.read, errors.write, errors.timeout))
end
