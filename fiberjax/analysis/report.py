"""A report of runs: one page for someone who was not there, and its pictures beside it.

    report(["runs/fiberpo-0", "runs/fiberpo-1", "runs/grpo-0"], "report")

Runs that differ in their seed alone are one line with a band. The page stands for itself: pictures
are within it, nothing is asked of a network, no script runs, and whatever a model or a file wrote
stands as text. What a run lacks is said at its end.
"""

import datetime
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from fiberjax.analysis import curves, markup, words
from fiberjax.analysis.markup import Html, element, joined, table
from fiberjax.analysis.runs import RunFolder, differences, lines_of, read_runs
from fiberjax.analysis.style import Picture
from fiberjax.analysis.warnings import Warned, warnings
from fiberjax.run.evaluation import OVERALL
from fiberjax.run.metrics import describe

PAGE = "report.html"
CURVES = (
    ("reward/mean", "Reward", "linear"),
    ("response_length/mean", "Response length", "linear"),
    ("actor/entropy", "Policy entropy", "linear"),
    ("actor/ppo_kl_k3", "KL from the policy that sampled", "log"),
    ("actor/kl_reference", "KL to the reference", "linear"),
    ("actor/grad_norm", "Gradient norm", "log"),
    ("frac_reward_zero_std", "Groups without spread", "linear"),
    ("actor/pg_clipfrac", "Tokens that the gate changed", "linear"),
    ("actor/open_share", "Share of a step left open", "linear"),
    ("response_length/clip_ratio", "Responses cut off", "linear"),
    ("mismatch/log_prob_abs_mean", "Sampler against trainer", "log"),
    ("gate/budget_factor", "Budgets over those set", "log"),
    ("actor/step_factor", "Steps over those set", "log"),
)
"""Metrics of which each line is drawn over iterations: name, heading, scale."""

SAMPLES = 6
"""Completions of a run that are shown at each of the two times."""

CHARACTERS = 4000
"""Of a text; the rest is left out, which is said."""


