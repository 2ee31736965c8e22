"""GPT-2's weights as the hub publishes them, both ways (folders that `transformers` loads).

    python -m data.weights import --folder gpt2 --tokenizer gpt2 --out runs/hh/base.pt
    python -m data.weights export --checkpoint runs/hh/ppo_ptx.pt --out aligned

`import` makes a base model to start from; `export` writes a policy as GPT2LMHeadModel, or a reward
model as GPT2ForSequenceClassification with one label, with the tokenizer beside it. A folder holds

    config.json             the shape
    model.safetensors       the weights (or, read only: several such files with an index, or
                            pytorch_model.bin)
    vocab.json, merges.txt, tokenizer_config.json, generation_config.json

Only tensors and plain values are read; nothing in a file is ever run. What the published names mean
beside ours: those of the decoder begin with `transformer.`, here or there; `c_attn`, `c_proj` and
`c_fc` are stored input × output; `lm_head.weight` is the token embedding again.
"""

import dataclasses
import json
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch

from common import (InputError, alone, load_checkpoint, load_model, output_file, required,
                    run_verbs, save_checkpoint, setting)
from data.readers import _json_object
from data.safetensors import read_safetensors, write_bytes, write_safetensors
from data.tokenizer import END_OF_TEXT, load_tokenizer, read_utf8
from model import GPT, GPTConfig, ScalarGPT

TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
MASKS = (".attn.bias", ".attn.masked_bias")  # older files carry the causal mask as a tensor
PAD = "<|pad|>"

# -- reading a folder -----------------------------------------------------------------------------


def read_gpt2(folder):
    """The GPT of a folder, in fp32. Raises InputError where a file is missing or damaged, the
    config asks for what this decoder does not do, or tensors are missing, extra or misshapen."""
    folder = Path(folder)
    config = read_config(folder / "config.json")
    path, tensors = _read_tensors(folder)
    with torch.device("meta"):  # no memory, no time: every weight comes from the file
        model = GPT(config)
    weights = model.decoder.state_dict()
    tensors = _decoder_tensors(path, tensors)
    _check_shapes(path, {name: _published_shape(name, w) for name, w in weights.items()}, tensors)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for name, weight in model.decoder.state_dict().items():
            weight.copy_(tensors[name].t() if name.endswith(TRANSPOSED) else tensors[name])
            if not weight.isfinite().all():
                raise InputError(f"{path}: {name} holds values that are not finite numbers")
    return model


# what the config may say beyond the shape: {key: (values that this decoder does, what it does)}
ONLY = {
    "model_type": (("gpt2",), "GPT-2"),
    "activation_function": (("gelu_new", "gelu_pytorch_tanh"), "tanh-GELU"),
    "layer_norm_epsilon": ((1e-5,), "1e-05"),
    "scale_attn_weights": ((True,), "true"),
    "scale_attn_by_inverse_layer_idx": ((False,), "false"),
    "add_cross_attention": ((False,), "false"),
    "tie_word_embeddings": ((True,), "true"),
}


def read_config(path):
    """The GPTConfig that config.json describes."""
    try:
        published = _json_object(read_utf8(path).strip())
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    for key, (values, meaning) in ONLY.items():
        if key in published and published[key] not in values:
            raise InputError(f"{path}: {key} is {json.dumps(published[key])[:40]}; this decoder "
                             f"has {meaning} alone")
    published.setdefault("n_positions", published.get("n_ctx"))
    try:
        sizes = [_size(published, key) for key in ("vocab_size", "n_positions", "n_layer",
                                                   "n_head", "n_embd")]
        if published.get("n_inner") not in (None, 4 * sizes[-1]):
            raise ValueError(f"n_inner is {published['n_inner']}; expected 4 times n_embd")
        return GPTConfig(*sizes)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def _size(published, key):
    size = published.get(key)
    if type(size) is not int or not 1 <= size < 2**31:
        raise ValueError(f"{key} is {json.dumps(size)[:40]}; expected a whole number from 1 up")
    return size


