"""Readers and a writer for the files of every stage (§3.2): JSON Lines, UTF-8, plain or gzip.

    demonstrations  {"prompt", "response", "source": "labeler" | "customer", "user"?}
    comparisons     {"prompt", "completions": [strings], "ranks": [integers], "labeler"?, "user"?}
    prompts         {"prompt", "user"?, "category"?}
    text            documents separated by the end-of-text token
    HH-RLHF         {"chosen", "rejected"}: two dialogues that differ in the last answer

A reader either returns the whole file or raises InputError with file, line number, what is wrong
and what was expected. Keys that are not in the table are kept in `extra` and written back.
Prompts, responses and completions may be empty strings. Blank lines may end a file, not
interrupt it. A file is gzip if its first two bytes say so, whatever its name.
"""

import codecs
import collections
import contextlib
import dataclasses
import gzip
import io
import json
import math
import os
import pathlib
import zlib
from dataclasses import dataclass, field

from common import InputError, through_links
from data.tokenizer import END_OF_TEXT

SOURCES = ("labeler", "customer")
MAX_NESTING = 32            # of unknown keys: far above use, far below Python's recursion limit
MAX_RANK = 2**31 - 1


@dataclass(frozen=True)
class Demonstration:
    """A prompt and the response that a person wrote for it."""
    prompt: str
    response: str
    source: str             # "labeler" | "customer": who wrote the prompt
    user: str | None = None
    extra: dict = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Comparison:
    """Completions of one prompt as one labeler ranked them: 1 is best, equal ranks are a tie."""
    prompt: str
    completions: tuple
    ranks: tuple
    labeler: str | None = None
    user: str | None = None
    extra: dict = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Prompt:
    """What a user asked; PPO samples the responses."""
    prompt: str
    user: str | None = None
    category: str | None = None
    extra: dict = field(default_factory=dict, hash=False)


# -- readers ----------------------------------------------------------------------------------


def read_demonstrations(path):
    """All demonstrations of a file. Raises InputError at the first malformed line."""
    return list(_read_rows(path, _demonstration))


def read_comparisons(path):
    """All comparisons of a file: two or more completions (the paper: 4 to 9), as many ranks.

    Raises InputError at the first malformed line. A rank is an integer from 1 up; gaps between
    ranks are allowed, as only their order counts.
    """
    return list(_read_rows(path, _comparison))


def read_prompts(path):
    """All prompts of a file. Raises InputError at the first malformed line."""
    return list(_read_rows(path, _prompt))


def read_fitting_prompts(path, tokenizer, most):
    """([(prompt, its token list)], dropped): the prompts of at most `most` tokens, template and
    all, and how many are longer (App. A.2). Raises InputError where none fits, or none could."""
    if most < 1:
        raise InputError("no room for a prompt: --max_response takes the whole context")
    pairs = [(p, tokenizer.encode_prompt(p.prompt)) for p in read_prompts(path)]
    fitting = [(p, ids) for p, ids in pairs if len(ids) <= most]
    if not fitting:
        raise InputError(f"{path}: no prompt of at most {most} tokens")
    return fitting, len(pairs) - len(fitting)


def read_text(path):
    """The documents of a pretraining text: stripped of surrounding white space, empty ones left
    out. Raises InputError when there is none, or when a line is not UTF-8."""
    text = "".join(line for _, line in _lines(path))
    documents = [d.strip() for d in text.split(END_OF_TEXT)]
    documents = [d for d in documents if d]
    if not documents:
        raise InputError(f"{path}: no text in it; expected documents between {END_OF_TEXT}")
    return documents


HH_TURN = "\n\nAssistant:"
HH_DROPPED = ("dialogues differ before the last answer", "an answer is empty",
              "a human turn follows the answer", "both answers are the same")


def read_hh(path):
    """Comparisons from HH-RLHF's `chosen` and `rejected` dialogues, and what was left out.

    The prompt is the dialogue up to and including the last "\\n\\nAssistant:"; the completions are
    the chosen and the rejected answer, stripped, with ranks 1 and 2. Returns (comparisons,
    dropped), where dropped maps each reason of HH_DROPPED to a count: published pairs exist whose
    dialogues part earlier, whose answer is empty or not the last turn, or that compare an answer
    with itself.
    Raises InputError for a line of another format, or when no pair is left.
    """
    dropped = collections.Counter(dict.fromkeys(HH_DROPPED, 0))
    kept = []
    for comparison in _read_rows(path, _hh_pair):
        if isinstance(comparison, str):
            dropped[comparison] += 1
        else:
            kept.append(comparison)
    if not kept:
        raise InputError(f"{path}: no usable pair in it; expected dialogues that differ in the "
                         "last answer")
    return kept, dict(dropped)


