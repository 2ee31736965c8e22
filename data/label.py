"""People rank completions (§3.2, §3.4, App. B): one page on this machine, and files that lose
nothing.

    python -m data.label --run runs/world-0                 sample from a run's models, then serve
    python -m data.label --completions FILE --out FILE      serve the page until Ctrl-C
    python -m data.label --agreement [FILE ...]             how often labelers agree (§3.4)

A completions file has {"prompt", "completions": [2 to 9 strings]} on each line; the page never
learns its other keys, such as the models' names. --out gets the comparisons, in the format that
`reward.py` trains on, and a log of all answers lies beside it (data/answers.py).

Who else may answer? Only a browser on this machine that loaded the page from here: the server
listens on 127.0.0.1, wants that name in Host and Origin, and a token that only its page knows.
Other people with an account on this machine can open the page: it asks for no password.
"""

import base64
import collections
import contextlib
import hashlib
import hmac
import itertools
import json
import pathlib
import re
import secrets
import signal
import subprocess
import sys
import urllib.parse
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from common import InputError, check_output, fail, read_checkpoint, run, setting
from data import readers
from data.answers import MARKS, Log, Work, read_items

MAX_BODY = 1 << 16      # bytes; an answer to nine completions is below 2,000
PAGE = pathlib.Path(__file__).with_suffix(".html")

# -- the server -----------------------------------------------------------------------------------


class Refused(Exception):
    """A request that gets an error: (status, what is wrong)."""


class LabelServer(ThreadingHTTPServer):
    """Serves the page and the answers of `work` on 127.0.0.1."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, work, port):
        self.work, self.token = work, secrets.token_urlsafe(32)
        try:
            super().__init__(("127.0.0.1", port), Handler)
        except (OSError, OverflowError) as error:
            raise InputError(f"--port {port}: {getattr(error, 'strerror', None) or error}; "
                             "expected a free port, or 0 for any") from None
        self.hosts = [f"{name}:{self.server_port}" for name in ("127.0.0.1", "localhost")]
        self.html = PAGE.read_text(encoding="utf-8")
        sources = " ".join(_hashes(self.html, "script")), " ".join(_hashes(self.html, "style"))
        self.policy = ("default-src 'none'; script-src {}; style-src {}; connect-src 'self'; "
                       "img-src data:; base-uri 'none'; form-action 'none'; "
                       "frame-ancestors 'none'").format(*sources)

    def page(self):
        """The page with its token, the marks, and who has labeled here before."""
        settings = {"token": self.token, "marks": MARKS, "labelers": sorted(self.work.answers)}
        text = json.dumps(settings).replace("<", "\\u003c")     # no name can end the script
        return self.html.replace("{}</script>", text + "</script>", 1)

    def handle_error(self, request, client_address):
        error = sys.exception()
        if not isinstance(error, (ConnectionError, TimeoutError)):  # those are the browser's
            fail(f"a request failed: {error!r}", 1)


def _hashes(html, tag):
    """What a content security policy calls the page's own scripts or styles."""
    return ["'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"
            for text in re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)]


