"""A small server of the policy on the loopback, as an OpenAI-compatible one answers."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jax
import jax.numpy as jnp
import numpy as np

from fiberjax import policy
from fiberjax.policy import weights


class Serving:
    """What the server knows, and what it was asked.

    `answers` are given before its own, one each: a status and a text, or a function that edits the
    JSON of what it would have said.
    """

    def __init__(self, config, width: int):
        self.config, self.width = config, width
        self.params = None
        self.asked: list[tuple[str, dict]] = []
        self.answers: list = []

    def reload(self, body: dict) -> dict:
        one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shapes = jax.eval_shape(lambda: policy.init(self.config, jax.random.key(0)))
        self.params = weights.load(
            body["model_path"], self.config, jax.tree.map(lambda _: one, shapes)
        )
        return {"success": True}

    def complete(self, body: dict) -> dict:
        """By the sampler itself, with the seed as the key."""
        prompt = np.zeros((1, self.width), np.int32)
        real = np.arange(self.width) >= self.width - len(body["prompt"])
        prompt[0, real] = body["prompt"]
        drawn = policy.sample(
            self.config,
            self.params,
            jnp.asarray(prompt),
            jnp.asarray(real[None]),
            jax.random.key(body["seed"])[None],
            max_new_tokens=body["max_tokens"],
            eos_id=tuple(body["stop_token_ids"]),
            pad_id=0,
            temperature=jnp.float32(body["temperature"] or 1),
            greedy=body["temperature"] == 0,
        )
        length = int(drawn.length[0])
        choice = {
            "token_ids": drawn.tokens[0, :length].tolist(),
            "logprobs": {"token_logprobs": drawn.log_prob[0, :length].tolist()},
            "finish_reason": "stop" if drawn.finished[0] else "length",
        }
        return {"choices": [choice]}

    def answer(self, path: str, body: dict) -> tuple[int, bytes]:
        self.asked.append((path, body))
        given = self.answers.pop(0) if self.answers else None
        if isinstance(given, tuple):
            return given
        said = self.complete(body) if path == "/v1/completions" else self.reload(body)
        if given is not None:
            given(said)
        return 200, json.dumps(said).encode()


@contextlib.contextmanager
def served(config, width: int):
    """The address of a server of policies of a shape, and what it knows."""
    serving = Serving(config, width)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, answer = serving.answer(self.path, body)
            with contextlib.suppress(OSError):  # Who asked may have gone.
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

        def log_message(self, *of):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", serving
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
