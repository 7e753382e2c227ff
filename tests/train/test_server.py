import dataclasses
import json
import socket

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import served

from fiberjax import policy
from fiberjax.policy import lora
from fiberjax.train.engine import Draws
from fiberjax.train.server import Server, ServerError

WIDTH = 4
DRAWS = Draws(*(6, 11, (3, 5), 0), temperature=0.8, top_k=0, top_p=1.0)
PROMPTS = [[2, 4], [1], [7, 8, 9, 1], [6, 6, 2]]
SEEDS = [5, 2**31 - 1, 0, 77]
CONFIG = policy.TransformerConfig(
    *(11, 16, 1, 2, 1, 8, 24), norm_epsilon=1e-6, qk_norm=True, tie_embeddings=False
)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The client of a server that serves a policy, what the server knows, and the policy."""
    folder = str(tmp_path_factory.mktemp("weights"))
    with served.served(CONFIG, WIDTH) as (url, serving):
        client = Server(
            *(CONFIG, url, "policy", folder, "/update_weights_from_disk"),
            *('{"model_path": "{folder}"}', "float32"),
            timeout=60.0,
            retries=1,
            concurrency=3,
        )
        params = policy.init(CONFIG, jax.random.key(1))
        client.push(params)
        yield client, serving, params


def own(params, **options):
    """What the sampler draws of the same prompts with the seeds as keys."""
    tokens, mask = np.zeros((2, len(PROMPTS), WIDTH), np.int32)
    for row, prompt in enumerate(PROMPTS):
        tokens[row, WIDTH - len(prompt) :], mask[row, WIDTH - len(prompt) :] = prompt, 1
    keys = jnp.stack([jax.random.key(seed) for seed in SEEDS])
    return policy.sample(
        *(CONFIG, params, jnp.asarray(tokens), jnp.asarray(mask, bool), keys),
        **dict(max_new_tokens=6, eos_id=(3, 5), pad_id=0, temperature=0.8) | options,
    )


def assert_same(found, expected):
    for name in ("tokens", "length", "finished"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    np.testing.assert_allclose(found.log_prob, expected.log_prob, atol=1e-5)


def test_completions_are_the_policys_and_weights_are_pushed(server):
    client, serving, params = server
    found = client.complete(PROMPTS, SEEDS, DRAWS)
    assert_same(found, own(params))
    assert 0 < found.finished.sum() < 4 or found.length.min() < found.length.max()
    (path, body), *_ = [of for of in serving.asked if of[1].get("seed") == 5]
    assert path == "/v1/completions" and body["prompt"] == [2, 4] and body["model"] == "policy"
    # Adapters go merged, and what is drawn follows.
    adapters = lora.make_lora(
        CONFIG, rank=2, alpha=4.0, targets=("all-linear",), base_dtype="float32"
    )
    trained = jax.tree.map(lambda leaf: leaf + 0.5, lora.init(adapters, params, jax.random.key(0)))
    attached = lora.attached(adapters, params, trained)
    client.push(attached)
    again = client.complete(PROMPTS, SEEDS, DRAWS)
    assert_same(again, own(lora.merged(None, None, attached)))
    assert not np.array_equal(again.tokens, found.tokens)
    client.push(params)


def edited(**changes):
    """An answer whose one choice is changed."""
    return lambda said: said["choices"][0].update(changes)


def named(said):
    """Token ids as texts, as servers without `token_ids` give them."""
    choice = said["choices"][0]
    tokens = choice.pop("token_ids")
    choice["logprobs"]["tokens"] = [f"token_id:{token}" for token in tokens]


def entries(said):
    """An entry a token, as llama.cpp's server has it."""
    choice = said["choices"][0]
    pairs = zip(choice.pop("token_ids"), choice["logprobs"]["token_logprobs"], strict=True)
    choice["logprobs"] = {"content": [{"id": i, "logprob": of, "token": "?"} for i, of in pairs]}


