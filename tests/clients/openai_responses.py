"""What the openai package makes of the proxy: responses."""

from functools import partial

import openai
import pydantic

import matrix
from matrix import ANSWERING, CUT, CUTTING, DENYING, REFUSAL, TEXT, raised

answering, denying, cutting = (
    openai.OpenAI(base_url=f"{url}/v1", api_key="unused") for url in (ANSWERING, DENYING, CUTTING)
)
case = partial(matrix.case, "openai-responses", "openai")


class Answer(pydantic.BaseModel):
    """A shape to answer in."""

    text: str


def ask(client, text, **more):
    return client.responses.create(model="embedded", input=text, **more)


def refusal(response):
    """The text of a response that is one refusal."""
    [message] = response.output
    [part] = message.content
    assert (part.type, response.status, message.status) == ("refusal", "completed", "completed"), response
    return part.refusal


answer = ask(answering, "hi")
assert (answer.output_text, answer.status) == (TEXT, "completed"), answer
assert answer.usage.total_tokens == 10, answer.usage
case("allowed", "`output_text`, status `completed`")
events = list(ask(answering, "hi", stream=True))
assert [event.sequence_number for event in events] == list(range(len(events))), events
assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == TEXT, events
with answering.responses.stream(model="embedded", input="hi") as stream:
    for _ in stream:
        pass
    assert stream.get_final_response().output_text == TEXT
case("allowed, streamed", "typed events, and the stream helper's final response")

assert refusal(ask(answering, "harm")) == REFUSAL
case("refused", "a `refusal` part, status `completed`; `output_text` is empty")
events = list(ask(answering, "harm", stream=True))
assert "".join(event.delta for event in events if event.type == "response.refusal.delta") == REFUSAL, events
assert [event.refusal for event in events if event.type == "response.refusal.done"] == [REFUSAL], events
with answering.responses.stream(model="embedded", input="harm") as stream:
    for _ in stream:
        pass
    assert refusal(stream.get_final_response()) == REFUSAL
case("refused, streamed", "`response.refusal.delta` and `.done`, and the stream helper's final response")
tool = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}, "strict": False}
assert refusal(ask(answering, "harm", tools=[tool])) == REFUSAL
case("refused, with tools", "a `refusal` part, no calls")
answer = answering.responses.parse(model="embedded", input="harm", text_format=Answer)
assert (refusal(answer), answer.output_parsed) == (REFUSAL, None), answer
case("refused, structured output", "a `refusal` part, `output_parsed` is `None`")
for stream in (False, True):
    error = raised(openai.PermissionDeniedError, lambda: ask(denying, "harm", stream=stream))
    assert (error.code, error.param) == ("content_filter", "input"), error.body
    case("refused with 403, streamed" if stream else "refused with 403", "`PermissionDeniedError`, code `content_filter`, not retried")

assert refusal(ask(cutting, "hi")) == REFUSAL
case("answer refused", "as a refused request")
events = list(ask(cutting, "hi", stream=True))
assert [event.sequence_number for event in events] == list(range(len(events))), events
told = [event.delta for event in events if event.type in ("response.output_text.delta", "response.refusal.delta")]
assert "".join(told) == CUT, events
with cutting.responses.stream(model="embedded", input="hi") as stream:
    for _ in stream:
        pass
    assert refusal(stream.get_final_response()) == REFUSAL
case("answer refused in the middle, streamed", "the text so far, then a second item with the refusal; the final response holds the refusal alone")

error = raised(openai.PermissionDeniedError, lambda: ask(answering, "break"))
assert error.code == "guard_failed", error.body
case("guard fails", "`PermissionDeniedError`, code `guard_failed`, not retried")
error = raised(openai.InternalServerError, lambda: ask(answering.with_options(max_retries=1), "overload"))
assert error.code == "guard_overloaded", error.body
case("guard overloaded", "`InternalServerError`, code `guard_overloaded`, retried")
error = raised(openai.PermissionDeniedError, lambda: ask(answering, "hi", previous_response_id="resp_1"))
assert (error.code, error.param) == ("unreadable_content", "input"), error.body
case("unread part", "`PermissionDeniedError`, code `unreadable_content`, not retried")
error = raised(openai.BadRequestError, lambda: ask(answering, 5))
assert (error.code, error.param) == ("bad_shape", "input"), error.body
case("bad request", "`BadRequestError`, code `bad_shape`, param `input`")
error = raised(openai.NotFoundError, lambda: answering.responses.create(model="other", input="hi"))
assert error.code == "model_not_found", error.body
case("model unknown", "`NotFoundError`, code `model_not_found`")

print(f"openai {openai.__version__}: as expected")
