"""Why the default model said something; and requests that take longer than they may."""

import json
import subprocess
import threading

import openai
import pytest

from conftest import PATIENCE, binary, through_pii

JSON = {"content-type": "application/json"}


def post(server, path, body):
    status, _, answer = server.request("POST", path, json.dumps(body).encode() if body is not None else b"", JSON)
    return status, json.loads(answer)


def model_of(server):
    return server.client().models.list().data[0].id


def test_the_words_that_an_answer_hangs_on(local):
    body = {"model": model_of(local), "prompt": "The capital of France is", "answer": " Paris", "top": 3}
    status, explained = post(local, "/api/v1/explain", body)
    assert status == 200, explained
    words = [unit["text"].strip() for unit in explained["units"]]
    assert words == ["The", "capital", "of", "France", "is"]
    assert [token["text"] for token in explained["tokens"]] == [" Paris"]
    scores = dict(zip(words, explained["attributions"][0]["scores"]))
    assert min(scores["France"], scores["capital"]) > scores["The"], scores
    assert explained["totals"] == explained["attributions"][0]["scores"]
    assert len(explained["tokens"][0]["top"]) == 3


def test_what_cannot_be_explained_is_refused_by_name(local):
    model = model_of(local)
    good = {"model": model, "prompt": "The capital of France is", "answer": " Paris"}
    for change, said in [
        ({"unit": "page"}, "`unit`"),
        ({"targets": 7}, "no token 7"),
        ({"prompt": ""}, "empty"),
        ({"answer": ""}, "empty"),
        ({"arm": "other"}, "no arm `other`"),
        ({"prompt": "word " * 300}, "coarser unit"),
    ]:
        status, answer = post(local, "/api/v1/explain", {**good, **change})
        assert status == 400 and said in answer["error"]["message"], (change, answer)
    assert local.get("/api/v1/explain")[0] == 405
    assert post(local, "/api/v1/explain", {**good, "model": "nobody"})[0] == 404


def test_a_past_answer_is_explained_from_its_trace(local):
    answer = local.client().chat.completions.with_raw_response.create(
        model=model_of(local),
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        temperature=0,
        max_tokens=12,
    )
    trace = answer.headers["x-millgate-trace"]
    status, explained = post(local, f"/api/v1/traces/{trace}/explain", {"targets": [0, 1]})
    assert status == 200, explained
    assert "".join(token["text"] for token in explained["tokens"]) == answer.parse().choices[0].message.content
    assert [it["token"] for it in explained["attributions"]] == [0, 1]
    assert {unit["message"] for unit in explained["units"]} == {0}


def test_the_command_prints_the_words(local):
    done = subprocess.run(
        [binary(), "explain", "--server", local.url, "--plain", "--answer", " Paris", "The capital of France is"],
        capture_output=True, text=True, timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    assert "France" in done.stdout and "token by token" in done.stdout


def test_a_remote_model_is_not_explained_and_its_late_stream_ends_with_504(millgate, upstream):
    server = millgate(through_pii(upstream, more='request-timeout = "300ms"'))
    body = {"model": "remote", "messages": [{"role": "user", "content": "hello"}]}
    status, answer = post(server, "/api/v1/explain", body)
    assert status == 400 and "remote" in answer["error"]["message"]
    upstream.pieces, upstream.pause = ["on "] * 200, 0.05
    with pytest.raises(openai.APIError) as caught:
        for _ in server.client().chat.completions.create(**body, stream=True):
            pass
    assert caught.value.code == "deadline_exceeded"
    assert upstream.cancelled.wait(PATIENCE)


def test_a_late_answer_of_a_local_model_is_504_and_others_go_on(millgate, local):
    config = local.config.read_text().replace("[server]", '[server]\nrequest-timeout = "1s"')
    assert "request-timeout" in config
    server = millgate(config)
    body = {"model": model_of(local), "messages": [{"role": "user", "content": "Tell me a long story."}]}
    body |= {"max_tokens": 4000, "logit_bias": {"2": -100, "0": -100}}
    late = []
    ask = threading.Thread(target=lambda: late.append(post(server, "/v1/chat/completions", body)))
    ask.start()
    ask.join(PATIENCE)
    status, answer = late[0]
    assert status == 504 and answer["error"]["code"] == "deadline_exceeded", answer
    assert "server.request-timeout" in answer["error"]["message"]
