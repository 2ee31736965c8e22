"""Read, filter, split, write: from files as they come to files to train on (§3.2, App. A.2).

    python -m data.prepare --out runs/real/data --hh pairs.jsonl.gz --text text.txt \\
        --tokenizer FOLDER

writes {demonstrations,prompts,comparisons}.{train,valid,test}.jsonl, text.{train,valid}.txt, and
filters.json with what each filter dropped and why, as far as there is input for them. Nothing is
written before all input has been read and found well formed.

Filters, in this order: long common prefixes (not for comparisons: several labelers may rank one
prompt), prompts per user, lengths, the split by user, and personal data in the training split.

HH-RLHF pairs give all three kinds: comparisons; demonstrations, which are the chosen answers; and
prompts. Who asked is not published with them: the first human turn stands for the user, so that
no conversation is in two splits. Comparisons of summaries do the same, with the post for the user;
instruction data gives demonstrations and their prompts.
"""

import dataclasses
import hashlib
import json
import pathlib
from dataclasses import dataclass

from common import InputError, alone, check_output, required, run, setting
from data import filters, formats, readers
from data.tokenizer import END_OF_TEXT, load_tokenizer

KINDS = ("demonstrations", "prompts", "comparisons")
FEW_DOCUMENTS = 20      # below this, holding out whole documents would be a lottery


@dataclass(frozen=True)
class PrepareConfig:
    out: str = required("folder to write into")
    demonstrations: str = setting("", "file of demonstrations, §3.2")
    prompts: str = setting("", "file of prompts, §3.2")
    comparisons: str = setting("", "file of comparisons, §3.2")
    hh: tuple = setting((), "files of HH-RLHF pairs: chosen and rejected dialogues")
    summaries: tuple = setting((), "files of summarize-from-feedback comparisons")
    alpaca: tuple = setting((), "files of instruction, input, output")
    dolly: tuple = setting((), "files of instruction, context, response")
    text: str = setting("", "pretraining text: documents separated by <|endoftext|>, or *.jsonl")
    limit: int = setting(0, "rows or documents to use of each published file, 0 = all")
    tokenizer: str = setting("gpt2", "App. C: GPT-2's encoding; or world, a folder, a file")
    max_prompt_tokens: int = setting(1024, "App. C: 1k")
    max_response_tokens: int = setting(1024, "App. C: 1k")
    max_prompts_per_user: int = setting(200, "§3.2")
    shared_prefix: int = setting(128, "*open*: characters that make a common prefix long")
    valid_fraction: float = setting(0.1, "*open*: users for validation")
    test_fraction: float = setting(0.1, "*open*: users for testing")
    text_valid_fraction: float = setting(0.05, "*open*: pretraining text for validation")
    seed: int = setting(0, "*open*: which users are held out, which prompts of a user stay")


def main(config):
    """Prepare everything the config names. Raises InputError before anything is written."""
    _check(config)
    tokenizer = load_tokenizer(config.tokenizer)
    report = filters.FilterReport()
    rows = {kind: filter_and_split(kind, found, tokenizer, config, report)
            for kind, found in read_rows(config, report).items()}
    text = read_and_split_text(config, report) if config.text else {}
    written = write(config, rows, text, tokenizer, report)
    print("\n".join(filters.report_lines(report)))
    for name, count in written.items():
        print(f"{name:<27} {count:>8,}")


def _check(config):
    if not any(getattr(config, name) for name in (*KINDS, *PUBLISHED, "text")):
        raise InputError("no input; expected one or more of "
                         f"--{', --'.join((*KINDS, *PUBLISHED, 'text'))}")
    for name in ("max_prompt_tokens", "max_response_tokens", "max_prompts_per_user",
                 "shared_prefix"):
        if getattr(config, name) < 1:
            raise InputError(f"--{name} is {getattr(config, name)}; expected 1 or more")
    if not (config.valid_fraction >= 0 and config.test_fraction >= 0
            and config.valid_fraction + config.test_fraction < 1):
        raise InputError("--valid_fraction and --test_fraction: expected 0 or more, together "
                         "below 1")
    if not 0 < config.text_valid_fraction < 1:
        raise InputError("--text_valid_fraction: expected a number between 0 and 1")


# -- rows -------------------------------------------------------------------------------------


def read_rows(config, report):
    """{kind: rows} of every input file, what others published spread over the kinds."""
    rows = {}
    for kind in KINDS:
        path = getattr(config, kind)
        if path:
            rows[kind] = getattr(readers, f"read_{kind}")(path)
    for name, (title, read, spread) in PUBLISHED.items():
        paths = getattr(config, name)
        for path in [paths] if isinstance(paths, str) else paths:  # a caller may give one
            found, dropped = read(path)
            found = found[:config.limit or None]
            report.add(title, "usable rows", len(found) + sum(dropped.values()), dropped)
            for kind, made in spread(found).items():
                rows[kind] = rows.get(kind, []) + made
    return rows


