"""GPT-2's weights in and out: the same logits as `transformers` both ways, the same ids, the same
rewards; and files that are damaged, hostile, or of another model, which are refused in one line."""

import json
import os
import pickle
import random
import subprocess
import sys
import zipfile

import pytest
import torch

from common import InputError, load_model, read_checkpoint, save_checkpoint
from conftest import ROOT, randomize, sweep
from data import weights
from data.safetensors import read_safetensors, write_safetensors
from data.tokenizer import (END_OF_TEXT, PROMPT_TEMPLATE, RESPONSE_TEMPLATE, Tokenizer,
                            load_tokenizer)
from model import (CONFIGS, GPT, GPTConfig, ScalarGPT, load_gpt2, save_gpt2, save_reward)

VOCAB = ROOT.parent / "shared" / "data" / "gpt2"
needs_gpt2 = pytest.mark.skipif(not VOCAB.is_dir(),
                                reason="GPT-2's vocabulary is not in ../shared/data/gpt2")
SHAPES = [GPTConfig(vocab_size=61, n_ctx=32, n_layer=2, n_head=3, d_model=24),
          GPTConfig(vocab_size=97, n_ctx=20, n_layer=3, n_head=1, d_model=16)]
close = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(scope="module")
def transformers():
    os.environ["HF_HUB_OFFLINE"] = "1"
    library = pytest.importorskip("transformers")
    library.logging.set_verbosity_error()
    library.utils.logging.disable_progress_bar()
    return library


def published(transformers, shape, **more):
    """A random GPT2LMHeadModel of `shape`."""
    return randomize(transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=shape.vocab_size, n_positions=shape.n_ctx, n_embd=shape.d_model,
        n_layer=shape.n_layer, n_head=shape.n_head, **more)))


def some_tokens(shape, rows=3):
    return torch.randint(shape.vocab_size, (rows, shape.n_ctx))


def same_logits(ours, theirs):
    tokens = some_tokens(ours.config)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(tokens), theirs.eval()(tokens).logits, **close)


def config_json(shape, **more):
    return {"model_type": "gpt2", "vocab_size": shape.vocab_size, "n_positions": shape.n_ctx,
            "n_embd": shape.d_model, "n_layer": shape.n_layer, "n_head": shape.n_head} | more


def folder_of(folder, config, tensors, form="safetensors"):
    """A folder as the hub serves it."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if form == "safetensors":
        write_safetensors(folder / "model.safetensors", tensors)
    else:
        torch.save(tensors, folder / "pytorch_model.bin",
                   _use_new_zipfile_serialization=form == "zip")
    return folder


def tensors_of(model, prefix="transformer."):
    """A GPT's weights under the published names."""
    return {name.replace("transformer.", prefix): w
            for name, w in weights._published(model.decoder).items()}


# -- in -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=["2x24", "3x16"])
def test_what_transformers_saved_gives_the_same_logits(transformers, tmp_path, shape):
    theirs = published(transformers, shape)
    theirs.save_pretrained(tmp_path)
    ours = load_gpt2(tmp_path)
    assert ours.config == shape
    same_logits(ours, theirs)


@pytest.mark.parametrize("form", ["safetensors", "zip", "before 2020"])
@pytest.mark.parametrize("prefix", ["transformer.", ""])
@pytest.mark.parametrize("older", [True, False])
def test_every_form_in_which_it_was_published(tmp_path, form, prefix, older):
    """Pickled in either format or not, with and without prefix, masks and the tied copy."""
    shape = SHAPES[0]
    model = randomize(GPT(shape))
    tensors = tensors_of(model, prefix)
    if older:
        for layer in range(shape.n_layer):
            tensors[f"{prefix}h.{layer}.attn.bias"] = torch.ones(1, 1, 32, 32).tril()
            tensors[f"{prefix}h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
        tensors["lm_head.weight"] = tensors[f"{prefix}wte.weight"].clone()
    loaded = load_gpt2(folder_of(tmp_path, config_json(shape), tensors, form))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_become_fp32(transformers, tmp_path, dtype):
    theirs = published(transformers, SHAPES[0]).to(dtype)
    theirs.save_pretrained(tmp_path)
    ours = load_gpt2(tmp_path)
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    same_logits(ours, theirs.float())


def test_weights_in_several_files(transformers, tmp_path):
    theirs = published(transformers, SHAPES[0])
    theirs.save_pretrained(tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    same_logits(load_gpt2(tmp_path), theirs)


@pytest.mark.parametrize("places, message", [
    ({"a": "../model.safetensors"}, "to files beside it"),
    ({"a": 3}, "to files beside it"),
    (None, "to files beside it"),
    ({"a": "absent.safetensors"}, "absent.safetensors"),
    ({"wte.weight": "part.safetensors"}, "has other tensors than it says"),
])
def test_indices_that_lead_nowhere(tmp_path, places, message):
    (tmp_path / "config.json").write_text(json.dumps(config_json(SHAPES[0])))
    write_safetensors(tmp_path / "part.safetensors", {"wpe.weight": torch.zeros(2)})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(InputError, match=message):
        load_gpt2(tmp_path)


COMMON = {  # what the hub's config.json files say beside the sizes
    "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
    "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_positions": 1024,
    "resid_pdrop": 0.1, "summary_activation": None, "vocab_size": 50257,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}}}


