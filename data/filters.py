"""The filters of §3.2 and App. A.2, each a pure function of the rows.

Rows are demonstrations, comparisons or prompts: anything with `.prompt` and `.user`. A filter
returns (kept, dropped): the rows that stay, in their order, and how many went for which reason.

What the paper leaves *open*, and what stands here:

1. What counts as a long common prefix: the same first 128 characters; shorter prompts are
   duplicates only when they are equal. The first in the file stays.
2. Which 200 prompts of a user stay: a sample by seeded hash, so the order of the file is no
   matter and a further prompt displaces at most one.
3. What personal data is: see `find_pii`. A prompt that holds any is dropped, not masked.
4. Whose a prompt without user is: its own. Equal prompts then still meet on one side of a split.
5. What 1k tokens are: 1024, so that prompt and response fill the context of 2048; the template
   and the end-of-text token are counted.
"""

import collections
import hashlib
import re
from dataclasses import dataclass, field

SPLITS = ("train", "valid", "test")


# -- personal data ----------------------------------------------------------------------------

PII_PATTERNS = {
    "e-mail address": r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+",
    "social security number": r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])",
    "phone number": r"(?<![\w.-])(?:\+?1[ .-]?)?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}(?![\w-])"
                    r"|(?<!\w)\+\d{1,3}(?:[ .-]?\(?\d{2,4}\)?){3,4}(?!\w)",
    "card number": r"(?<![\w-])\d{4}([ -]?)(?:\d{4}\1\d{4}\1\d{4}|\d{6}\1\d{5})(?![\w-])",
    "IP address": r"(?<![\w.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}"
                  r"(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\w.]*\w)",
    "street address": r"(?<!\w)\d{1,5} (?:[A-Z][a-z]+ ){1,3}"
                      r"(?:Street|St|Avenue|Ave|Road|Rd|Boulevard|Blvd|Lane|Ln|Drive|Court)\b",
}
_PII = {reason: re.compile(pattern) for reason, pattern in PII_PATTERNS.items()}


def find_pii(text):
    """The first kind of personal data found in `text`, a key of PII_PATTERNS, or None.

    Found is what has a form: e-mail addresses, North American phone numbers and international
    ones with "+", card numbers with a right check digit, US social security numbers, IPv4
    addresses, US street addresses. Not found: names, bare digits, IPv6. A version like 1.2.3.4
    is mistaken for an address: a lost prompt costs less than a kept secret.
    """
    for reason, pattern in _PII.items():
        found = pattern.search(text)
        while found and reason == "card number" and not _luhn(found.group()):
            found = pattern.search(text, found.end())
        if found:
            return reason
    return None


def _luhn(number):
    """The check digit of payment cards: from the right, every second digit counts double."""
    digits = [int(c) for c in reversed(number) if c.isdigit()]
    doubled = (sum(divmod(2 * d, 10)) for d in digits[1::2])
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0


def drop_pii(rows):
    """Without the prompts that hold personal data (§3.2: in the training split)."""
    return _keep(rows, lambda row: find_pii(row.prompt))


# -- prefixes, users, lengths -----------------------------------------------------------------


def drop_shared_prefixes(rows, length=128):
    """Without prompts whose first `length` characters, or all when shorter, an earlier one has.

    Such prompts are mostly one template filled in again and again. One look-up a row.
    """
    seen = {}

    def reason(row):
        first = seen.setdefault(row.prompt[:length], row)
        if first is row:
            return None
        same = first.prompt == row.prompt
        return "same prompt" if same else f"same first {length} characters"

    return _keep(rows, reason)


def cap_per_user(rows, limit=200, seed=0):
    """At most `limit` different prompts of each user; rows without a user all stay."""
    prompts = collections.defaultdict(set)
    for row in rows:
        if row.user is not None:
            prompts[row.user].add(row.prompt)
    kept = {user: set(sorted(mine, key=lambda p: _uniform(seed, "cap", user, p))[:limit])
            for user, mine in prompts.items()}
    return _keep(rows, lambda row: None if row.user is None or row.prompt in kept[row.user]
                 else f"over {limit} prompts of one user")


