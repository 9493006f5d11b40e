"""Answers that are held to a form, and the other routes of the API, by the official `openai` client."""

import base64
import json
import struct
import typing

import openai
import pydantic
import pytest

from conftest import through_pii
from test_client import CARD, EMAIL, ask

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 24},
                "unit": {"enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}


class Person(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=20)
    age: int = pydantic.Field(ge=0, le=130)
    tags: list[typing.Literal["young", "old", "kind"]] = pydantic.Field(max_length=2)


def chat(server, text, **options):
    options = {"model": "smollm2", "temperature": 0, "max_tokens": 200, **options}
    return server.client().chat.completions.create(messages=ask(text), **options)


def check_call(call):
    assert call.function.name == "get_weather"
    arguments = json.loads(call.function.arguments)
    assert set(arguments) == {"city", "unit"} and arguments["unit"] in ("celsius", "fahrenheit")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_tool_is_called(local, choice):
    answer = chat(local, "What is the weather in Paris?", tools=[WEATHER], tool_choice=choice, parallel_tool_calls=False)
    (call,) = answer.choices[0].message.tool_calls
    check_call(call)
    assert call.id and call.type == "function"
    assert answer.choices[0].finish_reason == "tool_calls"

    # The conversation goes on with the result.
    messages = ask("What is the weather in Paris?") + [
        answer.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "17 degrees, rain"},
    ]
    after = local.client().chat.completions.create(
        model="smollm2", messages=messages, tools=[WEATHER], tool_choice="none", temperature=0, max_tokens=24
    )
    assert after.choices[0].message.content and not after.choices[0].message.tool_calls


def test_a_call_of_a_tool_is_streamed_in_pieces(local):
    options = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False}
    plain = chat(local, "What is the weather in Paris?", **options)
    chunks = list(chat(local, "What is the weather in Paris?", stream=True, **options))
    deltas = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert deltas[0].function.name == "get_weather" and deltas[0].id
    pieces = [delta.function.arguments for delta in deltas[1:]]
    assert len(pieces) > 3 and all(pieces)
    assert "".join(pieces) == plain.choices[0].message.tool_calls[0].function.arguments
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_with_tools_at_hand_a_text_is_an_answer_too(local):
    answer = chat(local, "Say hello.", tools=[WEATHER], max_tokens=24)
    message = answer.choices[0].message
    assert message.content or message.tool_calls
    for call in message.tool_calls or []:
        check_call(call)


def test_an_answer_follows_a_json_schema(local):
    answer = local.client().chat.completions.parse(
        model="smollm2", messages=ask("Describe Ada, a person of 36 years, as JSON."), response_format=Person,
        temperature=0.7, seed=3, max_tokens=300,
    )
    person = answer.choices[0].message.parsed
    assert isinstance(person, Person) and len(person.tags) <= 2
    assert answer.choices[0].finish_reason == "stop"


