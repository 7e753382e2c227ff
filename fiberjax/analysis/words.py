"""What runs did, in sentences and cells of tables."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fiberjax.analysis.markup import Html, element, table
from fiberjax.analysis.runs import Line, RunFolder
from fiberjax.analysis.warnings import Warned
from fiberjax.run.evaluation import OVERALL, EvaluationRow
from fiberjax.run.statistics import Interval


def summary(lines: Sequence[Line], warned: Mapping[str, Sequence[Warned]]) -> list[Any]:
    """The report in a few sentences; texts and `Html`."""
    told: list[Any] = [_asked(line) for line in lines]
    for line in lines:
        told += [sentence for sentence in (_learned(line), _measured(line)) if sentence]
    told += [_best(lines)] if _best(lines) else []
    names = dict.fromkeys(one.check.name for found in warned.values() for one in found)
    told.append(f"Warnings: {', '.join(names)}." if names else "No warnings.")
    return told


def held_out(line: Line) -> Html:
    """What held-out prompts say of a line: a row a domain and measure; "" before the first end.

    Of several seeds the means, and limits averaged over the seeds: they share their prompts, so
    that several of them are no more certain of these than one.
    """
    rows = []
    for (domain, measure), found in _rows(line).items():
        change = over_seeds([row.difference for row in found])
        cells: list[Any] = [domain, measure, found[0].prompts]
        cells += [
            over_seeds([row.before for row in found]),
            over_seeds([row.after for row in found]),
        ]
        cells.append(_change(change))
        if len(line.runs) > 1:
            ends = [row.difference.value for row in found]
            cells.append(f"{min(ends):+.3f} to {max(ends):+.3f}")
        rows.append(cells)
    if not rows:
        return Html("")
    seeds = ("of the seeds",) if len(line.runs) > 1 else ()
    header = ("domain", "measure", "prompts", "before", "after", "difference", *seeds)
    return table(header, rows, numbers=4 + len(seeds))


def over_seeds(found: Sequence[Interval]) -> Interval:
    """The mean of estimates on the same prompts, with the means of their limits.

    >>> over_seeds([Interval(0.5, 0.25, 0.75), Interval(1.0, 0.75, 1.25)])
    Interval(value=0.75, low=0.5, high=1.0)
    """
    return Interval(*(float(np.mean(part)) for part in zip(*found, strict=True)))


def first_to_last(line: Line, name: str) -> str:
    """Means over the first and over the last quarter of each run, and the last ones' range."""
    found = [quarters(values) for run in line.runs if (values := _finite(run, name)).size]
    if not found:
        return ""
    first, last = np.mean(found, axis=0)
    ends = [end for _, end in found]
    seeds = f" ({min(ends):.3f} to {max(ends):.3f})" if len(ends) > 1 else ""
    return f"{first:.3f} → {last:.3f}{seeds}"


