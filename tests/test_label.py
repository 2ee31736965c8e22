"""Labeling: what is answered is never lost, and only this machine's own page may answer.

The page itself is tested by test_label_page.py in a browser.
"""

import collections
import contextlib
import dataclasses
import http.client
import itertools
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import torch
from conftest import ROOT

import reward
from common import InputError, save_checkpoint
from data import answers, label
from data.readers import Comparison, read_comparisons, write_jsonl
from data.tokenizer import load_tokenizer
from model import GPT, GPTConfig

MODELS = ["sft-of-today", "ppo-of-today", "base-of-today"]
ITEMS = [{"prompt": f"Prompt {n}?", "completions": [f"{n} one", f"{n} two", f"{n} three"],
          "models": MODELS, "key": {"want": "secret"}, "user": f"user {n}"} for n in range(6)]


def write_items(folder, rows=ITEMS):
    path = folder / "completions.jsonl"
    write_jsonl(path, rows)
    return path


def make_work(folder, rows=ITEMS, overlap=0.0, seed=0):
    items, _ = answers.read_items(write_items(folder, rows))
    log = answers.Log(folder / "labels.answers.jsonl")
    return answers.Work(items, log, folder / "labels.jsonl", overlap, seed)


def an_answer(view, ranks=None, **more):
    n = len(view["completions"])
    return {"ranks": ranks or list(range(1, n + 1)), "overall": [None] * n,
            "marks": [[] for _ in range(n)], "seconds": 1.5} | more


def rank_next(work, labeler, best=None, **more):
    """Answer the labeler's next item: ranks follow the order shown, or the text `best` is first."""
    view = work.view(labeler)
    ranks = best and [1 if text.endswith(best) else 2 for text in view["completions"]]
    work.answer(labeler, view["item"], an_answer(view, ranks, **more))
    return view


def reopened(work, folder, **more):
    work.log.close()
    return make_work(folder, **more)


# -- the log --------------------------------------------------------------------------------------


def test_an_answer_is_flushed_to_the_disk_before_it_is_acknowledged(tmp_path, monkeypatch):
    work, synced = make_work(tmp_path), []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.pread(fd, 10**6, 0)))
    rank_next(work, "ann")
    assert len(synced) == 1 and synced[0].endswith(b"\n")
    assert json.loads(synced[0])["labeler"] == "ann"


def test_a_log_cut_at_any_byte_keeps_every_whole_answer_and_takes_more(
        tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda fd: None)       # 700 of them take seconds
    work = make_work(tmp_path)
    for name in ("ann", "bob"):
        rank_next(work, name)
    path = tmp_path / "labels.answers.jsonl"
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(first, len(whole) + 1):
        path.write_bytes(whole[:end])
        work = reopened(work, tmp_path)
        kept = 1 + (end >= len(whole) - 1)      # only its line's end is missing: a whole answer
        assert len(work.log.records) == kept
        assert ("dropped" in capsys.readouterr().out) == (first < end < len(whole) - 1)
        rank_next(work, "eve")
        work = reopened(work, tmp_path)
        assert [who for _, who, _ in work.log.records] == ["ann", "bob"][:kept] + ["eve"]


def test_a_bad_line_within_the_log_is_named_and_the_log_left_alone(tmp_path):
    work = make_work(tmp_path)
    rank_next(work, "ann")
    work.log.close()
    path = tmp_path / "labels.answers.jsonl"
    line = path.read_text()
    for bad in ('{"prompt": 1}\n', "not JSON\n", line.replace('"ranks": [', '"ranks": [7, '),
                line.replace('"ann"', '" ann"'), line.replace("1.5", "-1")):
        path.write_text(line + bad + line)
        with pytest.raises(InputError, match=f"{path.name}:2: "):
            answers.Log(path)
        assert path.read_text() == line + bad + line


def test_a_full_disk_leaves_the_log_as_it_was_and_the_answer_unsaved(tmp_path, monkeypatch):
    work = make_work(tmp_path)
    rank_next(work, "ann")
    before = (tmp_path / "labels.answers.jsonl").read_bytes()

    def full(fd):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        rank_next(work, "ann")
    monkeypatch.undo()
    assert (tmp_path / "labels.answers.jsonl").read_bytes() == before
    assert work.view("ann")["done"] == 1
    rank_next(work, "ann")
    assert len(reopened(work, tmp_path).log.records) == 2


