import io
import re

import pytest

from fiberjax.run.progress import Progress


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def test_without_a_terminal_a_plain_line_now_and_then():
    stream = io.StringIO()
    with Progress(25, "training", log_every=10, stream=stream) as progress:
        for step in range(1, 26):
            progress.update(step, reward=step / 100, kl=0.00123456)
    lines = stream.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["10/25", "20/25", "25/25"]
    assert re.fullmatch(r"training 10/25  [\d.]+ steps/s  reward 0.1  kl 0.00123", lines[0])
    assert "\x1b" not in stream.getvalue()


def test_silent_when_asked():
    stream = io.StringIO()
    with Progress(2, "training", log_every=0, stream=stream) as progress:
        progress.update(1, reward=0.1)
        progress.update(2, reward=0.1)
    assert stream.getvalue() == ""


def test_a_terminal_gets_a_bar_with_the_latest_values(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream = _Terminal()
    with Progress(20, "training", start=5, stream=stream) as progress:
        progress.update(6, reward=0.25)
        progress.update(20, reward=0.75)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    assert "5/20" in text and "20/20" in text
    assert "reward 0.75" in text and "left" in text


def test_the_bar_is_taken_down_when_the_run_fails(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = _Terminal()
    with pytest.raises(KeyError), Progress(20, "training", stream=stream):
        raise KeyError
    # The cursor hidden by the live display is shown again.
    assert stream.getvalue().rindex("\x1b[?25h") > stream.getvalue().rindex("\x1b[?25l")


@pytest.mark.parametrize(
    ("total", "start", "log_every"), [(0, 0, 1), (5, 6, 1), (5, -1, 1), (5, 0, -1)]
)
def test_bad_numbers_are_refused(total, start, log_every):
    with pytest.raises(ValueError):
        Progress(total, "training", start=start, log_every=log_every)
