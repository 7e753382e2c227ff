r"""Ways to write expressions that are right answers, and near misses, as MATH's answers are.

Each row is a prompt, an answer of the data, and what stands where the answer is given.
"""

PROMPT = r"Simplify $\sqrt{12}$, expand $(x+1)^2$ and factor $x^2-1$."

SAME = (
    (r"2\sqrt{3}", (r"2\sqrt3", r"\sqrt{3}\cdot 2", r"2 \sqrt{3}\text{ cm}", r"x = 2\sqrt{3}",
                    r"\frac{6}{\sqrt{3}}", r"2\cdot 3^{1/2}", r"$2\sqrt{3}$", r"2\sqrt{3}.")),
    (r"x^2+2x+1", (r"1+2x+x^2", r"x^2 + 2 \cdot x + 1", r"y = x^2+2x+1", r"x(x+2)+1")),
    (r"(x-1)(x+1)", (r"(x+1)(x-1)", r"\left(x-1\right)\left(x+1\right)", r"(x - 1)\cdot(x + 1)")),
    (r"\frac{\pi}{2}", (r"\pi/2", r"\dfrac{\pi}{2}", r"\frac{1}{2}\pi", r"\tfrac{\pi}{2}",
                         r"0.5\pi")),
    (r"(3,4)", ("(3, 4)", r"\left(3,4\right)", r"(3,\,4)", r"( 3 , 4 )")),
    (r"3, -5", ("-5, 3", r"3,-5", r"x = 3, -5", r"\{3, -5\}", r"3 \text{ and } -5")),
    (r"(-\infty,2)\cup(3,\infty)", (r"(3,\infty)\cup(-\infty,2)",
                                     r"(-\infty, 2) \cup (3, \infty)")),
    (r"x \le 5", (r"x\leq 5", r"5 \ge x", r"x \leqslant 5")),
    (r"\text{Evelyn}", ("Evelyn", r"\text{ Evelyn }", r"\textbf{Evelyn}", r"\mathrm{Evelyn}")),
    (r"3+4i", ("4i+3", r"3 + 4 i")),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", (r"\begin{pmatrix}1\\2\end{pmatrix}",)),
    (r"\frac{a+b}{c}", (r"(a+b)/c", r"\frac{b+a}{c}", r"\frac{a}{c}+\frac{b}{c}")),
    ("x=1, y=2", ("(1,2)", "y=2, x=1", "1, 2", r"x = 1 \text{ and } y = 2", r"\left(1, 2\right)")),
    ("(1,2)", ("x=1, y=2", r"x = 1, \; y = 2")),
    ("a=3,b=5", ("3,5", "b=5,a=3")),
    ("x=3, x=-5", ("-5, 3", "3, -5")),
    ("BDAC", ("BDAC", r"\text{BDAC}", "B D A C")),
    ("xy", (r"x \cdot y", "x y")),
    ("true", ("True", r"\text{True}")),
    (r"\text{No}", ("no", r"\textbf{no}")),
    ("x>2", (r"(2,\infty)", "2<x", r"x \in (2, \infty)", r"(2,+\infty)")),
    (r"x\ge 2", (r"[2,\infty)", r"\left[2,\infty\right)")),
    ("x<0", (r"(-\infty,0)",)),
    (r"x\le 3", (r"(-\infty,3]",)),
    (r"0<x<1", ("(0,1)",)),
    ("[0,1]", (r"0\le x\le1", r"0 \leq t \leq 1")),
    (r"(2,\infty)", ("x>2", "2 < x")),
    (r"2\text{ hours }30\text{ minutes}", ("2 hours 30 minutes",)),
)  # fmt: skip

