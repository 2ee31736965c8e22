"""The project's programs as processes that can be killed, limited and starved.

A fork server imports everything once (seconds); every program is then a fork of it (milliseconds):
a process of its own, with real signals, limits and exit codes.
"""

import ctypes
import importlib
import multiprocessing
import multiprocessing.forkserver
import os
import pathlib
import resource
import shutil
import sys

import torch

TESTS = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [path for path in (str(TESTS.parent), str(TESTS)) if path not in sys.path]

import common  # noqa: E402 (found by the line above)

PROGRAMS = {  # name: module, main, config
    "sft": ("sft", "main", "SFTConfig"),
    "reward": ("reward", "main", "RewardConfig"),
    "ppo": ("ppo", "main", "PPOConfig"),
    "prepare": ("data.prepare", "main", "PrepareConfig"),
    "world": ("data.world", "main", "WorldConfig"),
    "labelers": ("data.labelers", "main", "LabelersConfig"),
    "label": ("data.label", "main", "LabelConfig"),
    "sample": ("evaluate", "sample", "SampleConfig"),
    "answers": ("evaluate", "answers", "AnswersConfig"),
    "accuracy": ("evaluate", "accuracy", "AccuracyConfig"),
    "best_of": ("evaluate", "best_of", "BestOfConfig"),
    "study": ("data.study", "main", "StudyConfig"),
    "import": ("data.weights", "import_model", "ImportConfig"),
    "export": ("data.weights", "export_model", "ExportConfig"),
}
for _module, _, _ in PROGRAMS.values():
    importlib.import_module(_module)

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["programs"])


def flags_of(settings):
    """{field: value} as the words of a command line."""
    return [str(word) for key, value in settings.items() for word in
            (f"--{key}", *(value if isinstance(value, (list, tuple)) else [value]))]


def find(name):
    """(main, config class) of a program."""
    module, main, config = PROGRAMS[name]
    return tuple(getattr(importlib.import_module(module), x) for x in (main, config))


# mount(2) and unshare(2)
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
NO_MOUNTS = 77  # the exit code of a child that may not mount anything


def _mount(source, target, kind, flags, data=None):
    libc = ctypes.CDLL(None, use_errno=True)
    words = [None if word is None else os.fsencode(word) for word in (source, target, kind)]
    if libc.mount(*words, ctypes.c_ulong(flags), None if data is None else data.encode()):
        raise OSError(ctypes.get_errno(), "mount")


def _own_mounts():
    """A view of the file system of this process alone, in which it may mount."""
    user, group = os.geteuid(), os.getegid()
    if ctypes.CDLL(None).unshare(CLONE_NEWNS | (CLONE_NEWUSER if user else 0)):
        raise OSError("unshare")
    if user:
        pathlib.Path("/proc/self/setgroups").write_text("deny")
        pathlib.Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        pathlib.Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _mount(None, "/", None, MS_REC | MS_PRIVATE)


def _make_read_only(folder):
    _own_mounts()
    _mount(folder, folder, None, MS_BIND)
    _mount(None, folder, None, MS_REMOUNT | MS_BIND | MS_RDONLY)


def _make_small(folder, size):
    """Put what the folder holds on a disk of `size` bytes."""
    _own_mounts()
    kept = folder.with_name(folder.name + ".before")
    shutil.copytree(folder, kept)
    _mount("none", folder, "tmpfs", 0, f"size={size}")
    shutil.copytree(kept, folder, dirs_exist_ok=True)


def _child(name, flags, output, file_limit, read_only, small):
    """The program's life: its output goes to two files; no file of its may exceed `file_limit`
    bytes; the folder `read_only` is; the folder small[0] is a disk of small[1] bytes, and what
    lies there at the end is copied to FOLDER.after."""
    for number, path in ((1, f"{output}.out"), (2, f"{output}.err")):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    torch.set_num_threads(1)
    if file_limit is not None:  # Python ignores the signal: writing beyond it is an OSError
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    try:
        if read_only:
            _make_read_only(read_only)
        if small:
            _make_small(*small)
    except OSError:
        sys.exit(NO_MOUNTS)
    try:
        common.run(*find(name), "", flags)
    finally:
        if small:
            shutil.copytree(small[0], small[0].with_name(small[0].name + ".after"))


def start(name, settings, output, file_limit=None, read_only=None, small=None):
    """A running multiprocessing.Process; what it prints goes to OUTPUT.out and OUTPUT.err."""
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    try:  # the server looks for what to import on this path alone
        multiprocessing.forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH")
        if path is not None:
            os.environ["PYTHONPATH"] = path
    process = _context.Process(target=_child, args=(name, flags_of(settings), str(output),
                                                    file_limit, read_only, small))
    pathlib.Path(f"{output}.out").touch()  # who looks into it may be quicker than the child
    script = sys.modules["__main__"].__dict__.pop("__file__", None)
    process.start()  # without a script's path: a child would import the script anew
    if script is not None:
        sys.modules["__main__"].__file__ = script
    return process


def finish(name, settings, output, timeout=600, **limits):
    """Run a program to its end: (exit code, standard output, standard error)."""
    process = start(name, settings, output, **limits)
    process.join(timeout)
    if process.is_alive():
        process.kill()
        raise AssertionError(f"{name} did not end in {timeout} seconds")
    said = [pathlib.Path(f"{output}.{end}").read_text() for end in ("out", "err")]
    return process.exitcode, *said
