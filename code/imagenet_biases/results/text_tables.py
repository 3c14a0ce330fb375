"""Tables of text: for a terminal, a page of Markdown, a paper (LaTeX, booktabs) and a program (CSV)."""

import math
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def number(value: float, digits: int, sign: bool = False) -> str:
    """Return a number with so many decimals; `sign`: with a plus, too; no negative zero."""
    text = f"{round(float(value), digits) + 0.0:{'+' if sign else ''}.{digits}f}"
    return text.removeprefix("+") if float(text) == 0 else text


def interval(low: float | None, high: float | None, digits: int) -> str:
    """Return '[low, high]', or '' where there is none."""
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return ""
    return f"[{number(low, digits)}, {number(high, digits)}]"


def aligned(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Return one line per row, columns under each other; `right`: numbers of the columns aligned at the right."""
    lines = [""] * len(rows)
    for column, cells in enumerate(zip(*rows, strict=True)):
        width = max(map(len, cells))
        for row, cell in enumerate(cells):
            gap = "  " if column else ""
            lines[row] += gap + (cell.rjust(width) if column in right else cell.ljust(width))
    return [line.rstrip() for line in lines]


def _cells(frame: "pd.DataFrame") -> list[list[str]]:
    """Return the header and the rows of a frame as text."""
    return [[*frame.columns], *frame.astype(str).values.tolist()]


def as_text(title: str, frame: "pd.DataFrame") -> str:
    """Return columns that stand under each other."""
    return "\n".join([title, *aligned(_cells(frame))])


def as_markdown(title: str, frame: "pd.DataFrame") -> str:
    """Return a table in GitHub's Markdown."""
    head, *body = _cells(frame)
    lines: list[str] = []
    for row in (head, ["---"] * len(head), *body):
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
    return "\n".join([f"**{title}**", "", *lines])


SPECIAL = {char: f"\\{char}" for char in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "-": "-", "∞": r"$\infty$",
    "ℓ": r"$\ell$", "<": r"$<$", ">": r"$>$", "ε": r"$\varepsilon$", "κ": r"$\kappa$",
}  # fmt: skip


def _latex(text: str) -> str:
    return "".join(SPECIAL.get(char, char) for char in text)


def as_latex(title: str, frame: "pd.DataFrame") -> str:
    """Return a tabular environment with the rules of booktabs."""
    head, *body = (" & ".join(map(_latex, row)) + r" \\" for row in _cells(frame))
    first = f"% {title}; \\usepackage{{booktabs}}"
    lines = [r"\begin{tabular}{" + "l" * len(frame.columns) + "}", r"\toprule", head, r"\midrule", *body]
    return "\n".join([first, *lines, r"\bottomrule", r"\end{tabular}"])


def as_csv(title: str, frame: "pd.DataFrame") -> str:
    """Return comma-separated values; the title is left out."""
    return frame.to_csv(index=False, lineterminator="\n").rstrip("\n")


FORMATS: dict[str, Callable[[str, "pd.DataFrame"], str]] = {
    "text": as_text,
    "markdown": as_markdown,
    "latex": as_latex,
    "csv": as_csv,
}