OTHER = (
    (r"2\sqrt{3}", (r"\sqrt{12}", r"3\sqrt{2}", r"2\sqrt{3}, 3\sqrt{2}", r"2\sqrt{3} or 3\sqrt{2}",
                    r"2\sqrt{3} \text{ or } 3\sqrt{2}", r"\pm 2\sqrt{3}", r"\{2\sqrt{3}, 1\}",
                    r"2\sqrt{3}; 1", r"2\sqrt{3} + 1", r"-2\sqrt{3}", r"2\sqrt{3}x", "",
                    r"2\sqrt{3}\text{ or less}", r"x \le 2\sqrt{3}", r"2\sqrt{3} = 1", r"2\sqrt{3",
                    "3.4")),
    (r"x^2+2x+1", ("(x+1)^2", r"\left(x+1\right)^2", r"(x + 1)^{2}", "x^2+2x", "x^2+2x+1, x^2",
                   "x^2+2x+1 = 7", r"x^2+2x+1 \text{ or } x^2", r"y^2+2y+1")),
    (r"(x-1)(x+1)", ("x^2-1", r"x^2 - 1", "(x-1)(x+2)", "(x-1), (x+1)")),
    (r"\frac{\pi}{2}", (r"\pi", r"\frac{2}{\pi}", r"\pi/2, \pi", r"\frac{\pi}{2} or \pi", "1.57",
                         r"\left|\infty\right|", r"\infty", r"\log|\infty|", r"x=|\log 0|",
                         r"|y+1|=\left|\log\log 1\right|", r"x = \pi")),
    (r"\{\pi,e\}", (r"\{|\log 0|,|\log\log 1|\}", r"\{\pi\}")),
    (r"\begin{pmatrix}\pi\\e\end{pmatrix}", (r"\begin{pmatrix}|\log 0|\\|\log 0|\end{pmatrix}",)),
    (r"(-1,\pi]", (r"(-1,|\log 0|]", r"(-1,\pi)")),
    (r"(3,4)", ("(4,3)", "[3,4]", "(3,5)", "(3,4), (4,3)", "(3,4,5)", "3")),
    (r"3, -5", ("3", "3, -5, 7", "3, 5", r"3 \text{ or } 5", "3, -4")),
    (r"(-\infty,2)\cup(3,\infty)", (r"(-\infty,2)", r"(-\infty,2]\cup(3,\infty)", r"(2,3)")),
    (r"x \le 5", ("x < 5", "5", r"x \ge 5", r"x \le 5, x \ge 5")),
    (r"\text{Evelyn}", ("Angela", r"\text{Evelyn or Angela}", "Evelyn, Angela", "", "E")),
    (r"3+4i", ("3-4i", "4+3i", "5", r"3+4i, 3-4i")),
    ("x=1, y=2", ("(2,1)", "2,1", "x=2, y=1", r"\{1,2\}", "1", "(1,3)", "x=1", "a=1, b=2")),
    ("(1,2)", (r"\{1,2\}", "x=2, y=1", "[1,2]")),
    (r"\{1,2\}", ("(1,2)", "[1,2]")),
    ("a=3,b=5", ("5,3", "(5,3)", "a=5,b=3")),
    ("BDAC", ("ABCD", r"\text{ABDC}", "BDA", r"A \cdot B \cdot C \cdot D", "bdac")),
    ("DNE", ("END", r"\text{END}")),
    ("no", ("on", "yes", r"o \cdot n")),
    ("AB", ("BA", "ab")),
    ("x>2", (r"[2,\infty)", r"(-\infty,2)", r"(2,3)", r"x\ge 2", r"\infty", r"(|\log 0|,\infty)",
             r"(2,\infty)\cup(5,6)\cup\{1\}", "2", r"x+y>2")),
    (r"x\le 3", (r"(-\infty,3)", r"[3,\infty)", r"[-\infty,4]")),
    ("[0,1]", (r"0<x<1", r"0\le x<1", r"0\le x\le 2", r"x\le 1", r"x^2\le x")),
    (r"(2,\infty)", ("x<2", r"x\ge 2", "2x>4")),
    (r"2\text{ hours }30\text{ minutes}", (r"2\text{ days }30\text{ minutes}", "2", "150")),
    ("5", ("2+3", "5, 6", r"\frac{20}{4} + 0", "10/2 + 0", r"\sqrt{25}", "5 or 6", "2^2+1")),
)  # fmt: skip

MARKS = (r"So it is \boxed{{{}}}.", "#### {}", "<answer>{}</answer>")


def pairs(table):
    """(prompt, answer, completion), each expression under every mark."""
    return [
        (PROMPT, answer, mark.format(text))
        for answer, texts in table
        for text in texts
        for mark in MARKS
    ]
