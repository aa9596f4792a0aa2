"""What LangChain makes of the proxy through `langchain-openai`: chat completions, and responses."""

from functools import partial
from importlib.metadata import version

import openai
import pydantic
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

import matrix
from matrix import ANSWERING, CUT, CUTTING, DENYING, REFUSAL, TEXT, raised

IMAGE = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]


class Answer(pydantic.BaseModel):
    """A shape to answer in."""

    text: str


@tool
def look(what: str) -> str:
    """Looks."""
    return what


def model(url, **more):
    return ChatOpenAI(model="embedded", base_url=f"{url}/v1", api_key="unused", **more)


def read(client, text):
    """The message that a stream's chunks add up to, with usage."""
    chunks = list(client.stream(text))
    assert len(chunks) > 1, chunks
    return sum(chunks[1:], start=chunks[0])


def finish(message):
    return message.response_metadata.get("finish_reason")


def refusal(message):
    """The text of a message that is one refusal."""
    [block] = message.content
    assert (block["type"], message.text, message.response_metadata["status"]) == ("refusal", "", "completed"), message
    return block["refusal"]


def errors(case, **more):
    """What is the same in both formats."""
    for name, call in [("refused with 403", model(DENYING, **more).invoke), ("refused with 403, streamed", partial(read, model(DENYING, **more)))]:
        error = raised(openai.PermissionDeniedError, lambda: call("harm"))
        assert error.code == "content_filter" and REFUSAL in error.message, error.body
        case(name, "`openai.PermissionDeniedError`, code `content_filter`, not retried")
    error = raised(openai.PermissionDeniedError, lambda: model(ANSWERING, **more).invoke("break"))
    assert error.code == "guard_failed", error.body
    case("guard fails", "`openai.PermissionDeniedError`, code `guard_failed`, not retried")
    error = raised(openai.PermissionDeniedError, lambda: model(ANSWERING, **more).invoke([HumanMessage(IMAGE)]))
    assert error.code == "unreadable_content", error.body
    case("unread part", "`openai.PermissionDeniedError`, code `unreadable_content`, not retried")
    error = raised(openai.InternalServerError, lambda: model(ANSWERING, max_retries=1, **more).invoke("overload"))
    assert (error.status_code, error.code) == (503, "guard_overloaded"), error.body
    case("guard overloaded", "`openai.InternalServerError`, code `guard_overloaded`, retried")


def chat():
    case = partial(matrix.case, "openai-chat", "langchain-openai")
    answering, cutting = model(ANSWERING, stream_usage=True), model(CUTTING)

    message = answering.invoke("hi")
    assert (message.content, finish(message), message.usage_metadata["total_tokens"]) == (TEXT, "stop", 10), message
    case("allowed", "`content`, finish reason `stop`")
    message = read(answering, "hi")
    assert (message.content, finish(message), message.usage_metadata["total_tokens"]) == (TEXT, "stop", 10), message
    case("allowed, streamed", "chunks and usage")

    message = answering.invoke("harm")
    assert (message.content, finish(message)) == (REFUSAL, "content_filter"), message
    case("refused", "`content`, finish reason `content_filter`")
    message = read(answering, "harm")
    assert (message.content, finish(message)) == (REFUSAL, "content_filter"), message
    case("refused, streamed", "chunks, finish reason `content_filter`")
    message = answering.bind_tools([look]).invoke("harm")
    assert (message.content, message.tool_calls) == (REFUSAL, []), message
    case("refused, with tools", "`content`, no tool calls")
    raised(openai.ContentFilterFinishReasonError, lambda: answering.with_structured_output(Answer).invoke("harm"))
    case("refused, structured output", "`openai.ContentFilterFinishReasonError`")

    message = cutting.invoke("hi")
    assert (message.content, finish(message)) == (REFUSAL, "content_filter"), message
    case("answer refused", "as a refused request")
    message = read(cutting, "hi")
    assert (message.content, finish(message)) == (CUT, "content_filter"), message
    case("answer refused in the middle, streamed", "the text so far, the refusal, finish reason `content_filter`")
    errors(case)


def responses():
    case = partial(matrix.case, "openai-responses", "langchain-openai")
    more = {"use_responses_api": True}
    answering, cutting = model(ANSWERING, **more), model(CUTTING, **more)

    message = answering.invoke("hi")
    assert (message.text, message.usage_metadata["total_tokens"]) == (TEXT, 10), message
    case("allowed", "`text`, status `completed`")
    message = read(answering, "hi")
    assert (message.text, message.usage_metadata["total_tokens"]) == (TEXT, 10), message
    case("allowed, streamed", "chunks and usage")

    assert refusal(answering.invoke("harm")) == REFUSAL
    case("refused", "a `refusal` block, status `completed`; `text` is empty")
    assert refusal(read(answering, "harm")) == REFUSAL
    case("refused, streamed", "a `refusal` block, status `completed`; `text` is empty")
    message = answering.bind_tools([look]).invoke("harm")
    assert (refusal(message), message.tool_calls) == (REFUSAL, []), message
    case("refused, with tools", "a `refusal` block, no tool calls")
    assert refusal(cutting.invoke("hi")) == REFUSAL
    case("answer refused", "as a refused request")
    text, no = read(cutting, "hi").content
    assert (text["type"], text["text"], no["type"], no["refusal"]) == ("text", "Hello there,", "refusal", REFUSAL), (text, no)
    case("answer refused in the middle, streamed", "a `text` block with the text so far, then a `refusal` block")
    errors(case, **more)


chat()
responses()
print(f"langchain-openai {version('langchain-openai')}: as expected")
