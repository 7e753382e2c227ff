"""Rewards as a user writes them, well and badly; workers load this file."""

import os
import time

HELD = []


def right(prompt, answer, completion):
    return float(answer in completion)


right.extract = lambda completion: completion.split()[-1]  # Raises where there is none.


def of_row(prompt, answer, completion, row):
    return 1.0 if completion == str(row["accepted"]) else 0.25


def batched(prompts, answers, completions):
    return [float(len(completions))] * len(completions)


batched.batched = True


def bad(prompt, answer, completion):
    """Does what the completion says."""
    if completion == "hang":
        while True:
            pass
    if completion == "sleep":
        time.sleep(600)
    if completion == "bomb":
        HELD.append(bytearray(2**31))
    if completion == "die":
        os.abort()
    if completion == "leave":
        raise SystemExit(3)
    if completion == "raise":
        raise KeyError("no\nrow")
    if completion == "nan":
        return float("nan")
    if completion == "text":
        return "1.0"
    if completion == "pid":
        return os.getpid()
    return 1.0


def two(prompt, answer):
    return 0.0