def drop_long(rows, tokenizer, max_prompt_tokens=1024, max_response_tokens=1024):
    """Without rows whose prompt, response or any completion has too many tokens (App. C)."""
    def reason(row):
        if _is_longer(row.prompt, tokenizer.encode_prompt, max_prompt_tokens):
            return f"prompt over {max_prompt_tokens} tokens"
        if any(_is_longer(response, tokenizer.encode_response, max_response_tokens)
               for response in responses(row)):
            return f"response over {max_response_tokens} tokens"
        return None

    return _keep(rows, reason)


def responses(row):
    """The texts that answer a row's prompt: one, several, or for a bare prompt none."""
    return (row.response,) if hasattr(row, "response") else getattr(row, "completions", ())


def _is_longer(text, encode, limit):
    """A token is at least one byte, and encoding adds at most one token: most texts need no
    encoding to be known as short."""
    return len(text.encode()) + 1 > limit and len(encode(text)) > limit


# -- splits -----------------------------------------------------------------------------------


def split_by_user(rows, seed=0, valid_fraction=0.1, test_fraction=0.1):
    """{"train": rows, "valid": rows, "test": rows}, no user in two (§3.2).

    A user's side is a hash of the seed and the user: users that come or go move no other, and
    demonstrations, comparisons and prompts of a user fall on the same side. Fractions are of
    users and met on average (*open*: the paper's own are in its Table 6).
    """
    sides = {name: [] for name in SPLITS}
    for row in rows:
        sides[side_of(seed, *user_of(row), valid_fraction=valid_fraction,
                      test_fraction=test_fraction)].append(row)
    return sides


def side_of(seed, *who, valid_fraction=0.1, test_fraction=0.1):
    """train, valid or test: a hash of the seed and of `who`, ("user", id) say."""
    u = _uniform(seed, "split", *who)
    return "test" if u < test_fraction else "valid" if u < test_fraction + valid_fraction \
        else "train"


def user_of(row):
    """Who asked: ("user", id), or ("prompt", text) where nobody is named."""
    return ("prompt", row.prompt) if row.user is None else ("user", row.user)


def _uniform(*key):
    """A number in [0, 1) that only `key` decides."""
    digest = hashlib.sha256(repr(key).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _keep(rows, reason_to_drop):
    kept, dropped = [], collections.Counter()
    for row in rows:
        reason = reason_to_drop(row)
        if reason is None:
            kept.append(row)
        else:
            dropped[reason] += 1
    return kept, dict(dropped)


# -- the report -------------------------------------------------------------------------------


@dataclass
class FilterReport:
    """What each filter did: entries {"rows", "filter", "before", "dropped": {reason: count}}."""
    entries: list = field(default_factory=list)

    def apply(self, rows_name, filter_name, rows, filter_function, *settings):
        """The rows that `filter_function(rows, *settings)` keeps; the rest is entered here."""
        kept, dropped = filter_function(rows, *settings)
        self.add(rows_name, filter_name, len(rows), dropped)
        return kept

    def add(self, rows_name, filter_name, before, dropped):
        """Enter the counts of a filter that ran elsewhere."""
        self.entries.append({"rows": rows_name, "filter": filter_name, "before": before,
                             "dropped": dropped})


def report_lines(report):
    """One line a filter: what it looked at, how many it dropped, and why."""
    return list(map(report_line, report.entries))


def report_line(entry):
    dropped = {why: n for why, n in entry["dropped"].items() if n}
    why = "; ".join(f"{n:,} {reason}" for reason, n in dropped.items())
    return (f"{entry['rows']:<15} {entry['filter']:<20} {sum(dropped.values()):>7,} of "
            f"{entry['before']:>8,} dropped{': ' + why if why else ''}")
