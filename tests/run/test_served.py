"""A run whose completions a server draws, which stops answering."""

import pytest
import served
import tiny

from fiberjax.run import loop
from fiberjax.train.server import ServerError


@pytest.mark.parametrize("every", [0, 1], ids=["while drawing", "while evaluating"])
def test_what_is_done_is_saved_where_the_server_stops_answering(build, tmp_path, every):
    with served.served(build().policy, 16) as (url, serving):
        built = build(
            iterations=2,
            evaluation__every=every,
            checkpoint__every=100,
            warm_start__steps=0,
            training__unpaid_iterations=0,
            training__mismatch="truncate",
            rollout__engine="http",
            server__url=url,
            server__model="policy",
            server__folder=str(tmp_path / "weights"),
            server__dtype="float32",
        )
        answer, pushed = serving.answer, []

        def third_is_refused(path, body):
            pushed.append(path != "/v1/completions")
            return (400, b"gone") if sum(pushed) == 3 else answer(path, body)

        serving.answer = third_is_refused
        text = tiny.get_config().to_json_best_effort()
        with pytest.raises(ServerError, match=r"status 400.*'gone'; iteration 1 is saved"):
            loop.run(built, tmp_path / "run", text)
        assert (tmp_path / "run" / "checkpoints" / "1").is_dir()
        serving.answer = answer
        loop.run(built, tmp_path / "run", text)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) >= 2 and (tmp_path / "run" / "evaluation.json").is_file()
