"""The picture of the chat in the README: the real command in a terminal, photographed.

    python tests/photograph_chat.py --run runs/world-0 --out tests/figures/chat.png QUESTION ...
"""

import argparse
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import browser  # noqa: E402
from vt import Session  # noqa: E402

PAGE = """<!doctype html><meta charset="utf-8"><style>body {{ margin: 0; background: #fbfbfa }}
pre {{ display: inline-block; margin: 0; padding: 18px 22px; color: #222;
       font: 15px/1.4 "DejaVu Sans Mono", "Liberation Mono", monospace }}</style><pre>{}</pre>"""


def chat(run, questions, columns):
    """The screen, as HTML, after a chat of these questions."""
    session = Session([sys.executable, "-m", "data.chat", "--run", run], columns, rows=60)
    for question in questions:
        session.ask(question)
    session.type("\x04")
    session.read()
    assert session.close() == 0
    return session.terminal.html()


def photograph(page, out):
    with tempfile.TemporaryDirectory() as folder, browser.browser() as window:
        path = pathlib.Path(folder) / "chat.html"
        path.write_text(PAGE.format(page), encoding="utf-8")
        window.open(path.as_uri())
        width, height = window.run("const box = document.querySelector('pre')"
                                   ".getBoundingClientRect(); return [box.width, box.height]")
        window.chrome("Emulation.setDeviceMetricsOverride", width=round(width),
                      height=round(height), deviceScaleFactor=1.5, mobile=False)
        window.screenshot(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", nargs="+", metavar="QUESTION")
    parser.add_argument("--run", required=True)
    parser.add_argument("--columns", type=int, default=108)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    photograph(chat(args.run, args.questions, args.columns), args.out)
    print(f"wrote {args.out}")
