"""What a run needs and costs, as computed, against what the code really holds; and the settings."""

import dataclasses
import json
from functools import partial

import pytest
import torch
import torch.nn.functional as F

import model as models
import ppo
import reward
import sft
from common import InputError, parse_config, run_verbs
from data import plan, prepare
from model import CONFIGS, GPT, GPTConfig, KVCache, adam

GB = plan.GB
SMALL = GPTConfig(503, 64, 2, 4, 256)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


# -- memory ---------------------------------------------------------------------------------------


def test_parameters_are_counted_without_making_them():
    assert plan.parameters(CONFIGS["gpt2"]) == 124_439_808
    assert plan.parameters(SMALL) == sum(p.numel() for p in GPT(SMALL).parameters())


def test_training_holds_16_bytes_a_parameter():
    """Weights, gradients and Adam's moments after a first step, tensor by tensor."""
    model = GPT(SMALL)
    optimizer = adam(model, 1e-3)
    model(torch.zeros(1, 8, dtype=torch.long)).sum().backward()
    optimizer.step()
    held = [*model.parameters(), *(p.grad for p in model.parameters())]
    held += [t for state in optimizer.state.values() for t in state.values() if t.numel() > 1]
    assert sum(t.numel() * t.element_size() for t in held) == 16 * plan.parameters(SMALL)


@pytest.mark.parametrize("shape, rows, positions", [(SMALL, 4, 64),
                                                    (GPTConfig(97, 96, 3, 3, 192), 2, 96)])
def test_activations_are_what_the_backward_pass_keeps(monkeypatch, shape, rows, positions):
    """Every tensor that autograd saves in a bf16 forward pass, weights and their copies aside;
    attention in bf16 as well, as a GPU has it (on a CPU `fused_attention` stays in fp32)."""
    model, saved = GPT(shape).train(), {}
    monkeypatch.setattr(models, "fused_attention",
                        partial(F.scaled_dot_product_attention, is_causal=True))

    def pack(tensor):
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor
    tokens = torch.randint(shape.vocab_size, (rows, positions))
    with torch.autocast("cpu", dtype=torch.bfloat16), \
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = model.decoder(tokens)
    assert kept.requires_grad
    for parameter in model.parameters():
        saved.pop(parameter.untyped_storage().data_ptr(), None)
    copies = sum(2 * p.numel() for p in model.decoder.h.parameters() if p.dim() == 2)
    expected = plan.activation_bytes(shape, rows * positions)
    assert sum(saved.values()) - copies == pytest.approx(expected, rel=0.05)


def test_the_cache_is_as_large_as_the_one_that_sampling_makes():
    cache = KVCache()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        GPT(SMALL).decoder.prefill(torch.zeros(5, 20, dtype=torch.long), cache)
    cache.start(torch.tensor([20, 32, 4, 1, 20]))  # the longest row's next token is its 33rd
    held = sum(t.numel() * t.element_size() for t in cache.keys + cache.values)
    assert plan.cache_bytes(SMALL, 5, 33) == held == 2 * 2 * 256 * 2 * 5 * 33


def test_a_plans_memory_by_hand():
    """GPT-2 with a reward model of its size, 64 prompts, 1024 tokens a pass, in bytes."""
    P = 124_439_808
    need = plan.ppo_memory(plan.Plan(CONFIGS["gpt2"], CONFIGS["gpt2"], 64, 1024, 100, 28))
    assert need["policy"] == need["value function"] == 16 * P and need["reward model"] == 4 * P
    assert need["update"] == 38 * 768 * 12 * 1024 + 20 * 1024 * 50257
    assert need["sampling"] == 2 * 12 * 768 * 2 * 64 * 128 * 11 // 8 + 30 * 64 * 50257
    assert need["total"] == pytest.approx(48 * P + plan.OVERHEAD + need["update"])


# of 1.3B and 6B: L (12 D² + 13 D) + (50257 + 2048 + 2) D, which is
# 24 (12 · 2048² + 13 · 2048) + 52307 · 2048 and 32 (12 · 4096² + 13 · 4096) + 52307 · 4096
P, Q = 1_315_723_264, 6_658_404_352


def test_logits_take_an_eighth_of_a_gpu_at_most():
    gpt2 = CONFIGS["gpt2"]
    assert plan.logits_bytes(gpt2, 10**6, 24 * GB) == 3 * GB
    assert plan.logits_bytes(gpt2, 16384, 141 * GB) == 20 * 16384 * 50257 < 17 * GB
    assert plan.logits_bytes(gpt2, 10**6, 8 * GB) == 20 * 2**26  # at least as on a CPU


@pytest.mark.parametrize("memory, chunks", [(0, [7, 7, 5]), (160 * 503 * 10, [10, 9]), (GB, [19])])
def test_a_gpus_memory_decides_how_many_logits_are_held(monkeypatch, memory, chunks):
    model, ids, rows = GPT(SMALL), torch.zeros(1, 20, dtype=torch.long), []
    monkeypatch.setattr(models, "gpu_memory", lambda device: memory)
    monkeypatch.setattr(models, "LOGITS_AT_ONCE", 503 * 7)
    monkeypatch.setattr(model, "unembed", lambda hidden: rows.append(len(hidden)) or
                        GPT.unembed(model, hidden))
    models.target_logprobs(model, ids, torch.ones_like(ids, dtype=torch.bool))
    assert rows == chunks


