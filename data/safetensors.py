"""The safetensors format: named tensors in one file, with nothing in it that could run.

    8 bytes     N, the length of the header, little-endian
    N bytes     JSON: {name: {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}
    the rest    the tensors' bytes, row-major, little-endian, without a hole or an overlap

Reading is strict, because these files come from elsewhere: a header that the format does not allow,
or a file that is shorter or longer than its header says, is an InputError. The file is mapped, not
read: a tensor's bytes come from the disk when they are copied into a model.
"""

import json
import math
import os
from pathlib import Path

import numpy as np
import torch

from common import InputError, through_links
from data.readers import _json_object

MAX_HEADER = 2**24  # bytes; GPT-2 XL's has 58,564. Parsed, JSON takes about twenty times as much
MAX_ELEMENTS = 2**48
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
          "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
          "U8": torch.uint8, "BOOL": torch.bool}


def read_safetensors(path):
    """{name: tensor} of a file. The tensors share the mapped file: copy them before changing them.
    Raises InputError where it is not, from first byte to last, a file of the format."""
    try:
        data = _map(path)
        header, start = _header(data)
        _check_tiling(header, len(data) - start)
        return {name: _tensor(data[start:], entry) for name, entry in header.items()}
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; expected a readable file") from error
    except ValueError as error:
        raise InputError(f"{path}: not a whole safetensors file: {error}") from error


def _map(path):
    """The file's bytes as an array; changes to it would stay in memory ("c", copy on write)."""
    if not Path(path).stat().st_size:
        raise ValueError("it is empty")
    return np.memmap(path, dtype=np.uint8, mode="c")


def _header(data):
    """({name: entry}, where the tensors' bytes begin)."""
    length = int.from_bytes(data[:8].tobytes(), "little")
    if len(data) < 8 or not 2 <= length <= min(MAX_HEADER, len(data) - 8):
        raise ValueError(f"a header of {length} bytes in a file of {len(data)}")
    text = data[8:8 + length].tobytes().decode("utf-8")
    if not text.startswith("{"):
        raise ValueError("its header does not begin with '{'")
    header = _json_object(text)
    metadata = header.pop("__metadata__", {})
    if type(metadata) is not dict or any(type(v) is not str for v in metadata.values()):
        raise ValueError("its __metadata__ is not an object of strings")
    for name, entry in header.items():
        _check_entry(name, entry)
    return header, 8 + length


def _check_entry(name, entry):
    """Raises ValueError unless the entry alone makes sense."""
    if type(entry) is not dict or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name!r} has not exactly dtype, shape and data_offsets")
    shape, offsets, dtype = entry["shape"], entry["data_offsets"], entry["dtype"]
    if type(dtype) is not str or dtype not in DTYPES:
        raise ValueError(f"tensor {name!r} is of type {str(dtype)[:20]}; "
                         f"expected one of {', '.join(DTYPES)}")
    if not _is_sizes(shape) or math.prod(max(n, 1) for n in shape) > MAX_ELEMENTS:
        raise ValueError(f"tensor {name!r} has a shape that is none")
    if not _is_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"tensor {name!r} has data_offsets that are none")
    if math.prod(shape) * DTYPES[dtype].itemsize != offsets[1] - offsets[0]:
        raise ValueError(f"tensor {name!r} of shape {shape} does not fill its bytes "
                         f"{offsets[0]} to {offsets[1]}")


def _is_sizes(values):
    return type(values) is list and all(type(n) is int and n >= 0 for n in values)


def _check_tiling(header, size):
    """Raises ValueError unless the tensors, one after another, are all of the `size` bytes."""
    place = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        first, place_after = entry["data_offsets"]
        if first != place:
            raise ValueError(f"tensor {name!r} begins at byte {first}; expected {place}, where "
                             "the one before it ends")
        place = place_after
    if place != size:
        raise ValueError(f"its tensors end at byte {place} of {size}")


def _tensor(data, entry):
    """A view of the mapped bytes. The headers of GPT-2's own files have odd lengths, so an element
    may lie at an odd address; copying from there is what the format's own reader does too."""
    first, end = entry["data_offsets"]
    return torch.from_numpy(data[first:end]).view(DTYPES[entry["dtype"]]).reshape(entry["shape"])


def write_safetensors(path, tensors):
    """Write {name: tensor} in fp32, one tensor in memory at a time; whole or not at all."""
    header, place = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in tensors.items():
        end = place + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors lie at multiples of their element's size
    chunks = (t.detach().cpu().float().contiguous().numpy() for t in tensors.values())
    write_bytes(path, [len(text).to_bytes(8, "little"), text], chunks)


def write_bytes(path, *parts):
    """Write bytes-like objects as one file: aside, flushed to the disk, then renamed."""
    path = Path(path)
    place = through_links(path)
    aside = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "wb") as file:
            for chunk in (chunk for part in parts for chunk in part):
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, place)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        try:
            aside.unlink(missing_ok=True)
        except OSError:  # its folder is none, as the error above says
            pass