class Handler(BaseHTTPRequestHandler):
    """GET / (the page), GET /item?labeler=NAME[&at=N], POST /answer: JSON, one request a
    connection."""

    timeout = 30    # seconds for which a request may stall
    server_version, sys_version = "label", ""

    def do_GET(self):
        self._respond(self._get)

    def do_POST(self):
        self._respond(self._post)

    def _respond(self, respond):
        try:
            self._check_host()
            content = respond()
        except Refused as refusal:
            return self._send(refusal.args[0], {"error": refusal.args[1]})
        except ValueError as error:
            return self._send(400, {"error": str(error)})
        self._send(200, content)

    def _check_host(self):
        """A foreign name that leads to this machine must not open the page (DNS rebinding)."""
        if self.headers.get_all("Host", []) not in [[host] for host in self.server.hosts]:
            raise Refused(403, f"Host: expected {' or '.join(self.server.hosts)}")

    def _check_token(self):
        token = self.headers.get("X-Token", "").encode()
        if not hmac.compare_digest(token, self.server.token.encode()):
            raise Refused(403, "the page is older than the server; load it again")

    def _get(self):
        url = urllib.parse.urlsplit(self.path)
        if url.path == "/":
            return self.server.page()
        if url.path != "/item":
            raise Refused(404, "nothing here")
        self._check_token()
        query = dict(urllib.parse.parse_qsl(url.query, max_num_fields=4))
        at = query.get("at")
        if at is not None and not re.fullmatch("[0-9]{1,9}", at):
            raise ValueError("at: expected a whole number")
        return self.server.work.view(query.get("labeler"), None if at is None else int(at))

    def _post(self):
        body = self._body()
        if self.path != "/answer":
            raise Refused(404, "nothing here")
        if self.headers.get_all("Origin", []) not in [[f"http://{h}"] for h in self.server.hosts]:
            raise Refused(403, "Origin: expected this server's own page")
        self._check_token()
        if self.headers.get("Content-Type") != "application/json":
            raise Refused(415, "Content-Type: expected application/json")
        try:
            sent = json.loads(body)
        except (ValueError, RecursionError):
            raise ValueError("body: expected JSON") from None
        if type(sent) is not dict:
            raise ValueError("body: expected an object")
        try:
            self.server.work.answer(sent.get("labeler"), sent.get("item"), sent.get("answer"))
        except OSError as error:
            fail(f"an answer could not be saved: {error}", 1)
            raise Refused(507, f"Not saved: {error.strerror or error}.") from None
        return self.server.work.view(sent["labeler"])

    def _body(self):
        lengths = self.headers.get_all("Content-Length", [])
        if len(lengths) != 1 or not re.fullmatch("[0-9]{1,9}", lengths[0]):
            raise Refused(411, "Content-Length: expected one whole number")
        if int(lengths[0]) > MAX_BODY:
            raise Refused(413, f"body: expected at most {MAX_BODY} bytes")
        body = self.rfile.read(int(lengths[0]))
        if len(body) < int(lengths[0]):
            raise ValueError("body: shorter than Content-Length")
        return body

    def _send(self, status, content):
        kind = "text/html" if type(content) is str else "application/json"
        body = (content if type(content) is str else json.dumps(content)).encode()
        self.close_connection = True
        self.send_response(status)
        for name, value in {"Content-Type": f"{kind}; charset=utf-8", "Content-Length": len(body),
                            "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff",
                            "Referrer-Policy": "same-origin",
                            "Cross-Origin-Resource-Policy": "same-origin",
                            "Content-Security-Policy": self.server.policy}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def send_error(self, code, message=None, explain=None):
        """What the base class says of requests that it cannot read."""
        self.request_version = "HTTP/1.0"   # to one without a version it would send no status
        self._send(code, {"error": message or "not a request that this server knows"})

    def log_message(self, *_):
        """Nothing: the terminal belongs to the notices."""


def beside(out, kind):
    """labels.jsonl, "answers" -> labels.answers.jsonl"""
    return out.with_name(re.sub(r"(\.jsonl)?(\.gz)?$", "", out.name) + f".{kind}.jsonl")


def sample(config, out):
    """Completions of a run's models for its prompts; those that are there are not sampled anew."""
    if out.exists():
        print(f"{out} is there")
        return
    sampled = out.with_suffix(".sampled")
    program = [sys.executable, PAGE.parent.parent / "evaluate.py", "sample", "--out", sampled]
    code = subprocess.run([*map(str, program + sampling_flags(config))]).returncode
    if code:
        sys.exit(code)      # it has said why
    rows = [readers.as_row(prompt) for prompt in readers.read_prompts(sampled)]
    for row in rows:        # evaluate.py takes the models in turn
        row["models"] = [name for name, _ in zip(itertools.cycle(config.models),
                                                 row["completions"])]
    readers.write_jsonl(out, rows)
    sampled.unlink()