def test_a_log_belongs_to_one_server_at_a_time(tmp_path):
    work = make_work(tmp_path)
    with pytest.raises(InputError, match="another server is writing it"):
        answers.Log(tmp_path / "labels.answers.jsonl")
    work.log.close()
    answers.Log(tmp_path / "labels.answers.jsonl").close()


# -- comparisons ----------------------------------------------------------------------------------


def test_ranks_return_to_the_order_of_the_file_and_its_other_keys_stay(tmp_path):
    work = make_work(tmp_path)
    for _ in ITEMS:
        rank_next(work, "ann", best="two")
    work.write_comparisons()
    rows = read_comparisons(tmp_path / "labels.jsonl")
    assert sorted(c.prompt for c in rows) == [row["prompt"] for row in ITEMS]
    for c in rows:
        assert [text.split()[1] for text in c.completions] == ["one", "two", "three"]
        assert c.ranks == (2, 1, 2)
        assert c.labeler == "ann" and c.user == f"user {c.prompt[7]}"
        assert c.extra == {"models": MODELS}        # and not the key, which says what is right


def test_the_last_answer_counts_and_keeps_its_place_in_the_labelers_history(tmp_path):
    work = make_work(tmp_path)
    first = rank_next(work, "ann", best="one")
    rank_next(work, "ann", best="one")
    again = work.view("ann", at=0)
    assert (again["item"], again["answer"]["ranks"]) == \
        (first["item"], [1 if t.endswith("one") else 2 for t in first["completions"]])
    work.answer("ann", again["item"], an_answer(again, [3, 3, 3], overall=[7, None, 1]))
    work.answer("ann", again["item"], {"skip": True, "seconds": 0})     # corrects nothing
    work = reopened(work, tmp_path)
    once_more = work.view("ann", at=0)
    assert once_more["item"] == first["item"]
    assert once_more["answer"]["ranks"] == [3, 3, 3]
    assert once_more["answer"]["overall"] == [7, None, 1]
    assert [c["ranks"] for c in work.comparisons()] == [[3, 3, 3], [1, 2, 2]]


def test_the_last_answers_are_in_the_comparisons_when_the_server_ends(tmp_path):
    work = make_work(tmp_path)
    rank_next(work, "ann")
    work.changed.clear()        # as when the writer has just begun to write what came before
    work.writer.start()
    work.close()
    assert len(read_comparisons(tmp_path / "labels.jsonl")) == 1
    with pytest.raises(OSError, match="stopping"):
        rank_next(work, "ann")


def test_a_text_that_stands_twice_is_shown_once_and_tied_with_itself(tmp_path):
    work = make_work(tmp_path, [{"prompt": "p", "completions": ["a", "b", "a", ""]},
                                {"prompt": "q", "completions": ["same", "same"]}])
    assert work.view("ann")["left"] == 1        # nothing to rank in q
    view = work.view("ann")
    assert sorted(view["completions"]) == ["", "a", "b"]
    ranks = [{"a": 2, "b": 1, "": 3}[text] for text in view["completions"]]
    marks = [["moral"] if text == "a" else [] for text in view["completions"]]
    work.answer("ann", view["item"], an_answer(view, ranks, marks=marks))
    assert work.comparisons()[0]["ranks"] == [2, 1, 2, 3]
    assert work.log.records == [] and reopened(work, tmp_path).log.records[0][2]["marks"] == \
        [["moral"], [], ["moral"], []]


def test_answers_stay_when_the_completions_are_others_the_next_time(tmp_path):
    work = make_work(tmp_path)
    rank_next(work, "ann", best="one")
    work = reopened(work, tmp_path, rows=[{"prompt": "new", "completions": ["x", "y"]}])
    assert rank_next(work, "ann", best="x")["prompt"] == "new"
    assert {row["prompt"] for row in work.comparisons()} > {"new"}
    assert work.view("ann", at=0)["prompt"].startswith("Prompt")


def test_skipped_items_do_not_return_by_themselves_but_can_be_found(tmp_path):
    work = make_work(tmp_path)
    view = work.view("ann")
    work.answer("ann", view["item"], {"skip": True, "seconds": 2})
    for _ in ITEMS[1:]:
        assert rank_next(work, "ann")["item"] != view["item"]
    end = work.view("ann")
    assert (end["item"], end["done"], end["left"], end["skipped"]) == (None, 5, 0, [0])
    assert work.view("ann", at=0)["item"] == view["item"]
    assert len(work.comparisons()) == 5
    assert rank_next(work, "bob")["item"] == view["item"]       # free for another labeler