def quarters(values: np.ndarray) -> tuple[float, float]:
    """Means of the first and of the last quarter, of one value at least.

    >>> quarters(np.array([1.0, 2.0, 3.0, 5.0]))
    (1.0, 5.0)
    """
    size = max(1, len(values) // 4)
    return float(values[:size].mean()), float(values[-size:].mean())


def value(of: Any) -> str:
    """An option's value as it is written; "–" where a run has none."""
    return "–" if of is None else of if isinstance(of, str) and of else json.dumps(of)


def made(start: Mapping[str, Any]) -> tuple[str, ...]:
    """Where a run was started: iteration, time, devices, versions, code; "" of what is not said."""
    devices, versions = start.get("devices"), start.get("versions")
    git, machine = start.get("git"), start.get("machine")
    shown = ""
    if isinstance(devices, Mapping):
        shown = f"{devices.get('count')} × {devices.get('kind')}, {devices.get('platform')}"
        if devices.get("processes", 1) != 1:
            shown += f", {devices['processes']} processes"
    if isinstance(machine, list):
        shown += f"; {' '.join(str(part) for part in machine if part)}"
    names = ("fiberjax", "jax", "python")
    told = ""
    if isinstance(versions, Mapping):
        told = ", ".join(f"{name} {versions[name]}" for name in names if name in versions)
    code = ""
    if isinstance(git, Mapping):
        code = str(git.get("commit"))[:12] + ("" if git.get("clean") else ", with changes")
    return str(start.get("iteration", "")), str(start.get("time", "")), shown, told, code


def _asked(line: Line) -> str:
    """What was run, and how far it came."""
    run = line.runs[0]
    gate, model = run.config.get("gate.name"), run.config.get("model.folder")
    done = [each.done for each in line.runs]
    planned = run.config.get("iterations")
    far = f"{done[0]}" if min(done) == max(done) else f"{min(done)} to {max(done)}"
    text = f"{line.label}: {far}" + (f" of {planned}" if planned else "") + " iterations"
    if gate:
        text += f" with the gate {gate}"
    if model:
        text += f", from {model.rstrip('/').rpartition('/')[2]}"
    ended = sum(each.table is not None for each in line.runs)
    if ended < len(line.runs):
        text += f"; {len(line.runs) - ended} of {len(line.runs)} runs have not ended"
    return f"{text}."


def _learned(line: Line) -> str:
    if line.mean("reward/mean")[0].size < 2:
        return f"{line.label}: too few iterations to say whether it learns."
    found = [quarters(values) for run in line.runs if (values := _finite(run, "reward/mean")).size]
    first, last = np.mean(found, axis=0)
    way = "rose" if last > first else "fell" if last < first else "stayed"
    text = f"{line.label}: the mean reward of sampled responses {way} from {first:.3f} to "
    text += f"{last:.3f} (first and last quarter of the iterations)"
    entropy = line.mean("actor/entropy")[1]
    if entropy.size > 1:
        text += ", the entropy went from {:.3g} to {:.3g} nats a token".format(*quarters(entropy))
    return f"{text}."


def _measured(line: Line) -> str:
    """What held-out prompts say of a line, by its first measure."""
    for measure, found in _overall(line).items():
        changes = [row.difference for row in found]
        change = over_seeds(changes)
        text = f"{line.label}: on held-out prompts {measure} went from "
        text += f"{np.mean([row.before.value for row in found]):.3f} to "
        text += f"{np.mean([row.after.value for row in found]):.3f}, by {change.value:+.3f} "
        text += f"[{change.low:+.3f}, {change.high:+.3f}]"
        if len(found) > 1:
            ends = [each.value for each in changes]
            text += f"; of {len(found)} seeds {min(ends):+.3f} to {max(ends):+.3f}"
        sure = (
            "more than chance of the prompts explains"
            if change.excludes_zero
            else "no clear change"
        )
        return f"{text}: {sure}."
    return ""


def _best(lines: Sequence[Line]) -> str:
    """Which line ended highest on held-out prompts, and whether seeds tell them apart."""
    ends = []
    for line in lines:
        overall = _overall(line)
        if overall:
            measure, found = next(iter(overall.items()))
            ends.append((line.label, measure, [row.after.value for row in found]))
    if len(ends) < 2 or len({measure for _, measure, _ in ends}) > 1:
        return ""
    ranked = sorted(ends, key=lambda of: -float(np.mean(of[2])))
    (best, measure, values), (second, _, others) = ranked[:2]
    text = f"Highest after training, by {measure}: {best} ({np.mean(values):.3f}), then {second} "
    text += f"({np.mean(others):.3f})"
    if min(len(values), len(others)) == 1:
        return f"{text}; one seed of either says little of methods."
    apart = min(values) > max(others)
    return f"{text}; " + (
        "every seed of the first is above every seed of the second."
        if apart
        else "their seeds overlap, so that they are not told apart."
    )


def _change(change: Interval) -> Html:
    """A difference, coloured where its interval excludes 0."""
    text = f"{change.value:+.3f} [{change.low:+.3f}, {change.high:+.3f}]"
    way = "up" if change.low > 0 else "down" if change.high < 0 else None
    return element("span", text, class_=way)


def _overall(line: Line) -> dict[str, list[EvaluationRow]]:
    """The rows of the mean over domains of every run that has ended, by measure."""
    return {measure: of for (domain, measure), of in _rows(line).items() if domain == OVERALL}


def _rows(line: Line) -> dict[tuple[str, str], list[EvaluationRow]]:
    """The rows of every run that has ended, by domain and measure."""
    found: dict[tuple[str, str], list[EvaluationRow]] = {}
    for run in line.runs:
        for row in run.table.rows if run.table is not None else ():
            found.setdefault((row.domain, row.measure), []).append(row)
    return found


def _finite(run: RunFolder, name: str) -> np.ndarray:
    values = run.columns.get(name, np.zeros(0))
    return values[np.isfinite(values)]
