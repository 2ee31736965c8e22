"""`./run.sh plot`: every picture from a run made here, the same bytes each time, and what is
damaged is named. Skipped where matplotlib is absent, but for what is said then."""

import io
import json
import math

import numpy as np
import pytest
import torch

import common
from common import InputError
from data import plot, runs

needs_matplotlib = pytest.mark.skipif(plot.matplotlib is None, reason="matplotlib not installed")


def lines(path, rows):
    path.write_text("".join(json.dumps({"step": n, **row}) + "\n" for n, row in rows))


def results(low=0.2):
    models = {name: {"text_loss": [1 + n, 0.9 + n, 1.1 + n], "reward": [0, -1, 1]}
              for n, name in enumerate(runs.MODELS)}
    for n, name in enumerate(("base", "ppo", "ppo_ptx")):
        models[name]["win_rate"] = [low + n / 5, low + n / 5 - 0.1, low + n / 5 + 0.1]
        models[name]["win_rate_held_out"] = [low + n / 5, low + n / 5 - 0.1, low + n / 5 + 0.1]
    return {"models": {"": models}, "prompts": [5], "curves": {}}


@pytest.fixture
def folder(tmp_path):
    """The numbers of a short run, as every stage writes them."""
    run = tmp_path / "run"
    run.mkdir()
    falling = [(n, {"loss": 3 / (n + 1), "rate": 1e-3, "grad_norm": 1.0}) for n in range(60)]
    lines(run / "base.jsonl", [*falling, (59, {"valid_text_loss": 0.5})])
    for name in ("start", "sft"):
        lines(run / f"{name}.jsonl", [*falling, *(
            (n, {"valid_loss": 1.0, "valid_reward": n / 60, "kept": n < 50}) for n in (19, 39, 59))])
    lines(run / "reward.jsonl", [(n, {"loss": 0.6, "accuracy": 0.6, "pairs": 8}) for n in range(9)]
          + [(8, {"valid_loss": 0.6, "valid_accuracy": 0.6, "valid_interval": 0.05})])
    for name in ("ppo", "ppo_ptx"):
        lines(run / f"{name}.jsonl", [
            row for n in range(9) for row in
            ((n, {"reward": n / 9, "kl": n / 5, "entropy": 1 / (n + 1)}),
             (n, {"answers": ["a"], "prompts": ["p"]}))])
    (run / "results.json").write_text(json.dumps(results()))
    return run


def draw(folder, *arguments):
    common.run(plot.main, plot.PlotConfig, argv=["--run", str(folder), *map(str, arguments)])


def refused(capsys, folder, *arguments):
    """The one line that a refusal prints; nothing is drawn."""
    with pytest.raises(SystemExit) as stopped:
        draw(folder, *arguments)
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and len(said.splitlines()) == 1
    return said


@needs_matplotlib
def test_every_picture_is_drawn_and_the_same_numbers_give_the_same_bytes(folder, tmp_path, capsys):
    plot.matplotlib.rcParams["axes.facecolor"] = "black"    # of the user's own
    draw(folder)
    drawn = {path.name: path.read_bytes() for path in (folder / "plots").iterdir()}
    assert sorted(drawn) == sorted(f"{name}.png" for name in plot.PICTURES)
    draw(folder, "--out", tmp_path / "elsewhere")
    assert drawn == {path.name: path.read_bytes() for path in (tmp_path / "elsewhere").iterdir()}
    for data in drawn.values():
        assert b"matplotlib" not in data.lower() and b"tEXt" not in data and b"tIME" not in data
    assert capsys.readouterr().out.count("wrote") == 2 * len(drawn)


@needs_matplotlib
def test_bars_intervals_and_colours_are_those_of_the_results(folder):
    axes, = plot.plot_winrate(plot.Run(folder)).axes
    bars = [(bar.get_width(), bar.get_edgecolor()) for bar in axes.patches]
    expected = [(100 * w, plot.matplotlib.colors.to_rgba(runs.COLOURS[name])) for name, w in
                (("base", 0.2), ("ppo", 0.4), ("ppo_ptx", 0.6)) for _ in range(2)]
    assert [c for _, c in bars] == [c for _, c in expected]
    assert [w for w, _ in bars] == pytest.approx([w for w, _ in expected])
    spans = [line.get_xdata() for line in axes.lines if len(set(line.get_xdata())) == 2]
    assert np.ravel(spans) == pytest.approx(np.ravel([(w - 10, w + 10) for w, _ in expected]))
    assert [t.get_text() for t in axes.get_yticklabels()] == ["GPT", "PPO", "PPO-ptx"]


@needs_matplotlib
def test_the_epoch_marked_is_the_last_that_sft_kept(folder):
    marked = [(axes.get_title(), text.get_text(), text.xy) for axes in
              plot.plot_stages(plot.Run(folder)).axes for text in axes.texts]
    assert marked == [("SFT", "kept", (40, pytest.approx(39 / 60)))]


