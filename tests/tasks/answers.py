r"""Two hundred ways to write a right answer, and two hundred near misses: forms times answers.

In a form, {a} is the answer, {g} the same with thousands grouped, {b} another number, {n} one less.
"""

ANSWERS = ("72", "1072", "-5", "145.5")

REWRITINGS = (
    "{a}", "#### {a}", "####{a}", "#### {g}", "#### {a}.", "#### {a} apples", "#### ${a}",
    "#### {a}€", "#### €{a}", "#### {a} USD", "#### {a}%", r"#### {a}\%", "#### **{a}**",
    "#### *{a}*", "#### `{a}`", "#### ${a}$", r"#### \({a}\)", r"#### \boxed{{{a}}}",
    r"\boxed{{{a}}}", r"\boxed{{ {a} }}", r"$\boxed{{{a}}}$", r"\boxed{{{a}\text{{ cm}}}}",
    r"\boxed{{\text{{{a}}}}}", r"\boxed{{x = {a}}}", r"\fbox{{{a}}}", r"\boxed{{{a}}}. Done.",
    "<answer>{a}</answer>", "<answer> {a} </answer>", r"<answer>\boxed{{{a}}}</answer>",
    "<ANSWER>#### {a}</ANSWER>", "<think>{b}?</think><answer>{a} km</answer>", "**{a}**", "${a}$",
    "The answer is {a}.", "The answer is {a}", "the final answer is: {a}", "Answer: {a}",
    "**Answer:** {a}", "**Answer**: {a} clips", "So the answer is **{a}**.", "the answer is ${a}$.",
    "Final answer: {a}\n", "The answer is {a} because {b} was too few.",
    "The answer is {a}. I checked it {b} times.", "{b} + 3\n#### {a}\n\nI hope this helps!",
    "#### {b}\nNo, that was wrong.\n#### {a}", r"\boxed{{{b}}}. That was wrong: \boxed{{{a}}}",
    "####\n{a}", "#### x = {a}", "#### The total is {a}",
)  # fmt: skip
"""Each names the answer."""

NEAR_MISSES = (
    "", "{n}", "#### {n}", "#### {b}", "#### {a}7", "#### 1{a}", "#### {a}.25", "#### {a} or {b}",
    "#### {a}, {b}", "#### {b}, {a}", "#### {a} and {b}", "#### {a}; {b}", "#### {a} {b}",
    "#### {a}/{b}", "#### {a} + {b}", "#### {a} - {b}", "#### {a} * 2", "#### 2 * {a}",
    "#### {a}^2", "#### {a}²", "#### {a}x", "#### x{a}", "#### {a}e3", "#### {a} thousand",
    "#### not {a}", "#### more than {a}", "#### at least {a}", "#### > {a}", "#### {a}!",
    "#### between {a} and {b}", "#### {a}-{b}", "#### {a}:{b}", "#### half of {a}",
    "#### {a} hours 30 minutes", "#### {b}\n{a}", r"\boxed{{{b}}}", r"\boxed{{{a}, {b}}}",
    r"\boxed{{{b}}} or \boxed{{{a}}}", r"\boxed{{{a}}}, \boxed{{{b}}}", r"\boxed{{{a}",
    r"\boxed{{}}", r"\boxed{{{a}}} \boxed{{{b}}}", r"\boxed{{2^{{{a}}}}}", "<answer>{a}",
    "<answer>{a} or {b}</answer>", "<answer></answer>{a}", "The answer is {b}, not {a}.",
    "The answer is {a} or {b}.", "It is {a}, then it is {b}.", "{a}\n{b}",
)  # fmt: skip
"""None names the answer."""


def grouped(answer: str) -> str:
    """The answer with its thousands grouped."""
    whole, point, decimals = answer.partition(".")
    return f"{int(whole):,}{point}{decimals}"


def written(forms: tuple[str, ...]) -> list[tuple[str, str]]:
    """Pairs of an answer and a completion."""
    return [
        (
            answer,
            form.format(a=answer, g=grouped(answer), b="31", n=str(float(answer) - 1)),
        )
        for form in forms
        for answer in ANSWERS
    ]


APART = (
    ("10 AM", ("10 a.m.", "10am", "It is at 10 AM."), ("10 PM", "10 p.m.", "10")),
    (r"\text{10 a.m.}", (r"\text{10 AM}", "10 am"), (r"\text{10 PM}", "10 p.m.", "22")),
    ("20 June", ("June 20", "20 Jun"), ("20 July", "20", "June 21")),
    (r"\text{June 20}", (r"\text{20 June}", "It is on June 20"), (r"\text{July 20}", "20")),
    (r"\text{5 miles north}", ("5 miles north", "5 km northward"), (r"\text{5 miles south}", "5")),
    (r"\text{Train 2}", ("Train 2", r"\text{train 2}"), (r"\text{Car 2}", "2")),
    ("72 apples", ("72", "72 clips"), ("71 apples",)),
    (r"5\text{ km}", ("5", r"5\,\mathrm{km}"), ("6 km",)),
    ("#### The total is 72", ("72", "72 apples"), ("27",)),
)
"""Answers with words: what each names as well, and what it does not."""
