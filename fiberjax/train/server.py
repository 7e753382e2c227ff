"""An engine that is a server: any that speaks OpenAI's completions, such as vLLM or SGLang.

Prompts go as token ids, a request each, with a seed of its own; ids and their log-probabilities
come back. Weights are pushed as a folder: it is written, and the server is told to read it. All of
what comes back is checked; what is wrong is one error that names the address and the answer.
"""

import concurrent.futures
import dataclasses
import http.client
import json
import time
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from fiberjax import options
from fiberjax.mismatch import CORRECTIONS
from fiberjax.policy import Samples, TransformerConfig, lora, weights
from fiberjax.train.engine import Completion, Draws, Engine, problem, table

# Of an answer: the most bytes, whatever is asked for, and for each token of it.
_BYTES, _BYTES_PER_TOKEN = 1 << 20, 1 << 10
# Where a server names tokens in place of their text.
_NAMED = "token_id:"


class ServerError(RuntimeError):
    """The server could not be reached, or what it answered cannot be used."""


@dataclasses.dataclass(frozen=True)
class Server:
    """The client of one server.

    Attributes:
      config: shape of the policy.
      url: "http://host:port", what stands before "/v1/completions".
      model: the name that the server has for the policy.
      folder: where weights are written; the server must see it.
      reload: path of the request that has them read, such as "/update_weights_from_disk".
      reload_body: what it says, JSON; "{folder}" in one of its texts is the folder.
      dtype: of the weights there.
      timeout: seconds for an answer.
      retries: how often a request is made again, with the same seed, where the server cannot be
        reached, takes too long or says that the fault is its own.
      concurrency: requests at a time.
    """

    config: TransformerConfig
    url: str
    model: str
    folder: str
    reload: str
    reload_body: str
    dtype: str
    timeout: float
    retries: int
    concurrency: int

    def push(self, params: Any) -> None:
        """Writes the weights, adapters merged, and has the server read them.

        Raises:
          ServerError: it did not.
        """
        whole = lora.merged(None, params, params) if lora.adapted(params) else params
        weights.save(self.folder, self.config, whole, dtype=self.dtype)
        body = _filled(json.loads(self.reload_body), str(Path(self.folder).resolve()))
        status, answer = self._request(self.reload, body, _BYTES)
        try:
            said = json.loads(answer) if answer.strip() else {}
        except (ValueError, RecursionError):
            said = {}
        if isinstance(said, dict) and said.get("success") is False:
            raise self._error(self.reload, f"status {status}", answer)

    def complete(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], draws: Draws
    ) -> Samples:
        """One completion of each prompt; see `Engine`.

        `held` is the length: how the server fills its batches is not known.

        Raises:
          ServerError: a completion could not be had, or cannot be used.
        """

        def one(prompt: Sequence[int], seed: int) -> Completion:
            return self._complete(prompt, seed, draws)

        with concurrent.futures.ThreadPoolExecutor(self.concurrency) as pool:
            pending = [pool.submit(one, *of) for of in zip(prompts, seeds, strict=True)]
            try:
                found = [each.result() for each in pending]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return table(found, draws)

    def _complete(self, prompt: Sequence[int], seed: int, draws: Draws) -> Completion:
        path = "/v1/completions"
        body = {
            "model": self.model,
            "prompt": [int(token) for token in prompt],
            "max_tokens": draws.max_new_tokens,
            "temperature": draws.temperature,
            "top_p": draws.top_p,
            "top_k": draws.top_k or -1,
            # Said, because what is not said a server may take from the model's generation config.
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": int(seed),
            "n": 1,
            "logprobs": 1,  # To some servers 0 is none.
            "stop_token_ids": list(draws.end_ids),
            "skip_special_tokens": False,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }
        limit = _BYTES + _BYTES_PER_TOKEN * (len(prompt) + draws.max_new_tokens)
        _, answer = self._request(path, body, limit)
        completion = _read(answer)
        wrong = completion if isinstance(completion, str) else problem(completion, draws)
        if isinstance(completion, str) or wrong:
            raise self._error(path, wrong, answer)
        return completion

    def _request(self, path: str, body: Any, limit: int) -> tuple[int, bytes]:
        """The status and the answer of a POST, of success."""
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(min(0.1 * 2**attempt, 5.0))
            last = attempt == self.retries
            try:
                status, answer = self._post(path, json.dumps(body).encode(), limit)
            except (OSError, http.client.HTTPException) as error:
                if last:
                    why = f"{type(error).__name__}: {error}"
                    raise self._error(path, f"no answer in {attempt + 1} attempts", why) from None
                continue
            if 200 <= status < 300:
                return status, answer
            if last or not (status >= 500 or status == 429):
                raise self._error(path, f"status {status} in attempt {attempt + 1}", answer)
        raise AssertionError("unreachable")

    def _post(self, path: str, body: bytes, limit: int) -> tuple[int, bytes]:
        """One attempt; no redirect is followed.

        Raises:
          OSError: nobody answered, or not within the time.
          http.client.HTTPException: the answer is not HTTP, or longer than `limit` bytes.
        """
        address = urllib.parse.urlsplit(self.url)
        secure = address.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        deadline = time.monotonic() + self.timeout
        connection = kind(address.hostname or "", address.port, timeout=self.timeout)
        try:
            target = address.path.rstrip("/") + path
            connection.request("POST", target, body, {"Content-Type": "application/json"})
            with connection.getresponse() as response:
                answer = bytearray()
                while chunk := response.read1(1 << 16):
                    answer += chunk
                    if len(answer) > limit:
                        raise http.client.HTTPException(f"an answer of more than {limit} bytes")
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"no whole answer within {self.timeout} s")
                return response.status, bytes(answer)
        finally:
            connection.close()

    def _error(self, path: str, what: str, answer: bytes | str) -> ServerError:
        text = answer.decode("utf-8", "replace") if isinstance(answer, bytes) else answer
        shown = text if len(text) <= 300 else f"{text[:300]}…"
        return ServerError(f"{self.url.rstrip('/')}{path}: {what}; it answered: {shown!r}")