@pytest.mark.parametrize("name, sizes", [
    ("gpt2", {"n_embd": 768, "n_head": 12, "n_layer": 12}),
    ("gpt2-medium", {"n_embd": 1024, "n_head": 16, "n_layer": 24}),
    ("gpt2-large", {"n_embd": 1280, "n_head": 20, "n_layer": 36}),
    ("gpt2-xl", {"n_embd": 1600, "n_head": 25, "n_layer": 48, "output_past": True}),
    ("distilgpt2", {"n_embd": 768, "n_head": 12, "n_layer": 6, "_num_labels": 1,
                    "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}),
])
def test_the_published_configs_are_the_named_sizes(tmp_path, name, sizes):
    for config in (COMMON | sizes, {k: v for k, v in (COMMON | sizes).items() if k != "n_ctx"},
                   {k: v for k, v in (COMMON | sizes).items() if k != "n_positions"}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert weights.read_config(tmp_path / "config.json") == CONFIGS[name]


@pytest.mark.parametrize("more, message", [
    ({"activation_function": "gelu"}, 'activation_function is "gelu"; this decoder has tanh-GELU'),
    ({"activation_function": "relu"}, "tanh-GELU alone"),
    ({"activation_function": None}, "tanh-GELU alone"),
    ({"scale_attn_weights": False}, "scale_attn_weights is false; this decoder has true alone"),
    ({"scale_attn_by_inverse_layer_idx": True}, "this decoder has false alone"),
    ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is 1e-06"),
    ({"model_type": "llama"}, "model_type is"),
    ({"add_cross_attention": True}, "add_cross_attention"),
    ({"tie_word_embeddings": False}, "tie_word_embeddings"),
    ({"n_inner": 48}, "n_inner is 48; expected 4 times n_embd"),
    ({"n_layer": None}, "n_layer is null; expected a whole number"),
    ({"n_layer": "2"}, "n_layer is"),
    ({"n_layer": 2.0}, "n_layer is"),
    ({"n_layer": True}, "n_layer is true"),
    ({"n_layer": 0}, "n_layer is 0"),
    ({"n_layer": -1}, "n_layer is -1"),
    ({"n_embd": 10**29}, "n_embd is"),
    ({"n_head": 5}, "n_head 5 does not divide d_model 24"),
])
def test_a_config_of_another_model_is_refused(tmp_path, more, message):
    shape = SHAPES[0]
    folder = folder_of(tmp_path, config_json(shape, **more), tensors_of(GPT(shape)))
    with pytest.raises(InputError, match=message) as error:
        load_gpt2(folder)
    assert "config.json" in str(error.value) and "\n" not in str(error.value)


def test_what_a_config_may_say_besides(tmp_path):
    shape = SHAPES[0]
    folder = folder_of(tmp_path, config_json(
        shape, activation_function="gelu_pytorch_tanh", n_inner=96, scale_attn_weights=True,
        reorder_and_upcast_attn=True, use_cache=True, n_ctx=32), tensors_of(GPT(shape)))
    assert load_gpt2(folder).config == shape


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", '{"a": NaN}', "[" * 10**5, "\ud800",
                                  '{"n_layer": 1, "n_layer": 2}'])
def test_a_config_that_is_none(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(InputError, match="config.json"):
        load_gpt2(tmp_path)


def test_folders_without_the_files(tmp_path):
    with pytest.raises(InputError, match="config.json.*No such file"):
        load_gpt2(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config_json(SHAPES[0])))
    with pytest.raises(InputError, match="no weights; expected model.safetensors"):
        load_gpt2(tmp_path)
    with pytest.raises(InputError, match="No such file"):
        load_gpt2(tmp_path / "absent")


def without(tensors, name):
    return {k: v for k, v in tensors.items() if k != name}


@pytest.mark.parametrize("form", ["safetensors", "zip"])
@pytest.mark.parametrize("change, message", [
    (lambda t: without(t, "transformer.h.1.ln_2.bias"), "missing: h.1.ln_2.bias$"),
    (lambda t: {}, r"missing: h.0.attn.c_attn.bias, .* and 24 more$"),
    (lambda t: t | {"score.weight": torch.zeros(1, 24)}, "not of this model: score.weight$"),
    (lambda t: t | {"transformer.h.2.ln_1.bias": torch.zeros(24)}, "not of this model: h.2"),
    (lambda t: t | {"transformer.wpe.weight": torch.zeros(31, 24)},
     r"misshapen: wpe.weight is \[31, 24\], expected \[32, 24\]$"),
    (lambda t: t | {"transformer.h.0.mlp.c_fc.weight": torch.zeros(96, 24)},
     r"h.0.mlp.c_fc.weight is \[96, 24\], expected \[24, 96\]"),
    (lambda t: t | {"transformer.ln_f.bias": torch.zeros(())}, r"ln_f.bias is \[\], expected"),
    (lambda t: without(t, "transformer.wte.weight") | {
        "extra": torch.zeros(1), "transformer.ln_f.weight": torch.zeros(2)},
     "missing: wte.weight; not of this model: extra; misshapen: ln_f.weight"),
    (lambda t: t | {"wte.weight": torch.zeros(61, 24)}, "wte.weight stands twice"),
    (lambda t: t | {"lm_head.weight": torch.zeros(61, 24)}, "this decoder has them tied"),
    (lambda t: t | {"lm_head.weight": torch.zeros(60, 24)}, "this decoder has them tied"),
    (lambda t: t | {"transformer.ln_f.bias": torch.full((24,), float("nan"))},
     "ln_f.bias holds values that are not finite"),
])
def test_tensors_that_do_not_fit_are_named(tmp_path, form, change, message):
    folder = folder_of(tmp_path, config_json(SHAPES[0]), change(tensors_of(GPT(SHAPES[0]))), form)
    with pytest.raises(InputError, match=message) as error:
        load_gpt2(folder)
    assert "\n" not in str(error.value)


def test_tensors_of_whole_numbers_are_refused(tmp_path):
    tensors = tensors_of(GPT(SHAPES[0])) | {"transformer.ln_f.bias": torch.zeros(24).long()}
    with pytest.raises(InputError, match="ln_f.bias is torch.int64, expected floating-point"):
        load_gpt2(folder_of(tmp_path, config_json(SHAPES[0]), tensors, "zip"))


# -- hostile and damaged files --------------------------------------------------------------------


class Evil:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("form", ["pickle", "zip", "before 2020"])
def test_pickled_code_is_never_run(tmp_path, form):
    """A file that would run a command where it is unpickled, alone or among good tensors."""
    mark = tmp_path / "ran"
    evil = tensors_of(GPT(SHAPES[0])) | {"evil": Evil(f"touch {mark}")}
    (tmp_path / "config.json").write_text(json.dumps(config_json(SHAPES[0])))
    path = tmp_path / "pytorch_model.bin"
    if form == "pickle":
        path.write_bytes(pickle.dumps(evil["evil"]))
    else:
        torch.save(evil, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(InputError, match="not a whole file of tensors"):
        load_gpt2(tmp_path)
    assert not mark.exists()
    if form == "pickle":  # what would have happened
        pickle.loads(path.read_bytes())
        assert mark.exists()


@pytest.mark.parametrize("contents", [
    [1, 2], "text", {"a": 1}, {1: torch.zeros(1)}, {"a": [torch.zeros(1)]}, torch.zeros(3),
    {"a": torch.zeros(3).to_sparse()}, {"a": torch.zeros(3, device="meta")}])
def test_pickles_of_anything_but_plain_tensors(tmp_path, contents):
    folder = folder_of(tmp_path, config_json(SHAPES[0]), contents, "zip")
    with pytest.raises(InputError, match="pytorch_model.bin"):
        load_gpt2(folder)


@sweep(120)
def test_a_damaged_pickle_is_read_or_refused(tmp_path_factory, seed):
    rng = random.Random(seed)
    folder = tmp_path_factory.getbasetemp() / "damaged"
    form = rng.choice(["zip", "before 2020"])
    shape = GPTConfig(5, 4, 1, 1, 4)
    folder_of(folder, config_json(shape), tensors_of(randomize(GPT(shape))), form)
    path = folder / "pytorch_model.bin"
    path.write_bytes(damaged(path.read_bytes(), rng))
    try:
        load_gpt2(folder)
    except InputError as error:
        assert "\n" not in str(error)


def damaged(content, rng):
    """Bytes of a file after a few changes: replaced, inserted, removed, cut."""
    content = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(content))
        change = rng.choice(["replace", "replace", "insert", "remove", "cut"])
        if change == "cut":
            content = content[:max(1, place)]
        elif change == "remove":
            del content[place:place + rng.randint(1, min(20, len(content) - 1 or 1))]
        else:
            content[place:place + (change == "replace")] = bytes([rng.randrange(256)])
        content = content or bytearray(b"x")
    return bytes(content)


def raw(header, body=b"", length=None):
    """The bytes of a safetensors file with any header at all."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


def entry(dtype="F32", shape=(2,), offsets=(0, 8), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)} | more


GOOD = {"a": entry()}
MALFORMED = {
    "nothing": b"", "less than a length": b"1234567", "a length alone": raw(b""),
    "a header beyond the file": raw(GOOD, bytes(8), length=10**6),
    "a huge header": raw(GOOD, bytes(8), length=2**63 - 1),
    "a length of all ones": b"\xff" * 8 + bytes(100),
    "a header cut short": raw(GOOD, bytes(8), length=20),
    "a header of one byte": raw(b"{", b"}"),
    "no JSON": raw(b"{'a': 1}"), "not UTF-8": raw(b'{"\xff": 1}'), "an array": raw([1]),
    "white space first": raw(b" " + json.dumps(GOOD).encode(), bytes(8)),
    "NaN": raw(b'{"a": NaN}'), "a number of 5000 digits": raw(b'{"a": ' + b"9" * 5000 + b"}"),
    "deep nesting": raw(b'{"a":' * 5000 + b"1" + b"}" * 5000),
    "a name twice": raw(b'{"a": %s, "a": %s}' % ((json.dumps(entry()).encode(),) * 2), bytes(8)),
    "an entry that is none": raw({"a": 3}), "an empty entry": raw({"a": {}}),
    "a key too many": raw({"a": entry(more=1)}, bytes(8)),
    "an unknown type": raw({"a": entry("F128")}, bytes(8)),
    "a type of F8": raw({"a": entry("F8_E4M3", offsets=(0, 2))}, bytes(2)),
    "a type that is a list": raw({"a": entry(["F32"])}, bytes(8)),
    "a shape that is a number": raw({"a": entry() | {"shape": 2}}, bytes(8)),
    "a shape of strings": raw({"a": entry(shape="2")}, bytes(8)),
    "a negative size": raw({"a": entry(shape=(-2,))}, bytes(8)),
    "two negative sizes": raw({"a": entry(shape=(-2, -1))}, bytes(8)),
    "a size of true": raw({"a": entry(shape=(True, 2))}, bytes(8)),
    "a size of 2.0": raw({"a": entry(shape=(2.0,))}, bytes(8)),
    "huge sizes": raw({"a": entry(shape=(2**40, 2**40))}, bytes(8)),
    "nothing of huge sizes": raw({"a": entry(shape=(0, 2**40, 2**40), offsets=(0, 0))}),
    "three offsets": raw({"a": entry(offsets=(0, 8, 8))}, bytes(8)),
    "offsets backwards": raw({"a": entry(shape=(0,), offsets=(8, 0))}, bytes(8)),
    "negative offsets": raw({"a": entry(offsets=(-8, 0))}, bytes(8)),
    "bytes beyond the file": raw(GOOD, bytes(7)), "bytes after the last": raw(GOOD, bytes(9)),
    "a shape that needs more": raw({"a": entry(shape=(3,))}, bytes(8)),
    "a shape that needs less": raw({"a": entry(shape=(1,))}, bytes(8)),
    "an overlap": raw({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)),
    "the same bytes twice": raw({"a": entry(), "b": entry()}, bytes(8)),
    "a hole": raw({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20)),
    "a hole at the start": raw({"a": entry(offsets=(4, 12))}, bytes(12)),
    "metadata of numbers": raw({"__metadata__": {"a": 1}}),
    "metadata that is none": raw({"__metadata__": [1]}),
    "half a surrogate pair": raw(b'{"\\ud800": %s}' % json.dumps(entry()).encode(), bytes(8)),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_safetensors_are_refused(tmp_path, kind):
    path = tmp_path / "model.safetensors"
    path.write_bytes(MALFORMED[kind])
    with pytest.raises(InputError, match="model.safetensors: not a whole safet") as error:
        read_safetensors(path)
    assert "\n" not in str(error.value)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(InputError, match="Is a directory|not a whole"):
        read_safetensors(tmp_path)


def test_well_formed_safetensors_of_every_kind(tmp_path):
    """Odd header lengths (tensors out of step with their size), no rows, no axes, bytes, bools."""
    path = tmp_path / "a.safetensors"
    for pad in range(8):
        header = {"a": entry("BF16", (3,), (0, 6)), "b": entry("F64", (), (6, 14)),
                  "c": entry("BOOL", (2, 1), (14, 16)), "d": entry("F32", (0, 4), (16, 16)),
                  "__metadata__": {"format": "pt"}}
        text = json.dumps(header).encode() + b" " * pad
        path.write_bytes(raw(text, torch.tensor([1.0, 2.0, -3.0]).bfloat16().view(torch.uint8)
                             .numpy().tobytes() + b"\0" * 6 + b"\xf0\x3f" + b"\1\0"))
        found = read_safetensors(path)
        assert found["a"].tolist() == [1.0, 2.0, -3.0] and found["b"].item() == 1.0
        assert found["c"].tolist() == [[True], [False]] and found["d"].shape == (0, 4)


@sweep(200)
def test_a_damaged_header_is_read_or_refused(tmp_path_factory, seed):
    rng = random.Random(seed)
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    write_safetensors(path, {f"t{i}": torch.randn(rng.randint(0, 3), 2) for i in range(3)})
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = damaged(content[:end] if rng.random() < 0.5 else content[8:end], rng)
    path.write_bytes(header + content[end:] if rng.random() < 0.5 else raw(header, content[end:]))
    try:
        assert all(isinstance(t, torch.Tensor) for t in read_safetensors(path).values())
    except InputError as error:
        assert "\n" not in str(error)


def test_any_json_in_place_of_a_header():
    """hypothesis: whatever JSON stands in the header, or within an entry."""
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies
    number = st.integers(-2, 20) | st.integers() | st.floats()
    value = st.recursive(st.none() | st.booleans() | number | st.text(max_size=3),
                         lambda child: st.lists(child, max_size=4) | st.dictionaries(
                             st.text(max_size=3), child, max_size=4), max_leaves=8)
    likely = st.fixed_dictionaries({
        "dtype": st.sampled_from(["F32", "U8", "BOOL", "F64"]) | value,
        "shape": st.lists(number, max_size=3) | value,
        "data_offsets": st.lists(st.integers(0, 16), min_size=2, max_size=2) | value})
    header = st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), likely | value) | value

    @hypothesis.settings(max_examples=400, deadline=None, derandomize=True, database=None,
                         suppress_health_check=list(hypothesis.HealthCheck))
    @hypothesis.given(header, st.binary(max_size=16))
    def check(header, body):
        try:
            text = json.dumps(header).encode()
        except ValueError:
            hypothesis.reject()
        path.write_bytes(raw(text, body))
        try:
            sizes = [t.numel() * t.element_size() for t in read_safetensors(path).values()]
            assert sum(sizes) == len(body)  # what is accepted accounts for every byte
        except InputError as error:
            assert "\n" not in str(error)

    import tempfile
    with tempfile.TemporaryDirectory() as folder:
        path = weights.Path(folder) / "model.safetensors"
        check()


def test_the_other_library_agrees_on_what_is_whole(tmp_path):
    """The format's own reader opens what we write, with equal tensors, and we what it writes."""
    library = pytest.importorskip("safetensors.torch")
    tensors = {"a": torch.randn(3, 5), "b": torch.randn(7).bfloat16(), "c": torch.arange(4)}
    library.save_file(tensors, tmp_path / "theirs.safetensors")
    ours = read_safetensors(tmp_path / "theirs.safetensors")
    assert all(torch.equal(ours[k], v) and ours[k].dtype == v.dtype for k, v in tensors.items())
    floats = {"a": tensors["a"].t(), "b": tensors["b"], "z": torch.zeros(0, 2)}
    write_safetensors(tmp_path / "ours.safetensors", floats)
    theirs = library.load_file(tmp_path / "ours.safetensors")
    assert all(torch.equal(theirs[k], v.float()) for k, v in floats.items())


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="no /proc here")
def test_a_large_file_is_mapped_not_read(tmp_path):
    """A gigabyte of zeros (a hole on the disk) costs no memory until it is copied."""
    path, size = tmp_path / "large.safetensors", 2**30
    head = raw({"a": entry(shape=(2**18, 2**10), offsets=(0, size))})
    with open(path, "wb") as file:
        file.write(head)
        file.truncate(len(head) + size)
    before = resident()
    found = read_safetensors(path)["a"]
    assert found.shape == (2**18, 2**10) and found[-1, -1] == 0
    assert resident() - before < 2**26


# -- out ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=["2x24", "3x16"])
def test_transformers_loads_what_we_saved(transformers, tmp_path, shape):
    ours = randomize(GPT(shape))
    save_gpt2(ours, tmp_path)
    theirs, notes = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True)
    assert type(theirs).__name__ == "GPT2LMHeadModel"
    assert not notes["missing_keys"] and not notes["unexpected_keys"]
    same_logits(ours, theirs)
    back = load_gpt2(tmp_path)
    assert back.config == shape
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), back.parameters()))