def test_models_sample_people_rank_and_the_reward_model_trains_on_it(tmp_path):
    tokenizer, out = load_tokenizer("world"), tmp_path / "labels.jsonl"
    config = GPTConfig(tokenizer.vocab_size, 32, n_layer=1, n_head=2, d_model=32)
    for name in ("sft", "ppo"):
        torch.manual_seed(len(name))
        save_checkpoint(tmp_path / f"{name}.pt", stage=name, weights=GPT(config).state_dict(),
                        model_config=dataclasses.asdict(config), step=0,
                        config={"max_response": 8},
                        tokenizer={"name": "world", "fingerprint": tokenizer.fingerprint})
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": f"{n} birds?"} for n in range(9)])
    completions = tmp_path / "labels.completions.jsonl"
    settings = label.LabelConfig(str(tmp_path), ("sft", "ppo"), str(tmp_path / "prompts.jsonl"), 4)
    label.sample(settings, completions)
    rows, before = [json.loads(line) for line in open(completions)], completions.read_bytes()
    label.sample(settings, completions)
    assert completions.read_bytes() == before and settings.out == str(out)
    assert len(rows) == 4 and all(4 <= len(row["completions"]) <= 9 for row in rows)
    assert {tuple(row["models"][:3]) for row in rows} == {("sft", "ppo", "sft")}
    assert all(len(row["models"]) == len(row["completions"]) for row in rows)
    work = make_work(tmp_path, rows)
    for _ in rows:
        rank_next(work, "ann")
    work.write_comparisons()
    reward.main(reward.RewardConfig(out=tmp_path / "reward.pt", init=tmp_path / "sft.pt",
                                    comparisons=out, valid=out, batch=2))
    assert (tmp_path / "reward.pt").exists()


# -- who gets what --------------------------------------------------------------------------------


def test_completions_are_shown_in_random_order_and_always_the_same_to_one_labeler(tmp_path):
    item = answers._item(ITEMS[0] | {"completions": ["a", "b", "c"]})
    seen = collections.Counter(tuple(item.shown(f"labeler {n}", 0)) for n in range(6000))
    assert set(seen) == set(itertools.permutations("abc"))
    # each of 6 orders: mean 1000, standard deviation 29; five of them allowed
    assert all(abs(count - 1000) < 145 for count in seen.values())
    assert item.shown("ann", 0) == item.shown("ann", 0)
    # the order tells nothing of the order in the file
    swapped = answers.Item(item.prompt, item.completions[::-1], {})
    assert sorted(item.shown("ann", 0)) == sorted(swapped.shown("ann", 0))


def test_an_item_goes_to_one_labeler_and_the_shared_ones_to_all(tmp_path):
    rows = [{"prompt": str(n), "completions": ["a", "b"]} for n in range(100)]
    work = make_work(tmp_path, rows, overlap=0.3)
    names = ["ann", "bob", "cyd"]
    while any(work.view(name)["item"] for name in names):
        for name in names:
            if work.view(name)["item"]:
                rank_next(work, name)
    times = collections.Counter(row["prompt"] for row in work.comparisons())
    assert collections.Counter(times.values()) == {1: 70, 3: 30}
    orders = [list(work.answers[name]) for name in names]
    assert orders[0] != orders[1] != orders[2]


