"""`./run.sh ask`: the answers are those that `generate` samples, they grow in place on a terminal,
and nothing in them steers it. The run is made here: a tiny model of random weights per stage."""

import dataclasses
import io
import os
import re
import subprocess
import sys
import time
import unicodedata

import numpy as np
import pytest
import torch
from conftest import ROOT, randomize
from vt import Session, Terminal

import common
from common import InputError, save_checkpoint
from data import chat, runs, terminal
from data.batching import seeded_generator
from data.chat import Answer, AskConfig
from data.tokenizer import load_tokenizer
from model import GPT, GPTConfig, Samples, ScalarGPT, generate, sample_steps

WORLD = load_tokenizer("world")
SHAPE = GPTConfig(vocab_size=WORLD.vocab_size, n_ctx=40, n_layer=1, n_head=2, d_model=16)
NAMES = [runs.NAMES[m] for m in runs.MODELS]


def save(folder, name, stage, model):
    save_checkpoint(folder / f"{name}.pt", stage=stage, step=1, config={"max_response": 12},
                    model_config=dataclasses.asdict(model.config), weights=model.state_dict(),
                    tokenizer={"name": "world", "fingerprint": WORLD.fingerprint})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    for seed, name in enumerate(runs.MODELS):
        stage = {"ppo_ptx": "ppo"}.get(name, name)
        save(folder, name, stage, randomize(GPT(SHAPE), std=0.3, seed=seed))
    save(folder, "reward", "reward", randomize(ScalarGPT(SHAPE), seed=9))
    return folder


def models(folder, **settings):
    return chat.Models(AskConfig(run=str(folder), **settings))


def last(frames):
    *_, found = frames
    return found


# -- streaming is sampling ------------------------------------------------------------------------


def test_the_steps_of_sampling_end_in_what_generate_returns(by_torch):
    torch.manual_seed(0)
    model = randomize(GPT(dataclasses.replace(SHAPE, vocab_size=9, dropout=0.1)))
    prompts, flags = [[1, 2, 3], [4], [5, 6]] * 3, (20, 1.3, 0)
    whole = generate(model, prompts, *flags, seeded_generator("a"))
    seen, steps = [], sample_steps(model, prompts, *flags, seeded_generator("a"))
    for samples in steps:
        assert torch.equal(samples.lens_B - samples.prompt_lens_B, samples.mask_BR.sum(1))
        for row, (n, before) in enumerate(zip(samples.lens_B, seen[-1] if seen else [])):
            assert n - before in (0, 1) and torch.equal(samples.tokens_BT[row, :before],
                                                        whole.tokens_BT[row, :before])
        seen.append(samples.lens_B.tolist())
    assert all(map(torch.equal, samples, whole)) and len(seen) == max(
        whole.mask_BR.sum(1)) and len(set(seen[-1])) > 1


def test_generate_gives_the_model_back_as_it_was_even_after_an_error():
    model = GPT(dataclasses.replace(SHAPE, dropout=0.5)).train()
    generate(model, [[1]], 2)
    assert model.training
    with pytest.raises(ValueError, match="at least one prompt"):
        generate(model, [], 2)
    assert model.training


@pytest.mark.parametrize("temperature, number", [(1.0, 0), (0.5, 3), (0.0, 0)])
def test_answers_are_the_tokens_that_generate_samples_for_the_seed(folder, temperature, number):
    found = models(folder, temperature=temperature, seed=5)
    answers = last(found.answers("Who keeps a cat?", number))
    ids = WORLD.encode_prompt("Who keeps a cat?")
    for answer, model in zip(answers, found.policies.values(), strict=True):
        samples = generate(model, [ids], 12, temperature, WORLD.eos,
                           seeded_generator("ask", 5, number))
        tokens = samples.tokens_BT[0, len(ids):samples.lens_B[0]].tolist()
        score = found.reward_model.scores(samples.tokens_BT[:, :samples.lens_B[0]],
                                          samples.lens_B).item()
        assert answer.text == WORLD.decode_response(tokens) and answer.ended
        assert answer.score == pytest.approx(score, abs=1e-6)
        assert answer.note == ("" if tokens[-1] == WORLD.eos else "[cut off at 12 tokens]")
    if temperature:
        assert answers != last(found.answers("Who keeps a cat?", number + 1))