def test_a_full_circle_changes_no_bit(transformers, tmp_path):
    """transformers, us, transformers: the same weights."""
    theirs = published(transformers, SHAPES[1])
    theirs.save_pretrained(tmp_path / "1")
    save_gpt2(load_gpt2(tmp_path / "1"), tmp_path / "2")
    again = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "2")
    assert all(torch.equal(a, b) for a, b in zip(theirs.parameters(), again.parameters()))


def test_generation_samples_the_whole_distribution(transformers, tmp_path):
    """As PPO sampled: no top-k (there it is 50 by default), no top-p, temperature 1."""
    save_gpt2(GPT(SHAPES[0]), tmp_path)
    settings = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert (settings.do_sample, settings.top_k, settings.top_p, settings.temperature) == (
        True, 0, 1.0, 1.0)
    assert settings.eos_token_id == settings.pad_token_id == 60


TEXTS = ["", " ", "\n", "Hello, I'm a language model,", "don't we've they'll I'd", "  two  spaces ",
         "tabs\tand\r\nlines\n\n\n  end  ", "été 🙂 中文字 \u00a0 ﷺ \u2028", "1234567890 3.14 x²",
         "a" * 50, "\x00\x7f\u0080", "<| not a token |>", "def f(x):\n    return x\n"]