def report(runs: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> Path:
    """Writes the report of runs; returns the page, `report.html` in the folder `out`.

    Args:
      runs: run folders; finished, going on, or of earlier versions.
      out: where page and pictures are written, made where missing.

    Raises:
      ValueError: a folder holds no run, or one is named twice.
    """
    found = read_runs(runs)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / PAGE
    text = _Report(found, folder).page()
    written = file.with_name(f".{PAGE}.new")
    written.write_text(text, encoding="utf-8")
    written.replace(file)
    return file


class _Report:
    """The parts of a page, in their order."""

    def __init__(self, runs: Sequence[RunFolder], folder: Path):
        self._runs = runs
        self._folder = folder
        self._lines = lines_of(runs)
        self._warned = {run.name: warnings(run.columns, run.config) for run in runs}

    def page(self) -> str:
        """The whole page."""
        count = len(self._runs)
        title = f"Report of {self._lines[0].label if len(self._lines) == 1 else f'{count} runs'}"
        sections = {
            "Warnings": self._warnings(),
            "Learning": self._learning(),
            "Held-out prompts": self._held_out(),
            "Domains": self._domains(),
            "Trust region": self._trust_region(),
            "Samples": self._samples(),
            "Options that differ": self._differences(),
            "Where the runs were made": self._made(),
            "All metrics": self._metrics(),
            "What is missing": self._missing(),
        }
        sections = {name: part for name, part in sections.items() if part}
        links = [element("a", name, href=f"#{_anchor(name)}") for name in sections]
        time = datetime.datetime.now().astimezone().isoformat(" ", "minutes")
        return markup.page(
            title,
            element("h1", title),
            element("p", f"Written {time}, from metrics, options and samples.", class_="soft"),
            element("nav", *links),
            self._summary(),
            *(
                element("section", element("h2", name, id=_anchor(name)), part)
                for name, part in sections.items()
            ),
        )

    def _summary(self) -> Html:
        told = [element("li", sentence) for sentence in words.summary(self._lines, self._warned)]
        return element("div", element("ul", *told), class_="summary")

    def _warnings(self) -> Html:
        names: dict[str, list[tuple[str, Warned]]] = {}
        for run, warned in self._warned.items():
            for one in warned:
                names.setdefault(one.check.name, []).append((run, one))
        if not names:
            return element("p", "None of the checks found anything.")
        boxes = []
        for name, found in names.items():
            check = found[0][1].check
            seen = [
                element("li", f"{run}, from iteration {one.seen.iteration}: {one.seen.text}")
                for run, one in found
            ]
            boxes.append(
                element(
                    "div",
                    element("p", element("b", name.capitalize())),
                    element("ul", *seen),
                    element("p", element("b", "Cause. "), check.cause),
                    element("p", element("b", "What to do. "), check.remedy),
                    element("p", f"docs/troubleshooting.md: {check.section}", class_="soft"),
                    class_="warning",
                )
            )
        return joined(boxes)

    def _learning(self) -> Html:
        drawn = [
            (
                curves.curve(self._lines, name, title, curves.unit_of(name), scale),
                title,
                f"{name}: {describe(name).meaning}",
            )
            for name, title, scale in CURVES
        ]
        measures = dict.fromkeys(
            name
            for line in self._lines
            for name in line.names()
            if name.startswith("evaluation/") and name.endswith(f"/{OVERALL}")
        )
        held_out = [
            (
                curves.curve(
                    self._lines, name, f"Held-out, {measure}", "mean over domains", "linear"
                ),
                f"Held-out {measure}",
                f"{measure} on held-out prompts while training, the mean over domains",
            )
            for name in measures
            for measure in (name.split("/")[1],)
        ]
        note = "Lines are means over seeds, and running means over a twentieth of the run; a band "
        note += "reaches from the lowest to the highest seed. Bars are 95 % intervals over prompts."
        figures = self._figures(drawn[:1] + held_out + drawn[1:])
        return joined([element("p", note, class_="soft"), figures]) if figures else Html("")

    def _held_out(self) -> Html:
        found = [(line, words.held_out(line)) for line in self._lines]
        parts = []
        for line, told in found:
            if told:
                parts += [element("h3", line.label), told]
        if not parts:
            return Html("")
        note = (
            "Before and after training, on the same prompts, with 95 % intervals over prompts; a "
        )
        note += (
            "difference is coloured where its interval excludes 0. Of several seeds stand means, "
        )
        note += "with the means of the limits, and beside them what the seeds changed."
        return joined([element("p", note, class_="soft"), *parts])

    def _domains(self) -> Html:
        names = dict.fromkeys(name for line in self._lines for name in line.names())
        domains = [
            (name, name.removeprefix("reward/"))
            for name in names
            if name.startswith("reward/") and name not in ("reward/mean", "reward/std")
        ]
        if not domains:
            return Html("")
        drawn = curves.by_part(self._lines, domains, "Reward by domain", "mean reward")
        text = "Mean reward of sampled responses by domain; the curriculum decides which prompts "
        text += "are drawn, so that held-out prompts alone tell of ability."
        figures = self._figures([(drawn, "Reward by domain", text)])
        header = ("domain", *(line.label for line in self._lines))
        rows = [
            (domain, *(words.first_to_last(line, name) for line in self._lines))
            for name, domain in domains
        ]
        note = "Mean over the first and over the last quarter of the iterations, with the range of "
        note += "the seeds at the end where there are several."
        return joined([figures, element("p", note, class_="soft"), table(header, rows)])

    def _trust_region(self) -> Html:
        names = dict.fromkeys(name for line in self._lines for name in line.names())
        parts = []
        for prefix, title, unit, text, limits in (
            (
                "gate/clip_fraction/",
                "Clipped tokens",
                "share of tokens",
                "Share of tokens whose gradient a level of the gate changed.",
                None,
            ),
            (
                "is_ratio/effective_sample_size/",
                "Effective sample size",
                "share of tokens or cells",
                "How many tokens, or cells of a level, carry the weight of all: 1 where all weigh "
                "alike, as on fresh rollouts; near 0 a few make up the whole estimate.",
                (0.0, 1.05),
            ),
        ):
            found = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
            if found:
                levels = curves.finest_first(found, self._runs[0])
                of = [(f"{prefix}{level}", level) for level in levels]
                drawn = curves.by_part(self._lines, of, title, unit, limits=limits)
                parts.append((drawn, title, text))
        regimes = "Where the two channels of a trajectory sit (global): both open (G-I), one or "
        regimes += "both in rollback (r), one (G-II) or both (G-III) zeroed; and how many of its "
        regimes += "tokens have their own drift clipped (local): none (L-I), some, all (L-III)."
        parts.insert(1, (curves.regimes(self._lines), "Regimes", regimes))
        drifts = [
            (
                curves.drift(line),
                f"Drift against budget, {line.label}",
                f"{line.label}: mean drift of a level's cells, upward and downward, and the "
                "budgets of its gate. Beyond them the gate of the level holds, falls back or is "
                "shut; a level without a dashed line has no budget of its own.",
            )
            for line in self._lines
        ]
        return joined([self._figures(drifts, wide=True), self._figures(parts, wide=True)])

    def _samples(self) -> Html:
        parts: list[Html] = []
        for line in self._lines:
            run = next((run for run in line.runs if run.before and run.after), None)
            if run is None or run.before is None or run.after is None:
                continue
            parts.append(element("h3", run.name))
            for before, after in _paired(run.before, run.after):
                parts.append(element("div", _sample(before), _sample(after), class_="pair"))
        if not parts:
            return Html("")
        note = "Completions before training, or at its beginning, and at the newest time that is "
        note += "kept; of the first seed of each line."
        return joined([element("p", note, class_="soft"), *parts])

    def _differences(self) -> Html:
        found = differences(self._runs)
        if not found:
            alone = len(self._runs) == 1
            return (
                Html("") if alone else element("p", "None: the options of all runs are the same.")
            )
        rows = [
            (element("code", path), *(words.value(value) for value in values))
            for path, values in found.items()
        ]
        return table(("option", *(run.name for run in self._runs)), rows)

    def _made(self) -> Html:
        rows: list[tuple[Any, ...]] = []
        for run in self._runs:
            for start in run.starts:
                rows.append((run.name, *words.made(start)))
        if not rows:
            return Html("")
        header = ("run", "from iteration", "time", "devices", "versions", "code")
        return table(header, rows)

    def _metrics(self) -> Html:
        parts = []
        for line in self._lines:
            rows = [
                (
                    element("code", name),
                    f"{mean[0]:.4g}",
                    f"{mean[-1]:.4g}",
                    f"{low.min():.4g}",
                    f"{high.max():.4g}",
                    describe(name).unit,
                    describe(name).meaning,
                )
                for name in line.names()
                for step, mean, low, high in (line.mean(name),)
                if step.size
            ]
            if rows:
                header = ("metric", "first", "last", "least", "largest", "unit", "meaning")
                said = element("summary", f"{line.label}: {len(rows)} metrics")
                parts.append(element("details", said, table(header, rows)))
        return joined(parts)

    def _missing(self) -> Html:
        found = [(run.name, sentence) for run in self._runs for sentence in run.missing]
        return table(("run", "what"), found) if found else Html("")

    def _figures(
        self, drawn: Sequence[tuple[Picture | None, str, str]], *, wide: bool = False
    ) -> Html:
        """Pictures with their captions, each also a file beside the page."""
        figures = []
        for picture, title, text in drawn:
            if picture is None:
                continue
            png = picture.png(dpi=150)
            (self._folder / f"{_anchor(title)}.png").write_bytes(png)
            width = round(picture.get_size_inches()[0] * 96)
            shown = markup.picture(png, title, width)
            figures.append(
                element(
                    "figure", shown, element("figcaption", text), class_="one" if wide else None
                )
            )
        if not figures:
            return Html("")
        return joined(figures) if wide else element("div", *figures, class_="pictures")


def _anchor(title: str) -> str:
    """A heading as a name of a file or an anchor: letters, digits and hyphens alone.

    >>> _anchor("Drift against budget, a/../<b>")
    'drift-against-budget-a-b'
    """
    kept = "".join(each if each.isascii() and each.isalnum() else " " for each in title.lower())
    return "-".join(kept.split())[:80]


def _paired(before: pa.Table, after: pa.Table) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Completions of the same prompts at two times, or else of the same domains, a few."""
    first, last = before.to_pylist(), after.to_pylist()
    pairs = []
    for row in first:
        alike = [of for of in last if of["prompt_index"] == row["prompt_index"]]
        alike = alike or [of for of in last if of["domain"] == row["domain"]]
        if alike:
            pairs.append((row, alike[0]))
            last.remove(alike[0])
    # One of each domain, before a second one of any.
    seen: dict[str, int] = {}
    ranked = []
    for pair in pairs:
        rank = seen[pair[0]["domain"]] = seen.get(pair[0]["domain"], 0) + 1
        ranked.append((rank, pair))
    return [pair for _, pair in sorted(ranked, key=lambda of: of[0])][:SAMPLES]


def _sample(row: dict[str, Any]) -> Html:
    when = "before training" if row["iteration"] == 0 else f"iteration {row['iteration']}"
    cut = "" if row["finished"] else ", cut off"
    head = f"{when} · {row['domain']} · reward {row['reward']:.3g} · {row['length']} tokens{cut}"
    texts = []
    for text in (row["prompt"], row["completion"]):
        left = len(text) - CHARACTERS
        texts.append(text if left <= 0 else f"{text[:CHARACTERS]}\n[{left} characters left out]")
    return element(
        "div",
        element("div", head, class_="soft"),
        element("pre", markup.lines(texts[0]), class_="prompt"),
        element("pre", element("b", markup.lines(texts[1]))),
        element("div", f"right: {row['answer']}", class_="soft"),
        class_="sample",
    )
