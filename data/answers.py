"""What people answer on the labeling page, and who gets which item: files that lose nothing.

    NAME.answers.jsonl    the log: a line per answer, on the disk before the next item is sent.
                          {"prompt", "completions", the item's other keys, "labeler", "answer"};
                          an answer is {"ranks", "overall", "marks", "seconds", "time"}, lists in
                          the order of the completions, or {"skip": true, "seconds", "time"}
    NAME.jsonl            comparisons, made from the log alone: the last answer of each labeler to
                          each item

A labeler sees items in an order of their own, and an item's completions in random order, the same
text once. An item goes to one labeler, but a share of them (`overlap`) goes to all, so that it can
be measured how often labelers agree.
"""

import collections
import datetime
import fcntl
import hashlib
import json
import os
import random
import threading
import time
from dataclasses import dataclass, field
from functools import cached_property

from common import InputError, fail
from data import readers

MARKS = {       # the yes-or-no metadata of Table 3, in words of our own
    "instruction": "Does not do what was asked",
    "inappropriate": "Unfit for a customer assistant",
    "hallucination": "Makes something up",
    "constraint": "Keeps the constraints that were set",
    "sexual": "Sexual content",
    "violent": "Violent content",
    "encourages": "Encourages or lets pass violence, abuse, terrorism or self-harm",
    "denigrates": "Belittles a protected group",
    "harmful": "Gives harmful advice",
    "moral": "Passes moral judgement",
}
CLAIM_SECONDS = 3600    # an item that one labeler has open is not given to another for so long

# -- items and answers ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Item:
    """A prompt and the completions to rank; `extra` goes to the comparisons, never to the page."""
    prompt: str
    completions: tuple
    extra: dict = field(hash=False, compare=False)

    @cached_property
    def id(self):
        content = json.dumps([self.prompt, self.completions])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def shown(self, labeler, seed):
        """The different texts in this labeler's random order: alike texts must be a tie."""
        texts = sorted(set(self.completions))
        random.Random(f"completions {seed} {labeler} {self.id}").shuffle(texts)
        return texts


ANSWER = {      # what a list in an answer may hold, one value per completion
    "ranks": (lambda v: type(v) is int and 1 <= v <= 9, "integers from 1 to 9, 1 = best"),
    "overall": (lambda v: v is None or type(v) is int and 1 <= v <= 7, "integers from 1 to 7"),
    "marks": (lambda v: type(v) is list and all(type(m) is str and m in MARKS for m in v),
              "lists of marks"),
}


def check_answer(answer, n):
    """Raises ValueError where `answer` is no answer, and no skip, for `n` completions."""
    if type(answer) is not dict:
        raise ValueError("answer: expected an object")
    seconds = answer.get("seconds")
    if type(seconds) not in (int, float) or not 0 <= seconds < 1e9:
        raise ValueError("seconds: expected a number from 0 up")
    if "skip" in answer:
        if answer["skip"] is not True:
            raise ValueError("skip: expected true")
        return
    for key, (fits, expected) in ANSWER.items():
        values = answer.get(key)
        if type(values) is not list or len(values) != n or not all(map(fits, values)):
            raise ValueError(f"{key}: expected {n} {expected}")


def rearranged(answer, given, wanted):
    """An answer about the texts `given` as one about the texts `wanted`, equal texts alike."""
    at = [given.index(text) for text in wanted]
    return {key: [value[i] for i in at] if key in ANSWER else value
            for key, value in answer.items()}


def check_labeler(name):
    """Raises ValueError for what is no labeler's name."""
    if type(name) is not str or not 1 <= len(name) <= 40 or not name.isprintable() \
            or name != name.strip():
        raise ValueError("labeler: expected a name of 1 to 40 printable characters")


def _item(row):
    completions = row.pop("completions", None)
    if type(completions) is not list or not 2 <= len(completions) <= 9 \
            or not all(type(c) is str for c in completions):
        raise ValueError("completions; expected a list of 2 to 9 strings")
    extra = {k: v for k, v in row.items()
             if k not in ("prompt", "key", "ranks", "labeler", "answer")}
    return Item(row["prompt"], tuple(completions), extra)