def _read_tensors(folder):
    """(the file, {name: tensor}) of whichever form the folder holds."""
    for name, read in (("model.safetensors", read_safetensors),
                       ("model.safetensors.index.json", _read_shards),
                       ("pytorch_model.bin", _read_pickle)):
        if (folder / name).exists():
            return folder / name, read(folder / name)
    raise InputError(f"{folder}: no weights; expected model.safetensors (or its index and parts) "
                     "or pytorch_model.bin in it")


def _read_shards(path):
    """The tensors of the files that an index names: {"weight_map": {tensor: file beside it}}."""
    try:
        places = _json_object(read_utf8(path).strip()).get("weight_map")
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    if type(places) is not dict or any(
            type(file) is not str or Path(file).name != file for file in places.values()):
        raise InputError(f"{path}: expected a weight_map of tensors to files beside it")
    tensors = {}
    for file in sorted(set(places.values())):
        part = read_safetensors(path.parent / file)
        named = {name for name, place in places.items() if place == file}
        if named != set(part):
            raise InputError(f"{path}: {file} has other tensors than it says "
                             f"({_some(named ^ set(part))})")
        tensors |= part
    return tensors


def _read_pickle(path):
    """torch.load with weights_only, which builds tensors and refuses to run anything."""
    try:
        whole = zipfile.is_zipfile(path)  # else the format before 2020, in which GPT-2 came out
        if whole:
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise ValueError(f"its entry {damaged} is damaged")
        with warnings.catch_warnings():  # of what is odd in the file: below, that is one line
            warnings.simplefilter("ignore")
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=whole or None)
    except Exception as error:  # damage can surface anywhere in the zip or pickle reader
        reason = str(error).strip().split("\n")[0][:160]
        raise InputError(f"{path}: not a whole file of tensors ({reason})") from None
    if not isinstance(tensors, dict) or not all(
            type(name) is str and _is_plain(tensor) for name, tensor in tensors.items()):
        raise InputError(f"{path}: expected plain tensors by their names, and nothing else")
    return tensors


def _is_plain(tensor):
    return isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided \
        and tensor.device.type == "cpu" and not tensor.is_quantized


def _decoder_tensors(path, tensors):
    """The decoder's tensors under our names, the rest checked and left out."""
    found = {}
    for name, tensor in tensors.items():
        ours = name.removeprefix("transformer.")
        if ours in found:
            raise InputError(f"{path}: tensor {ours} stands twice, with and without a prefix")
        if not ours.endswith(MASKS):
            found[ours] = tensor
    unembedding = found.pop("lm_head.weight", None)
    embedding = found.get("wte.weight")
    if unembedding is not None and embedding is not None and not (
            unembedding.dtype == embedding.dtype and torch.equal(unembedding, embedding)):
        raise InputError(f"{path}: lm_head.weight is not wte.weight; this decoder has them tied")
    return found


def _published_shape(name, weight):
    return tuple(reversed(weight.shape)) if name.endswith(TRANSPOSED) else tuple(weight.shape)


def _check_shapes(path, expected, tensors):
    """Raises an InputError that names every kind of tensor that does not fit."""
    wrong = [f"{name} is {list(tensors[name].shape)}, expected {list(shape)}"
             for name, shape in expected.items()
             if name in tensors and tuple(tensors[name].shape) != shape]
    wrong += [f"{name} is {tensors[name].dtype}, expected floating-point numbers"
              for name in expected if name in tensors and not tensors[name].is_floating_point()]
    missing, extra = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    faults = [f"{kind}: {_some(names)}" for kind, names in
              (("missing", missing), ("not of this model", extra)) if names]
    faults += [f"misshapen: {_some(wrong)}"] if wrong else []
    if faults:
        raise InputError(f"{path}: tensors do not fit config.json; {'; '.join(faults)}")


def _some(names, count=4):
    names = sorted(names)
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


# -- writing a folder -----------------------------------------------------------------------------