def same_ids(transformers, folder, tokenizer, texts):
    for loaded in (transformers.AutoTokenizer.from_pretrained(folder),
                   transformers.GPT2Tokenizer.from_pretrained(folder)):
        assert loaded.eos_token_id == tokenizer.eos
        for text in texts:
            ids = tokenizer.encode(text)
            assert loaded.encode(text) == ids
            assert loaded.decode([*ids, tokenizer.eos], skip_special_tokens=True) == text
    return loaded


def test_the_world_tokenizer_travels_too(transformers, tmp_path):
    tokenizer = load_tokenizer("world")
    model = GPT(GPTConfig(tokenizer.vocab_size, 16, 1, 1, 8))
    save_gpt2(model, tmp_path, tokenizer)
    loaded = same_ids(transformers, tmp_path, tokenizer, TEXTS)
    assert len(loaded) == tokenizer.vocab_size and loaded.model_max_length == 16


@needs_gpt2
def test_gpt2s_own_files_come_out_again(transformers, tmp_path):
    """Merges recovered from the ids alone are the published list; ids agree on real text."""
    tokenizer = load_tokenizer(VOCAB)
    weights.write_tokenizer(tmp_path, tokenizer, 1024)
    assert (tmp_path / "merges.txt").read_text() == (VOCAB / "vocab.bpe").read_text()
    assert json.loads((tmp_path / "vocab.json").read_text()) == json.loads(
        (VOCAB / "encoder.json").read_text())
    save_gpt2(GPT(GPTConfig(50257, 8, 1, 1, 4)), tmp_path)
    text = (VOCAB.parent / "tinyshakespeare.txt").read_text()
    same_ids(transformers, tmp_path, tokenizer, [*TEXTS, text[:200_000]])


