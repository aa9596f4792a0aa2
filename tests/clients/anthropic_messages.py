"""What the anthropic package makes of the proxy."""

from functools import partial

import anthropic

import matrix
from matrix import ANSWERING, CUT, CUTTING, DENYING, REFUSAL, TEXT, raised

answering, denying, cutting = (
    anthropic.Anthropic(base_url=url, api_key="unused") for url in (ANSWERING, DENYING, CUTTING)
)
case = partial(matrix.case, "anthropic-messages", "anthropic")


def messages(content):
    return [{"role": "user", "content": content}]


def ask(client, content, **more):
    more = {"model": "embedded", "max_tokens": 64, **more}
    return client.messages.create(messages=messages(content), **more)


def final(text, client=answering):
    """The text and the final message of the stream helper."""
    with client.messages.stream(model="embedded", max_tokens=64, messages=messages(text)) as stream:
        pieces = list(stream.text_stream)
        return "".join(pieces), stream.get_final_text(), stream.get_final_message()


answer = ask(answering, "hi")
assert (answer.content[0].text, answer.stop_reason) == (TEXT, "end_turn"), answer
assert (answer.usage.input_tokens, answer.usage.output_tokens) == (7, 3), answer.usage
case("allowed", "a text block, stop reason `end_turn`")
events = [event.type for event in ask(answering, "hi", stream=True)]
assert (events[0], events[-1]) == ("message_start", "message_stop"), events
pieces, text, message = final("hi")
assert (pieces, text, message.stop_reason, message.usage.output_tokens) == (TEXT, TEXT, "end_turn", 3), message
case("allowed, streamed", "typed events, and the stream helper's final text and message")

answer = ask(answering, "harm")
assert (answer.content[0].text, answer.stop_reason) == (REFUSAL, "refusal"), answer
case("refused", "a text block, stop reason `refusal`, usage 0")
pieces, text, message = final("harm")
assert (pieces, text, message.stop_reason, message.usage.output_tokens) == (REFUSAL, REFUSAL, "refusal", 0), message
case("refused, streamed", "typed events, final text, stop reason `refusal`")
tool = {"name": "f", "input_schema": {"type": "object", "properties": {}}}
answer = ask(answering, "harm", tools=[tool])
assert [block.type for block in answer.content] == ["text"], answer
case("refused, with tools", "a text block, no tool use")
for stream in (False, True):
    error = raised(anthropic.PermissionDeniedError, lambda: ask(denying, "harm", stream=stream))
    assert error.body["error"]["type"] == "permission_error" and REFUSAL in str(error), error.body
    case("refused with 403, streamed" if stream else "refused with 403", "`PermissionDeniedError`, type `permission_error`, not retried")

answer = ask(cutting, "hi")
assert (answer.content[0].text, answer.stop_reason) == (REFUSAL, "refusal"), answer
case("answer refused", "as a refused request")
pieces, text, message = final("hi", cutting)
assert (pieces, message.stop_reason) == (CUT, "refusal"), message
assert [block.text for block in message.content] == ["Hello there,", REFUSAL], message
case("answer refused in the middle, streamed", "the text so far, then a second block with the refusal, stop reason `refusal`")

error = raised(anthropic.PermissionDeniedError, lambda: ask(answering, "break"))
assert error.body["error"]["code"] == "guard_failed", error.body
case("guard fails", "`PermissionDeniedError`, type `permission_error`, not retried")
error = raised(anthropic.InternalServerError, lambda: ask(answering.with_options(max_retries=1), "overload"))
assert error.body["error"]["type"] == "overloaded_error", error.body
case("guard overloaded", f"`{type(error).__name__}`, type `overloaded_error`, retried")
image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
error = raised(anthropic.PermissionDeniedError, lambda: ask(answering, [image]))
assert "policy.on_unreadable" in str(error), error.body
case("unread part", "`PermissionDeniedError`, type `permission_error`, not retried")
error = raised(anthropic.BadRequestError, lambda: ask(answering, "hi", extra_body={"stream": 5}))
assert error.body["error"]["type"] == "invalid_request_error", error.body
case("bad request", "`BadRequestError`, type `invalid_request_error`")
error = raised(anthropic.NotFoundError, lambda: ask(answering, "hi", model="other"))
assert error.body["error"]["type"] == "not_found_error", error.body
case("model unknown", "`NotFoundError`, type `not_found_error`")
assert [model.id for model in answering.models.list()] == ["embedded"]

print(f"anthropic {anthropic.__version__}: as expected")
