"""What LangChain makes of the proxy through `langchain-anthropic`."""

from functools import partial
from importlib.metadata import version

import anthropic
import pydantic
from langchain_anthropic import ChatAnthropic
from langchain_core.exceptions import ModelRefusalError
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool

import matrix
from matrix import ANSWERING, CUT, CUTTING, DENYING, REFUSAL, TEXT, raised

case = partial(matrix.case, "anthropic-messages", "langchain-anthropic")


class Answer(pydantic.BaseModel):
    """A shape to answer in."""

    text: str


@tool
def look(what: str) -> str:
    """Looks."""
    return what


def model(url, **more):
    return ChatAnthropic(model="embedded", base_url=url, api_key="unused", max_tokens=64, **more)


def read(client, text):
    """The message that a stream's chunks add up to."""
    chunks = list(client.stream(text))
    assert len(chunks) > 1, chunks
    return sum(chunks[1:], start=chunks[0])


def stop(message):
    return message.response_metadata.get("stop_reason")


answering, denying, cutting = model(ANSWERING), model(DENYING), model(CUTTING)

message = answering.invoke("hi")
assert (message.text, stop(message), message.usage_metadata["total_tokens"]) == (TEXT, "end_turn", 10), message
case("allowed", "`text`, stop reason `end_turn`")
message = read(answering, "hi")
assert (message.text, stop(message), message.usage_metadata["output_tokens"]) == (TEXT, "end_turn", 3), message
case("allowed, streamed", "chunks and usage")

message = answering.invoke("harm")
assert (message.text, stop(message)) == (REFUSAL, "refusal"), message
case("refused", "`text`, stop reason `refusal`")
message = read(answering, "harm")
assert (message.text, stop(message)) == (REFUSAL, "refusal"), message
case("refused, streamed", "chunks, stop reason `refusal`")
message = answering.bind_tools([look]).invoke("harm")
assert (message.text, message.tool_calls) == (REFUSAL, []), message
case("refused, with tools", "`text`, no tool calls")
raised(ModelRefusalError, lambda: answering.with_structured_output(Answer).invoke("harm"))
case("refused, structured output", "`ModelRefusalError`")
for name, call in [("refused with 403", denying.invoke), ("refused with 403, streamed", partial(read, denying))]:
    error = raised(anthropic.PermissionDeniedError, lambda: call("harm"))
    assert error.body["error"]["type"] == "permission_error" and REFUSAL in str(error), error.body
    case(name, "`anthropic.PermissionDeniedError`, type `permission_error`, not retried")

message = cutting.invoke("hi")
assert (message.text, stop(message)) == (REFUSAL, "refusal"), message
case("answer refused", "as a refused request")
message = read(cutting, "hi")
assert (message.text, stop(message)) == (CUT, "refusal"), message
case("answer refused in the middle, streamed", "the text so far, then a second block with the refusal, stop reason `refusal`")

error = raised(anthropic.PermissionDeniedError, lambda: answering.invoke("break"))
assert error.body["error"]["code"] == "guard_failed", error.body
case("guard fails", "`anthropic.PermissionDeniedError`, type `permission_error`, not retried")
image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
error = raised(anthropic.PermissionDeniedError, lambda: answering.invoke([HumanMessage([image])]))
assert error.body["error"]["code"] == "unreadable_content", error.body
case("unread part", "`anthropic.PermissionDeniedError`, type `permission_error`, not retried")
error = raised(anthropic.InternalServerError, lambda: model(ANSWERING, max_retries=1).invoke("overload"))
assert error.body["error"]["type"] == "overloaded_error", error.body
case("guard overloaded", f"`anthropic.{type(error).__name__}`, type `overloaded_error`, retried")
print(f"langchain-anthropic {version('langchain-anthropic')}: as expected")
