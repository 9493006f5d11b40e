"""The official `openai` client talks to the default model and to an upstream; what must not pass
does not."""

import random

import openai
import pytest

from conftest import through_pii

CARD = "4111 1111 1111 1111"
EMAIL = "ada.lovelace@example.com"


def ask(text):
    return [{"role": "user", "content": text}]


def streamed(client, text, model="remote", **options):
    """The text of a streamed answer, and its chunks."""
    chunks = list(client.chat.completions.create(model=model, messages=ask(text), stream=True, **options))
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices), chunks


def test_the_model_is_listed(local):
    assert "smollm2" in [model.id for model in local.client().models.list()]


def test_a_plain_chat_with_the_default_model(local):
    answer = local.client().chat.completions.create(
        model="smollm2", messages=ask("What is the capital of France?"), temperature=0, max_tokens=24
    )
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert 0 < answer.usage.completion_tokens <= 24


def test_a_streamed_chat_with_the_default_model(local):
    options = {"model": "smollm2", "temperature": 0, "max_tokens": 24}
    text, chunks = streamed(local.client(), "What is the capital of France?", stream_options={"include_usage": True}, **options)
    plain = local.client().chat.completions.create(messages=ask("What is the capital of France?"), **options)
    assert text == plain.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == plain.usage.completion_tokens
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == [plain.choices[0].finish_reason]


def test_log_probabilities_and_several_answers(local):
    answer = local.client().chat.completions.create(
        model="smollm2", messages=ask("Say hello."), max_tokens=4, n=2, logprobs=True, top_logprobs=3, seed=1
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice in answer.choices:
        assert 0 < len(choice.logprobs.content) <= 4
        for token in choice.logprobs.content:
            assert token.logprob <= 0 and len(token.top_logprobs) == 3


def test_a_stop_string_ends_the_answer(local):
    answer = local.client().chat.completions.create(
        model="smollm2", messages=ask("Count: one, two, three, four, five."), temperature=0, max_tokens=60, stop=["three"]
    )
    assert "three" not in answer.choices[0].message.content


def test_a_completion_of_a_text(local):
    answer = local.client().completions.create(model="smollm2", prompt="The capital of France is", temperature=0, max_tokens=8)
    assert "Paris" in answer.choices[0].text


def test_a_card_number_in_a_prompt_never_reaches_the_default_model(local):
    raw = local.client().chat.completions.with_raw_response.create(
        model="smollm2", messages=ask(f"My card is {CARD}. Repeat my card number."), temperature=0, max_tokens=32
    )
    assert "4111" not in raw.parse().choices[0].message.content
    status, _, body = local.get("/api/v1/traces/" + raw.headers["x-millgate-trace"])
    assert status == 200
    assert b"4111" not in body, "the text that the model was given is kept in the trace"


@pytest.mark.parametrize("stream", [False, True])
def test_a_card_number_in_a_prompt_never_reaches_an_upstream(millgate, upstream, stream):
    client = millgate(through_pii(upstream)).client()
    for spelling in [CARD, CARD.replace(" ", ""), CARD.replace(" ", "-")]:
        text = f"Please charge {spelling} today."
        if stream:
            streamed(client, text)
        else:
            client.chat.completions.create(model="remote", messages=ask(text))
    assert len(upstream.requests) == 3
    for request in upstream.requests:
        assert "1111" not in request
        assert "Please charge" in request and "today." in request


@pytest.mark.parametrize("cut", ["one character", "whole", "at random"])
def test_an_address_that_is_streamed_leaves_masked_however_it_is_cut(millgate, upstream, cut):
    server = millgate(through_pii(upstream))
    text = f"Write to {EMAIL} or to bob@example.org. Grüße, 日本語 🎉 <{EMAIL}>"
    source = random.Random(7)
    answers = set()
    for _ in range(12 if cut == "at random" else 1):
        upstream.pieces = pieces(text, cut, source)
        answer, chunks = streamed(server.client(), "hello")
        assert "ada.lovelace" not in answer and "bob@" not in answer
        # Not in any part of the stream either, whatever a client does with the parts.
        assert "lovelace" not in "".join(chunk.model_dump_json() for chunk in chunks)
        answers.add(answer)
    assert len(answers) == 1, answers
    answer = answers.pop()
    assert answer.startswith("Write to ") and "Grüße, 日本語 🎉" in answer


def pieces(text, cut, source):
    if cut == "whole":
        return [text]
    if cut == "one character":
        return list(text)
    result = []
    while text:
        size = source.randint(1, 9)
        result.append(text[:size])
        text = text[size:]
    return result


def test_a_blocked_request_is_an_error_that_the_client_understands(millgate, upstream):
    client = millgate(through_pii(upstream, action="block")).client()
    for stream in [False, True]:
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="remote", messages=ask(f"My card is {CARD}"), stream=stream)
        error = caught.value
        assert error.status_code == 400
        assert error.code and error.type
        assert "4111" not in str(error)
        assert error.response.headers["x-millgate-trace"]
    assert upstream.requests == []


def test_a_blocked_answer_never_leaves(millgate, upstream):
    server = millgate(through_pii(upstream, action="block"))
    upstream.pieces = list(f"Sure: {EMAIL}, as you asked.")
    with pytest.raises(openai.APIError) as caught:
        answer = server.client().chat.completions.create(model="remote", messages=ask("hello"))
        # The API has two ways to say so: an error, or an answer that a content filter ended.
        assert answer.choices[0].finish_reason == "content_filter", answer
        raise openai.APIError("content_filter", request=None, body=None)
    assert "lovelace" not in str(caught.value)
    text = ""
    try:
        text, _ = streamed(server.client(), "hello")
    except openai.APIError as error:
        assert "lovelace" not in str(error)
    assert "lovelace" not in text and "as you asked" not in text


def test_an_unknown_model_is_not_found(local):
    with pytest.raises(openai.NotFoundError) as caught:
        local.client().chat.completions.create(model="gpt-unknown", messages=ask("hello"))
    assert caught.value.code == "model_not_found"