def test_a_vocabulary_without_merges_is_refused(tmp_path):
    ranks = {bytes([b]): b for b in range(256)} | {b"abc": 256}
    with pytest.raises(InputError, match="token 256 is not a merge of two before it"):
        weights.write_tokenizer(tmp_path, Tokenizer("odd", ranks), 16)


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    with pytest.raises(InputError, match="a tokenizer of 1024 tokens; expected one of the model's"):
        save_gpt2(GPT(SHAPES[0]), tmp_path, load_tokenizer("world"))
    assert not list(tmp_path.iterdir())


# -- the reward model -----------------------------------------------------------------------------


def reward_model(shape, bias):
    model = randomize(ScalarGPT(shape))
    with torch.no_grad():
        model.head.bias.fill_(bias)
    return model


@pytest.mark.parametrize("bias", [0.0, 3.7, -250.0])
@pytest.mark.parametrize("shape", SHAPES, ids=["2x24", "3x16"])
def test_exported_rewards_are_ours(transformers, tmp_path, shape, bias):
    """One by one, and in a padded batch in which end-of-text is scored and padding is not."""
    ours = reward_model(shape, bias)
    save_reward(ours, tmp_path)
    theirs, notes = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path, output_loading_info=True)
    assert not notes["missing_keys"] and not notes["unexpected_keys"]
    assert theirs.config.num_labels == 1 and theirs.config.pad_token_id == shape.vocab_size
    lens = torch.tensor([1, 5, shape.n_ctx, 9])
    tokens = some_tokens(shape, 4)
    tokens[torch.arange(4), lens - 1] = shape.vocab_size - 1  # end-of-text
    padded = tokens.masked_fill(torch.arange(shape.n_ctx) >= lens[:, None], shape.vocab_size)
    with torch.no_grad():
        expected = ours.scores(tokens, lens)
        torch.testing.assert_close(theirs(padded).logits[:, 0], expected, **close)
        masked = theirs(padded, attention_mask=padded != shape.vocab_size)
        torch.testing.assert_close(masked.logits[:, 0], expected, **close)
        for row, n, score in zip(tokens, lens, expected):
            torch.testing.assert_close(theirs(row[None, :n]).logits[0, 0], score, **close)
    assert abs(expected.mean().item() - bias) < 50