def sampling_flags(config):
    """What `evaluate.py sample` is told: models, prompts, and what the checkpoints know."""
    folder = pathlib.Path(config.run)
    checkpoints = [folder / f"{name}.pt" for name in config.models]
    known = [read_checkpoint(path) for path in checkpoints]
    longest = min(min(c["config"].get("max_response", 1024), c["model_config"]["n_ctx"] // 2)
                  for c in known)
    return ["--checkpoint", *checkpoints, "--tokenizer", known[0]["tokenizer"]["name"],
            "--prompts", config.prompts or folder / "data" / "prompts.train.jsonl",
            "--max_response", longest, "--limit", config.limit, "--seed", config.seed]


def serve(config):
    """Serve the page until SIGINT or SIGTERM; exits with 130 or 143."""
    out, completions = pathlib.Path(config.out), config.completions
    check_output(config, out)
    log_path = beside(out, "answers")
    check_output(config, log_path)
    if not completions:
        completions = beside(out, "completions")
        sample(config, completions)
    items, left = read_items(completions)
    if out.exists() and not (log_path.exists() and log_path.stat().st_size):
        raise InputError(f"{out}: is there, but not the answers that it would be made from "
                         f"({log_path.name}); expected the name of a file to make")
    with contextlib.closing(Log(log_path)) as log:
        work = Work(items, log, out, config.overlap, config.seed)
        server = LabelServer(work, config.port)
        work.write_comparisons()
        print(f"{len(items)} prompts to rank" +
              f" ({left} more are left out: they are there before, or all their completions are "
              "the same)" * bool(left) +
              f", {len(log.records)} answers in {log_path}")
        serve_until_stopped(server)


def serve_until_stopped(server):
    """Answer requests until a signal comes, then bring the comparisons up to date."""
    work = server.work
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    work.writer.start()
    try:
        print(f"open http://127.0.0.1:{server.server_port}/ in a browser; Ctrl-C ends it",
              flush=True)
        server.serve_forever()
    finally:
        server.server_close()
        work.close()
        rows = work.comparisons()
        print(f"{len(rows)} comparisons by {len({row['labeler'] for row in rows})} labelers in "
              f"{work.path}; the same command goes on from here")


def _stop(number, frame):
    sys.exit(128 + number)


# -- agreement ------------------------------------------------------------------------------------


def agreement(comparisons):
    """{(labeler, labeler): {item: (pairs that both order alike, pairs that neither ties, pairs
    that one ties)}}, a pair being two completions of an item that both labelers ranked."""
    ranks = collections.defaultdict(dict)
    for c in comparisons:
        if c.labeler is not None:
            ranks[c.prompt, c.completions][c.labeler] = c.ranks     # the last answer counts
    found = collections.defaultdict(dict)
    for item, by_labeler in ranks.items():
        for both in itertools.combinations(sorted(by_labeler), 2):
            found[both][item] = _agreement_on_item(*(by_labeler[who] for who in both))
    return dict(found)


def _agreement_on_item(one, other):
    signs = [(one[i] - one[j]) * (other[i] - other[j])
             for i, j in itertools.combinations(range(len(one)), 2)]
    return sum(s > 0 for s in signs), sum(s != 0 for s in signs), sum(s == 0 for s in signs)


def share(counts_N3, draws=2000, seed=0):
    """(share, low, high) of untied pairs ordered alike, with a 95 % interval: a bootstrap over
    items, which are what was sampled. None where no pair is untied, no interval from one item."""
    counts_N3 = np.array(counts_N3)
    if not counts_N3[:, 1].sum():
        return None
    picked = np.random.default_rng(seed).integers(len(counts_N3), size=(draws, len(counts_N3)))
    alike_D, untied_D, _ = counts_N3[picked].sum(1).T
    drawn = (alike_D / np.maximum(untied_D, 1))[untied_D > 0]
    low, high = np.quantile(drawn, [0.025, 0.975]) if len(counts_N3) > 1 else (None, None)
    return counts_N3[:, 0].sum() / counts_N3[:, 1].sum(), low, high


def report_agreement(paths):
    """Print a line for each two labelers, and one for all."""
    found = agreement([c for path in paths for c in readers.read_comparisons(path)])
    if not found:
        raise InputError(f"{', '.join(map(str, paths))}: no item was ranked by two labelers; "
                         "expected some, as with --overlap")
    total = collections.defaultdict(lambda: np.zeros(3, int))
    for by_item in found.values():
        for item, counts in by_item.items():
            total[item] += counts
    lines = {" and ".join(both): by_item for both, by_item in sorted(found.items())}
    width = max(len(name) for name in [*lines, "labelers"])
    print(f"{'labelers':{width}}  items   pairs    tied  agreement, 95 % interval")
    for name, by_item in [*lines.items(), ("all", total)]:
        counts = np.array(list(by_item.values()))
        print(f"{name:{width}}  {len(counts):5}  {counts[:, 1].sum():6}  {counts[:, 2].sum():6}  "
              f"{_percent(share(counts))}")


def _percent(found):
    if found is None:
        return "–"
    mean, low, high = found
    return f"{100 * mean:.1f} %" + (f" [{100 * low:.1f}, {100 * high:.1f}]" if low is not None
                                    else "")


# -- the command ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelConfig:
    run: str = setting("runs/world-0", "folder of a run, as `./run.sh` makes it")
    models: tuple = setting(("sft", "ppo", "ppo_ptx"), "checkpoints of the run to sample from")
    prompts: str = setting("", "prompts to sample for; those that the run trains on")
    limit: int = setting(200, "sample for at most so many prompts, 0 = all")
    completions: str = setting("", "instead of sampling: prompts with 2 to 9 completions each")
    out: str = setting("", "comparisons to write, with a log of answers beside; RUN/labels.jsonl")
    agreement: tuple = setting(None, "instead: report agreement in these comparisons, or in --out")
    overlap: float = setting(0.2, "share of the items that every labeler gets; open")
    port: int = setting(8765, "port on 127.0.0.1, 0 = any free one")
    seed: int = setting(0, "samples, orders of items and of completions, which items are shared")

    def __post_init__(self):
        if self.completions and not self.out:
            raise InputError("--completions: expected --out too")
        if not self.models:
            raise InputError("--models: expected one or more checkpoints of the run, as sft")
        if not 0 <= self.overlap <= 1:
            raise InputError(f"--overlap {self.overlap}: expected a share from 0 to 1")
        if not self.out:
            object.__setattr__(self, "out", f"{self.run}/labels.jsonl")


def main(config):
    """Serve the page, or report agreement."""
    if config.agreement is not None:
        report_agreement(config.agreement or [config.out])
    else:
        serve(config)


if __name__ == "__main__":
    run(main, LabelConfig, __doc__)
