"""Tables of text: for a terminal, a page of Markdown, a paper (LaTeX, booktabs) and a program (CSV)."""

import math


def number(value, digits, sign=False):
    """Return a number with so many decimals; `sign`: also a plus; no negative zero."""
    text = f"{round(float(value), digits) + 0.0:{'+' if sign else ''}.{digits}f}"
    return text.removeprefix("+") if float(text) == 0 else text


def interval(low, high, digits):
    """Return '[low, high]', or '' where there is none."""
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return ""
    return f"[{number(low, digits)}, {number(high, digits)}]"


def as_text(title, frame):
    """Return columns that stand under each other."""
    cells = [[*frame.columns], *frame.astype(str).values.tolist()]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([title, *lines])


def as_markdown(title, frame):
    """Return a table of GitHub's Markdown."""
    rows = [[*frame.columns], ["---"] * len(frame.columns), *frame.astype(str).values.tolist()]
    lines = ("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
    return "\n".join([f"**{title}**", "", *lines])


SPECIAL = {char: f"\\{char}" for char in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "-": "-", "∞": r"$\infty$",
    "ℓ": r"$\ell$", "<": r"$<$", ">": r"$>$", "ε": r"$\varepsilon$", "κ": r"$\kappa$",
}  # fmt: skip


def _latex(text):
    return "".join(SPECIAL.get(char, char) for char in text)


def as_latex(title, frame):
    """Return a tabular environment with the rules of booktabs."""
    rows = [[_latex(cell) for cell in row] for row in ([*frame.columns], *frame.astype(str).values.tolist())]
    head, *body = (" & ".join(row) + r" \\" for row in rows)
    first = f"% {title}; \\usepackage{{booktabs}}"
    lines = [r"\begin{tabular}{" + "l" * len(frame.columns) + "}", r"\toprule", head, r"\midrule", *body]
    return "\n".join([first, *lines, r"\bottomrule", r"\end{tabular}"])


def as_csv(title, frame):
    """Return comma-separated values; the title is left out."""
    return frame.to_csv(index=False, lineterminator="\n").rstrip("\n")


FORMATS = {"text": as_text, "markdown": as_markdown, "latex": as_latex, "csv": as_csv}
