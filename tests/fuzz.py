"""Malformed inputs over everything that the project reads: refused in one line, or read; no more.

    python tests/fuzz.py [--inputs 600] [--seed 0] [--kind WORD]

For each kind of input so many are generated: well-formed ones with bytes or values changed, cut,
doubled, exchanged; files of another kind; pickles that would run code. Each is given to the
project's own reader. It must be read whole, or refused by an InputError that names the file (a
request: by a status); it must not take ten seconds, leave or change a file, or run anything. Prints
a line a kind and the total; exits with 1 on any other outcome, and says which input it was.
"""

import argparse
import base64
import contextlib
import gzip
import io
import json
import os
import pathlib
import pickle
import random
import signal
import socket
import sys
import tempfile
import zipfile

import programs
import torch

import common
import evaluate
from common import InputError
from data import answers, formats, labelers, readers, runs, samples
from data.tokenizer import load_tokenizer
from data.weights import write_gpt2
from model import GPT, GPTConfig, ScalarGPT, load_gpt2

SECONDS = 10
SHAPE = GPTConfig(vocab_size=5, n_ctx=4, n_layer=1, n_head=1, d_model=4)
ODD = [b"null", b"true", b"-1", b"0", b"0.5", b"1e999", b"NaN", b"[]", b"{}", b'""', b'"x"',
       b'"\\ud800"', b"9" * 5000, b"[" * 3000, b"[[1,2],[3]]", b"\x00", b"\xff", b"\r\n", b"\n\n",
       b"\xef\xbb\xbf", "é\u2028".encode(), b'{"prompt": 1}', b"<|endoftext|>", b",", b'"', b"\\"]


def damaged(rng, data):
    """Some bytes of it changed, cut, doubled, exchanged, or something odd put in or in place."""
    for _ in range(rng.choice([1, 1, 2, 5])):
        at, span = rng.randrange(len(data) + 1), rng.choice([0, 1, 4, 40])
        data = rng.choice([
            lambda: data[:at] + rng.choice(ODD) + data[at + span:],
            lambda: data[:at],
            lambda: data[at:],
            lambda: data[:at] + bytes([rng.randrange(256)]) + data[at + 1:],
            lambda: data[:at] + data[at:at + span] * rng.randint(2, 30) + data[at:],
            lambda: data[:at] + data[at + span:],
            lambda: value_replaced(rng, data)])()
    return data


def value_replaced(rng, data):
    """One JSON value of the first line, by its place in the text, replaced by something odd."""
    try:
        row = json.loads(data.split(b"\n")[0])
        holder = row
        while True:
            key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
            if not isinstance(holder[key], (dict, list)) or not holder[key] or rng.random() < 0.5:
                break
            holder = holder[key]
        holder[key] = rng.choice([None, True, -1, 0.5, 2**70, "", "x", [], {}, [[]], ["x", 1]])
        return json.dumps(row).encode() + b"\n" + data.partition(b"\n")[2]
    except (ValueError, IndexError, TypeError, KeyError, RecursionError):
        return data[::-1]


# -- what would run if it were unpickled ----------------------------------------------------------


class Evil:
    """Unpickled by something careless, it makes the file `mark`."""

    def __init__(self, mark, rng):
        self.call = rng.choice([
            (os.system, (f"touch {mark}",)), (exec, (f"open({str(mark)!r}, 'w')",)),
            (eval, (f"open({str(mark)!r}, 'w')",)), (open, (str(mark), "w")),
            (os.mkdir, (str(mark),))])

    def __reduce__(self):
        return self.call


def with_code(rng, contents, mark):
    """A file of tensors with code in it, of one of three forms, whole to the last CRC."""
    evil = Evil(mark, rng)
    place = rng.choice(["alone", "beside", "within", "key"])
    contents = {"alone": evil, "beside": {**contents, "evil": evil},
                "within": {**contents, "config": {"x": [evil]}},
                "key": {**contents, "stage": evil}}[place]
    form, file = rng.choice(["zip", "before 2020", "pickle", "swapped"]), io.BytesIO()
    if form == "pickle":
        return pickle.dumps(contents, protocol=rng.choice([0, 2, 4]))
    torch.save(contents, file, _use_new_zipfile_serialization=form != "before 2020")
    if form != "swapped":
        return file.getvalue()
    swapped = io.BytesIO()  # a good archive whose pickle is another
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(swapped, "w") as new:
        for name in old.namelist():
            new.writestr(name, pickle.dumps(evil, protocol=2) if name.endswith("data.pkl")
                         else old.read(name))
    return swapped.getvalue()


# -- well-formed inputs, and who reads them -------------------------------------------------------