def test_labelers_who_stop_early_have_still_ranked_the_same_shared_items(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    rows = [{"prompt": str(n), "completions": ["a", "b"]} for n in range(400)]
    both = 0
    for seed in range(4):
        (tmp_path / str(seed)).mkdir()
        work = make_work(tmp_path / str(seed), rows, overlap=0.25, seed=seed)
        for name in ("ann", "bob"):
            for _ in range(60):
                rank_next(work, name)
        both += len(set(work.answers["ann"]) & set(work.answers["bob"]))
    assert 40 <= both <= 80     # about 15 each time; with orders of their own, 4


def test_an_item_that_one_labeler_has_open_is_not_given_to_another(tmp_path, monkeypatch):
    work = make_work(tmp_path, ITEMS[:1])
    assert work.view("ann")["item"] and work.view("ann")["item"]     # and a reload keeps it
    assert work.view("bob")["item"] is None
    monkeypatch.setattr(answers, "CLAIM_SECONDS", 0)                 # ann went home
    assert work.view("bob")["item"]


# -- agreement ------------------------------------------------------------------------------------


def compared(*rows):
    return [Comparison(prompt, ("a", "b", "c"), ranks, labeler) for prompt, labeler, ranks in rows]


def test_agreement_by_hand():
    found = label.agreement(compared(
        ("p", "ann", (1, 2, 3)), ("p", "bob", (1, 3, 2)),       # ab, ac alike; bc not
        ("q", "ann", (1, 1, 2)), ("q", "bob", (1, 2, 3)),       # ab tied by ann; ac, bc alike
        ("q", "cyd", (2, 5, 9)), ("r", "ann", (1, 2, 3)),
        ("s", "bob", (1, 2, 3)), ("s", "bob", (3, 2, 1)), ("s", "cyd", (1, 1, 1)),
        ("s", None, (1, 2, 3))))
    assert found == {("ann", "bob"): {("p", ("a", "b", "c")): (2, 3, 0),
                                      ("q", ("a", "b", "c")): (2, 2, 1)},
                     ("ann", "cyd"): {("q", ("a", "b", "c")): (2, 2, 1)},
                     ("bob", "cyd"): {("q", ("a", "b", "c")): (3, 3, 0),
                                      ("s", ("a", "b", "c")): (0, 0, 3)}}
    assert label.share([(2, 3, 0), (2, 2, 1)])[0] == 4 / 5


def test_the_interval_of_agreement_is_that_of_a_bootstrap_over_items():
    # two items, one all alike, one not at all: the draws are 0, ½, ½, 1 with equal chance
    assert label.share([(3, 3, 0), (0, 3, 0)]) == (0.5, 0.0, 1.0)
    # the same share in every item: nothing varies
    assert label.share([(2, 3, 0)] * 9) == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    # 400 items of one pair, 300 alike: ¾ ± 1.96 · √(¾ · ¼ / 400)
    mean, low, high = label.share([(1, 1, 0)] * 300 + [(0, 1, 0)] * 100)
    assert (mean, low, high) == pytest.approx((0.75, 0.75 - 0.0424, 0.75 + 0.0424), abs=0.005)
    assert label.share([(0, 0, 3), (0, 0, 1)]) is None
    assert label.share([(1, 2, 0)]) == (0.5, None, None)


def test_the_report_of_agreement(tmp_path, capsys):
    write_jsonl(tmp_path / "c.jsonl", compared(
        ("p", "ann", (1, 2, 3)), ("p", "bob", (1, 2, 3)),
        ("q", "ann", (1, 1, 2)), ("q", "bob", (1, 2, 3)), ("q", "cyd", (1, 1, 1))))
    label.report_agreement([tmp_path / "c.jsonl"])
    assert [re.split(r"  +", line) for line in capsys.readouterr().out.splitlines()] == [
        ["labelers", "items", "pairs", "tied", "agreement, 95 % interval"],
        ["ann and bob", "2", "5", "1", "100.0 % [100.0, 100.0]"],
        ["ann and cyd", "1", "0", "3", "–"],
        ["bob and cyd", "1", "0", "3", "–"],
        ["all", "2", "5", "7", "100.0 % [100.0, 100.0]"]]
    write_jsonl(tmp_path / "one.jsonl", compared(("p", "ann", (1, 2, 3))))
    with pytest.raises(InputError, match="no item was ranked by two labelers"):
        label.report_agreement([tmp_path / "one.jsonl"])
    label.report_agreement([tmp_path / "one.jsonl", tmp_path / "c.jsonl"])


# -- the server -----------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(folder, **more):
    """A LabelServer in a thread of this process."""
    work = make_work(folder, **more)
    server = label.LabelServer(work, 0)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    work.writer.start()
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        work.close()


def request(server, method="GET", path="/item?labeler=ann", body=None, **headers):
    """(status, content) of a request as the page would send it; a header of None is left out."""
    host = f"127.0.0.1:{server.server_port}"
    sent = {"Host": host, "X-Token": server.token} | \
        ({} if body is None else {"Origin": f"http://{host}", "Content-Type": "application/json"})
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    with contextlib.closing(connection):
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in sent.items():
            if value is not None:
                connection.putheader(name, value)
        if data is not None and "Content-Length" not in sent:
            connection.putheader("Content-Length", len(data))
        connection.endheaders(data)
        response = connection.getresponse()
        content = response.read().decode()
        json_sent = response.headers["Content-Type"].startswith("application/json")
        return response.status, json.loads(content) if json_sent else content


def post(server, answer=None, labeler="ann", **headers):
    _, view = request(server, path=f"/item?labeler={labeler}")
    answer = an_answer(view) if answer is None else answer
    return request(server, "POST", "/answer",
                   {"labeler": labeler, "item": view["item"], "answer": answer}, **headers)


def test_an_answer_over_http_gives_the_next_item_and_the_comparisons_follow(tmp_path):
    with serving(tmp_path) as server:
        first = request(server)[1]
        status, view = post(server)
        assert status == 200 and view["done"] == 1 and view["item"] != first["item"]
        assert request(server, path="/item?labeler=ann&at=0")[1]["item"] == first["item"]
    assert [c.prompt for c in read_comparisons(tmp_path / "labels.jsonl")] == [first["prompt"]]


def test_nothing_that_tells_a_completions_model_is_sent(tmp_path):
    with serving(tmp_path) as server:
        sent = [request(server, path="/")[1], *(json.dumps(post(server)[1]) for _ in ITEMS[1:])]
    for text in sent:
        assert not any(word in text for word in [*MODELS, "models", "secret", "user 1"])


def test_the_server_listens_on_loopback_only(tmp_path):
    with serving(tmp_path) as server:
        assert server.socket.getsockname()[0] == "127.0.0.1"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(("192.0.2.1", 9))     # sends nothing; names our own address
            except OSError:
                pytest.skip("this machine has no address but loopback's to try")
            address = probe.getsockname()[0]
        with pytest.raises(OSError):
            socket.create_connection((address, server.server_port), timeout=2)


def test_foreign_hosts_and_origins_and_requests_without_the_token_are_refused(tmp_path):
    with serving(tmp_path) as server:
        port = server.server_port
        for host in (None, "", "evil.example", f"evil.example:{port}", "127.0.0.1", "localhost",
                     f"127.0.0.1:{port + 1}", f"127.0.0.1:{port}.evil.example",
                     f"0.0.0.0:{port}", f"[::1]:{port}", f"127.0.0.1:{port}, evil.example"):
            assert request(server, Host=host)[0] == 403
            assert request(server, path="/", Host=host)[0] == 403
            assert post(server, Host=host)[0] == 403
        for origin in (None, "null", "http://evil.example", f"https://127.0.0.1:{port}",
                       f"http://127.0.0.1:{port + 1}", f"http://127.0.0.1:{port}/", "file://"):
            assert post(server, Origin=origin)[0] == 403
        for token in (None, "", "x" * 43, server.token + "x", "é"):
            assert request(server, X_Token=token)[0] == 403
            assert post(server, X_Token=token)[0] == 403
        for kind in (None, "text/plain", "application/x-www-form-urlencoded"):
            assert post(server, Content_Type=kind)[0] == 415
        assert (tmp_path / "labels.answers.jsonl").read_bytes() == b""
        assert post(server, Host=f"localhost:{port}", Origin=f"http://localhost:{port}")[0] == 200


def test_the_page_is_not_cached_and_runs_no_script_but_its_own(tmp_path):
    with serving(tmp_path) as server:
        rank_next(server.work, "</script><script>alert(1)</script>"[:40].strip())
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
        connection.request("GET", "/")
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
    assert response.headers["Cache-Control"] == "no-store"
    policy = dict(part.strip().split(" ", 1)
                  for part in response.headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert re.fullmatch("'sha256-[A-Za-z0-9+/=]+'", policy["script-src"])
    assert "unsafe" not in str(policy) and text.count("</script>") == 2
    assert re.findall(r"(?:src|href)=(\S+)", text) == ['"data:,">']     # nothing from elsewhere
    assert not re.search(r"url\(|@import|https?:", text)


def test_answers_that_are_none_are_refused_with_a_reason(tmp_path):
    with serving(tmp_path) as server:
        view = request(server)[1]
        good = an_answer(view)
        for answer, reason in [
                ([], "object"), ({}, "seconds"), (good | {"seconds": float("nan")}, "seconds"),
                (good | {"seconds": True}, "seconds"), (good | {"ranks": [1, 2]}, "ranks"),
                (good | {"ranks": [1, 2, None]}, "ranks"), (good | {"ranks": [0, 1, 2]}, "ranks"),
                (good | {"ranks": [1, 2, 10]}, "ranks"), (good | {"ranks": [1, 2, True]}, "ranks"),
                (good | {"overall": [8, 1, 1]}, "overall"),
                (good | {"marks": [[], [], 1]}, "marks"),
                (good | {"marks": [[], [], ["no such"]]}, "marks"),
                (good | {"marks": [[], [], [[]]]}, "marks"), ({"skip": 1, "seconds": 1}, "skip"),
                (good | {"skip": False}, "skip")]:
            status, content = post(server, answer)
            assert status == 400 and reason in content["error"]
        for name in (None, 7, "", " ann", "a\nb", "x" * 41, "\ud800", ["ann"]):
            body = {"labeler": name, "item": view["item"], "answer": good}
            assert request(server, "POST", "/answer", body)[0] == 400
        for item in (None, [], {}, "0" * 16):
            body = {"labeler": "ann", "item": item, "answer": good}
            assert request(server, "POST", "/answer", body)[0] == 400
        assert (tmp_path / "labels.answers.jsonl").read_bytes() == b""


def test_bodies_that_are_too_long_too_short_or_no_json_are_refused(tmp_path):
    with serving(tmp_path) as server:
        for body, status in [(b"[" * 20000, 400), (b"{", 400), (b"\xff", 400), (b"", 400),
                             (b"[]", 400), (b"1" * 5000, 400)]:
            assert request(server, "POST", "/answer", body)[0] == status
        for length, status in [("70000", 413), ("999999999", 413), ("-1", 411), ("1e3", 411),
                               (None, 411), ("", 411), ("\u00b2", 411)]:
            assert request(server, "POST", "/answer", b"", Content_Length=length)[0] == status
        for path in ("/answer?", "/item", "/", "/../answer"):
            assert request(server, "POST", path, b"{}")[0] == 404
        for path in ("/answer", "/item/", "/label.py", "/../data/label.py", "/?/../item", "//[x"):
            assert request(server, path=path)[0] in (200, 400, 404)
            assert "import json" not in str(request(server, path=path)[1])
        assert request(server, "DELETE")[0] == request(server, "PUT")[0] == 501
        assert request(server, path="/item")[0] == request(server, path="/item?labeler=")[0] == 400
        assert request(server, path="/item?labeler=ann&at=-1")[0] == 400


def test_a_disk_that_takes_nothing_more_is_told_to_the_labeler(tmp_path, monkeypatch, capsys):
    with serving(tmp_path) as server:
        def full(record):
            raise OSError(28, "No space left on device")
        monkeypatch.setattr(server.work.log, "append", full)
        status, content = post(server)
        assert (status, content["error"]) == (507, "Not saved: No space left on device.")
        monkeypatch.undo()
        assert post(server)[0] == 200
    assert capsys.readouterr().err.count("\n") == 1


def raw(server, data):
    """What the server sends back for these bytes, until it closes; fails if it never does."""
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=5) as client:
        received = b""
        with contextlib.suppress(ConnectionError):      # refused before all of it was read
            client.sendall(data)
            with contextlib.suppress(OSError):          # the same, a moment later
                client.shutdown(socket.SHUT_WR)
            while piece := client.recv(1 << 16):
                received += piece
        return received


def mutated(rng, data):
    """A few random edits of bytes: changed, cut, doubled, or with odd pieces put in."""
    pieces = [b"\r\n", b"\0", b"\xff\xfe", b"%00", b"Host: x\r\n", b"Content-Length: 99999999\r\n",
              b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n", b"-1", b"[" * 5000,
              b"9" * 5000, b"{\"a\":", b"A" * 70000, b"?labeler=\xc3", b"//[", b"HTTP/9.9"]
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        span = rng.choice([0, 1, 3, 30])
        data = rng.choice([data[:at] + rng.choice(pieces) + data[at + span:], data[:at],
                           data[:at] + bytes([rng.randrange(256)]) + data[at + 1:],
                           data[:at] + data[at:at + span] + data[at:]]) or b"\n"
    return data


def test_a_thousand_malformed_requests_neither_stop_nor_confuse_the_server(
        tmp_path, monkeypatch, capsys):
    rng = random.Random(0)
    with serving(tmp_path) as server:
        body = json.dumps({"labeler": "ann", "item": request(server)[1]["item"],
                           "answer": an_answer(request(server)[1])}).encode()
        head = (f"Host: 127.0.0.1:{server.server_port}\r\nX-Token: {server.token}\r\n"
                f"Origin: http://127.0.0.1:{server.server_port}\r\n").encode()
        seeds = [b"GET / HTTP/1.1\r\n" + head + b"\r\n",
                 b"GET /item?labeler=ann&at=0 HTTP/1.1\r\n" + head + b"\r\n",
                 b"POST /answer HTTP/1.1\r\n" + head + b"Content-Type: application/json\r\n"
                 b"Content-Length: %d\r\n\r\n" % len(body) + body]
        statuses = collections.Counter()
        for n in range(1000):
            reply = raw(server, mutated(rng, seeds[n % 3]))
            found = re.match(rb"HTTP/1\.0 (\d+) ", reply)
            statuses[int(found[1]) if found else "none"] += 1
            assert not found or int(found[1]) in (200, 400, 403, 404, 411, 413, 414, 415, 431,
                                                  501, 505), reply
        assert raw(server, seeds[2]).startswith(b"HTTP/1.0 200 ")
        alive = request(server)[1]
    assert capsys.readouterr().err == ""        # no traceback, no request that failed
    assert len(statuses) >= 8 and statuses["none"] < 100, statuses
    log = answers.read_log(tmp_path / "labels.answers.jsonl")
    assert "ann" in {labeler for _, labeler, _ in log} and alive["done"] == 1
    read_comparisons(tmp_path / "labels.jsonl")


def test_whatever_is_accepted_can_be_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    rng, work, accepted = random.Random(0), make_work(tmp_path), 0
    odd = [None, True, False, 0, 1, -1, 3, 10**400, 0.5, 1e300, float("nan"), float("inf"), "",
           "moral", "é\u2028", "\ud800", [], {}, [[]], [1, 2, 3], [1, 1, 9], [None] * 3,
           [7, None, 1], [["moral"], [], ["moral", "moral"]], [["moral"], [], [None]]]
    for _ in range(20000):
        view = work.view("ann", rng.randrange(3))
        answer = an_answer(view)
        for key in rng.sample(["ranks", "overall", "marks", "seconds", "skip", "time", "more"],
                              rng.randint(0, 3)):
            answer[key] = rng.choice(odd)
        with contextlib.suppress(ValueError):
            work.answer(rng.choice(["ann", "Ünal 李", rng.choice(odd)]), view["item"], answer)
            accepted += 1
    assert accepted > 1000
    assert len(reopened(work, tmp_path).log.records) > 1000


def test_a_request_that_stalls_is_given_up_and_delays_nobody(tmp_path, monkeypatch):
    assert 0 < label.Handler.timeout <= 60
    monkeypatch.setattr(label.Handler, "timeout", 1.5)
    with serving(tmp_path) as server:
        stalled = [socket.create_connection(("127.0.0.1", server.server_port)) for _ in range(20)]
        for n, client in enumerate(stalled):
            client.sendall([b"", b"GE", b"POST /answer HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n"
                            b"Content-Length: 9\r\n\r\n{" % server.server_port][n % 3])
        started = time.monotonic()
        assert post(server)[0] == 200 and time.monotonic() - started < 1
        for client in stalled:
            client.settimeout(5)
            assert client.recv(1) == b""
            client.close()


def test_labelers_at_once_lose_nothing_and_get_different_items(tmp_path):
    rows = [{"prompt": str(n), "completions": ["a", "b"]} for n in range(60)]
    with serving(tmp_path, rows=rows) as server:
        def work(name):
            while request(server, path=f"/item?labeler={name}")[1]["item"]:
                assert post(server, labeler=name)[0] == 200
        threads = [threading.Thread(target=work, args=(f"labeler-{n}",)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = read_comparisons(tmp_path / "labels.jsonl")
    assert sorted(int(c.prompt) for c in found) == list(range(60))
    assert len({c.labeler for c in found}) > 1


# -- the command ----------------------------------------------------------------------------------


class Process:
    """`python -m data.label`, or another command that leads to it, as a person starts it."""

    def __init__(self, folder, *flags, command=(sys.executable, "-m", "data.label")):
        self.process = subprocess.Popen(
            [*command, "--completions", folder / "completions.jsonl", "--out",
             folder / "labels.jsonl", *map(str, flags)], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=os.environ | {"PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"})
        self.said = ""
        for line in self.process.stdout:
            self.said += line
            if found := re.search(r"http://127\.0\.0\.1:(\d+)/", line):
                self.server_port = int(found[1])
                break
        else:
            raise AssertionError(self.said)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()     # one that a failing test left behind
        self.process.wait()
        self.process.stdout.close()

    def page(self):
        self.token = None       # until the page has told it
        text = request(self, path="/")[1]
        self.token = re.search(r'"token": "([^"]+)"', text)[1]

    def end(self, number):
        self.process.send_signal(number)
        self.said += self.process.stdout.read()
        self.process.wait(timeout=20)
        return self.process.returncode


def test_killed_at_any_moment_the_server_has_what_it_acknowledged(tmp_path):
    rows = [{"prompt": str(n), "completions": ["a", "b"]} for n in range(3000)]
    write_items(tmp_path, rows)
    acknowledged = 0
    with Process(tmp_path, "--port", 0) as server:
        server.page()
        threading.Timer(1.5, server.process.kill).start()
        with contextlib.suppress(OSError, http.client.HTTPException):
            while post(server)[0] == 200:
                acknowledged += 1
        assert server.end(signal.SIGKILL) == -signal.SIGKILL and acknowledged > 5
    with Process(tmp_path, "--port", 0, command=("./run.sh", "label")) as server:
        server.page()
        assert request(server)[1]["done"] in (acknowledged, acknowledged + 1)
        assert len(read_comparisons(tmp_path / "labels.jsonl")) >= acknowledged
        assert post(server)[0] == 200
        assert server.end(signal.SIGINT) == 130
    assert "Traceback" not in server.said and "the same command goes on" in server.said
    assert len(read_comparisons(tmp_path / "labels.jsonl")) in (acknowledged + 1, acknowledged + 2)


def complain(capsys, *flags):
    """The line with which the command refuses; it must exit with code 2."""
    with pytest.raises(SystemExit) as stopped:
        label.run(label.main, label.LabelConfig, "", list(map(str, flags)))
    said = capsys.readouterr()
    assert stopped.value.code == 2 and said.out == "" and said.err.count("\n") == 1
    return said.err


def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys):
    good, out = write_items(tmp_path), tmp_path / "labels.jsonl"
    assert "no such checkpoint" in complain(capsys, "--run", tmp_path)
    assert "--models: expected one or more" in complain(capsys, "--models")
    assert "expected --out too" in complain(capsys, "--completions", good)
    assert "labels.jsonl: No such file" in complain(capsys, "--run", tmp_path, "--agreement")
    assert "--overlap 1.5" in complain(capsys, "--completions", good, "--out", out,
                                       "--overlap", 1.5)
    bad = tmp_path / "bad.jsonl"
    for line, reason in [('{"prompt": "p"}', "2 to 9 strings"), ("{", "not JSON"),
                         ('{"prompt": "p", "completions": ["a"]}', "2 to 9 strings"),
                         ('{"prompt": "p", "completions": ["a", 1]}', "2 to 9 strings"),
                         (json.dumps({"prompt": "p", "completions": list("abcdefghij")}), "2 to 9"),
                         ('{"completions": ["a", "b"]}', "'prompt' is missing")]:
        bad.write_text(good.read_text() + line + "\n")
        said = complain(capsys, "--completions", bad, "--out", out)
        assert f"{bad}:7: " in said and reason in said
    bad.write_text('{"prompt": "p", "completions": ["a", "a"]}\n')
    assert "nothing to rank" in complain(capsys, "--completions", bad, "--out", out)
    assert "readable" in complain(capsys, "--completions", tmp_path / "none", "--out", out)
    assert "readable" in complain(capsys, "--agreement", tmp_path / "none")
    assert "expected the name of a file to make" in \
        complain(capsys, "--completions", good, "--out", bad)
    assert "would be written over" in complain(capsys, "--completions", good, "--out", good)
    for place in ("/", ".", tmp_path):
        assert "is not a plain file" in complain(capsys, "--completions", good, "--out", place)
    assert "place to write" in complain(capsys, "--completions", good, "--out", good / "x.jsonl")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.jsonl", "completions.jsonl"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"--port {port}: Address already in use" in \
            complain(capsys, "--completions", good, "--out", out, "--port", port)
    assert "--port 99999" in complain(capsys, "--completions", good, "--out", out,
                                      "--port", 99999)
    log = answers.Log(tmp_path / "labels.answers.jsonl")
    assert "another server is writing it" in complain(capsys, "--completions", good, "--out", out)
    log.close()
