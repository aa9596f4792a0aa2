"""What the openai package makes of the proxy: completions."""

from functools import partial

import openai

import matrix
from matrix import ANSWERING, CUT, CUTTING, DENYING, REFUSAL, TEXT, raised

answering, denying, cutting = (
    openai.OpenAI(base_url=f"{url}/v1", api_key="unused") for url in (ANSWERING, DENYING, CUTTING)
)
case = partial(matrix.case, "openai-completions", "openai")


def ask(client, prompt, **more):
    return client.completions.create(model="embedded", prompt=prompt, **more)


def read(stream):
    """A stream's text, finish reason and usage."""
    text, finish, usage = "", None, None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.text
            finish = choice.finish_reason or finish
    return text, finish, usage


answer = ask(answering, "hi")
assert (answer.choices[0].text, answer.choices[0].finish_reason) == (TEXT, "stop"), answer
assert answer.usage.total_tokens == 10, answer.usage
case("allowed", "`text`, finish reason `stop`")
text, finish, usage = read(ask(answering, "hi", stream=True, stream_options={"include_usage": True}))
assert (text, finish, usage.completion_tokens) == (TEXT, "stop", 3), (text, finish, usage)
case("allowed, streamed", "chunks and usage")

answer = ask(answering, ["harm", "hi"])
assert [(c.index, c.text, c.finish_reason) for c in answer.choices] == [(i, REFUSAL, "content_filter") for i in (0, 1)]
case("refused", "`text`, finish reason `content_filter`; one for each prompt")
text, finish, usage = read(ask(answering, "harm", stream=True, stream_options={"include_usage": True}))
assert (text, finish, usage.total_tokens) == (REFUSAL, "content_filter", 0), (text, finish, usage)
case("refused, streamed", "chunks, finish reason `content_filter`, usage 0")
for stream in (False, True):
    error = raised(openai.PermissionDeniedError, lambda: ask(denying, "harm", stream=stream))
    assert (error.code, error.param) == ("content_filter", "prompt"), error.body
    case("refused with 403, streamed" if stream else "refused with 403", "`PermissionDeniedError`, code `content_filter`, not retried")

assert ask(cutting, "hi").choices[0].text == REFUSAL
case("answer refused", "as a refused request")
text, finish, usage = read(ask(cutting, "hi", stream=True))
assert (text, finish) == (CUT, "content_filter"), (text, finish)
case("answer refused in the middle, streamed", "the text so far, the refusal, finish reason `content_filter`")

error = raised(openai.PermissionDeniedError, lambda: ask(answering, "break"))
assert error.code == "guard_failed", error.body
case("guard fails", "`PermissionDeniedError`, code `guard_failed`, not retried")
error = raised(openai.InternalServerError, lambda: ask(answering.with_options(max_retries=1), "overload"))
assert error.code == "guard_overloaded", error.body
case("guard overloaded", "`InternalServerError`, code `guard_overloaded`, retried")
error = raised(openai.PermissionDeniedError, lambda: ask(answering, [1, 2, 3]))
assert (error.code, error.param) == ("unreadable_content", "prompt"), error.body
case("unread part", "`PermissionDeniedError`, code `unreadable_content`, not retried")
error = raised(openai.BadRequestError, lambda: ask(answering, "hi", extra_body={"n": 0}))
assert (error.code, error.param) == ("bad_shape", "n"), error.body
case("bad request", "`BadRequestError`, code `bad_shape`, param `n`")
error = raised(openai.NotFoundError, lambda: answering.completions.create(model="other", prompt="hi"))
assert error.code == "model_not_found", error.body
case("model unknown", "`NotFoundError`, code `model_not_found`")

print(f"openai {openai.__version__}: as expected")