# -- from JSON objects ------------------------------------------------------------------------


def _demonstration(row):
    source = _string(row, "source")
    if source not in SOURCES:
        raise ValueError(f"source is {_show(source)}; expected one of {', '.join(SOURCES)}")
    return Demonstration(_string(row, "prompt"), _string(row, "response"), source,
                         _optional_string(row, "user"), _extra(row, Demonstration))


def _prompt(row):
    return Prompt(_string(row, "prompt"), _optional_string(row, "user"),
                  _optional_string(row, "category"), _extra(row, Prompt))


def _comparison(row):
    completions = _list(row, "completions", str, "strings")
    if len(completions) < 2:
        raise ValueError(f"{len(completions)} completions; expected 2 or more to compare")
    ranks = _list(row, "ranks", int, "integers")
    if len(ranks) != len(completions):
        raise ValueError(f"{len(ranks)} ranks for {len(completions)} completions; "
                         "expected one rank each")
    if not 1 <= min(ranks) <= max(ranks) <= MAX_RANK:
        raise ValueError(f"ranks are {_show(ranks)}; expected integers from 1 up, 1 = best")
    return Comparison(_string(row, "prompt"), tuple(completions), tuple(ranks),
                      _optional_string(row, "labeler"), _optional_string(row, "user"),
                      _extra(row, Comparison))


def _hh_pair(row):
    """A Comparison, or the reason why the pair is none."""
    chosen, rejected = (_hh_dialogue(row, key) for key in ("chosen", "rejected"))
    if chosen[0] != rejected[0]:
        return HH_DROPPED[0]
    if not (chosen[1] and rejected[1]):
        return HH_DROPPED[1]
    if "\n\nHuman:" in chosen[1] + rejected[1]:
        return HH_DROPPED[2]
    if chosen[1] == rejected[1]:
        return HH_DROPPED[3]
    extra = {k: v for k, v in row.items() if k not in ("chosen", "rejected")}
    return Comparison(chosen[0], (chosen[1], rejected[1]), (1, 2), extra=extra)


def _hh_dialogue(row, key):
    opening, turn, answer = _string(row, key).rpartition(HH_TURN)
    if not turn:
        raise ValueError(f"{key} has no turn {HH_TURN.strip()!r} after an empty line; "
                         "expected a dialogue of Human and Assistant turns")
    return opening + turn, answer.strip()


def _string(row, key):
    if key not in row:
        raise ValueError(f"key {key!r} is missing; expected it with a string")
    if type(row[key]) is not str:
        raise ValueError(f"{key!r} is {_show(row[key])}; expected a string")
    return row[key]


def _optional_string(row, key):
    return None if row.get(key) is None else _string(row, key)


def _list(row, key, kind, expected):
    if key not in row:
        raise ValueError(f"key {key!r} is missing; expected it with a list of {expected}")
    values = row[key]
    if type(values) is not list or any(type(v) is not kind for v in values):    # a bool is an int
        raise ValueError(f"{key!r} is {_show(values)}; expected a list of {expected}")
    return values


def _extra(row, kind):
    known = {f.name for f in dataclasses.fields(kind)} - {"extra"}
    return {key: value for key, value in row.items() if key not in known}


def _show(value):
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


# -- lines and JSON ---------------------------------------------------------------------------


def _read_rows(path, parse):
    """`parse` of each line's JSON object. `parse` and the JSON parser raise ValueError that says
    what is wrong; here it gets its file and line."""
    blank, number = None, 0
    for number, line in _lines(path):
        if not line.strip():
            blank = blank or number
            continue
        if blank:
            raise InputError(f"{path}:{blank}: blank line; expected a JSON object on each line")
        try:
            yield parse(_json_object(line.rstrip()))
        except ValueError as error:
            raise InputError(f"{path}:{number}: {error}") from error
    if number == 0 or blank == 1:
        raise InputError(f"{path}: empty; expected a JSON object on each line")


def _lines(path):
    """(number, text) of each line of a plain or gzip file, line end included."""
    number = 0
    with _reading(path) as file:
        try:
            for number, raw in enumerate(file, 1):
                if number == 1:
                    raw = raw.removeprefix(codecs.BOM_UTF8)
                yield number, raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}:{number}: not UTF-8 ({error.reason}); "
                             "expected text in UTF-8") from error
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(f"{path}:{number + 1}: the gzip file is truncated or damaged "
                             f"({error}); expected a whole one") from error