def test_all_models_grow_together_and_only_at_the_end(folder):
    frames = list(models(folder, max_response=20).answers("Who?"))
    for before, after in zip(frames, frames[1:]):
        assert all(b.text.startswith(a.text) for a, b in zip(before, after))
        assert all(b == a for a, b in zip(before, after) if a.ended)
    assert all(a.text for a in frames[3]) and not any(a.ended for a in frames[0])


def scripted(monkeypatch, ids):
    """A model that says these tokens."""
    def steps(model, prompts, *_):
        start = len(prompts[0])
        tokens = torch.tensor([prompts[0] + ids])
        for n in range(1, len(ids) + 1):
            yield Samples(tokens, torch.tensor([start]), torch.tensor([start + n]), None, None)
    monkeypatch.setattr(chat, "sample_steps", steps)


def test_half_a_character_is_not_shown_until_the_rest_has_come(folder, monkeypatch):
    ids = WORLD.encode(" aé🙂 漢x")
    assert len(ids) > 9     # the vocabulary has only the bytes of these
    scripted(monkeypatch, [*ids, WORLD.eos])
    texts = [answers[0].text for answers in models(folder).answers("Who?")]
    assert not any("\ufffd" in text for text in texts) and texts[-1] == "aé🙂 漢x"
    assert "aé" in texts and "aé🙂" in texts
    scripted(monkeypatch, WORLD.encode(" a🙂")[:-1])
    answer = last(models(folder).answers("Who?"))[0]
    assert answer.text == "a\ufffd" and answer.note.startswith("[cut off")


# -- what is asked --------------------------------------------------------------------------------


def test_a_run_on_dialogues_is_asked_in_their_turns(folder, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "sft.pt").symlink_to(folder / "sft.pt")
    prompts = tmp_path / "data" / "prompts.train.jsonl"
    prompts.write_text('{"prompt": "\\n\\nHuman: Hi.\\n\\nAssistant:"}\n')
    asked = models(tmp_path, models=("sft",))
    assert asked.encode("Who?") == WORLD.encode_prompt("\n\nHuman: Who?\n\nAssistant:")
    prompts.write_text('{"prompt": "Hi."}\n')
    assert models(tmp_path, models=("sft",)).encode("Who?") == WORLD.encode_prompt("Who?")


def test_the_newest_whole_run_is_the_default(folder, tmp_path):
    for age, name in ((300, "old"), (200, "new"), (100, "half")):
        (tmp_path / name).mkdir()
        for model in [*runs.MODELS][:2 if name == "half" else None]:
            path = tmp_path / name / f"{model}.pt"
            path.touch()
            os.utime(path, (time.time() - age,) * 2)
    assert runs.newest_run(tmp_path).name == "new"
    assert runs.newest_run(tmp_path, ["base", "sft"]).name == "half"


def test_each_model_is_loaded_once_however_many_questions_come(folder, monkeypatch, capsys):
    loaded = []
    monkeypatch.setattr(chat, "load_model", lambda kind, path, *rest: loaded.append(path.stem) or
                        common.load_model(kind, path, *rest))
    monkeypatch.setattr(sys, "stdin", io.StringIO("Who?\n\n   \n" + "x" * 400 + "\nWhere?\n"))
    common.run(chat.main, AskConfig, argv=["--run", str(folder)])
    assert sorted(loaded) == sorted([*runs.MODELS, "reward"])
    out, err = capsys.readouterr()
    assert [line for line in out.splitlines() if line.startswith("> ")] == \
        ["> Who?", "> " + "x" * 400, "> Where?"]
    assert len(err.splitlines()) == 1 and "at most 28, which leave room for 12" in err
    assert out.count("PPO-ptx, reward") == 2


# -- the page -------------------------------------------------------------------------------------

HOSTILE = "a\x1b[2J\x07\r\x9b31m\u202eb\u200b\u2028\udc9b\x7f\tc\nd"


def steers(text):
    return {c for c in text if unicodedata.category(c) in terminal.UNSEEN} - {"\n"}


