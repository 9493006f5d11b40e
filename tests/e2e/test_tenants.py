"""API keys: each tenant by its own, the operator by another, nobody else."""

import hashlib
import json

import openai
import pytest

from conftest import through_pii

MESSAGES = [{"role": "user", "content": "hello"}]


def client(server, key):
    return openai.OpenAI(base_url=server.url + "/v1", api_key=key, max_retries=0)


@pytest.fixture
def server(millgate, upstream, monkeypatch):
    monkeypatch.setenv("TEST_OPERATOR_KEY", "the-operator")
    monkeypatch.setenv("TEST_B_KEY", "key-of-b")
    digest = hashlib.sha256(b"key-of-a").hexdigest()
    tenants = f'[tenants.a]\nkey-sha256 = ["{digest}"]\n[tenants.b]\nkey-env = "TEST_B_KEY"\n'
    config = through_pii(upstream, more='operator-key-env = "TEST_OPERATOR_KEY"')
    return millgate(tenants + config)


def test_a_key_names_the_tenant_of_the_trace(server):
    for key, tenant in [("key-of-a", "a"), ("key-of-b", "b")]:
        answer = client(server, key).chat.completions.with_raw_response.create(model="remote", messages=MESSAGES)
        trace = answer.headers["x-millgate-trace"]
        status, _, body = server.request(
            "GET", f"/api/v1/traces/{trace}", headers={"authorization": "Bearer the-operator"}
        )
        assert status == 200 and json.loads(body)["tenant"] == tenant


def test_without_a_key_of_ours_nothing_reaches_the_model(server, upstream):
    for key in ["wrong", "the-operator", "KEY-OF-A"]:
        with pytest.raises(openai.AuthenticationError) as caught:
            client(server, key).chat.completions.create(model="remote", messages=MESSAGES)
        assert caught.value.code == "invalid_api_key"
    body = json.dumps({"model": "remote", "messages": MESSAGES}).encode()
    status, _, answer = server.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
    assert status == 401 and "Authorization" in json.loads(answer)["error"]["message"]
    assert server.get("/v1/models")[0] == 401
    assert upstream.requests == []


def test_traces_are_the_operators(server):
    for headers in [{}, {"authorization": "Bearer key-of-a"}]:
        for path in ["/api/v1/traces", "/api/v1/alerts", "/api/v1/rollouts"]:
            assert server.request("GET", path, headers=headers)[0] == 401
    assert server.get("/healthz")[0] == 200