@contextlib.contextmanager
def _reading(path):
    try:
        with open(path, "rb") as raw:
            is_gzip = raw.peek(2)[:2] == b"\x1f\x8b"
            yield gzip.GzipFile(fileobj=raw) if is_gzip else raw
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; expected a readable file") from error


def _json_object(line):
    try:
        row = json.loads(line, object_pairs_hook=_object, parse_constant=_no_constant,
                         parse_float=_finite, parse_int=_integer)
        _check_tree(row)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno}); "
                         "expected one object on the line") from error
    except RecursionError as error:
        raise ValueError(f"JSON nested too deep; expected at most {MAX_NESTING}") from error
    if type(row) is not dict:
        raise ValueError(f"{_show(row)} is not an object; expected {{...}}")
    return row


def _object(pairs):
    row = dict(pairs)
    if len(row) < len(pairs):
        key = next(k for k, n in collections.Counter(k for k, _ in pairs).items() if n > 1)
        raise ValueError(f"key {_show(key)} stands twice in one object; expected it once")
    return row


def _no_constant(name):
    raise ValueError(f"{name} is not JSON; expected a finite number")


def _finite(text):
    if not math.isfinite(float(text)):
        raise ValueError(f"{text[:20]} is too large; expected a finite number")
    return float(text)


def _integer(text):
    if len(text) > 30:      # Python itself refuses from 4,300 digits up
        raise ValueError(f"an integer of {len(text)} digits; expected at most 30")
    return int(text)


def _check_tree(value, depth=0):
    """Refuse what JSON can spell but a UTF-8 file or the writer cannot hold."""
    if depth > MAX_NESTING:
        raise ValueError(f"JSON nested too deep; expected at most {MAX_NESTING}")
    if type(value) is str and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("half of a surrogate pair; expected whole characters") from None
    for child in _children(value):
        _check_tree(child, depth + 1)


def _children(value):
    if type(value) is dict:
        return [*value.keys(), *value.values()]
    return value if type(value) is list else ()


# -- writing ----------------------------------------------------------------------------------


def as_row(item):
    """The JSON object of a Demonstration, Comparison or Prompt; absent fields are left out."""
    fields = {f.name: getattr(item, f.name) for f in dataclasses.fields(item)}
    extra = fields.pop("extra")
    return {k: v for k, v in fields.items() if v is not None} | extra


def write_jsonl(path, rows):
    """Write items or dicts as JSON Lines, gzip when the name ends in .gz.

    The file appears whole or not at all: it is written aside and then renamed. Raises InputError
    when the place cannot be written.
    """
    write_whole(path, as_lines(rows))


def as_lines(rows):
    """Items or dicts as lines of JSON."""
    return (json.dumps(row if isinstance(row, dict) else as_row(row), ensure_ascii=False,
                       allow_nan=False) + "\n" for row in rows)


def write_whole(path, parts):
    """Write strings as one UTF-8 file, whole or not at all."""
    write_files({path: parts})


def write_files(files):
    """Write {path: strings} as UTF-8 files that belong together: all are written aside and
    flushed, then all renamed, in this order; folders are made where missing. Raises InputError,
    and changes no file, where one cannot be written."""
    asides, path = {}, None
    try:
        for path, parts in files.items():
            path = pathlib.Path(path)
            place = through_links(path)
            place.parent.mkdir(parents=True, exist_ok=True)
            asides[path] = place.with_name(f".{place.name}.{os.getpid()}.partial")
            _write_aside(asides[path], parts, path.suffix == ".gz")
        for path, aside in asides.items():
            os.replace(aside, through_links(path))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; expected a place to write") from error
    finally:
        for aside in asides.values():
            with contextlib.suppress(OSError):      # already renamed, or never made
                aside.unlink()


def _write_aside(path, parts, compressed):
    with open(path, "wb") as raw:
        with _compressed(raw) if compressed else contextlib.nullcontext(raw) as file:
            for part in parts:
                file.write(part.encode())
        raw.flush()
        os.fsync(raw.fileno())


def _compressed(raw):
    """No name and no time in the header: the same rows give the same bytes."""
    return io.BufferedWriter(gzip.GzipFile("", "wb", fileobj=raw, mtime=0))