def lines(*rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def dialogue(answer):
    return f"\n\nHuman: Hi there.\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant: {answer}"


def an_answer():
    return {"ranks": [1, 2], "overall": [7, None], "marks": [["moral"], []], "seconds": 1.5,
            "time": "2024-01-01T00:00:00+00:00"}


KEY = next(iter(labelers.examples(0, 1)))[0]
COMPARISON = {"prompt": "p", "completions": ["a", "b", "c"], "ranks": [1, 2, 2], "labeler": "x"}
POST = {"info": {"id": "t3_1", "post": "I crashed.\n", "title": "A crash", "subreddit": "advice"},
        "summaries": [{"text": " crashed", "policy": "s"}, {"text": " fine"}], "choice": 1}
TEXTS = {  # kind: (content, reader)
    "demonstrations": (lines(*[{"prompt": f"p{i}", "response": "é", "source": "labeler",
                                "user": "u"} for i in range(3)]), readers.read_demonstrations),
    "comparisons": (lines(COMPARISON, COMPARISON), readers.read_comparisons),
    "prompts": (lines(*[{"prompt": f"p{i}", "user": "u", "category": "c", "more": {"x": [1]}}
                        for i in range(3)]), readers.read_prompts),
    "text": ("One document.\n<|endoftext|>\nAnother é.\n".encode() * 3, readers.read_text),
    "hh": (lines({"chosen": dialogue("Because."), "rejected": dialogue("No.")}), readers.read_hh),
    "summaries": (lines(POST, POST), formats.read_summaries),
    "alpaca": (json.dumps([{"instruction": "Add.", "input": "1", "output": "3"}] * 2).encode(),
               formats.read_alpaca),
    "dolly": (lines({"instruction": "Add.", "context": "1", "response": "3", "category": "qa"}),
              formats.read_dolly),
    "documents": (lines({"id": 1, "text": "a document"}, {"text": "é"}), formats.read_documents),
    "samples": (b"model_type,prompt_type,true,info\ngpt-xl,qa,0.25,0.75\nsft-6b,,1,0\n" * 1,
                lambda path: samples.read_samples(path)),
    "completions": (lines({"prompt": "p", "completions": ["a", "b"], "key": KEY}),
                    labelers.read_completions),
    "items to label": (lines({"prompt": "p", "completions": ["a", "b"], "models": ["x", "y"]}),
                       lambda path: answers.read_items(path)),
    "log of answers": (lines(*[{"prompt": "p", "completions": ["a", "b"], "labeler": "ann",
                                "answer": an_answer()}] * 2), answers.read_log),
    "answers of models": (lines(
        {"kind": "test", "row": 0, "answer": "é", "reward": 0.5, "kl": -1.5, "length": 3},
        {"kind": "text", "loss": 1.5}, {"kind": "few_shot", "task": "facts", "right": True}),
        evaluate.read_units),
    "metrics": (lines(*[{"step": i, "reward": 0.5, "kl": 1.0, "answers": ["x"]} for i in range(3)]),
                runs.read_metrics),
    "results": (json.dumps({"models": {"mini": {"sft": {"reward": [0.5, 0.25, 1.0]}}}}).encode(),
                runs.read_results),
}


PLAIN = ("answers of models", "metrics", "results")  # the project's own, never packed


def text_kind(name):
    content, read = TEXTS[name]

    def make(rng, folder):
        packed = name not in PLAIN and rng.random() < 0.2
        data = gzip.compress(content, mtime=0) if packed else content
        other = TEXTS[rng.choice(list(TEXTS))][0]
        data = damaged(rng, rng.choice([data] * 9 + [other]))
        path = folder / "input.jsonl"
        path.write_bytes(data)
        return read, path
    return make


def checkpoint_bytes():
    file, model = io.BytesIO(), ScalarGPT(SHAPE)
    torch.save(checkpoint_of(model), file)
    return file.getvalue()


def checkpoint_of(model):
    return {"stage": "reward", "tokenizer": {"name": "world", "fingerprint": "0" * 12},
            "model_config": {"vocab_size": 5, "n_ctx": 4, "n_layer": 1, "n_head": 1, "d_model": 4,
                             "dropout": 0.0},
            "weights": model.state_dict(), "step": 3, "config": {"out": "x"}}


def checkpoint(rng, folder):
    """Bytes damaged, code put in, or values that no run would write, under right checksums."""
    path, kind = folder / "input.pt", rng.random()
    if kind < 0.5:
        data, spans = checkpoint_bytes(), rng.choice([1, 1, 3])
        if rng.random() < 0.5:  # single bits, each of which must be noticed or mean nothing
            data = bytearray(data)
            for _ in range(spans):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            path.write_bytes(data)
        else:
            path.write_bytes(damaged(rng, data))
    elif kind < 0.75:
        path.write_bytes(with_code(rng, checkpoint_of(ScalarGPT(SHAPE)), folder / "mark"))
    else:
        contents = checkpoint_of(ScalarGPT(SHAPE))
        holder = rng.choice([contents, contents, contents["model_config"], contents["tokenizer"],
                             contents["weights"]])
        key = rng.choice(list(holder))
        odd = [None, -1, 0, 0.5, 10**6, 2**40, "", "x", [], {}, {"x": 1}, torch.zeros(2), True]
        if rng.random() < 0.3:
            del holder[key]
        else:
            holder[key] = rng.choice(odd)
        torch.save(contents, path)
    return read_checkpoint_model, path


def read_checkpoint_model(path):
    """What a stage does with a checkpoint; a damaged one that is accepted must be the good one."""
    return common.load_model(ScalarGPT, path, ("reward",), None)


def gpt2_folder(rng, folder):
    """One file of a folder of published weights is damaged."""
    with contextlib.redirect_stdout(io.StringIO()):
        write_gpt2(GPT(SHAPE), folder)
    form = rng.choice(["safetensors", "config.json", "bin", "index"])
    path = folder / {"safetensors": "model.safetensors", "config.json": "config.json",
                     "bin": "pytorch_model.bin", "index": "model.safetensors.index.json"}[form]
    tensors = {f"transformer.{k}": v for k, v in GPT(SHAPE).decoder.state_dict().items()}
    if form == "bin":
        (folder / "model.safetensors").unlink()
        file = io.BytesIO()
        torch.save(tensors, file, _use_new_zipfile_serialization=rng.random() < 0.5)
        path.write_bytes(with_code(rng, tensors, folder / "mark") if rng.random() < 0.5
                         else damaged(rng, file.getvalue()))
    elif form == "index":
        (folder / "model.safetensors").rename(folder / "part.safetensors")
        names = json.loads((folder / "part.safetensors").read_bytes()[8:].split(b"}}")[0] + b"}}")
        del names["__metadata__"]
        path.write_bytes(damaged(rng, json.dumps(
            {"weight_map": dict.fromkeys(names, "part.safetensors")}).encode()))
    else:
        path.write_bytes(damaged(rng, path.read_bytes()))
    return load_gpt2, folder


BYTES = [bytes([b]) for b in range(256)]


def tiktoken_file(rng, folder):
    tokens = [*BYTES, b"ab", b"abc"]
    text = b"".join(base64.b64encode(t) + b" %d\n" % i for i, t in enumerate(tokens))
    path = folder / "input.tiktoken"
    path.write_bytes(damaged(rng, text))
    return load_tokenizer, path


def gpt2_vocabulary(rng, folder):
    """GPT-2's two files, small: 256 bytes and two merges; one of them, or both, damaged."""
    from data.weights import _byte_letters
    letters = [_byte_letters()[b] for b in sorted(range(256), key=lambda b: (
        not (0x21 <= b < 0x7F or 0xA1 <= b < 0xAD or 0xAE <= b), b))]
    encoder = {token: i for i, token in enumerate([*letters, "ab", "abc", "<|endoftext|>"])}
    files = {"encoder.json": json.dumps(encoder).encode(),
             "vocab.bpe": b"#version: 0.2\na b\nab c\n"}
    chosen = rng.sample(sorted(files), rng.choice([1, 1, 2]))
    for name, data in files.items():
        (folder / name).write_bytes(damaged(rng, data) if name in chosen else data)
    return load_tokenizer, folder


ODD_FLAGS = ["", "x", "nan", "inf", "-inf", "-1", "0", "1e400", "0.5", "true", "é", "/", ".", "-",
             "--", "--out", "10" * 40, "\x7f", "{}", "-0", "1_0", "1" * 400]


def flags(rng, folder):
    """A command line: real programs, whose files are missing, with odd words in some places."""
    name = rng.choice([n for n in programs.PROGRAMS if n != "world"])
    main, config_class = programs.find(name)
    words = []
    for field in common.dataclasses.fields(config_class):
        if field.metadata.get("required"):
            words += [f"--{field.name}", str(folder / "missing" / "file.pt")]
    for _ in range(rng.randint(1, 3)):
        field = rng.choice(common.dataclasses.fields(config_class)).name
        odd = rng.choice(ODD_FLAGS)
        if field in ("out", "run") and odd in (".", "/", "x", "0", "-1", "é", "true", "0.5"):
            odd = ""  # not where this script stands
        rng.choice([lambda: words.extend([f"--{field}", odd]),
                    lambda: words.append(f"--{field}={odd}"),
                    lambda: words.insert(rng.randrange(len(words) + 1), odd),
                    lambda: words.append(f"--{field[:-1]}")])()

    def read(path):
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()), \
                    contextlib.chdir(folder):  # some programs take the newest run in runs/
                common.run(main, config_class, "", words)
        except SystemExit as end:
            if end.code != 2 or said.getvalue().count("\n") != 1:
                raise AssertionError(f"{name} {words}: exit code {end.code}: "
                                     f"{said.getvalue()}") from None
            raise InputError(f"{path}: refused") from None
        raise AssertionError(f"{name} {words}: accepted")
    return read, folder / "missing"