def _read(answer: bytes) -> Completion | str:
    """The one completion of an answer, or why there is none."""
    try:
        (choice,) = json.loads(answer)["choices"]
        told, tokens = choice["logprobs"], choice.get("token_ids")
        if "token_logprobs" in told:
            log_probs = told["token_logprobs"]
        else:  # An entry a token, as llama.cpp has it.
            log_probs = [entry["logprob"] for entry in told["content"]]
        if tokens is None and "content" in told:
            tokens = [entry["id"] for entry in told["content"]]
        elif tokens is None:
            names = told["tokens"]
            if not all(isinstance(name, str) and name.startswith(_NAMED) for name in names):
                return (
                    "no token ids: expected choices[0].token_ids, logprobs.content[…].id, or "
                    f"logprobs.tokens as '{_NAMED}…'"
                )
            tokens = [int(name.removeprefix(_NAMED)) for name in names]
        stopped = choice["finish_reason"] == "stop"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return (
            "not one choice with token ids, their log-probabilities and finish_reason "
            f"({type(error).__name__}: {error!s:.80})"
        )
    if not isinstance(tokens, list) or not isinstance(log_probs, list):
        return "token ids and log-probabilities are no lists"
    return Completion(tokens, log_probs, stopped)


def _filled(value: Any, folder: str) -> Any:
    """JSON with "{folder}" in its texts replaced."""
    if isinstance(value, str):
        return value.replace("{folder}", folder)
    if isinstance(value, dict):
        return {name: _filled(of, folder) for name, of in value.items()}
    return [_filled(of, folder) for of in value] if isinstance(value, list) else value


def make_engine(
    chosen: options.Server,
    rollout: options.Rollout,
    training: options.Training,
    policy: TransformerConfig,
    device_mesh: Mesh,
) -> Engine | None:
    """The client of the server that draws completions; None where nobody else does.

    Raises:
      ValueError: options that do not go with a server; names them.
    """
    if rollout.engine == "own":
        return None
    try:
        chosen.check()
    except ValueError as error:
        raise ValueError(f"config.rollout.engine = 'http', and config.server.{error}") from None
    if training.mismatch == "none" and training.edge != "direct":
        raise ValueError(
            "config.rollout.engine = 'http' draws by another program, whose log-probabilities are "
            "not the trainer's, and config.training.mismatch = 'none' would not correct it: "
            f"expected one of {', '.join(CORRECTIONS)}, or config.training.edge = 'direct'"
        )
    for name, left in (("slots", 0), ("cache_dtype", "")):
        given = getattr(rollout, name)
        if given != left:
            raise ValueError(
                f"config.rollout.{name} = {given!r} is of the compiled loop, and "
                f"config.rollout.engine = 'http' does not run it: expected {left!r}"
            )
    if len({device.process_index for device in device_mesh.devices.flat}) > 1:
        raise ValueError("config.rollout.engine = 'http' is for runs of one process; got several")
    return Server(policy, **dataclasses.asdict(chosen))
