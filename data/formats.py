"""Readers for data that others published, into the kinds of `data.readers`.

    summarize-from-feedback   {"info": {"post", "title", "subreddit"}, "summaries": [{"text"} × 2],
                               "choice": 0 | 1}                                   -> comparisons
    Alpaca                    {"instruction", "input", "output"}                  -> demonstrations
    Dolly                     {"instruction", "context", "response"}              -> demonstrations
    WebText                   {"text"}                                            -> documents

Each file is JSON Lines or one JSON array of such objects, UTF-8, plain or gzip. As there, a reader
returns the whole file or raises InputError with file, line, what is wrong and what was expected;
rows that are well formed but of no use (an empty answer, two equal summaries) are counted.
"""

import collections
import itertools
import json
import re
from pathlib import Path

from common import InputError
from data.readers import (Comparison, Demonstration, _json_object, _lines, _optional_string,
                          _read_rows, _show, _string, read_text)
from data.tokenizer import END_OF_TEXT

EMPTY = "an answer is empty"
SAME = "both answers are the same"
WITHOUT = "an instruction is empty"


def read_summaries(path):
    """Comparisons of OpenAI's summarize-from-feedback (Stiennon et al. 2020), and what was left
    out, as (comparisons, {reason: count}).

    The prompt has that paper's form: subreddit, title, post, and "TL;DR:". The post's id stands for
    its user, so that no post is in two splits. Raises InputError as all readers do.
    """
    return _kept(path, _summaries)


def read_alpaca(path):
    """Demonstrations from instruction data in Alpaca's format: (demonstrations, {reason: count}).
    The prompt is the instruction, an empty line, and the input where there is one."""
    return _kept(path, lambda row: _demonstration(row, "input", "output"))


def read_dolly(path):
    """Demonstrations from instruction data in Dolly's format: (demonstrations, {reason: count}).
    The prompt is the instruction, an empty line, and the context where there is one."""
    return _kept(path, lambda row: _demonstration(row, "context", "response"))


def read_documents(path, limit=None):
    """The documents of a pretraining text, or the first `limit` of them: JSON objects with a
    "text", as WebText is published, in a file whose name says .json or .jsonl; else plain text as
    `readers.read_text` reads it. The mark of a document's end, within an object's text, ends one:
    whoever writes the documents to a text file reads the same ones there."""
    if ".json" not in Path(path).name:
        return read_text(path)[:limit]
    found = _objects(path, lambda row: _string(row, "text").split(END_OF_TEXT))
    parts = (part.strip() for parts in found for part in parts)
    documents = list(itertools.islice(filter(None, parts), limit))
    if not documents:
        raise InputError(f"{path}: no text in it; expected objects with a 'text'")
    return documents


# -- one row --------------------------------------------------------------------------------------


def _summaries(row):
    """A Comparison, or the reason why the row is none."""
    info, texts, choice = row.get("info"), row.get("summaries"), row.get("choice")
    if type(info) is not dict:
        raise ValueError(f"'info' is {_show(info)}; expected an object with the post")
    if type(texts) is not list or len(texts) != 2 or any(type(t) is not dict for t in texts):
        raise ValueError(f"'summaries' is {_show(texts)}; expected two objects with a 'text'")
    if type(choice) is not int or choice not in (0, 1):
        raise ValueError(f"'choice' is {_show(choice)}; expected 0 or 1, the better summary")
    texts = tuple(_string(text, "text").strip() for text in texts)
    prompt, user = _post(info), _optional_string(info, "id")
    if not all(texts):
        return EMPTY
    if texts[0] == texts[1]:
        return SAME
    return Comparison(prompt, texts, (1, 2) if choice == 0 else (2, 1),
                      labeler=_optional_string(row, "worker"), user=user)


def _post(info):
    """The prompt. A few files hold news articles, which have no subreddit."""
    title = _optional_string(info, "title")
    if info.get("post") is None and info.get("article") is not None:
        body = _string(info, "article").strip()
    else:
        body = f"POST: {_string(info, 'post').strip()}"
    subreddit = _optional_string(info, "subreddit")
    head = [f"SUBREDDIT: r/{subreddit}"] if subreddit else []
    head += [f"TITLE: {title.strip()}"] if title else []
    return "\n\n".join([*head, body, "TL;DR:"])


def _demonstration(row, context, response):
    """A Demonstration, or the reason why the row is none."""
    instruction, answer = _string(row, "instruction").strip(), _string(row, response).strip()
    given = (_optional_string(row, context) or "").strip()
    if not instruction:
        return WITHOUT
    if not answer:
        return EMPTY
    extra = {k: v for k, v in row.items() if k not in ("instruction", context, response)}
    return Demonstration("\n\n".join([instruction, given] if given else [instruction]), answer,
                         "labeler", extra=extra)


# -- one file -------------------------------------------------------------------------------------


def _kept(path, parse):
    """(items, {reason: count}) of a file whose rows `parse` makes into items or reasons."""
    kept, dropped = [], collections.Counter()
    for item in _objects(path, parse):
        if isinstance(item, str):
            dropped[item] += 1
        else:
            kept.append(item)
    if not kept:
        raise InputError(f"{path}: no usable row in it ({sum(dropped.values())} of no use)")
    return kept, dict(dropped)


def _objects(path, parse):
    """`parse` of each object of a file, be it JSON Lines or one array."""
    for _, line in _lines(path):
        if line.strip():
            is_array = line.lstrip().startswith("[")
            return _read_array(path, parse) if is_array else _read_rows(path, parse)
    raise InputError(f"{path}: empty; expected JSON objects")


def _read_array(path, parse):
    """`parse` of each element of a JSON array, which may be laid out over any number of lines."""
    text = "".join(line for _, line in _lines(path))
    line, counted = 1, 0
    try:
        for begin, end in _elements(text):
            line, counted = line + text.count("\n", counted, begin), begin
            yield parse(_json_object(text[begin:end]))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not JSON ({error.msg} at column {error.colno}); "
                         "expected an array of objects") from error
    except ValueError as error:
        raise InputError(f"{path}:{line}: {error}") from error


_SPACE = re.compile(r"[ \t\r\n]*")


def _elements(text):
    """(where it begins, where it ends) of each element of the array that `text` is."""
    decoder, mark = json.JSONDecoder(), ","
    place = _SPACE.match(text, text.index("[") + 1).end()
    if text[place:place + 1] == "]":
        place, mark = place + 1, "]"
    while mark == ",":
        begin = _SPACE.match(text, place).end()
        try:
            _, end = decoder.raw_decode(text, begin)
        except json.JSONDecodeError:
            raise
        except (ValueError, RecursionError):
            raise json.JSONDecodeError("a number too long or nesting too deep", text,
                                       begin) from None
        yield begin, end
        place = _SPACE.match(text, end).end()
        mark = text[place:place + 1]
        if mark not in (",", "]"):
            raise json.JSONDecodeError("Expecting ',' or ']'", text, place)
        place += 1
    rest = _SPACE.match(text, place).end()
    if rest < len(text):
        raise json.JSONDecodeError("Extra data", text, rest)
