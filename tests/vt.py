"""A terminal in memory: what a program that writes columns, colours and the cursor's moves leaves
on the screen. It knows what `data/terminal.py` and readline write, and nothing else passes."""

import codecs
import fcntl
import html
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time

from conftest import ROOT
from data.terminal import breadth

ESCAPE = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])")
UNFINISHED = re.compile(r"\x1b(\[[?0-9;]*)?$")
IGNORED = {"h", "l"}    # modes: the cursor shown or hidden, pasting in brackets


class Terminal:
    """A screen of `columns` and `rows`, and all that has scrolled out of it."""

    def __init__(self, columns=80, rows=24):
        self.columns, self.rows = columns, rows
        self.lines, self.row, self.column, self.style, self.top = [[]], 0, 0, "", 0
        self.rest = ""      # the beginning of an escape

    def feed(self, text):
        text, at = self.rest + text, 0
        unfinished = UNFINISHED.search(text)
        self.rest = unfinished[0] if unfinished else ""
        text = text.removesuffix(self.rest)
        while at < len(text):
            escape = ESCAPE.match(text, at)
            if escape:
                self._escape(*escape.groups())
                at = escape.end()
            else:
                self._put(text[at])
                at += 1

    def _escape(self, argument, command):
        line = self.lines[self.row]
        if command == "A":      # what has scrolled out of the window is out of reach
            self.row = max(self.top, self.row - int(argument or 1))
        elif command == "K":
            del line[self.column:]
        elif command == "J":
            del line[self.column:], self.lines[self.row + 1:]
        elif command == "m":
            self.style = "" if argument in ("", "0") else argument
        elif command not in IGNORED:
            raise AssertionError(f"an unexpected escape: {argument}{command}")

    def _put(self, character):
        if character == "\r":
            self.column = 0
        elif character == "\n":
            self._down()
        elif character == "\x07":
            pass
        elif character == "\b":
            self.column -= 1
        else:
            assert character.isprintable(), repr(character)
            if self.column + breadth(character) > self.columns:
                self.column = 0
                self._down()
            line = self.lines[self.row]
            line += [(" ", "")] * (self.column - len(line))
            cells = [(character, self.style)] + [("", "")] * (breadth(character) - 1)
            line[self.column:self.column + len(cells)] = cells
            self.column += len(cells)

    def _down(self):
        self.row += 1
        if self.row == len(self.lines):
            self.lines.append([])
        self.top = max(self.top, self.row - self.rows + 1)

    def text(self):
        """All that was ever written, what has scrolled out included."""
        return "\n".join("".join(c for c, _ in line).rstrip() for line in self.lines)

    def html(self):
        """The same with its colours, for a picture."""
        return "\n".join("".join(f'<span style="{_css(style)}">{html.escape(c)}</span>'
                                 for c, style in line) for line in self.lines)


def _css(style):
    colour = re.search(r"38;2;(\d+;\d+;\d+)", style)
    return ("font-weight:bold;" * style.startswith("1;") +
            (f"color:rgb({colour[1].replace(';', ',')})" if colour else ""))


class Session:
    """A command in a pseudo-terminal; what it writes shows in `terminal` and is kept in `raw`."""

    def __init__(self, command, columns=80, rows=24, **environment):
        self.terminal, self.raw = Terminal(columns, rows), ""
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            preexec_fn=self._take_terminal,
            env={name: value for name, value in os.environ.items()
                 if name not in ("COLUMNS", "LINES")}  # which outweigh the window's size
            | {"TERM": "xterm-256color", "PYTHONUTF8": "1"} | environment)
        os.close(slave)

    @staticmethod
    def _take_terminal():
        """Ctrl-C is to reach the command, also where these tests run in the background, whose
        processes ignore it."""
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def type(self, keys):
        os.write(self.master, keys.encode())

    def ask(self, question):
        """Type a line at the next prompt of the chat."""
        self.read(lambda text: text.endswith("\n>"))
        self.type(question + "\n")
        self.read(lambda text: f"\n> {question}".rstrip() in text and text.endswith("\n>"))

    def read(self, until=lambda text: False, seconds=60):
        """The screen's text once `until` is true of it, or once the command has ended."""
        end = time.monotonic() + seconds
        while not until(self.terminal.text()):
            assert time.monotonic() < end, self.terminal.text()
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    text = self.decoder.decode(os.read(self.master, 65536))
                except OSError:     # Linux's way to say that nobody writes there any more
                    break
                self.raw += text
                self.terminal.feed(text)
        return self.terminal.text()

    def close(self):
        """The command's exit code."""
        code = self.process.wait(timeout=30)
        os.close(self.master)
        return code