@needs_gpt2
def test_exported_rewards_of_text(transformers, tmp_path):
    """From text to reward by the exported files alone."""
    tokenizer = load_tokenizer(VOCAB)
    ours = reward_model(GPTConfig(50257, 32, 1, 2, 8), 1.5)
    save_reward(ours, tmp_path, tokenizer)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    pairs = [("Say hi", "Hi!"), ("Write a line about the sea", "The sea is never still, they say.")]
    rows = [tokenizer.encode_prompt(x) + tokenizer.encode_response(y) for x, y in pairs]
    texts = [PROMPT_TEMPLATE.format(prompt=x) + RESPONSE_TEMPLATE.format(response=y) + END_OF_TEXT
             for x, y in pairs]
    batch = loaded(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        scores = theirs(**batch).logits[:, 0]
        for row, score in zip(rows, scores):
            torch.testing.assert_close(
                ours.scores(torch.tensor([row]), torch.tensor([len(row)]))[0], score, **close)


def test_a_head_of_zeros_has_no_place_for_a_bias(tmp_path):
    model = ScalarGPT(SHAPES[0])
    torch.nn.init.zeros_(model.head.weight)
    save_reward(model, tmp_path)
    torch.nn.init.ones_(model.head.bias)
    with pytest.raises(InputError, match="cannot be folded"):
        save_reward(model, tmp_path)


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        save_gpt2(GPT(SHAPES[0]), tmp_path / "file" / "folder")


# -- the commands ---------------------------------------------------------------------------------


def checkpoint(path, stage, model, tokenizer):
    save_checkpoint(path, stage=stage, config={}, step=1, weights=model.state_dict(),
                    model_config=vars(model.config),
                    tokenizer={"name": tokenizer.name, "fingerprint": tokenizer.fingerprint})


@pytest.fixture
def world():
    tokenizer = load_tokenizer("world")
    return tokenizer, GPTConfig(tokenizer.vocab_size, 16, 1, 2, 8)


@pytest.mark.parametrize("stage", ["base", "sft", "ppo"])
def test_export_and_import_are_each_others_inverse(tmp_path, world, stage):
    tokenizer, shape = world
    model = randomize(GPT(shape))
    checkpoint(tmp_path / "a.pt", stage, model, tokenizer)
    weights.export_model(weights.ExportConfig(str(tmp_path / "a.pt"), str(tmp_path / "out")))
    weights.import_model(weights.ImportConfig(
        str(tmp_path / "out"), str(tmp_path / "b.pt"), tokenizer="world"))
    assert read_checkpoint(tmp_path / "b.pt")["stage"] == "base"
    again = load_model(GPT, tmp_path / "b.pt", ("base",), tokenizer)
    assert again.config == shape
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))