def test_no_character_that_steers_a_terminal_is_shown():
    text = terminal.visible(HOSTILE)
    assert not steers(text)
    assert text == "a␛[2J␇␍\ufffd31m\ufffdb\ufffd\ufffd\ufffd\ufffd    c\nd"
    every = terminal.visible("".join(map(chr, range(0x11000))))
    assert not steers(every) and "é" in every and "漢" in every


def test_breadth_and_wrapping_by_hand():
    by_hand = {"": 0, "abc": 3, "漢字": 4, "e\u0301": 1, "🙂": 2, "☺\ufe0f": 1}
    assert {text: terminal.breadth(text) for text in by_hand} == by_hand
    assert terminal.wrap("the fox sleeps here", 9) == ["the fox", "sleeps", "here"]
    assert terminal.wrap("a\n\nbc", 5) == ["a", "", "bc"]
    assert terminal.wrap("incomprehensible", 6) == ["incomp", "rehens", "ible"]
    assert terminal.wrap("漢字漢字", 5) == ["漢字", "漢字"]


def test_wrapped_lines_fit_and_lose_nothing():
    random, letters = np.random.default_rng(0), list("ab  漢\n🙂e\u0301")
    for _ in range(300):
        text = "".join(random.choice(letters, random.integers(0, 40)))
        width = int(random.integers(2, 12))
        lines = terminal.wrap(text, width)
        assert all(terminal.breadth(line) <= width for line in lines)
        assert re.sub(r"\s", "", "".join(lines)) == re.sub(r"\s", "", text)


ANSWERS = [Answer(name, "The fox sleeps. 漢字 " * n, True, "", -1.5 + n)
           for n, name in enumerate(runs.MODELS, 1)]


@pytest.mark.parametrize("width, beside", [(200, 4), (105, 4), (79, 2), (39, 1), (12, 1), (1, 1)])
def test_columns_stand_beside_one_another_where_they_fit(width, beside):
    screen = Terminal(max(2, width), 200)
    lines = terminal.page(ANSWERS, width)
    screen.feed("\n".join("\r" + line for line in lines))
    shown = screen.text().split("\n")
    assert len(shown) == len(lines)     # no line is broken by the terminal
    if width > 30:
        first = next(line for line in shown if line.startswith("GPT"))
        assert sum(name in first for name in NAMES) == beside
        assert shown[0].startswith("GPT") and "reward -0.50" in shown[0]