def test_a_json_object_that_is_cut_short_says_so(local):
    answer = chat(local, "A long list of fruits as JSON.", response_format={"type": "json_object"}, max_tokens=4)
    assert answer.choices[0].message.content.startswith("{")
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    "options, param, word",
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"uniqueItems": True}}}}, "response_format", "uniqueItems"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "integer", "minimum": 2, "maximum": 1}}}}, "response_format", "no answer"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "xml"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]", "web_search"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1].function.name", "taken"),
        ({"tool_choice": "required"}, "tool_choice", "tools"),
        ({"temperature": "hot"}, "temperature", "temperature"),
        ({"logit_bias": {"1": 200}}, "logit_bias", "-100"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(local, options, param, word):
    with pytest.raises(openai.BadRequestError) as caught:
        chat(local, "hello", **options)
    assert caught.value.param == param and word in str(caught.value)


def test_personal_data_in_the_arguments_of_a_call_is_masked_and_they_stay_json(local):
    send = {
        "type": "function",
        "function": {
            "name": "send",
            "parameters": {
                "type": "object",
                "properties": {"to": {"const": EMAIL}, "card": {"const": 4111111111111111}, "note": {"const": f"\n{EMAIL}\n"}},
                "required": ["to", "card", "note"],
                "additionalProperties": False,
            },
            "strict": True,
        },
    }
    for stream in [False, True]:
        options = {"tools": [send], "tool_choice": "required", "parallel_tool_calls": False, "stream": stream}
        answer = chat(local, "Send it.", **options)
        if stream:
            deltas = [call for chunk in answer for call in chunk.choices[0].delta.tool_calls or []]
            arguments = "".join(delta.function.arguments for delta in deltas)
        else:
            arguments = answer.choices[0].message.tool_calls[0].function.arguments
        assert "lovelace" not in arguments and "4111111111111111" not in arguments
        assert set(json.loads(arguments)) == {"to", "card", "note"}


def test_embeddings_of_texts_and_of_tokens(local):
    client = local.client()
    texts = ["The cat sits on the mat.", "A cat is sitting on a mat.", "Stock markets fell sharply."]
    answer = client.embeddings.create(model="smollm2", input=texts)
    one, two, three = [item.embedding for item in answer.data]
    assert abs(sum(x * x for x in one) - 1) < 1e-3
    dot = lambda a, b: sum(x * y for x, y in zip(a, b))
    assert dot(one, two) > dot(one, three)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 10

    # The client asks for base64 by itself; numbers are the same.
    plain = client.embeddings.create(model="smollm2", input=texts[0], encoding_format="float").data[0].embedding
    raw = client.embeddings.create(model="smollm2", input=texts[0], encoding_format="base64").data[0].embedding
    data = base64.b64decode(raw)
    assert struct.unpack(f"<{len(data) // 4}f", data) == pytest.approx(plain, abs=1e-6)
    assert len(client.embeddings.create(model="smollm2", input=[[504, 2644], [504]]).data) == 2

    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="smollm2", input="x", dimensions=8)
    assert caught.value.param == "dimensions"
    raw = client.embeddings.with_raw_response.create(model="smollm2", input=f"My card is {CARD}")
    _, _, trace = local.get("/api/v1/traces/" + raw.headers["x-millgate-trace"])
    trace = json.loads(trace)
    assert trace["endpoint"] == "embeddings" and b"4111" not in json.dumps(trace).encode()
    assert any(stage["edits"] for stage in trace["stages"])


def test_an_embedding_of_an_upstream_gets_a_checked_text(millgate, upstream):
    client = millgate(through_pii(upstream)).client()
    client.embeddings.with_raw_response.create(model="remote", input=f"Card {CARD}", encoding_format="float")
    assert "4111" not in upstream.requests[0] and "Card" in upstream.requests[0]


def test_a_prompt_is_scored(local):
    options = {"model": "smollm2", "prompt": "The capital of France is Paris.", "temperature": 0}
    client = local.client()
    scored = client.completions.create(**options, max_tokens=0, echo=True, logprobs=2)
    choice = scored.choices[0]
    assert choice.text == options["prompt"] and "".join(choice.logprobs.tokens) == choice.text
    assert choice.logprobs.token_logprobs[0] is None
    assert all(logprob < 0 for logprob in choice.logprobs.token_logprobs[1:])
    assert len(choice.logprobs.top_logprobs[1]) == 2
    assert scored.usage.completion_tokens == 0 and scored.usage.prompt_tokens == len(choice.logprobs.tokens)

    more = client.completions.create(**options, max_tokens=4, echo=True, logprobs=1).choices[0]
    assert more.text.startswith(options["prompt"])
    assert more.logprobs.tokens[: len(choice.logprobs.tokens)] == choice.logprobs.tokens
    assert len(more.logprobs.tokens) > len(choice.logprobs.tokens)
    for field in ["suffix", "best_of"]:
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(**options, **{field: {"suffix": "end", "best_of": 2}[field]})
        assert caught.value.param == field