def test_a_reward_checkpoint_is_exported_as_one(transformers, tmp_path, world):
    tokenizer, shape = world
    model = reward_model(shape, 0.5)
    checkpoint(tmp_path / "reward.pt", "reward", model, tokenizer)
    weights.export_model(weights.ExportConfig(str(tmp_path / "reward.pt"), str(tmp_path / "out")))
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    tokens = some_tokens(shape, 1)
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits[0, 0], model(tokens)[0, -1], **close)


def test_what_import_makes_is_what_a_stage_starts_from(tmp_path, world):
    """sft.py --init reads it, so its fields are those that Stage.finish writes."""
    import sft
    tokenizer, shape = world
    save_gpt2(GPT(shape), tmp_path / "folder")
    weights.import_model(weights.ImportConfig(
        str(tmp_path / "folder"), str(tmp_path / "base.pt"), tokenizer="world"))
    config = sft.SFTConfig(out="", init=str(tmp_path / "base.pt"), text="given", dropout=0.25)
    assert sft.first_model(config, tokenizer).config.dropout == 0.25
    assert {"stage", "config", "model_config", "tokenizer", "step", "weights"} == set(
        read_checkpoint(tmp_path / "base.pt"))


@pytest.mark.parametrize("arguments, message", [
    (["export", "--checkpoint", "absent.pt", "--out", "out"], "absent.pt: no such checkpoint"),
    (["import", "--folder", "absent", "--out", "b.pt", "--tokenizer", "world"], "config.json"),
    (["import", "--folder", "absent", "--out", "b.pt", "--tokenizer", "nobody"],
     "nobody: no such tokenizer"),
    (["exchange"], "exchange: no such command; expected import, export"),
    ([], "no command; expected import, export"),
])
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        weights.run_verbs({"import": (weights.import_model, weights.ImportConfig),
                           "export": (weights.export_model, weights.ExportConfig)},
                          weights.__doc__, arguments)
    said = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and message in said and "\n" not in said
    assert not list(tmp_path.iterdir())


def test_a_truncated_checkpoint_is_not_exported(tmp_path, world):
    checkpoint(tmp_path / "a.pt", "sft", GPT(world[1]), world[0])
    path = tmp_path / "a.pt"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="not a whole checkpoint"):
        weights.export_model(weights.ExportConfig(str(path), str(tmp_path / "out")))


def test_the_command_itself(tmp_path, world):
    """`python -m data.weights`, as a person types it: the module is then run under another name
    than the one that model.py imports."""
    save_gpt2(GPT(world[1]), tmp_path / "folder")
    done = subprocess.run(
        [sys.executable, "-m", "data.weights", "import", "--folder", str(tmp_path / "folder"),
         "--tokenizer", "world", "--out", str(tmp_path / "base.pt")], cwd=ROOT, text=True,
        capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path / 'base.pt'}: " in done.stdout and zipfile.is_zipfile(tmp_path / "base.pt")