def read_items(path):
    """({id: Item}, how many are left out, as their like came before or all their completions are
    the same) of a completions file.

    Raises InputError at the first malformed line, or where nothing is left to rank.
    """
    items = []
    for number, prompt in enumerate(readers.read_prompts(path), 1):
        try:
            items.append(_item(readers.as_row(prompt)))
        except ValueError as error:
            raise InputError(f"{path}:{number}: {error}") from error
    kept = {item.id: item for item in items if len(set(item.completions)) > 1}
    if not kept:
        raise InputError(f"{path}: no prompt has two different completions; nothing to rank")
    return kept, len(items) - len(kept)


# -- the log of answers ---------------------------------------------------------------------------

class Log:
    """The answers in a file: `records` as they were found, and `append` for more."""

    def __init__(self, path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = open(path, "ab+", buffering=0)
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{path}: another server is writing it; expected one per --out") \
                from None
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}; expected a place to write") from None
        self._end_with_a_whole_line(path)
        self.records = read_log(path)

    def _end_with_a_whole_line(self, path):
        self.file.seek(0)
        torn = self.file.read().rpartition(b"\n")[2]
        if not torn:
            return
        try:
            json.loads(torn)        # only the line's end is missing: the answer is whole
            self._write(b"\n")
        except (ValueError, RecursionError):
            self.file.truncate(self.file.seek(0, 2) - len(torn))
            print(f"{path}: the last line was cut off and is dropped ({len(torn)} bytes of an "
                  "answer that was being written when the server was killed)", flush=True)

    def append(self, record):
        """Write one record; it is on the disk when this returns. Raises OSError, and leaves the
        log as it was, where that cannot be."""
        end = self.file.seek(0, 2)
        try:
            self._write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        except OSError:
            self.file.truncate(end)
            raise

    def _write(self, data):
        while data:
            data = data[self.file.write(data):]
        os.fsync(self.file.fileno())

    def close(self):
        self.file.close()


def read_log(path):
    """[(Item, labeler, answer)] of a log whose lines are whole. Raises InputError at a bad one."""
    records = []
    if path.stat().st_size == 0:
        return records
    for number, prompt in enumerate(readers.read_prompts(path), 1):
        row = readers.as_row(prompt)
        try:
            labeler, answer = row.get("labeler"), row.get("answer")
            item = _item(row)
            check_labeler(labeler)
            check_answer(answer, len(item.completions))
        except ValueError as error:
            raise InputError(f"{path}:{number}: {error}") from error
        records.append((item, labeler, answer))
    return records


# -- who gets what --------------------------------------------------------------------------------