KINDS = {name: text_kind(name) for name in TEXTS} | {
    "checkpoints": checkpoint, "GPT-2 folders": gpt2_folder, "vocabularies": tiktoken_file,
    "GPT-2 vocabularies": gpt2_vocabulary, "command lines": flags}


# -- one input ------------------------------------------------------------------------------------


def too_long(*_):
    raise AssertionError(f"took more than {SECONDS} seconds of computing")


def listing(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def outcome(kind, seed):
    """Whether input `seed` of a kind was refused. Raises AssertionError on any other outcome than
    being read or refused."""
    rng = random.Random(f"{kind} {seed}")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        read, path = KINDS[kind](rng, folder)
        before = listing(folder)
        signal.signal(signal.SIGVTALRM, too_long)
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
        try:
            read(path)
            refused = False
        except InputError as error:
            refused = True
            assert str(folder) in str(error) or str(path.name) in str(error), \
                f"{kind} {seed}: the file is not named: {error}"
        except AssertionError:
            raise
        except Exception as error:
            raise AssertionError(f"{kind} {seed}: {error!r}") from error
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        assert listing(folder) == before, f"{kind} {seed}: files changed, or code was run"
    return refused


# -- requests to the labeling page ----------------------------------------------------------------


def requests(count, seed):
    """Send malformed requests to a server; how many it refused. Raises AssertionError where it
    stops, answers a status of its own making, or has something to say on standard error."""
    from test_label import an_answer, mutated, raw, request, serving
    rng, refused, said = random.Random(f"requests {seed}"), 0, io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(said), \
            serving(pathlib.Path(folder)) as server:
        view = request(server)[1]
        body = json.dumps({"labeler": "ann", "item": view["item"],
                           "answer": an_answer(view)}).encode()
        head = (f"Host: 127.0.0.1:{server.server_port}\r\nX-Token: {server.token}\r\n"
                f"Origin: http://127.0.0.1:{server.server_port}\r\n").encode()
        seeds = [b"GET / HTTP/1.1\r\n" + head + b"\r\n",
                 b"GET /item?labeler=ann&at=0 HTTP/1.1\r\n" + head + b"\r\n",
                 b"POST /answer HTTP/1.1\r\n" + head + b"Content-Type: application/json\r\n"
                 b"Content-Length: %d\r\n\r\n" % len(body) + body]
        for n in range(count):
            try:
                reply = raw(server, mutated(rng, seeds[n % 3]))
            except (socket.timeout, TimeoutError):
                raise AssertionError(f"requests {n}: no answer") from None
            status = int(reply[9:12]) if reply.startswith(b"HTTP/1.0 ") else 0
            assert status in (0, 200, 400, 403, 404, 411, 413, 414, 415, 431, 501, 505), reply
            refused += status != 200
        assert raw(server, seeds[2]).startswith(b"HTTP/1.0 200 "), "the server does not go on"
        log = answers.read_log(pathlib.Path(folder, "labels.answers.jsonl"))
        assert "ann" in {labeler for _, labeler, _ in log}
    assert said.getvalue() == "", said.getvalue()
    return refused


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--inputs", type=int, default=600, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", default="", help="only kinds with this in their name")
    parser.add_argument("--json", help="file to write the counts to")
    arguments = parser.parse_args()
    found, failures, first = {}, [], arguments.seed * arguments.inputs
    for kind in [*KINDS, "requests"]:
        if arguments.kind not in kind:
            continue
        refused = 0
        try:
            if kind == "requests":
                refused = requests(arguments.inputs, arguments.seed)
            else:
                for seed in range(first, first + arguments.inputs):
                    try:
                        refused += outcome(kind, seed)
                    except AssertionError as error:
                        failures.append(str(error))
        except AssertionError as error:
            failures.append(str(error))
        found[kind] = refused
        print(f"{kind:20} {arguments.inputs:6,} inputs  {refused:6,} refused", flush=True)
    for failure in failures[:20]:
        print(failure)
    print(f"{arguments.inputs * len(found):,} inputs, {sum(found.values()):,} of them refused as "
          f"malformed, {len(failures)} that went wrong")
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(
            {"inputs": arguments.inputs * len(found), "refused": sum(found.values()),
             "kinds": len(found), "failures": failures}))
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