def write_gpt2(model, folder, tokenizer=None):
    """Write a GPT as GPT2LMHeadModel, and its tokenizer where one is given."""
    folder, eos = Path(folder), model.config.vocab_size - 1
    _check_tokenizer(tokenizer, model.config)
    write_safetensors(folder / "model.safetensors", _published(model.decoder))
    if tokenizer is not None:
        write_tokenizer(folder, tokenizer, model.config.n_ctx)
    _write_json(folder / "generation_config.json", {  # as PPO sampled: the whole distribution
        "bos_token_id": eos, "eos_token_id": eos, "pad_token_id": eos,
        "do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0})
    _write_json(folder / "config.json", _published_config(model.config, "GPT2LMHeadModel"))


def write_reward(model, folder, tokenizer=None):
    """Write a ScalarGPT as GPT2ForSequenceClassification with one label, whose logit is the score.

    That class has no bias, so ours goes into the last LayerNorm's: for the head's weight w, adding
    u = bias · w / |w|² to every hidden state adds w·u = bias to every score. It reads the score at
    the last token that is not padding, and padding must not be end-of-text, which is scored: one
    token is added for it. Raises InputError where w is zero and the bias is not.
    """
    folder, config = Path(folder), model.config
    _check_tokenizer(tokenizer, config)
    tensors = _published(model.decoder)
    w, bias = model.head.weight.detach().double()[0], model.head.bias.detach().double()
    if bias and not w.any():
        raise InputError("the reward model's head is zero: its bias cannot be folded into it")
    shift = bias * w / w.square().sum() if bias else torch.zeros_like(w)
    tensors["transformer.ln_f.bias"] = tensors["transformer.ln_f.bias"].double() + shift
    tensors["transformer.wte.weight"] = torch.cat(
        [tensors["transformer.wte.weight"], torch.zeros(1, config.d_model)])
    tensors["score.weight"] = model.head.weight
    write_safetensors(folder / "model.safetensors", tensors)
    if tokenizer is not None:
        write_tokenizer(folder, tokenizer, config.n_ctx, pad=True)
    _write_json(folder / "config.json", _published_config(
        config, "GPT2ForSequenceClassification") | {
        "vocab_size": config.vocab_size + 1, "pad_token_id": config.vocab_size,
        "id2label": {"0": "reward"}, "label2id": {"reward": 0}})


def _check_tokenizer(tokenizer, config):
    if tokenizer is not None and tokenizer.vocab_size != config.vocab_size:
        raise InputError(f"{tokenizer.name}: a tokenizer of {tokenizer.vocab_size} tokens; "
                         f"expected one of the model's {config.vocab_size}")


def _published(decoder):
    """The decoder's weights under their published names, in fp32 on the CPU."""
    weights = {name: w.detach().cpu().float() for name, w in decoder.state_dict().items()}
    return {f"transformer.{name}": w.t() if name.endswith(TRANSPOSED) else w
            for name, w in weights.items()}


def _published_config(c, architecture):
    return {"architectures": [architecture], "model_type": "gpt2", "vocab_size": c.vocab_size,
            "n_positions": c.n_ctx, "n_ctx": c.n_ctx, "n_embd": c.d_model, "n_layer": c.n_layer,
            "n_head": c.n_head, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
            "resid_pdrop": c.dropout, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
            "bos_token_id": c.vocab_size - 1, "eos_token_id": c.vocab_size - 1,
            "tie_word_embeddings": True, "torch_dtype": "float32"}


def _write_json(path, contents):
    write_bytes(path, [json.dumps(contents, indent=2, ensure_ascii=False).encode() + b"\n"])


# -- the tokenizer's files ------------------------------------------------------------------------


def write_tokenizer(folder, tokenizer, n_ctx, pad=False):
    """Write vocab.json, merges.txt and tokenizer_config.json, from which `transformers` makes a
    tokenizer that gives the same ids. (It reads "<|endoftext|>" in a text as that token; ours reads
    thirteen characters.) `pad` adds a padding token after the others."""
    ranks = {tokenizer._encoding.decode_single_token_bytes(i): i for i in range(tokenizer.eos)}
    letters = _byte_letters()

    def spelt(token):
        return "".join(letters[byte] for byte in token)

    special = {END_OF_TEXT: tokenizer.eos} | ({PAD: tokenizer.vocab_size} if pad else {})
    _write_json(folder / "vocab.json", {spelt(t): i for t, i in ranks.items()} | special)
    merges = (f"{spelt(left)} {spelt(right)}\n" for left, right in _merges(tokenizer, ranks))
    write_bytes(folder / "merges.txt", [("#version: 0.2\n" + "".join(merges)).encode()])
    _write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, "model_max_length": n_ctx,
        "bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False, "padding_side": "right",
        **({"pad_token": PAD} if pad else {}),
        "added_tokens_decoder": {str(i): {"content": token, "special": True, "normalized": False,
                                          "lstrip": False, "rstrip": False, "single_word": False}
                                 for token, i in special.items()}})