def test_colours_can_be_turned_off(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    assert not any("\x1b" in line for line in terminal.page(ANSWERS, 79))


def test_what_is_on_the_screen_at_the_end_is_the_whole_page_once(monkeypatch, capsys):
    """Through many frames, in a window that is lower than the page."""
    for columns, rows in ((80, 40), (80, 8), (30, 5)):
        monkeypatch.setattr(terminal.shutil, "get_terminal_size",
                            lambda *_, **__: os.terminal_size((columns, rows)))
        screen, window = Terminal(columns, rows), terminal.Screen()
        screen.feed("> Who?\r\n")
        words = [answer.text.split(" ") for answer in ANSWERS]
        for n in range(40):
            window.draw([a._replace(text=" ".join(w[:n])) for a, w in zip(ANSWERS, words)])
        window.draw(ANSWERS, whole=True)
        screen.feed(capsys.readouterr().out.replace("\n", "\r\n"))
        alone = Terminal(columns, 200)
        alone.feed("\n".join("\r" + line for line in terminal.page(ANSWERS, columns - 1)) + "\r\n")
        assert screen.text() == "> Who?\n" + alone.text()


def test_ctrl_c_stops_the_answers_and_keeps_what_was_said(capsys):
    class Slow:
        def answers(self, *_):
            yield [Answer("sft", "The"), Answer("ppo", "A fox.", True, "", 0.5)]
            raise KeyboardInterrupt
    assert chat.show(Slow(), "Who?", 0, terminal=False)
    assert capsys.readouterr().out.splitlines() == [
        "SFT:", "The", "[stopped]", "", "PPO, reward 0.50:", "A fox.", ""]


# -- the command ----------------------------------------------------------------------------------


def ask(*arguments):
    common.run(chat.main, AskConfig, argv=list(map(str, arguments)))


def test_elsewhere_than_on_a_terminal_answers_are_plain_and_labelled(folder, capsys):
    ask("--run", folder, "Who", "keeps", "a cat?", "--seed", 1)
    out = capsys.readouterr().out
    answers = last(models(folder, seed=1).answers("Who keeps a cat?"))
    assert out == terminal.plain(answers) + "\n" and not steers(out)
    assert re.findall(r"^(.*), reward -?\d+\.\d\d:$", out, re.M) == NAMES


def test_a_run_without_a_reward_model_gives_no_scores(folder, tmp_path, capsys):
    (tmp_path / "sft.pt").symlink_to(folder / "sft.pt")
    ask("Who?", "--run", tmp_path, "--models", "sft")
    assert capsys.readouterr().out.startswith("SFT:\n")


@pytest.mark.parametrize("arguments, message", [
    (["Who?", "--run", "nowhere"], "nowhere: no such run"),
    (["Who?", "--models", "start", "--run"], "has no start.pt; expected --models with some of"),
    (["Who?", "--models", "reward", "--run"], "stage 'reward'; expected 'base' or 'sft' or 'ppo'"),
    (["Who?", "--models", "--run"], "--models: expected one or more"),
    (["", "--run"], "the question is empty"),
    (["x" * 400, "--run"], "the question has 401 tokens; expected at most 28"),
    (["Who?", "--temperature", "-1", "--run"], "--temperature -1.0: expected 0 or more"),
    (["Who?", "--temperature", "nan", "--run"], "--temperature nan: expected a finite number"),
    (["Who?", "--max_response", "-1", "--run"], "--max_response -1: expected a number above 0"),
    (["Who?", "--max_response", "40", "--run"], "expected fewer than the 40 tokens"),
    (["Who?", "--tokenizer", "none", "--run"], "none: no such tokenizer"),
    (["Who?", "--nonsense", "1", "--run"], "unrecognized arguments: --nonsense 1"),
    (["Who?", "--seed", "one", "--run"], "invalid int value: 'one'"),
])
def test_bad_input_is_one_line_and_exit_code_2(folder, capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        ask(*arguments, *[folder] * (arguments[-1] == "--run"))
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and out == ""
    assert message in err and len(err.splitlines()) == 1


def test_a_damaged_checkpoint_is_named(folder, tmp_path):
    data = (folder / "sft.pt").read_bytes()
    (tmp_path / "sft.pt").write_bytes(data[:len(data) // 2])
    with pytest.raises(InputError, match="sft.pt: not a whole checkpoint"):
        models(tmp_path, models=("sft",))


def test_a_chat_on_a_terminal(folder):
    """The whole program: a question, an empty line, one that is too long, another, Ctrl-D."""
    command = [sys.executable, "-m", "data.chat", "--run", str(folder)]
    session = Session(command, 120, 50, OMP_NUM_THREADS="1")
    for question in ("Who keeps a cat?", "", "x" * 100, "Who?"):
        session.ask(question)
    session.type("\x04")
    text = session.read()
    assert session.close() == 0 and "Traceback" not in text
    assert text.count("reward") == 8 and text.count("PPO-ptx") == 2
    assert "expected at most 28" in text
    assert not steers(re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", session.raw)) - set("\r\a")
    answers = last(models(folder).answers("Who keeps a cat?", 0))
    page = Terminal(120, 50)
    page.feed("\n".join("\r" + line for line in terminal.page(answers, 119)))
    assert page.text() in text
    assert session.raw.count("\x1b[?25l") == session.raw.count("\x1b[?25h") > 1


def test_ctrl_c_at_the_prompt_ends_the_chat(folder):
    session = Session([sys.executable, "-m", "data.chat", "--run", str(folder), "--models", "sft"],
                      OMP_NUM_THREADS="1")
    session.read(lambda text: text.endswith("\n>"))
    time.sleep(0.5)     # Python's readline misses a signal between its prompt and its waiting
    session.type("\x03")
    assert "Traceback" not in session.read() and session.close() == 130


def test_run_sh_knows_the_command():
    done = subprocess.run(["./run.sh", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert "./run.sh ask" in done.stdout and "./run.sh plot" in done.stdout
