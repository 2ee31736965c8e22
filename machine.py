"""What fits the machine and what keeps it busy. Nothing here changes a number beyond its rounding.

    side_by_side        two independent things on a CPU's cores, each on its share of them
    add_gradients       a batch's gradients, by several processes where that is faster
    in_parts            the same for what needs no gradients
    threads             fewer of torch's threads for a while
    keep_freed_memory   a CPU's large tensors without the system clearing each one's pages anew
    without_weights     modules whose weights are loaded next
    packed              weights as the processor reads them fastest, while sampling
    PastInC             a small model's step on one core, without torch's operations (decode.c)
    Replayed            a step of many small kernels, launched as one
    at_hand             a frozen model's weights on the GPU only while they are used
    step_in_backward    each gradient used and freed as soon as it is known
    compile_decoder     torch.compile where it wins
"""

import ctypes
import mmap
import multiprocessing
import os
import pickle
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import traceback
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache, partial

import torch
import torch.nn as nn
from torch.overrides import TorchFunctionMode


def side_by_side(tasks, device):
    """The results of tasks (functions without arguments) that do not depend on one another, in
    their order. An exception of one is raised when all have ended.

    On a CPU they share its cores: small tensors keep one core busy, while two that work on the same
    small tensor wait for each other most of the time. A GPU takes one after another.
    """
    cores = torch.get_num_threads()
    workers = min(len(tasks), cores)
    if device.type != "cpu" or workers < 2:
        return [task() for task in tasks]
    grad, low = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")

    def run(task):  # a thread starts with neither of these
        with torch.set_grad_enabled(grad), torch.autocast("cpu", enabled=low):
            return task()

    with threads(cores // workers), ThreadPoolExecutor(workers) as pool:
        running = [pool.submit(run, task) for task in tasks]
    return [r.result() for r in running]


@contextmanager
def threads(number):
    """Within this context torch's operations on a CPU take so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


SHARED_BELOW = 2**23  # parameters: larger products keep all cores busy


def parts_at_once(model):
    """Into how many parts to cut a batch for `add_gradients` and `in_parts`: for a small model on a
    CPU as many as cores, as these would wait for each other at every product. One where a process
    that has used torch, or its compiler, does not bear to be forked: gradients on a machine with a
    GPU make torch start threads that the child would lack; another thread may hold a lock."""
    forks = (sys.platform == "linux" and not getattr(model, "compiled", False)
             and not torch.accelerator.is_available()
             and threading.current_thread() is threading.main_thread())
    return torch.get_num_threads() if _small(model) and forks else 1


def _small(model):
    weights = list(model.parameters())
    return weights[0].device.type == "cpu" and sum(p.numel() for p in weights) < SHARED_BELOW


def add_gradients(parts, model):
    """Add to the model's gradients those of the parts of a batch: functions that pickle, each of
    which takes the model and returns a scalar to differentiate, and anything. Returns these, in
    their order; the gradients are summed in an order of their own, always the same. Of
    `parts_at_once` n, this process computes every n-th part, helpers the others."""
    return _by_all(_differentiate, parts, model)


def in_parts(parts, model):
    """What the parts return, functions that pickle, as their results do, and take the model: in
    their order, computed by as many processes as `add_gradients` has."""
    return _by_all(_call, parts, model)


def _by_all(work, parts, model):
    """work(part, model) of each part."""
    team = 1 + len(helpers := _helpers_of(model, parts_at_once(model) - 1))
    found = [None] * len(parts)
    try:
        with threads(torch.get_num_threads() // team):
            for i, helper in enumerate(helpers, 1):
                helper.begin(work, parts[i::team], model)
            found[::team] = [work(part, model) for part in parts[::team]]
            for i, helper in enumerate(helpers, 1):
                found[i::team] = helper.end(work, model)
    except BaseException as error:  # a helper may be left in the middle of something
        _HELPERS.pop(model, None)
        if isinstance(error, (EOFError, ConnectionError)):  # one was killed, which none but the
            raise MemoryError from None                     # system does, for want of memory
        raise
    return found


def _differentiate(part, model):
    loss, result = part(model)
    loss.backward()
    return result


def _call(part, model):
    return part(model)


_HELPERS = weakref.WeakKeyDictionary()  # model: the addresses of its weights, its helpers


def _helpers_of(model, count):
    """So many; those it has, as long as the model keeps its weights where they see them."""
    weights = list(model.parameters())
    places, helpers = _HELPERS.get(model, (None, []))
    if len(helpers) != count or count and places != [p.data_ptr() for p in weights]:
        for p in weights:
            p.data = _in_common(p.data)
        helpers = [Helper(model) for _ in range(count)]
        _HELPERS[model] = [p.data_ptr() for p in weights], helpers
    return helpers


def _in_common(like):
    """A copy in memory that this process and those forked from now on have in common."""
    memory = mmap.mmap(-1, like.numel() * like.element_size())
    return torch.frombuffer(memory, dtype=like.dtype).view(like.shape).copy_(like)


class Helper:
    """A process that works with a model beside this one, whose weights it sees: a thread would wait
    at each operation for the interpreter's lock. Ends with the model or this process."""

    def __init__(self, model):
        self.gradients = [_in_common(torch.zeros_like(p)) for p in model.parameters()]
        self.pipe, theirs = multiprocessing.Pipe()
        with warnings.catch_warnings():  # of the other threads, which the child does without
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if not pid:
            try:
                _help(theirs, model, self.gradients)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        theirs.close()
        weakref.finalize(self, _dismiss, self.pipe, pid)

    def begin(self, work, parts, model):
        """Let it do work(part, model) for these parts."""
        drops = model.training and model.config.dropout > 0
        seed = torch.randint(2**62, ()).item() if drops else 0
        self.pipe.send_bytes(pickle.dumps((work, parts, model.training, seed)))

    def end(self, work, model):
        """What it returned for them; gradients are added to the model's."""
        found = pickle.loads(_receive(self.pipe))
        if isinstance(found, Exception):
            raise found
        for p, gradient in zip(model.parameters(), self.gradients if work is _differentiate else ()):
            p.grad = gradient.clone() if p.grad is None else p.grad.add_(gradient)
        return found


def _help(pipe, model, gradients):
    """What a helper does: work on what comes, until there is nobody to send more."""
    for number in (signal.SIGINT, signal.SIGTERM):  # are for the other process, which ends a step
        signal.signal(number, signal.SIG_IGN)
    os.closerange(3, pipe.fileno())  # locks, and the pipes of others
    os.closerange(pipe.fileno() + 1, 2**16)
    torch.set_num_threads(1)
    global _IN_HELPER
    _IN_HELPER = True
    for p, gradient in zip(model.parameters(), gradients):
        p.grad = gradient
    with suppress(EOFError, ConnectionError):
        while task := _receive(pipe):
            work, parts, training, seed = pickle.loads(task)
            model.train(training)
            torch.manual_seed(seed)
            for gradient in gradients if work is _differentiate else ():
                gradient.zero_()
            try:
                found = [work(part, model) for part in parts]
            except Exception as error:
                found = error
            pipe.send_bytes(pickle.dumps(found))


def _dismiss(pipe, pid):
    with suppress(ConnectionError):
        pipe.send_bytes(b"")
    pipe.close()
    os.waitpid(pid, 0)


_IN_HELPER = False  # whose caller has said what there is to say
AWAKE = 0.02  # seconds


def _receive(pipe):
    """The next message. Stays awake for it a while, as the next part comes soon: a core that sleeps
    takes long to wake on a virtual machine whose host is busy, milliseconds at times."""
    until = time.monotonic() + AWAKE
    while not pipe.poll() and time.monotonic() < until:
        os.sched_yield()
    return pipe.recv_bytes()


def keep_freed_memory():
    """Let this process keep the memory of freed tensors for the next ones. glibc hands back every
    large block, and the system then clears the next one's pages one by one: under a vocabulary of
    50,257 a training step takes 1.7 times as long. Where there is no glibc, nothing."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(-4, 0)  # M_MMAP_MAX: no block is a mapping of its own
    mallopt(-1, -1)  # M_TRIM_THRESHOLD: the heap never shrinks


class without_weights(TorchFunctionMode):
    """Within this context modules are made with whatever is in their memory, for who loads their
    weights next: a billion random ones take a CPU half a minute."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function not in (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_):
            return function(*args, **(kwargs or {}))


PACKED_FROM = 2**17  # elements of a matrix: below, a call costs more than it saves


def product_dtype(weight):
    """The dtype of products by this weight here: autocast's, where that is on."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def wide_product(a, b):
    """a @ b in fp32 of two matrices in bf16."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.mm(a, b, out_dtype=torch.float32)
    with torch.autocast(a.device.type, enabled=False):
        return a.float() @ b.float()


def gpu_memory(device):
    """Its bytes; 0 where the device is no GPU."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0


def row_length(n, device):
    """How long to make rows of n numbers in bf16 that are to be multiplied: a GPU's fast kernels
    want an even length, which GPT-2's vocabulary of 50,257 is not."""
    return -(-n // 64) * 64 if device.type == "cuda" else n


@contextmanager
def packed(model, rows):
    """Within this context, on a CPU, a language model samples by copies of its weights. Large
    matrices in fp32 lie in blocks that oneDNN reads as they are: about twice as fast where a product
    has few rows, and with the GELU in the same pass. A small model that one core samples, or few
    rows of one, goes through its layers by decode.c, in less than half the time. Under autocast a
    model unembeds by one copy, instead of rounding anew each time. For passes without gradients,
    while the weights don't change; does nothing where a copy is no faster."""
    decoder, weight, instead = model.decoder, model.decoder.wte.weight, []
    if torch.is_autocast_enabled(weight.device.type):
        low_DV = weight.detach().to(product_dtype(weight)).t()
        instead = [(model, "unembed", lambda x: wide_product(x.to(low_DV.dtype), low_DV))]
    elif weight.device.type == "cpu" and weight.dtype == torch.float32:
        products = [(model, "unembed", weight, None, "none")]
        one_core = torch.get_num_threads() == 1 or rows <= FEW_ROWS
        begin = _begin_in_c(decoder) if one_core and _small(model) else None
        if begin:
            instead = [(decoder, "begin", begin)]
        for block in [] if begin else decoder.h:
            fc, others = block.mlp.c_fc, (block.attn.c_attn, block.attn.c_proj, block.mlp.c_proj)
            products.append((block.mlp, "expand", fc.weight, fc.bias, "gelu"))
            products += [(one, "forward", one.weight, one.bias, "none") for one in others]
        instead += [(owner, name, partial(_packed_product, _blocks(matrix, rows), bias, after))
                    for owner, name, matrix, bias, after in products
                    if hasattr(torch.ops.mkldnn, "_linear_pointwise")  # built with oneDNN
                    and matrix.numel() >= PACKED_FROM]
    for owner, name, replacement in instead:
        setattr(owner, name, replacement)
    try:
        yield
    finally:
        for owner, name, _ in instead:
            delattr(owner, name)


def _blocks(matrix, rows):
    return torch.ops.mkldnn._reorder_linear_weight(matrix.detach(), rows)


def _packed_product(blocks, bias, after, x):
    return torch.ops.mkldnn._linear_pointwise(x, blocks, bias, after, [], "tanh")


FEW_ROWS = 64  # one core samples them sooner than several that share each small product


def _begin_in_c(decoder):
    """`decoder.begin` by decode.c; None where nothing compiles it, or where it is not what this
    decoder computes, so that who changes model.py need not change it: what both make of some tokens
    is compared, once for each decoder."""
    config, D = decoder.config, decoder.config.d_model
    block = [(D,), (D,), (3 * D, D), (3 * D,), (D, D), (D,),
             (D,), (D,), (4 * D, D), (4 * D,), (D, 4 * D), (D,)]
    shapes = [tuple(p.shape) for part in (decoder.h, decoder.ln_f) for p in part.parameters()]
    if shapes != block * config.n_layer + [(D,), (D,)]:
        return _say_once("decoder.h has other parameters than decode.c")
    if not (in_c := _in_c(D, config.n_head)):
        return None
    begin = partial(PastInC, in_c, *_panels(decoder, in_c), decoder)
    if decoder not in _SAME:
        tokens_N, found = torch.arange(min(9, config.n_ctx)) % config.vocab_size, []
        for way in begin, decoder.begin:
            with torch.no_grad():
                past = way(tokens_N[None, :-1], torch.tensor([len(tokens_N) - 1]))
                found.append(torch.cat([past.hidden_BD, past.step(tokens_N[-1:])]))
        _SAME[decoder] = torch.allclose(*found, rtol=1e-3, atol=1e-3, equal_nan=True)
    return begin if _SAME[decoder] else _say_once("this decoder computes something else")


_SAME = weakref.WeakKeyDictionary()  # decoder: whether decode.c computes what it does


@cache
def _say_once(why):
    if not _IN_HELPER:
        print(f"small models sample by torch's operations, not by decode.c: {why}", flush=True)


@cache
def _in_c(d_model, n_head):
    """decode.c, compiled for this shape and this processor, which takes a third of a second; None
    where that fails, which it says."""
    source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "decode.c")
    compiler = os.environ.get("CC", "cc")
    try:
        with tempfile.TemporaryDirectory() as folder:
            library = os.path.join(folder, "decode.so")
            subprocess.run([*shlex.split(compiler), "-O3", "-march=native", "-fopenmp-simd",
                            "-fno-math-errno", "-fPIC", "-shared", f"-DD={d_model}",
                            f"-DH={n_head}", source, "-o", library, "-lm"],
                           check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True)
            in_c = ctypes.CDLL(library)
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().partition("\n")[0]
        return _say_once(f"{compiler} ends with {error.returncode}: {said}")
    except (OSError, ValueError) as error:  # of shlex: a quotation in CC that does not end
        return _say_once(str(error))
    in_c.decode.argtypes = [ctypes.c_int] * 3 + [ctypes.c_void_p] * 5
    return in_c


def _panels(decoder, in_c):
    """The parameters of the decoder's layers as decode.c reads them, and where they are."""
    width = ctypes.c_int.in_dll(in_c, "panel").value

    def laid_out(p):
        p = nn.functional.pad(p.detach(), (0, 0) * (p.dim() - 1) + (0, -len(p) % width))
        return p if p.dim() == 1 else p.view(-1, width, p.shape[1]).transpose(1, 2).contiguous()

    weights = [laid_out(p) for part in (decoder.h, decoder.ln_f) for p in part.parameters()]
    return weights, (ctypes.c_void_p * len(weights))(*[w.data_ptr() for w in weights])


class PastInC:
    """model.Past of a small model, by decode.c on one core. Prompts go through it without their
    padding; memory that no token has reached yet is only reserved."""

    worth = 0.9  # that other rows leave costs next to nothing

    def __init__(self, in_c, weights, places, decoder, prompts_nP, start_b, prompt_of_b=None):
        self.in_c, self.decoder, self.weights, self.places = in_c, decoder, weights, places
        config, padded = decoder.config, ctypes.c_int.in_dll(in_c, "padded_head").value
        (n, P), of_b, B = prompts_nP.shape, prompt_of_b, len(start_b)
        written, room = (-(-positions // 32) * 32 for positions in (P, config.n_ctx))
        self.past = torch.empty(n, config.n_layer, config.n_head, 2, room, padded)
        if prompt_of_b is None:
            of_b = torch.arange(n)
        lens_n = start_b.new_zeros(n).scatter_reduce(0, of_b, start_b, "amax")
        is_prompt_nP = torch.arange(P) < lens_n[:, None]
        hidden_ND = self._read(prompts_nP[is_prompt_nP], *is_prompt_nP.nonzero().t().contiguous())
        self.hidden_BD = hidden_ND[(lens_n.cumsum(0) - lens_n)[of_b] + start_b - 1]
        if prompt_of_b is not None:
            read_n, self.past = self.past, torch.empty(B, *self.past.shape[1:])
            self.past[..., :written, :] = read_n[..., :written, :][of_b]
        self.row_B, self.at_B = torch.arange(B), start_b.clone()

    def step(self, tokens_B):
        hidden_BD = self._read(tokens_B, self.row_B, self.at_B)
        self.at_B += 1
        return hidden_BD

    def keep(self, alive_B):
        self.row_B, self.at_B = self.row_B[alive_B], self.at_B[alive_B]

    def _read(self, tokens_N, row_N, at_N):
        """hidden_ND of tokens at these rows and positions, whose keys and values stay."""
        _, layers, _, _, room, _ = self.past.shape
        x_ND = self.decoder.wte(tokens_N) + self.decoder.wpe(at_N)
        if self.in_c.decode(len(x_ND), layers, room, row_N.data_ptr(), at_N.data_ptr(),
                            self.places, self.past.data_ptr(), x_ND.data_ptr()):
            raise MemoryError
        return x_ND


def positions_at_once(device):
    """Cached positions come in multiples of this: making room for more copies what is there. A
    GPU's kernels want their rows of even length, too, and a recorded step (`Replayed`) serves as
    long as the number stays."""
    return 128 if device.type == "cuda" else 16


class Replayed:
    """step(x), for who calls it again and again. A GPU computes a small kernel in less time than
    the processor takes to launch it: there, the second call of a kind is recorded as a CUDA graph,
    and those after it launch that one graph.

    `key` names the kind: the shape of x, and all that decides which operations `step` does on which
    tensors. It must change tensors in place, and nothing else that lasts. The next call overwrites
    what a call returned. Where recording fails it says so, and this process runs as written."""

    works = True

    def __init__(self, step, device):
        self.step, self.on, self.key, self.play = step, device.type == "cuda", None, None

    def __call__(self, x, key):
        if not (self.on and Replayed.works):
            return self.step(x)
        if key != self.key:
            self.key, self.play = key, None
            return self.step(x)  # libraries prepare themselves, which must not be recorded
        if self.play is None:
            try:
                self.play = record(self.step, x)
            except RuntimeError as error:
                print(f"no CUDA graph, sampling step by step: {error}", flush=True)
                Replayed.works = False
                _stop_capturing_random_numbers()
                return self.step(x)
        return self.play(x)


def record(step, x):
    """play(x), which does on the GPU what step(x) did when it was recorded, on the same memory.
    (Not by torch.cuda.graph: that empties the allocator's cache each time.)"""
    given, (stream, keeper) = x.clone(), _recorder()
    graph, result = _capture(partial(step, given), stream, keeper.pool())

    def play(x):
        given.copy_(x)
        graph.replay()
        return result
    return play


def _capture(work, stream, *pool):
    """(graph, what work() returned): its operations on the GPU, none of which has run yet."""
    graph = torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        graph.capture_begin(*pool, capture_error_mode="thread_local")
        try:
            result = work()
        finally:
            try:
                graph.capture_end()
            except RuntimeError:  # torch may then go on to take memory from the graph's pool
                for one in pool:
                    with suppress(RuntimeError, AttributeError):
                        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), one)
                raise
    torch.cuda.current_stream().wait_stream(stream)
    return graph, result


def _stop_capturing_random_numbers():
    """Where a recording failed, the generator of torch up to 2.11 believes that it goes on, and
    the next random number raises. A clone has its seed and its place, and not that belief."""
    for generator in torch.cuda.default_generators:
        generator.graphsafe_set_state(generator.clone_state())


@cache
def _recorder():
    """A stream, as cuBLAS keeps memory for each that it has worked on; and a graph that lives as
    long as the process and with it the memory which all recordings share: what belongs to no graph
    any more, torch keeps and does not use again."""
    torch.cuda.empty_cache()  # while recording, torch can hand back nothing to make room
    stream, x = torch.cuda.Stream(), torch.zeros(1, device="cuda")
    return stream, _capture(lambda: x + 1, stream)[0]


@contextmanager
def at_hand(model, device, offload):
    """Where `offload` is set, the weights of a frozen model lie in host memory and are on `device`
    only within this context; nothing is copied back, as nothing changes them."""
    if not offload:
        yield model
        return
    resting = [p.data.cpu() for p in model.parameters()]  # on a CPU, and from then on: themselves
    if torch.cuda.is_available():  # and in memory that a GPU copies from at several times the speed
        resting = [weight.pin_memory() for weight in resting]
    for p, host in zip(model.parameters(), resting):
        p.data = host.to(device, non_blocking=True)
    try:
        yield model
    finally:
        for p, host in zip(model.parameters(), resting):
            p.data = host


@contextmanager
def step_in_backward(model, optimizer, rate, on):
    """Where `on` is set, the one backward pass within this context takes the optimizer's step for
    each parameter as soon as its gradient is whole, and frees it: all gradients never exist at
    once. Only for a step whose gradient is that of one pass, and is not clipped by its norm."""
    hooks = []

    def step(parameter):
        if not parameter.grad.isfinite().all():
            raise FloatingPointError("a gradient is not finite")
        optimizer.step()  # passes over parameters without a gradient: all others
        parameter.grad = None

    if on:
        for group in optimizer.param_groups:
            group["lr"] = rate
        hooks = [p.register_post_accumulate_grad_hook(step) for p in model.parameters()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


COMPILE_FROM = 10**7  # parameters: less trains sooner than the compiler is done


def compile_decoder(model, mode, device):
    """torch.compile the blocks of the decoder's training pass, which share one code, where `mode`
    is on, or auto for a model of some size whose passes run on a GPU; sampling with the cache and
    branches stay as they are (`block.forward`). Without a C compiler, or on a GPU without Python's
    headers, it says so and runs as written."""
    if mode == "auto":
        large = sum(p.numel() for p in model.parameters()) >= COMPILE_FROM
        mode = "on" if large and device.type != "cpu" else "off"
    if mode == "off":
        return
    headers = os.path.join(sysconfig.get_paths()["include"], "Python.h")
    missing = ("a C++ compiler" if not any(map(shutil.which, (
        os.environ.get("CXX", "g++"), "clang++", "c++", "cl"))) else
        headers if device.type != "cpu" and not os.path.exists(headers) else None)
    if missing:
        print(f"torch.compile needs {missing} and finds none: running uncompiled", flush=True)
        return
    # policy, value function, π_sft and reward model share one code: each shape and mode is a variant
    torch._dynamo.config.recompile_limit = max(32, torch._dynamo.config.recompile_limit)
    model.compiled = True
    for block in model.decoder.h:
        block.compile(dynamic=True)