def test_the_papers_setting_by_hand():
    """Policy 1.3B (24 layers of 2048), value function 6B (32 of 4096), in bytes."""
    assert (plan.parameters(CONFIGS["1.3B"]), plan.parameters(CONFIGS["6B"])) == (P, Q)
    plain = plan.phases(CONFIGS["1.3B"], CONFIGS["6B"], 2048, plan.Savings(), 141 * GB)
    saved = plan.phases(CONFIGS["1.3B"], CONFIGS["6B"], 2048,
                        plan.Savings(8192, recompute=True, offload=True, sample_rows=32),
                        141 * GB)
    # 512 rows of 2048 positions, 24 layers of keys and values of 2048 in bf16: 206 GB, and 3/8 more
    assert plain["sampling"] == (20 * P + 16 * Q + plan.OVERHEAD + 2 * P + 30 * 512 * 50257
                                 + 512 * 2048 * 24 * 2 * 2048 * 2 * 11 // 8)
    assert plain["value update"] == (20 * P + 16 * Q + plan.OVERHEAD + 6 * Q
                                     + 38 * 4096 * 32 * 16384)
    # with everything: weights, moments and gradients of the value function and the policy's moments
    assert saved["value update"] == (12 * P + 16 * Q + plan.OVERHEAD + 4 * 4096 * 32 * 8192
                                     + 38 * 4096 * 8192 + 24 * 4096**2)
    assert saved["policy update"] == (16 * P + 12 * Q + plan.OVERHEAD + 4 * 2048 * 24 * 8192
                                      + 38 * 2048 * 8192 + 24 * 2048**2 + 20 * 8192 * 50257)
    assert saved["rewards"] == 12 * P + 16 * Q + plan.OVERHEAD + 38 * 4096 * 8192 + 24 * 4096**2
    assert saved["sampling"] == (14 * P + 12 * Q + plan.OVERHEAD + 30 * 32 * 50257
                                 + 32 * 2048 * 24 * 2 * 2048 * 2 * 11 // 8)
    assert max(plain.values()) > 2 * 141 * GB and max(saved.values()) < 0.95 * 141 * GB


def test_the_papers_table_ends_with_what_fits(capsys):
    plan.paper(plan.PaperConfig())
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| --")]
    assert [row.endswith("| yes |") for row in rows] == [False] * 4 + [True]
    assert "--recompute true --offload true" in rows[-1]


@pytest.mark.parametrize("memory", [24, 80])
@pytest.mark.parametrize("name", plan.SIZES)
def test_what_fits_fits(name, memory):
    try:
        chosen, reward_name = plan.fit(name, CONFIGS[name], memory * GB)
    except InputError as error:
        assert (name, memory) == ("gpt2-xl", 24) and "at least" in str(error)
        return
    assert plan.ppo_memory(chosen)["total"] <= 0.95 * memory * GB
    assert plan.parameters(chosen.reward) <= plan.parameters(chosen.policy)
    assert reward_name == name or chosen.reward == CONFIGS[reward_name]
    assert chosen.answers == 600 or chosen.answers <= 255
    # no other stage needs more: SFT holds 20 P and the reward model, reward modelling 16 Q
    P, Q = plan.parameters(chosen.policy), plan.parameters(chosen.reward)
    assert 20 * P + 4 * Q < 24 * P + 20 * Q


def test_more_memory_never_makes_a_plan_worse():
    for name in plan.SIZES:
        best = None
        for memory in (12, 16, 24, 40, 48, 80, 141):
            try:
                chosen, _ = plan.fit(name, CONFIGS[name], memory * GB)
            except InputError:
                assert best is None
                continue
            rank = (plan.parameters(chosen.reward), chosen.batch, not chosen.saving,
                    chosen.micro_tokens)
            assert best is None or rank >= best
            best = rank


# -- settings -------------------------------------------------------------------------------------


def chosen(name="gpt2", memory=24):
    return plan.fit(name, CONFIGS[name], memory * GB)[0]


@pytest.mark.parametrize("tiny", [True, False])
@pytest.mark.parametrize("name, memory", [("distilgpt2", 24), ("gpt2", 24), ("gpt2-medium", 24),
                                          ("gpt2-large", 24), ("gpt2-large", 80),
                                          ("gpt2-xl", 80)])
def test_every_stage_takes_its_settings(name, memory, tiny):
    """Each array of flags, with what run.sh adds, makes the config of its stage."""
    given = {key: [word for k, v in flags.items() for word in (f"--{k}", str(v))]
             for key, flags in plan.flags(chosen(name, memory), tiny).items()}
    lengths, files = given["LENGTHS"], ["--out", "o", "--init", "i"]
    text = ["--text", "t", "--demonstrations", "d"]
    for key in ("START", "REWARD_START"):
        parse_config(sft.SFTConfig, argv=[*files, *text, *lengths, *given[key]])
    parse_config(sft.SFTConfig, argv=[*files, *text[2:], *lengths, *given["SFT"]])
    parse_config(reward.RewardConfig, argv=["--out", "o", "--init", "i", "--comparisons", "c",
                                            *given["REWARD"]])
    parse_config(prepare.PrepareConfig, argv=["--out", "o", *given["PREPARE"]])
    made = parse_config(ppo.PPOConfig, argv=["--policy", "p", "--reward", "r", "--prompts", "p",
                                             "--out", "o", "--text", "t", *lengths, *given["PPO"]])
    assert made.episodes % made.batch == 0
    assert made.max_prompt + made.max_response <= 1024


def test_rates_are_the_papers_scaled_as_gpt3s():
    assert plan.rate("sft", CONFIGS["1.3B"]) == "9.65e-06"
    assert plan.rate("sft", CONFIGS["gpt2"]) == "2.89e-05"
    assert plan.rate("reward", CONFIGS["gpt2-medium"]) == "1.35e-05"


def test_the_shell_reads_the_settings(tmp_path, no_gpu, capsys):
    """Arrays alone on standard output; what people read goes to standard error."""
    plan.settings(plan.SettingsConfig("gpt2", str(tmp_path), tiny=True, shell=True))
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert "GFLOP/s" in said.err and lines[0] == "REWARD_MODEL=gpt2"
    assert lines[1] == "LENGTHS=(--max_prompt 96 --max_response 32)"
    assert all(line.endswith(")") and "=(--" in line for line in lines[1:])


def test_a_folder_may_hold_another_shape(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text(json.dumps({
        "vocab_size": 503, "n_ctx": 64, "n_layer": 2, "n_head": 4, "n_embd": 256}))
    assert plan.shape_of("mine", tmp_path) == SMALL
    assert plan.shape_of("gpt2", tmp_path) == CONFIGS["gpt2"]
    with pytest.raises(InputError, match="--model gpt5: expected one of gpt2-xl"):
        plan.shape_of("gpt5", tmp_path)


# -- cost -----------------------------------------------------------------------------------------


def test_a_cost_by_hand():
    """P = Q: 24 P a token of start, SFT (2 epochs) and rewards (2 answers), … in all."""
    P, rows, tokens, episodes = 124_439_808, 0.8 * 86_000, 250, 65_536
    text = 0.1 * rows * 1024
    expected = (6 * P * (rows * tokens + text) + 6 * P * rows * tokens * 2
                + 6 * P * 2 * rows * tokens + 2 * episodes * tokens * 20 * P
                + 6 * P * episodes * 512)
    assert plan.cost(chosen(memory=80), tiny=False) == pytest.approx(expected)
    assert plan.cost(chosen(), tiny=True) < expected / 500
    assert plan.cost(chosen("gpt2-xl", 80), False) > 5 * expected


def test_speed_is_positive():
    assert 1e8 < plan.speed(torch.device("cpu")) < 1e14


def test_a_cpu_asks_for_tiny_or_yes(no_gpu, capsys):
    verbs = {"settings": (plan.settings, plan.SettingsConfig), "table": (plan.table,
                                                                        plan.TableConfig)}
    with pytest.raises(SystemExit) as stop:
        run_verbs(verbs, plan.__doc__, ["settings", "--shell", "true"])
    said = capsys.readouterr()
    assert stop.value.code == 2 and not said.out
    assert "--tiny" in said.err and "--yes" in said.err and said.err.count("\n") == 1
    assert "days" in said.err or "hours" in said.err
    for agreed in ("--yes", "--tiny"):
        run_verbs(verbs, plan.__doc__, ["settings", agreed, "true"])
    run_verbs(verbs, plan.__doc__, ["table"])
    assert capsys.readouterr().out.count("\n| gpt2 |") == 2


@pytest.mark.parametrize("memory", [["x"], ["24", "nan"], ["1e400"], ["1e300"], ["-5"], ["0"], [""],
                                    []])
def test_what_is_no_size_of_a_gpu_is_one_line(memory, capsys):
    with pytest.raises(SystemExit) as stop:
        run_verbs({"table": (plan.table, plan.TableConfig)}, "", ["table", "--memory", *memory])
    said = capsys.readouterr()
    assert stop.value.code == 2 and not said.out and said.err.count("\n") == 1
    assert f"--memory {' '.join(memory)}: expected numbers above 0" in said.err


@pytest.mark.parametrize("hours, text", [(0.001, "1 minutes"), (0.5, "30 minutes"),
                                         (5, "5 hours"), (100, "4 days")])
def test_durations(hours, text):
    assert plan.duration(hours) == text


def test_a_gpu_that_is_too_small_is_one_line():
    with pytest.raises(InputError, match=r"gpt2-xl: needs \d+ GB at least; this GPU has 24"):
        plan.settings(dataclasses.replace(plan.SettingsConfig(), model="gpt2-xl", memory=24.0))
