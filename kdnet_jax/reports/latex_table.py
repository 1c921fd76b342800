"""Tables of plain text as LaTeX."""

import re
from collections.abc import Sequence
from typing import Final

_ESCAPED: Final = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
}


def escape(text: str) -> str:
    """Returns plain text as LaTeX; signs before digits become real ones."""
    escaped = "".join(_ESCAPED.get(sign, sign) for sign in text)
    return re.sub(r"(?<![\w.])([+-])(?=\d)", r"$\1$", escaped)


def table(
    header: Sequence[str], body: Sequence[Sequence[str]], *, caption: str, rows_per_group: int
) -> str:
    """Returns a table of plain texts, two columns left and the others right, with booktabs.

    A line is drawn before each group of rows. The table is fitted to the line's width.
    """
    lines = [
        "% \\usepackage{booktabs,graphicx}",
        "\\begin{table}",
        "\\centering",
        f"\\caption{{{escape(caption)}}}",
        "\\resizebox{\\linewidth}{!}{%",
        f"\\begin{{tabular}}{{ll{'r' * (len(header) - 2)}}}",
        "\\toprule",
        _row(header),
    ]
    for number, cells in enumerate(body):
        if number % rows_per_group == 0:
            lines.append("\\midrule")
        lines.append(_row(cells))
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}}", "\\end{table}", ""])


def _row(cells: Sequence[str]) -> str:
    return " & ".join(map(escape, cells)) + r" \\"
