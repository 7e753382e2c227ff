"""What a run shows while it works: a progress bar on a terminal, a plain line now and then else."""

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.text import Text


class _Rate(ProgressColumn):
    """Steps a second, or seconds a step where they are slow."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("  -  ", style="progress.data.speed")
        text = f"{speed:.1f} steps/s" if speed >= 1 else f"{1 / speed:.1f} s/step"
        return Text(text, style="progress.data.speed")


class Progress:
    """Shows how far a phase of a run has come: steps, rate, time left and selected values.

    A live bar where the stream is a terminal; elsewhere one plain line every `log_every` steps and
    at the last one, which suits log files.

        with Progress(200, "training") as progress:
            for step in range(1, 201):
                progress.update(step, reward=0.4, kl=0.01)

    Args:
      total: number of steps of the phase, at least 1.
      description: what the steps do, shown before the bar.
      start: steps already done (by the run that this one resumes).
      log_every: without a terminal, steps from line to line; 0 stays silent.
      stream: where to write; standard output where None.

    Raises:
      ValueError: `total`, `start` or `log_every` is out of range.
    """

    def __init__(
        self,
        total: int,
        description: str,
        *,
        start: int = 0,
        log_every: int = 10,
        stream: TextIO | None = None,
    ):
        if total < 1 or not 0 <= start <= total:
            raise ValueError(f"expected 0 <= start <= total and total >= 1, got {start}, {total}")
        if log_every < 0:
            raise ValueError(f"log_every must be at least 0, got {log_every}")
        self._total = total
        self._description = description
        self._start = start
        self._log_every = log_every
        self._stream = sys.stdout if stream is None else stream
        self._began = time.monotonic()
        self._bar: RichProgress | None = None
        self._console = console = Console(file=self._stream)
        if console.is_terminal:
            self._bar = RichProgress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                _Rate(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[shown]}", style="cyan"),
                console=console,
                expand=True,
            )
            self._task = self._bar.add_task(description, total=total, completed=start, shown="")

    def update(self, step: int, **shown: float) -> None:
        """Says that `step` steps are done, with values to show beside; returns nothing.

        Args:
          step: steps done so far, counted from 1 (`start` included).
          **shown: values by the label to show them under.
        """
        text = "  ".join(f"{name} {value:.3g}" for name, value in shown.items())
        if self._bar is not None:
            self._bar.update(self._task, completed=step, shown=text)
        elif self._log_every and (step % self._log_every == 0 or step == self._total):
            rate = (step - self._start) / max(time.monotonic() - self._began, 1e-9)
            line = f"{self._description} {step}/{self._total}  {rate:.2f} steps/s  {text}"
            self.print(line.rstrip())

    def print(self, shown: str | Callable[[Console], RenderableType]) -> None:
        """Prints a line as it is, or what is made for the console; above a bar, if there is one."""
        if callable(shown):
            self._console.print(shown(self._console))
        elif self._bar is not None:
            self._console.print(Text(shown))
        else:
            print(shown, file=self._stream, flush=True)

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