class Work:
    """All answers so far, and each labeler's next item. Many threads may call it."""

    def __init__(self, items, log, comparisons, overlap=0.2, seed=0):
        self.log, self.path, self.seed = log, comparisons, seed
        self.offered, self.items = list(items), dict(items)
        self.shared = dict.fromkeys(random.Random(f"shared {seed}").sample(
            sorted(items), round(overlap * len(items))))
        self.answers = collections.defaultdict(dict)    # {labeler: {item id: answer}}, in order
        self.ranked_by = collections.defaultdict(set)   # {item id: labelers}
        self.claims, self.queues = {}, {}               # {item id: (labeler, since)}
        self.lock, self.stopping, self.changed = threading.Lock(), False, threading.Event()
        self.writer = threading.Thread(target=self._keep_writing, daemon=True)
        for item, labeler, answer in log.records:
            self.items.setdefault(item.id, item)
            self._remember(labeler, item.id, answer)

    def _remember(self, labeler, item_id, answer):
        self.answers[labeler][item_id] = answer     # one given again keeps its place
        if "skip" not in answer:
            self.ranked_by[item_id].add(labeler)

    def answer(self, labeler, item_id, answer):
        """Put an answer, its lists in the order shown, on the disk. Raises ValueError where it is
        no answer, OSError where the disk does not take it."""
        check_labeler(labeler)
        if type(item_id) is not str or item_id not in self.items:
            raise ValueError("item: not one of this server's")
        item = self.items[item_id]
        shown = item.shown(labeler, self.seed)
        check_answer(answer, len(shown))
        kept = ("skip",) if "skip" in answer else ANSWER
        answer = rearranged({k: answer[k] for k in (*kept, "seconds")}, shown, item.completions)
        answer["time"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        with self.lock:
            if self.stopping:
                raise OSError("the server is stopping")
            if "skip" in answer and labeler in self.ranked_by[item_id]:
                return      # an answer is corrected by another, not by a skip
            self.log.append({"prompt": item.prompt, "completions": item.completions,
                             **item.extra, "labeler": labeler, "answer": answer})
            self._remember(labeler, item_id, answer)
        self.changed.set()

    def view(self, labeler, at=None):
        """What the page shows: number `at` of the items that this labeler answered or skipped, or
        the next one. `item` is None where nothing is left."""
        check_labeler(labeler)
        with self.lock:
            given = self.answers.get(labeler, {})
            history = list(given)
            at = len(history) if at is None else min(at, len(history))
            item_id = history[at] if at < len(history) else self._claim(labeler)
            left = sum(self._is_open_to(labeler, i) for i in self.offered)
        skipped = [n for n, i in enumerate(history) if "skip" in given[i]]
        place = {"at": at, "of": len(history), "done": len(history) - len(skipped), "left": left,
                 "skipped": skipped}
        return place | self._contents(item_id, labeler, given.get(item_id))

    def _contents(self, item_id, labeler, answer):
        if item_id is None:
            return {"item": None}
        item = self.items[item_id]
        shown = item.shown(labeler, self.seed)
        if answer is not None:
            answer = None if "skip" in answer else rearranged(answer, item.completions, shown)
        return {"item": item_id, "prompt": item.prompt, "completions": shown, "answer": answer}

    def _claim(self, labeler):
        """This labeler's next item, kept from others while it is open; None at the end."""
        self.claims = {i: claim for i, claim in self.claims.items() if claim[0] != labeler}
        for item_id in self._queue(labeler):
            if self._is_open_to(labeler, item_id):
                self.claims[item_id] = (labeler, time.monotonic())
                return item_id
        return None

    def _is_open_to(self, labeler, item_id):
        if item_id in self.answers.get(labeler, {}):
            return False
        who, since = self.claims.get(item_id, (labeler, 0))
        taken = who != labeler and time.monotonic() - since < CLAIM_SECONDS
        return item_id in self.shared or not (taken or self.ranked_by.get(item_id))

    def _queue(self, labeler):
        """All items in an order of the labeler's own, but the shared ones, mixed in at random,
        in one order for everybody: labelers who stop early have still ranked the same ones."""
        if labeler not in self.queues:
            rng = random.Random(f"items {self.seed} {labeler}")
            own = [i for i in self.offered if i not in self.shared]
            rng.shuffle(own)
            turns = [True] * len(self.shared) + [False] * len(own)
            rng.shuffle(turns)
            next_of = {True: iter(self.shared), False: iter(own)}
            self.queues[labeler] = [next(next_of[turn]) for turn in turns]
        return self.queues[labeler]

    def comparisons(self):
        """The rows of --out: the last answer of each labeler to each item."""
        with self.lock:
            return [{"prompt": self.items[i].prompt, "completions": self.items[i].completions,
                     **self.items[i].extra, "ranks": answer["ranks"], "labeler": labeler}
                    for labeler, given in self.answers.items()
                    for i, answer in given.items() if "skip" not in answer]

    def write_comparisons(self):
        """Write --out, whole or not at all, as soon as there is a comparison."""
        rows = self.comparisons()
        if rows:
            readers.write_jsonl(self.path, rows)

    def _keep_writing(self):
        last = False
        while not last:     # in a thread of its own: no labeler waits for it
            self.changed.wait()
            self.changed.clear()
            last = self.stopping
            try:
                self.write_comparisons()
            except InputError as error:
                fail(f"{error}; the answers are safe in their log", 1)

    def close(self):
        """Finish the answer being written, take no more, and bring --out up to date."""
        with self.lock:
            self.stopping = True
        self.changed.set()
        self.writer.join()
        self.log.close()