def _byte_letters():
    """GPT-2's spelling of the 256 bytes: printable ones as themselves, the others, in order, as
    the characters from U+0100 up, so that a token is a word without white space."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + i) for i, byte in enumerate(others)}


def _merges(tokenizer, ranks):
    """(left, right) of each merged token, in order: the two parts in which the merges before it
    leave the token's bytes. Raises InputError where a token is not made of two earlier ones."""
    for token, rank in ranks.items():
        if len(token) > 1:
            parts = [token[i:i + 1] for i in range(len(token))]
            while len(parts) > 2 and (best := _earliest(parts, ranks, rank)) is not None:
                parts[best:best + 2] = [parts[best] + parts[best + 1]]
            if len(parts) != 2:
                raise InputError(f"{tokenizer.name}: token {rank} is not a merge of two before "
                                 "it; such a vocabulary cannot be exported")
            yield parts


def _earliest(parts, ranks, below):
    """Where the pair stands that merges first, among tokens of lower rank than `below`."""
    pairs = [(ranks.get(a + b, below), i) for i, (a, b) in enumerate(zip(parts, parts[1:]))]
    rank, place = min(pairs)
    return place if rank < below else None


# -- the commands ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImportConfig:
    folder: str = required("a folder with config.json and model.safetensors or pytorch_model.bin")
    out: str = output_file("the checkpoint to write, of stage base")
    tokenizer: str = setting("gpt2", "its encoding: gpt2, a folder with GPT-2's two files, or a "
                                     "*.tiktoken file; App. C")


def import_model(config):
    """Make a base model to start from out of a GPT-2 folder."""
    tokenizer = load_tokenizer(config.tokenizer)
    model = read_gpt2(config.folder)
    _check_tokenizer(tokenizer, model.config)
    with alone(config.out, is_file=True):
        save_checkpoint(config.out, stage="base", config=dataclasses.asdict(config),
                        model_config=dataclasses.asdict(model.config), step=0,
                        tokenizer={"name": tokenizer.name, "fingerprint": tokenizer.fingerprint},
                        weights=model.state_dict())
    print(f"wrote {config.out}: {sum(p.numel() for p in model.parameters()):,} parameters")


@dataclass(frozen=True)
class ExportConfig:
    checkpoint: str = required("a policy or a reward model of any run")
    out: str = required("the folder to write")
    tokenizer: str = setting("", "where the tokenizer lies now, if not where the run found it")


def export_model(config):
    """Write a checkpoint's model as a folder that other tools load."""
    stages = ("base", "sft", "ppo", "reward")
    contents = load_checkpoint(config.checkpoint, stages)
    tokenizer = load_tokenizer(config.tokenizer or contents["tokenizer"]["name"])
    scalar = contents["stage"] == "reward"
    model = load_model(ScalarGPT if scalar else GPT, config.checkpoint, stages, tokenizer)
    with alone(config.out):
        (write_reward if scalar else write_gpt2)(model, config.out, tokenizer)
    print(f"wrote {config.out}: a {'reward model' if scalar else 'language model'} of "
          f"{sum(p.numel() for p in model.parameters()):,} parameters")


if __name__ == "__main__":
    run_verbs({"import": (import_model, ImportConfig), "export": (export_model, ExportConfig)},
              __doc__)