@needs_matplotlib
def test_a_study_of_several_sizes_has_bars_for_each(folder):
    (folder / "results.json").write_text(json.dumps(
        {"models": {"0.3M": results()["models"][""], "1M": results(0.4)["models"][""]}}))
    found = plot.Run(folder)
    for made in (plot.plot_winrate(found), plot.plot_tax(found)):
        assert [axes.get_title() for axes in made.axes] == ["0.3M", "1M"]
    assert "PPO-ptx wins against SFT in 80 %" in plot.plot_winrate(found).get_suptitle()


@needs_matplotlib
def test_what_is_not_finite_is_a_gap(folder):
    rows = [(n, {"reward": math.nan if n == 2 else math.inf if n == 5 else 1.0, "kl": n / 9,
                 "entropy": 1.0}) for n in range(9)]
    lines(folder / "ppo.jsonl", rows)
    made = json.loads((folder / "results.json").read_text())
    made["models"][""]["ppo"]["win_rate"] = [math.nan] * 3
    (folder / "results.json").write_text(json.dumps(made))
    found = plot.Run(folder)
    _, reward = plot.series(found.stages["ppo"], "reward")
    assert np.isnan(reward).nonzero()[0].tolist() == [2, 5]
    assert "win_rate" not in found.sizes[""]["ppo"]
    made, found = plot.plot_ppo(found), io.BytesIO()
    made.savefig(found, dpi=50)
    assert all(np.isfinite(axes.get_ylim()).all() for axes in made.axes) and found.getvalue()


@needs_matplotlib
def test_a_stage_that_measured_nothing_finite_is_left_out(folder, capsys):
    for name in ("ppo", "ppo_ptx"):
        lines(folder / f"{name}.jsonl", [(0, {"reward": math.nan, "kl": 0.1, "entropy": 1.0})])
    draw(folder)
    assert "frontier: no numbers" in capsys.readouterr().out


@needs_matplotlib
def test_a_run_in_progress_is_drawn_as_far_as_it_is(folder, capsys):
    (folder / "results.json").unlink()
    (folder / "ppo_ptx.jsonl").unlink()
    with (folder / "ppo.jsonl").open("a") as file:
        file.write('{"step": 9, "rewa')     # being written
    draw(folder)
    out = capsys.readouterr().out
    assert "winrate: no numbers for it yet" in out and "tax: no numbers for it yet" in out
    assert sorted(p.stem for p in (folder / "plots").iterdir()) == ["frontier", "ppo", "stages"]


@needs_matplotlib
def test_a_run_without_labelers_has_no_bars_of_wins(folder):
    made = results()
    for model in made["models"][""].values():
        model.pop("win_rate", None)
    (folder / "results.json").write_text(json.dumps(made))
    assert plot.plot_winrate(plot.Run(folder)) is None
    assert plot.plot_tax(plot.Run(folder)) is not None


def test_running_means_by_hand():
    nan = math.nan
    assert plot.smooth(np.array([1.0, 2, 6]), 1).tolist() == [1, 2, 6]
    assert plot.smooth(np.array([1.0, 2, 6]), 3).tolist() == [1.5, 3, 4]
    np.testing.assert_array_equal(plot.smooth(np.array([1, nan, 5, 7]), 3), [1, nan, 6, 6])


@pytest.mark.parametrize("line", ["{", "[1]", "3", '{"loss": 1}', '{"step": 1, "loss": "low"}',
                                  '{"step": "a", "loss": 1}', '{"step": 1, "loss": null}',
                                  '{"step": NaN, "loss": 1}', '{"step": 1e99, "loss": 1}',
                                  "[" * 100_000,
                                  '{"step": 1, "loss": 1' + "0" * 400 + "}"])
def test_a_damaged_line_of_metrics_is_named(tmp_path, line):
    path = tmp_path / "sft.jsonl"
    path.write_text('{"step": 0, "loss": 1}\n' + line + "\n")
    with pytest.raises(InputError, match="sft.jsonl:2: .* is damaged"):
        runs.read_metrics(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"models": 1}', '{"models": {"s": 1}}',
                                  '{"sizes": []}', '{"models": {"s": {"sft": 1}}}',
                                  '{"models": {"s": {"sft": {"text_loss": [1, 2, "x"]}}}}',
                                  '{"models": {"s": {"sft": {"text_loss": 1}}}}', "[" * 100_000])
def test_damaged_results_are_named(tmp_path, text):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(InputError, match="results.json: damaged"):
        runs.read_results(path)


@needs_matplotlib
def test_bad_input_is_one_line_and_exit_code_2(folder, tmp_path, capsys):
    assert "nowhere: no such run" in refused(capsys, "nowhere")
    (tmp_path / "empty").mkdir()
    assert "holds no numbers of any stage" in refused(capsys, tmp_path / "empty")
    file = tmp_path / "file"
    file.touch()
    assert "cannot be written to" in refused(capsys, folder, "--out", file / "below")
    (folder / "ppo.jsonl").write_bytes(b'{"step": 0, "reward": 1}\n\xff\n')
    assert "ppo.jsonl:2: not UTF-8" in refused(capsys, folder)
    assert not (folder / "plots").exists()


def test_without_matplotlib_it_says_what_to_install(folder, capsys, monkeypatch):
    monkeypatch.setattr(plot, "matplotlib", None)
    assert "pip install matplotlib" in refused(capsys, folder)