def from_hh(pairs):
    """{kind: rows} from HH-RLHF's comparisons, the first human turn standing for the user."""
    return from_pairs([dataclasses.replace(pair, user=opening(pair.prompt)) for pair in pairs])


def from_pairs(pairs):
    """{kind: rows} from comparisons of two; the better answers are the demonstrations."""
    return {
        "demonstrations": [readers.Demonstration(pair.prompt, pair.completions[pair.ranks.index(1)],
                                                 "labeler", user=pair.user) for pair in pairs],
        "prompts": [readers.Prompt(pair.prompt, user=pair.user) for pair in pairs],
        "comparisons": pairs,
    }


def from_instructions(demonstrations):
    """{kind: rows} from instruction data: its demonstrations, and their prompts."""
    return {"demonstrations": demonstrations,
            "prompts": [readers.Prompt(d.prompt) for d in demonstrations]}


# what others published: {flag: (name in the report, reader, rows of each kind from what it reads)}
PUBLISHED = {
    "hh": ("HH-RLHF pairs", readers.read_hh, from_hh),
    "summaries": ("summary pairs", formats.read_summaries, from_pairs),
    "alpaca": ("Alpaca rows", formats.read_alpaca, from_instructions),
    "dolly": ("Dolly rows", formats.read_dolly, from_instructions),
}


def opening(dialogue):
    """A short name for a dialogue's first human turn."""
    turn = dialogue.split(readers.HH_TURN)[0].strip()
    return "opening-" + hashlib.sha256(turn.encode()).hexdigest()[:16]


def filter_and_split(kind, rows, tokenizer, config, report):
    """{"train": rows, "valid": rows, "test": rows} of one kind, through all filters."""
    if kind != "comparisons":
        rows = report.apply(kind, "common prefix", rows, filters.drop_shared_prefixes,
                            config.shared_prefix)
    rows = report.apply(kind, "prompts per user", rows, filters.cap_per_user,
                        config.max_prompts_per_user, config.seed)
    rows = report.apply(kind, "length", rows, filters.drop_long, tokenizer,
                        config.max_prompt_tokens, config.max_response_tokens)
    sides = filters.split_by_user(rows, config.seed, config.valid_fraction, config.test_fraction)
    sides["train"] = report.apply(kind, "personal data", sides["train"], filters.drop_pii)
    if not sides["train"]:
        most = max((entry for entry in report.entries if entry["rows"] == kind),
                   key=lambda entry: sum(entry["dropped"].values()))
        raise InputError(f"{kind}: no row is left to train on; expected more rows or wider limits "
                         f"({filters.report_line(most)})")
    return sides


# -- text -------------------------------------------------------------------------------------


def read_and_split_text(config, report):
    """{"train": documents, "valid": documents} of the pretraining text, repeats left out."""
    found = formats.read_documents(config.text, config.limit or None)
    documents = list(dict.fromkeys(found))
    report.add("text", "repeated documents", len(found),
               {"same document": len(found) - len(documents)})
    train, valid = split_documents(documents, config.text_valid_fraction, config.seed)
    if not (train and valid):
        raise InputError(f"{config.text}: too short to hold out a part; expected more text")
    return {"train": train, "valid": valid}


def split_documents(documents, fraction, seed):
    """(train, valid): of many documents a seeded sample is held out whole; of few (a single long
    one, say) the end of each, cut at the next line end, or word end where lines are none."""
    if len(documents) < FEW_DOCUMENTS:
        cuts = [_cut(document, 1 - fraction) for document in documents]
        parts = zip(*((d[:cut].strip(), d[cut:].strip()) for d, cut in zip(documents, cuts)))
        return tuple([part for part in side if part] for side in parts)
    sample = sorted(documents, key=lambda d: hashlib.sha256(f"{seed} {d}".encode()).digest())
    held_out = set(sample[:max(1, round(fraction * len(documents)))])
    return ([d for d in documents if d not in held_out], [d for d in documents if d in held_out])


def _cut(document, fraction):
    place = int(fraction * len(document))
    ends = (document.find(end, place) for end in ("\n", " "))
    return next((end for end in ends if end >= 0), place)


# -- writing ----------------------------------------------------------------------------------


def write(config, rows, text, tokenizer, report):
    """Write every file, or none; {name: number of rows or documents}."""
    out, files, written = pathlib.Path(config.out), {}, {}
    for kind, sides in rows.items():
        for side, found in sides.items():
            written[f"{kind}.{side}.jsonl"] = len(found)
            files[out / f"{kind}.{side}.jsonl"] = readers.as_lines(found)
    for side, documents in text.items():
        written[f"text.{side}.txt"] = len(documents)
        files[out / f"text.{side}.txt"] = [f"\n{END_OF_TEXT}\n".join(documents) + "\n"]
    summary = {"tokenizer": tokenizer.fingerprint, "seed": config.seed,
               "filters": report.entries, "written": written}
    files[out / "filters.json"] = [json.dumps(summary, indent=2) + "\n"]
    check_output(config, *files)
    with alone(out):
        readers.write_files(files)
    return written


if __name__ == "__main__":
    run(main, PrepareConfig, __doc__)