def test_what_a_server_could_take_from_the_folder_is_said(server):
    """A generation config may have penalties and cut the distribution; 0 log-probs may be none."""
    client, serving, _ = server
    serving.asked = []
    client.complete(PROMPTS[:1], SEEDS[:1], DRAWS)
    ((_, body),) = serving.asked
    plain = dict(temperature=0.8, top_p=1.0, top_k=-1, min_p=0, repetition_penalty=1)
    plain |= dict(presence_penalty=0, frequency_penalty=0, logprobs=1, stop_token_ids=[3, 5])
    assert {name: body[name] for name in plain} == plain


@pytest.mark.parametrize(
    "answers",
    [[(503, b"busy")], [(429, b"later")], [named], [entries]],
    ids=["fault of its own", "too many requests", "named tokens", "an entry a token"],
)
def test_what_passes_is_asked_again_with_the_same_seed(server, answers):
    client, serving, params = server
    serving.answers, serving.asked = list(answers), []
    found = client.complete(PROMPTS[:1], SEEDS[:1], DRAWS)
    expected = jax.tree.map(lambda of: of[:1], own(params))
    assert_same(found, expected)
    assert len({json.dumps(body) for _, body in serving.asked}) == 1
    assert len(serving.asked) == 1 + isinstance(answers[0], tuple)


@pytest.mark.parametrize(
    ("answers", "message", "asked"),
    [
        ([(400, b"no such model")], "status 400 in attempt 1; it answered: 'no such model'", 1),
        ([(302, b"")], "status 302", 1),
        ([(500, b"a"), (500, b"b")], "status 500 in attempt 2; it answered: 'b'", 2),
        ([(200, b"<html>")], "not one choice with token ids", 1),
        ([(200, b"[" * 100_000)], "not one choice with token ids", 1),
        ([(200, b'{"choices": []}')], "not one choice", 1),
        ([(200, b" " * (3 << 20))] * 2, "an answer of more than", 2),
        ([edited(token_ids=[99], logprobs={"token_logprobs": [-1]})], "token 0 is 99", 1),
        ([edited(token_ids=3)], "are no lists", 1),
        (
            [edited(token_ids=[3], logprobs={"token_logprobs": [float("nan")]})],
            "log-probability 0 is nan",
            1,
        ),
        (
            [edited(token_ids=None, logprobs={"token_logprobs": [-1], "tokens": [" a"]})],
            "no token ids: expected choices",
            1,
        ),
        ([edited(logprobs=None)], "not one choice with token ids", 1),
        ([edited(logprobs={"content": [{"logprob": -1}]}, token_ids=None)], "KeyError: 'id'", 1),
    ],
    ids=lambda of: of if isinstance(of, str) else "",
)
def test_bad_answers_are_one_error_with_the_address(server, answers, message, asked):
    client, serving, _ = server
    serving.answers, serving.asked = list(answers), []
    with pytest.raises(ServerError) as error:
        client.complete(PROMPTS[:1], SEEDS[:1], DRAWS)
    assert message in str(error.value) and len(str(error.value)) < 700
    assert str(error.value).startswith(f"{client.url}/v1/completions: ")
    assert len(serving.asked) == asked


def test_weights_that_are_not_read_are_an_error(server):
    client, serving, params = server
    serving.answers = [(200, b'{"success": false, "message": "no such folder"}')]
    with pytest.raises(ServerError, match=r"update_weights_from_disk: status 200.*no such folder"):
        client.push(params)


def test_nobody_and_somebody_slow(server):
    client, _, _ = server
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        nobody = dataclasses.replace(client, url=url, retries=0)
        with pytest.raises(ServerError, match=r"no answer in 1 attempts.*ConnectionRefused"):
            nobody.complete(PROMPTS, SEEDS, DRAWS)
        silent.listen()
        slow = dataclasses.replace(nobody, timeout=0.1)
        with pytest.raises(ServerError, match=r"no answer in 1 attempts.*[Tt]imed? ?out"):
            slow.complete(PROMPTS[:1], SEEDS[:1], DRAWS)
