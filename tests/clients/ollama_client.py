"""What the ollama package makes of the proxy: chat and generate."""

import json
from importlib.metadata import version

import ollama

import matrix
from matrix import ANSWERING, CUT, CUTTING, DENYING, REFUSAL, TEXT, raised

answering, denying, cutting = (ollama.Client(host=url) for url in (ANSWERING, DENYING, CUTTING))


def chat(client, text, model="embedded", **more):
    return client.chat(model=model, messages=[{"role": "user", "content": text}], **more)


def generate(client, text, model="embedded", **more):
    return client.generate(model=model, prompt=text, **more)


def message(error):
    """An error's message; the package gives the body of an answer that was not streamed as it is."""
    try:
        return json.loads(error.error)["error"]
    except ValueError:
        return error.error


for form, ask, where in [("ollama-chat", chat, "message.content"), ("ollama-generate", generate, "response")]:

    def case(name, seen):
        matrix.case(form, "ollama", name, seen)

    def text_of(answer):
        return answer.message.content if ask is chat else answer.response

    answer = ask(answering, "hi")
    assert (text_of(answer), answer.done, answer.done_reason) == (TEXT, True, "stop"), answer
    assert (answer.prompt_eval_count, answer.eval_count) == (7, 3), answer
    case("allowed", f"`{where}`, done reason `stop`")
    lines = list(ask(answering, "hi", stream=True))
    assert "".join(map(text_of, lines)) == TEXT and [line.done for line in lines] == [False] * 3 + [True], lines
    case("allowed, streamed", "lines, the last one `done`")

    answer = ask(answering, "harm")
    assert (text_of(answer), answer.done, answer.done_reason) == (REFUSAL, True, "stop"), answer
    case("refused", f"`{where}`; the format has no word for a refusal, only the header `x-forethought-decision` says so")
    lines = list(ask(answering, "harm", stream=True))
    assert "".join(map(text_of, lines)) == REFUSAL and lines[-1].done_reason == "stop", lines
    case("refused, streamed", "lines, the last one `done`; no word for a refusal")
    for stream in (False, True):
        error = raised(ollama.ResponseError, lambda: list(ask(denying, "harm", stream=stream)))
        assert (message(error), error.status_code) == (REFUSAL, 403), error
        case("refused with 403, streamed" if stream else "refused with 403", "`ResponseError`, status 403, not retried")

    assert text_of(ask(cutting, "hi")) == REFUSAL
    case("answer refused", "as a refused request")
    lines = list(ask(cutting, "hi", stream=True))
    assert "".join(map(text_of, lines)) == CUT and lines[-1].done_reason == "stop", lines
    case("answer refused in the middle, streamed", "the text so far, the refusal, the last line `done`; no word for a refusal")

    error = raised(ollama.ResponseError, lambda: ask(answering, "break"))
    assert error.status_code == 403 and "broken" in message(error), error
    case("guard fails", "`ResponseError`, status 403, not retried")
    error = raised(ollama.ResponseError, lambda: ask(answering, "overload"))
    assert error.status_code == 503 and "overloaded" in message(error), error
    case("guard overloaded", "`ResponseError`, status 503; this client never retries")
    image = {"images": [b"AAAA"]}
    if ask is chat:
        unread = lambda: answering.chat(model="embedded", messages=[{"role": "user", "content": "hi", **image}])
    else:
        unread = lambda: answering.generate(model="embedded", prompt="hi", **image)
    error = raised(ollama.ResponseError, unread)
    assert error.status_code == 403 and "policy.on_unreadable" in message(error), error
    case("unread part", "`ResponseError`, status 403, not retried")
    error = raised(ollama.ResponseError, lambda: ask(answering, "hi", options={"temperature": 9.0}))
    assert error.status_code == 400 and "options.temperature" in message(error), error
    case("bad request", "`ResponseError`, status 400")
    error = raised(ollama.ResponseError, lambda: ask(answering, "hi", model="other"))
    assert error.status_code == 404, error
    case("model unknown", "`ResponseError`, status 404")

assert [model.model for model in answering.list().models] == ["embedded"]
print(f"ollama {version('ollama')}: as expected")
