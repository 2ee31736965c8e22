"""Answers on a terminal: columns that are written anew with each token, and as plain text.

Nothing that a model writes steers the terminal: `visible` turns control and invisible characters
into signs for them, and `page` measures lines as a terminal does.
"""

import math
import os
import shutil
import sys
import unicodedata

from data.runs import COLOURS, NAMES

LEAST_WIDTH, MOST_WIDTH, GAP = 24, 60, 3    # of a column of text, and between two
UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}     # categories that steer, or show nothing


def visible(text):
    """Text that steers no terminal: control and invisible characters become signs for them."""
    return "".join(c if c == "\n" or unicodedata.category(c) not in UNSEEN else
                   "    " if c == "\t" else chr(0x2400 + ord(c)) if c < " " else "\ufffd"
                   for c in text)


def breadth(text):
    """Columns that visible text takes on a terminal: none for marks on the letter before, two for
    the wide letters of East Asia."""
    return sum(0 if unicodedata.category(c) in ("Mn", "Me") else
               1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def wrap(text, width):
    """Lines of at most `width` columns, broken between words, or in one that is longer."""
    lines = []
    for paragraph in text.split("\n"):
        line, *words = paragraph.split(" ")
        for word in [*words, None]:
            while breadth(line) > width:
                cut = next(n for n in range(len(line), 0, -1) if breadth(line[:n]) <= width)
                lines.append(line[:cut])
                line = line[cut:]
            if word is None or breadth(line) + 1 + breadth(word) > width:
                lines.append(line)
                line = word
            else:
                line += " " + word
    return lines


def title(answer, width):
    """(name, gap, score) that fill the width."""
    name = visible(NAMES.get(answer.name, answer.name))
    score = "" if answer.score is None else f"reward {answer.score:.2f}"
    return name, " " * max(1, width - breadth(name) - len(score)), score


def column(answer, width):
    """A model's answer as lines of exactly `width` columns, coloured."""
    name, gap, score = title(answer, width)
    lines = [coloured((name + gap + score)[:width], answer.name, "1;"),
             coloured("─" * width, answer.name)]
    text = wrap("\n".join(filter(None, [visible(answer.text).rstrip(), answer.note])), width)
    return lines + [line + " " * (width - breadth(line)) for line in text]


def coloured(text, name, style=""):
    if os.environ.get("NO_COLOR"):
        return text
    hexadecimal = COLOURS.get(name, "#6f6f6f")
    red, green, blue = (int(hexadecimal[i:i + 2], 16) for i in (1, 3, 5))
    return f"\x1b[{style}38;2;{red};{green};{blue}m{text}\x1b[0m"


def page(answers, width):
    """Lines of all answers: in columns side by side, in rows of them, or below one another."""
    for rows in range(1, len(answers) + 1):
        beside = math.ceil(len(answers) / rows)
        each = min(MOST_WIDTH, (width - GAP * (beside - 1)) // beside)
        if each >= LEAST_WIDTH:
            break
    lines, each = [], max(2, each)      # two: the breadth of one wide letter
    for first in range(0, len(answers), beside):
        columns = [column(answer, each) for answer in answers[first:first + beside]]
        for i in range(max(map(len, columns))):
            line = (" " * GAP).join(c[i] if i < len(c) else " " * each for c in columns)
            lines.append(line.rstrip())
        lines.append("")
    return lines


def plain(answers):
    """The same for a file or another program: no columns, no colours."""
    parts = []
    for answer in answers:
        name, _, score = title(answer, 0)
        lines = [", ".join(filter(None, [name, score])) + ":", visible(answer.text).rstrip(),
                 answer.note]
        parts.append("\n".join(filter(None, lines)) + "\n")
    return "\n".join(parts)


class Screen:
    """The part of a terminal that is written anew with each token."""

    def __init__(self):
        self.rows = 0

    def draw(self, answers, whole=False):
        """All lines when the answers are whole, before that the last ones, as many as fit: what
        has scrolled out of the window cannot be written anew."""
        size = shutil.get_terminal_size()
        lines = page(answers, size.columns - 1)[0 if whole else 1 - size.lines:]
        up = f"\x1b[{self.rows}A" if self.rows else ""
        sys.stdout.write("\r" + up + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J")
        sys.stdout.flush()
        self.rows = len(lines)
