"""What the google-genai package makes of the proxy."""

from functools import partial

from google import genai
from google.genai import errors, types

import matrix
from matrix import ANSWERING, CUT, CUTTING, DENYING, REFUSAL, TEXT, raised

answering, denying, cutting = (
    genai.Client(api_key="unused", vertexai=False, http_options=types.HttpOptions(base_url=url))
    for url in (ANSWERING, DENYING, CUTTING)
)
case = partial(matrix.case, "gemini", "google-genai")


def ask(client, contents, model="embedded", **config):
    return client.models.generate_content(model=model, contents=contents, config=config or None)


def read(client, contents):
    """A stream's text, and its last chunk."""
    chunks = list(client.models.generate_content_stream(model="embedded", contents=contents))
    return "".join(chunk.text or "" for chunk in chunks), chunks[-1]


answer = ask(answering, "hi")
assert (answer.text, answer.candidates[0].finish_reason) == (TEXT, types.FinishReason.STOP), answer
assert answer.usage_metadata.total_token_count == 10, answer.usage_metadata
case("allowed", "`text`, finish reason `STOP`")
text, last = read(answering, "hi")
assert (text, last.candidates[0].finish_reason) == (TEXT, types.FinishReason.STOP), last
assert last.usage_metadata.candidates_token_count == 3, last
case("allowed, streamed", "chunks, the last with finish reason and usage")

answer = ask(answering, "harm")
assert (answer.text, answer.candidates[0].finish_reason) == (REFUSAL, types.FinishReason.SAFETY), answer
answer = ask(answering, "harm", candidate_count=2)
assert [candidate.content.parts[0].text for candidate in answer.candidates] == [REFUSAL] * 2, answer
case("refused", "`text`, finish reason `SAFETY`; one for each of `candidate_count`")
text, last = read(answering, "harm")
assert (text, last.candidates[0].finish_reason) == (REFUSAL, types.FinishReason.SAFETY), last
case("refused, streamed", "chunks, finish reason `SAFETY`")
tool = types.Tool(function_declarations=[types.FunctionDeclaration(name="f", description="Finds.")])
answer = ask(answering, "harm", tools=[tool])
assert (answer.text, answer.function_calls) == (REFUSAL, None), answer
case("refused, with tools", "`text`, no function calls")
answer = ask(answering, "harm", response_mime_type="application/json", response_schema={"type": "STRING"})
assert (answer.text, answer.parsed) == (REFUSAL, None), answer
case("refused, structured output", "`text`, `parsed` is `None`, finish reason `SAFETY`")
chat = answering.chats.create(model="embedded")
assert chat.send_message("harm").text == REFUSAL
case("refused, in a chat", "`text`; later turns are judged with it")
for stream, call in [(False, ask), (True, read)]:
    error = raised(errors.ClientError, lambda: call(denying, "harm"))
    assert (error.code, error.status, error.message) == (403, "PERMISSION_DENIED", REFUSAL), error
    case("refused with 403, streamed" if stream else "refused with 403", "`ClientError`, status `PERMISSION_DENIED`, not retried")

answer = ask(cutting, "hi")
assert (answer.text, answer.candidates[0].finish_reason) == (REFUSAL, types.FinishReason.SAFETY), answer
case("answer refused", "as a refused request")
text, last = read(cutting, "hi")
assert (text, last.candidates[0].finish_reason) == (CUT, types.FinishReason.SAFETY), last
case("answer refused in the middle, streamed", "the text so far, the refusal, finish reason `SAFETY`")

error = raised(errors.ClientError, lambda: ask(answering, "break"))
assert error.status == "PERMISSION_DENIED", error
case("guard fails", "`ClientError`, status `PERMISSION_DENIED`, not retried")
error = raised(errors.ServerError, lambda: ask(answering, "overload"))
assert (error.code, error.status) == (503, "UNAVAILABLE"), error
case("guard overloaded", "`ServerError`, status `UNAVAILABLE`; retried only where the client is told to")
image = types.Part.from_bytes(data=b"AAAA", mime_type="image/png")
error = raised(errors.ClientError, lambda: ask(answering, [image, "hi"]))
assert error.code == 403 and "policy.on_unreadable" in error.message, error
case("unread part", "`ClientError`, status `PERMISSION_DENIED`, not retried")
error = raised(errors.ClientError, lambda: ask(answering, "hi", top_p=9.0))
assert (error.code, error.status) == (400, "INVALID_ARGUMENT") and "topP" in error.message, error
case("bad request", "`ClientError`, status `INVALID_ARGUMENT`")
error = raised(errors.ClientError, lambda: ask(answering, "hi", model="other"))
assert (error.code, error.status) == (404, "NOT_FOUND"), error
case("model unknown", "`ClientError`, status `NOT_FOUND`")

print(f"google-genai {genai.__version__}: as expected")
