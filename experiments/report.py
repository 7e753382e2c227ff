"""Writes the report of one run or several: a page for someone who was not there.

    python experiments/report.py runs/quickstart
    python experiments/report.py runs/fiberpo-0 runs/fiberpo-1 runs/grpo-0 --out=report

The page is `report.html` in the folder `--out`, by default `report/` of the first run, with its
pictures beside it. It needs no network and no other file. Runs that differ in their seed alone are
one line with a band; a run may still be going.
"""

from absl import app, flags

OUT = flags.DEFINE_string("out", None, "Folder of the page and its pictures.")


def main(argv: list[str]) -> None:
    """Reads the folders, writes the page, says where."""
    if len(argv) < 2:
        raise app.UsageError("expected at least one run folder")
    from fiberjax.analysis.report import report

    try:
        print(report(argv[1:], OUT.value or f"{argv[1]}/report"))
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    app.run(main)
