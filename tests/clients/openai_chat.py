"""What the openai package makes of the proxy: chat completions."""

from functools import partial

import openai
import pydantic

import matrix
from matrix import ANSWERING, CUT, CUTTING, DENYING, REFUSAL, raised

answering, denying, cutting = (
    openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=2) for url in (ANSWERING, DENYING, CUTTING)
)
case = partial(matrix.case, "openai-chat", "openai")


def messages(text):
    return [{"role": "user", "content": text}]


def ask(client, text, **more):
    return client.chat.completions.create(model="embedded", messages=messages(text), **more)


def read(stream):
    """A stream's text, finish reason and usage."""
    text, finish, usage = "", None, None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
    return text, finish, usage


class Answer(pydantic.BaseModel):
    """A shape to answer in."""

    text: str


# Allowed.
answer = ask(answering, "hi")
assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("Hello there.", "stop"), answer
assert answer.usage.total_tokens == 10, answer.usage
case("allowed", "`message.content`, finish reason `stop`")
text, finish, usage = read(ask(answering, "hi", stream=True, stream_options={"include_usage": True}))
assert (text, finish, usage.completion_tokens) == ("Hello there.", "stop", 3), (text, finish, usage)
with answering.chat.completions.stream(model="embedded", messages=messages("hi")) as stream:
    for _ in stream:
        pass
    assert stream.get_final_completion().choices[0].message.content == "Hello there."
case("allowed, streamed", "chunks, usage, and the stream helper's final completion")

# Refused as an answer.
answer = ask(answering, "harm")
assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (REFUSAL, "content_filter"), answer
assert [choice.index for choice in ask(answering, "harm", n=2).choices] == [0, 1]
case("refused", "`message.content`, finish reason `content_filter`; one for each of `n`")
text, finish, usage = read(ask(answering, "harm", stream=True, stream_options={"include_usage": True}))
assert (text, finish, usage.total_tokens) == (REFUSAL, "content_filter", 0), (text, finish, usage)
case("refused, streamed", "chunks, finish reason `content_filter`, usage 0")
tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
answer = ask(answering, "harm", tools=[tool]).choices[0].message
assert (answer.content, answer.tool_calls) == (REFUSAL, None), answer
case("refused, with tools", "`message.content`, no tool calls")
raised(openai.ContentFilterFinishReasonError, lambda: answering.chat.completions.parse(
    model="embedded", messages=messages("harm"), response_format=Answer))
case("refused, structured output", "`ContentFilterFinishReasonError`")
raw = answering.chat.completions.with_raw_response.create(model="embedded", messages=messages("harm"))
assert raw.headers["x-forethought-decision"] == "refuse" and len(raw.headers["x-forethought-id"]) == 36

# Refused as an error: raised at once, streamed or not, and not tried again.
for stream in (False, True):
    error = raised(openai.PermissionDeniedError, lambda: ask(denying, "harm", stream=stream))
    assert (error.code, error.type, error.param) == ("content_filter", "permission_error", "messages"), error.body
    assert REFUSAL in error.message
    case("refused with 403, streamed" if stream else "refused with 403", "`PermissionDeniedError`, code `content_filter`, not retried")

# Refused by what the model wrote.
answer = ask(cutting, "hi")
assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (REFUSAL, "content_filter"), answer
case("answer refused", "as a refused request")
text, finish, usage = read(ask(cutting, "hi", stream=True))
assert (text, finish) == (CUT, "content_filter"), (text, finish)
with cutting.chat.completions.stream(model="embedded", messages=messages("hi")) as stream:
    for _ in stream:
        pass
    raised(openai.ContentFilterFinishReasonError, stream.get_final_completion)
case("answer refused in the middle, streamed", "the text so far, the refusal, finish reason `content_filter`; the stream helper raises `ContentFilterFinishReasonError`")

# Errors.
error = raised(openai.PermissionDeniedError, lambda: ask(answering, "break"))
assert error.code == "guard_failed", error.body
case("guard fails", "`PermissionDeniedError`, code `guard_failed`, not retried")
error = raised(openai.PermissionDeniedError, lambda: ask(answering, [{"type": "image_url", "image_url": {"url": "x"}}]))
assert error.code == "unreadable_content", error.body
case("unread part", "`PermissionDeniedError`, code `unreadable_content`, not retried")
error = raised(openai.InternalServerError, lambda: ask(answering.with_options(max_retries=1), "overload"))
assert (error.status_code, error.code) == (503, "guard_overloaded"), error.body
case("guard overloaded", "`InternalServerError`, code `guard_overloaded`, retried")
error = raised(openai.BadRequestError, lambda: ask(answering, "hi", extra_body={"n": 0}))
assert (error.code, error.param) == ("bad_shape", "n"), error.body
case("bad request", "`BadRequestError`, code `bad_shape`, param `n`")
error = raised(openai.PermissionDeniedError, lambda: answering.images.generate(model="embedded", prompt="hi"))
assert error.code == "path_denied", error.body
error = raised(openai.NotFoundError, lambda: answering.models.retrieve("other"))
assert error.code == "model_not_found", error.body
case("model unknown", "`NotFoundError`, code `model_not_found`")
assert [model.id for model in answering.models.list()] == ["embedded"]

print(f"openai {openai.__version__}: as expected")