def test_a_bias_keeps_a_token_out(local):
    free = chat(local, "What is the capital of France?", max_tokens=8, logprobs=True, top_logprobs=3)
    first = free.choices[0].logprobs.content[0]
    assert len(first.top_logprobs) == 3 and first.top_logprobs[0].token == first.token
    # " Paris" is one token of this model.
    biased = chat(local, "What is the capital of France?", max_tokens=8, logit_bias={"7042": -100})
    assert "Paris" in free.choices[0].message.content and " Paris" not in biased.choices[0].message.content


def test_a_model_samples_as_its_config_says(local):
    answers = {chat(local, "Name a colour.", temperature=openai.NOT_GIVEN, max_tokens=openai.NOT_GIVEN, seed=seed).usage.completion_tokens for seed in range(2)}
    assert all(tokens <= 256 for tokens in answers)


def test_chunks_before_the_usage_say_that_there_is_none(local):
    body = {"model": "smollm2", "messages": ask("Hi"), "max_tokens": 3, "stream": True, "stream_options": {"include_usage": True}}
    _, _, text = local.request("POST", "/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"})
    chunks = [json.loads(line[6:]) for line in text.decode().splitlines() if line.startswith("data: {")]
    assert all("usage" in chunk and chunk["usage"] is None for chunk in chunks[:-1])
    assert "cached_tokens" in chunks[-1]["usage"]["prompt_tokens_details"]


def test_a_response_in_one_piece(local):
    answer = local.client().responses.create(
        model="smollm2", instructions="You are brief.", input="What is the capital of France?", temperature=0, max_output_tokens=16
    )
    assert answer.output_text
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert answer.status in ("completed", "incomplete") and answer.instructions == "You are brief."


def test_a_response_that_is_streamed(local):
    options = {"model": "smollm2", "input": ask("What is the capital of France?"), "temperature": 0, "max_output_tokens": 16}
    events = list(local.client().responses.create(**options, stream=True))
    names = [event.type for event in events]
    assert names[:4] == ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"]
    assert names[-1] in ("response.completed", "response.incomplete")
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    plain = local.client().responses.create(**options)
    assert text == plain.output_text == events[-1].response.output_text


def test_a_response_that_calls_a_function(local):
    tool = {"type": "function", **WEATHER["function"]}
    options = {"model": "smollm2", "tools": [tool], "tool_choice": "required", "parallel_tool_calls": False, "temperature": 0}
    client = local.client()
    answer = client.responses.create(input="What is the weather in Paris?", **options)
    (call,) = answer.output
    assert call.type == "function_call" and call.name == "get_weather"
    assert set(json.loads(call.arguments)) == {"city", "unit"}

    events = list(client.responses.create(input="What is the weather in Paris?", stream=True, **options))
    done = [event for event in events if event.type == "response.function_call_arguments.done"]
    pieces = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert done[0].arguments == "".join(pieces) == call.arguments

    conversation = [
        {"role": "user", "content": "What is the weather in Paris?"},
        call.model_dump(exclude_none=True),
        {"type": "function_call_output", "call_id": call.call_id, "output": "17 degrees"},
    ]
    after = client.responses.create(model="smollm2", input=conversation, temperature=0, max_output_tokens=24)
    assert after.output_text


def test_a_response_follows_a_schema_and_refuses_by_name(local):
    client = local.client()
    parsed = client.responses.parse(model="smollm2", input="Describe Ada, 36.", text_format=Person, temperature=0, max_output_tokens=300)
    assert isinstance(parsed.output_parsed, Person)
    for name, value in [("previous_response_id", "resp_1"), ("store", True), ("background", True)]:
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(model="smollm2", input="x", **{name: value})
        assert caught.value.param == name


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_of_an_upstream_is_checked_both_ways(millgate, upstream, stream):
    client = millgate(through_pii(upstream)).client()
    upstream.pieces = ["Write to ", "ada.love", "lace@example.com", "."]
    answer = client.responses.create(model="remote", input=f"Card {CARD}?", stream=stream)
    if stream:
        events = list(answer)
        assert "lovelace" not in "".join(event.model_dump_json() for event in events)
        answer = events[-1].response
    assert "4111" not in upstream.requests[0]
    assert answer.output_text.startswith("Write to ") and "lovelace" not in answer.output_text
    assert answer.usage.output_tokens == 5
