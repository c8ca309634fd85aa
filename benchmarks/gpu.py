"""Products against other libraries, and whole predictions in three arithmetics, on a GPU.

Run by ``make gpu``, or by hand: ``python benchmarks/gpu.py --out docs/results/gpu``. Every network runs in a process of
its own. When the time of a process is over, it is ended, and the table says what was not finished. All processes
together take at most six and a half minutes. ``--device cpu --smoke`` runs everything on tiny networks without a GPU.
"""

from __future__ import annotations

import copy
import gc
import json
import subprocess
import sys
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from timing import environment, interleaved, options
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from estimators import GGN, Hessian, Objective
from estimators.memory import GIB, available, out_of_memory
from pruning_limits import predict_limit
from validation.data import ImageData
from validation.models import build_model
from validation.tables.writing import Column, Page, Row, write_table
from validation.training import Recipe, train

NETWORKS = {"products": ("resnet50", "vit-b-16", "gpt2-small"), "predictions": ("fc5", "resnet18")}
SECONDS = {"products": 70.0, "predictions": 90.0}
REBUILT, KEPT = "graphs rebuilt", "graphs kept"
LIBRARIES = {"Hessian": (REBUILT, KEPT, "PyHessian", "curvlinops"), "GGN": (REBUILT, KEPT, "curvlinops")}
ARITHMETICS = ("float32", "TF32", "bfloat16")
KEYS = {"products": ("network", "matrix", "library"), "predictions": ("network", "arithmetic")}
REPEATS = 5
CLASSES = 10
RECIPES = {
    "fc5": Recipe(epochs=5, lr=0.05, l1=5e-5),
    "resnet18": Recipe(epochs=3, lr=0.05, l2=5e-4, batch_size=256),
}
PREDICTED = {"fc5": {}, "resnet18": {"samples": 512, "steps": 16}}  # further arguments; else the engine's own choice
IMAGES = {"fc5": 20_480, "resnet18": 8_192}
COMPARED_SAMPLES = 256  # behind the products whose rounding errors are told
T = TypeVar("T")
NO_DEVICE = "no CUDA device here: nothing was run"


# ------------------------------------------------------------------------------------------------------- measuring


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has done all that was asked of it; everything else has done so when a call returns."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_on(device: torch.device, call: Callable[[], Any]) -> float:
    """Wall time of one call, from an idle device to an idle device."""
    synchronise(device)
    started = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - started


def peak_on(device: torch.device, call: Callable[[], T]) -> tuple[T, float | None]:
    """Return what a call returns, and the most GiB that it took beyond what was there before; None without a GPU."""
    gc.collect()  # graphs in cycles, which PyHessian makes
    if device.type != "cuda":
        return call(), None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = call()
    torch.cuda.synchronize(device)
    return result, (torch.cuda.max_memory_allocated(device) - before) / GIB


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Let matrix products and convolutions of float32 numbers on a GPU be taken in TF32 for a while, or forbid it."""
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = allowed
        yield
    finally:
        for switch, old in zip(switches, before, strict=True):
            switch.allow_tf32 = old


@contextmanager
def equal_terms() -> Iterator[None]:
    """Let all libraries compute in float32, and with attention that they can all differentiate twice."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH), tf32(False):
        warnings.simplefilter("ignore")
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)


def apart(vector: Tensor, reference: Tensor) -> float:
    """Distance of two vectors relative to the second."""
    return float((vector.double() - reference.double()).norm() / reference.double().norm())


class Passes:
    """Batches that count how often they are passed."""

    def __init__(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        self.batches, self.passes = list(batches), 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches."""
        self.passes += 1
        return iter(self.batches)


# -------------------------------------------------------------------------------------------------------- products


class Tokens(nn.Module):
    """Scores of the next token ``[n, words, length]`` of a language model, as cross-entropy takes them."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, ids: Tensor) -> Tensor:
        """Map token numbers ``[n, length]`` to scores."""
        return self.body(ids, use_cache=False).logits.transpose(1, 2)


def large_network(name: str, smoke: bool) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """Build a network with random weights and two batches of random data; tiny ones of the same kind to try out."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        if name == "gpt2-small":
            from transformers import GPT2Config, GPT2LMHeadModel

            tiny = {"n_layer": 1, "n_head": 2, "n_embd": 8, "vocab_size": 20, "n_positions": 8} if smoke else {}
            config = GPT2Config(attn_implementation="eager", bos_token_id=0, eos_token_id=0, **tiny)
            model, size, length = Tokens(GPT2LMHeadModel(config)), 2 if smoke else 4, 6 if smoke else 256
            text = torch.randint(0, config.vocab_size, (2 * size, length + 1), generator=generator)
            x, y = text[:, :-1], text[:, 1:]
        else:
            from torchvision import models

            if name == "resnet50":
                model = build_model("resnet8", (3, 16, 16), 1000) if smoke else models.resnet50()
                size, side = (2, 16) if smoke else (16, 224)
            else:
                model = models.VisionTransformer(32, 16, 1, 2, 8, 16) if smoke else models.vit_b_16()
                nn.init.normal_(model.heads.head.weight, std=0.02)  # torchvision leaves them zero: constant scores
                size, side = (2, 32) if smoke else (8, 224)
            x = torch.randn(2 * size, 3, side, side, generator=generator)
            y = torch.randint(0, 1000, (2 * size,), generator=generator)
    return model.eval(), [(x[:size], y[:size]), (x[size:], y[size:])]


def calls_of(matrix: str, objective: Objective, device: torch.device) -> dict[str, Callable[[], Any]]:
    """Return, by library, what multiplies a matrix with the same vector."""
    from curvlinops import GGNLinearOperator, HessianLinearOperator
    from pyhessian import hessian as PyHessian

    model, loss = objective.model, nn.CrossEntropyLoss()
    chosen = [model.get_parameter(name) for name in objective.names]
    for parameter in model.parameters():
        parameter.requires_grad_(any(parameter is weight for weight in chosen))
    vector = torch.randn(objective.dimension, generator=torch.Generator().manual_seed(1)).to(device)
    sizes = [weight.numel() for weight in chosen]
    parts = [part.view_as(weight) for part, weight in zip(vector.split(sizes), chosen, strict=True)]
    ours, theirs = {"Hessian": (Hessian, HessianLinearOperator), "GGN": (GGN, GGNLinearOperator)}[matrix]
    batches = objective.loader.batches
    kept = ours(objective, memory=available(device) // 2)
    linear = theirs(model, loss, chosen, batches, check_deterministic=False)
    calls = {
        REBUILT: lambda: ours(objective, memory=0) @ vector,
        KEPT: lambda: kept @ vector,
        "curvlinops": lambda: linear @ parts,
    }
    if matrix == "Hessian":
        pyhessian = PyHessian(model, loss, dataloader=batches, cuda=device.type == "cuda")
        calls["PyHessian"] = lambda: pyhessian.dataloader_hv_product(parts)[1]
    return calls


def first_product(device: torch.device, call: Callable[[], Any]) -> tuple[Tensor | None, float | None]:
    """Return a product as one vector, and its peak of memory; None of both where it does not fit."""
    try:
        product, gib = peak_on(device, call)
    except RuntimeError as error:  # its traceback holds what filled the memory until this block is left
        if not out_of_memory(error):
            raise
        return None, None
    parts = [product] if isinstance(product, Tensor) else product
    return torch.cat([part.detach().reshape(-1) for part in parts]), gib


def products(name: str, device: torch.device, smoke: bool) -> Iterator[Row]:
    """Time products of all libraries with the same weights, batches and vector."""
    model, batches = large_network(name, smoke)
    passes = Passes((x.to(device), y.to(device)) for x, y in batches)
    objective = Objective(model.to(device), passes)
    reference = torch.empty(0)
    for matrix, libraries in LIBRARIES.items():
        calls = calls_of(matrix, objective, device)
        rows: dict[str, Row] = {}
        without = [library for library in libraries if library != KEPT]
        for group in (without, [KEPT]):  # kept graphs come last: they would take memory from the others
            running = {}
            for library in group:
                product, gib = first_product(device, calls[library])
                row = {"network": name, "matrix": matrix, "library": library, "dimension": objective.dimension}
                rows[library] = row | {"samples": objective.samples, "gib": gib}
                if product is None:
                    rows[library]["status"] = "out of memory"
                    continue
                running[library] = calls[library]
                reference = product if library == REBUILT else reference
                rows[library]["apart"] = apart(product, reference)
                del product
            before = passes.passes
            for library, seconds in interleaved(running, 1 if smoke else REPEATS, partial(seconds_on, device)).items():
                rows[library]["seconds"] = seconds
                rows[library]["ratio"] = seconds / rows[REBUILT]["seconds"]
            if group == [KEPT] and passes.passes > before:
                rows[KEPT]["status"] = "graphs did not fit and were rebuilt"
        yield from (rows[library] for library in libraries)
        del calls, running


# ----------------------------------------------------------------------------------------------------- predictions


def taught_images(count: int, side: int) -> ImageData:
    """Draw images of random bytes whose classes a small random network tells, each about equally often."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)
    teacher = build_model("cnn-tiny", (3, side, side), CLASSES, seed=1).eval()
    with torch.no_grad():
        scores = torch.cat([teacher(part.float() / 255 - 0.5) for part in x.split(1024)])
    y = ((scores - scores.mean(0)) / scores.std(0)).argmax(1)
    held_out = count // 8
    return ImageData("random", x[held_out:], y[held_out:], x[:held_out], y[:held_out], CLASSES)


def trained_network(name: str, device: torch.device, smoke: bool) -> tuple[nn.Module, ImageData]:
    """Train a network on images from a teacher; a tiny one of the same kind to try out."""
    data = taught_images(160, 8) if smoke else taught_images(IMAGES[name], 32)
    tiny = {"fc5": "fc5-mini", "resnet18": "resnet8"}
    model = build_model(tiny[name] if smoke else name, data.shape, CLASSES).to(device)
    train(model, data, RECIPES[name], seed=0)
    return model.eval(), data


def product_errors(model: nn.Module, data: ImageData, arithmetic: str) -> dict[str, float]:
    """Return the rounding error of one product with each curvature, against products in float64."""
    batches = list(data.batches("train", 128, limit=COMPARED_SAMPLES))
    exact = copy.deepcopy(model).double(), [(x.double(), y) for x, y in batches]
    precision = "bfloat16" if arithmetic == "bfloat16" else "full"
    result = {}
    for key, kind in (("hessian_error", Hessian), ("ggn_error", GGN)):
        operator, reference = kind(Objective(model, batches), precision=precision), kind(Objective(*exact))
        vector = torch.randn(operator.shape[0], generator=torch.Generator().manual_seed(1))
        result[key] = apart(operator @ vector, reference @ vector)
    return result


def predictions(name: str, device: torch.device, smoke: bool) -> Iterator[Row]:
    """Predict the limit of one network in every arithmetic."""
    model, data = trained_network(name, device, smoke)
    asked: dict[str, Any] = {"penalty": RECIPES[name].penalty, "progress": False, **PREDICTED[name]}
    if smoke:
        asked |= {"samples": 32, "steps": 4, "probes": 1}
    for arithmetic in ARITHMETICS:
        asked["precision"] = "bfloat16" if arithmetic == "bfloat16" else "full"
        with tf32(arithmetic == "TF32"):
            limit, gib = peak_on(device, partial(predict_limit, model, data.batches("train", 1000), **asked))
            row: Row = {
                "network": name,
                "arithmetic": arithmetic,
                "dimension": limit.parameters,
                "seconds": limit.cost.seconds,
                "products": limit.cost.products,
                "gib": gib,
                "sparsity": limit.sparsity,
                "half": (limit.interval[1] - limit.interval[0]) / 2,
                "retrained": limit.retrained,
                "directional": limit.directional,
                "achieved": limit.achieved,
            }
            row |= product_errors(model, data, arithmetic)
        if arithmetic == "TF32" and not has_tf32(device):
            row["status"] = "this device has no TF32"
        yield row


def has_tf32(device: torch.device) -> bool:
    """Tell whether a device takes products in TF32 where it may, as GPUs of compute capability 8 do."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


# ---------------------------------------------------------------------------------------------- parts and the tables


PARTS = {"products": products, "predictions": predictions}


def keys(table: str, network: str) -> list[tuple[str, ...]]:
    """Return what the rows of one network are told apart by, for all that are to be there."""
    if table == "products":
        return [(network, matrix, library) for matrix in LIBRARIES for library in LIBRARIES[matrix]]
    return [(network, arithmetic) for arithmetic in ARITHMETICS]


def rows_of(table: str, network: str, arguments: Namespace) -> list[Row]:
    """Run a part in a process of its own for as long as it may take.

    Returns:
        A row for everything that was to be measured; where it was not, ``status`` tells why.
    """
    seconds = SECONDS[table] if arguments.seconds is None else arguments.seconds
    command = [sys.executable, __file__, "--part", table, network, "--device", arguments.device]
    command += ["--smoke"] if arguments.smoke else []
    try:
        ended = subprocess.run(command, capture_output=True, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        written, reason = error.stdout or b"", f"not finished within {seconds:g} s"
    else:
        said = ended.stderr.decode(errors="replace")
        sys.stderr.write(said)
        last = said.strip().splitlines()[-1:] or [f"exit status {ended.returncode}"]
        written, reason = ended.stdout, f"failed: {last[0]}"
    lines = [line for line in written.decode().splitlines(keepends=True) if line.startswith("{") and line[-1] == "\n"]
    rows = {tuple(row[key] for key in KEYS[table]): row for row in map(json.loads, lines)}
    return [
        rows.get(key, dict(zip(KEYS[table], key, strict=True)) | {"status": reason}) for key in keys(table, network)
    ]


def machine(device: torch.device) -> Row:
    """Return what the tables were made on."""
    row = environment() | {"device": str(device), "name": "CPU"}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        row |= {"name": properties.name, "gib": round(properties.total_memory / GIB, 1), "driver": driver()}
        row |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return row


def driver() -> str:
    """Return the version of the driver of the first GPU, as its own tool tells it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return said[0].strip() if said else "unknown"


def machine_note(made_on: Row) -> str:
    """Return the same as a sentence."""
    if made_on["device"] == "cpu":
        return f"**Not on a GPU**: {made_on['cpu']}, torch {made_on['torch']}, {made_on['date']}."
    return (
        f"{made_on['name']} with {made_on['gib']} GiB, driver {made_on['driver']}, CUDA {made_on['cuda']}, cuDNN "
        f"{made_on['cudnn']}, torch {made_on['torch']}, {made_on['date']}."
    )


def made_by(arguments: Namespace) -> str:
    """Return the sentence that names the command."""
    flags = f" --device {arguments.device}" if arguments.device != "cuda" else ""
    if not arguments.smoke:
        return f"Made by `python benchmarks/gpu.py --out {arguments.out}{flags}`."
    return (
        f"Made by `python benchmarks/gpu.py --out {arguments.out}{flags} --smoke`: **tiny networks on tiny data, few "
        "calls, to try the benchmark out.** What follows is true of the whole benchmark."
    )


def write_products(arguments: Namespace, rows: Sequence[Row], made_on: Row) -> None:
    """Write the table of products."""
    columns = [
        Column("network", "network"),
        Column("dimension", "D", ",d"),
        Column("samples", "samples", "d"),
        Column("matrix", "matrix"),
        Column("library", "library"),
        Column("seconds", "one product, s", ".4f"),
        Column("ratio", "times that of graphs rebuilt", ".2f"),
        Column("gib", "peak GiB of the first", ".2f"),
        Column("apart", "relative difference to graphs rebuilt", ".1e"),
        Column("status", "remark"),
    ]
    notes = [
        made_by(arguments),
        f"Shortest wall time of one product with a vector over {REPEATS} calls after two that do not count; all take "
        "turns in one process, and the device is idle before and after each. Random weights; random images of 224 x "
        "224, or texts of 256 random tokens, in two batches on the device. All get the same weights, batches and "
        "vector, in float32 without TF32, and differentiate with respect to the weights of convolution and linear "
        "layers only. Graphs rebuilt and kept are this project's. Peaks are those of the first product beyond what was "
        "there before it: with graphs kept they contain the graphs.",
        "PyHessian has no GGN. curvlinops is built without its check for determinism, which would cost further passes.",
        machine_note(made_on),
    ]
    title = "Time and memory of one product on a GPU"
    write_table(arguments.out, Page("products", title, notes, columns), rows, environment=made_on)


def write_predictions(arguments: Namespace, rows: Sequence[Row], made_on: Row) -> None:
    """Write the table of predictions."""
    columns = [
        Column("network", "network"),
        Column("dimension", "D", ",d"),
        Column("arithmetic", "arithmetic"),
        Column("seconds", "prediction, s", ".1f"),
        Column("products", "products", ",d"),
        Column("gib", "peak GiB", ".2f"),
        Column("sparsity", "limit", ".2%"),
        Column("half", "half-width", ".2%"),
        Column("retrained", "re-trained limit", ".2%"),
        Column("directional", "directional limit", ".2%"),
        Column("achieved", "measured one-shot", ".2%"),
        Column("hessian_error", "error of Hv", ".1e"),
        Column("ggn_error", "error of Gv", ".1e"),
        Column("status", "remark"),
    ]
    given = "; ".join(f"{name}: {text(asked)}" for name, asked in PREDICTED.items())
    notes = [
        made_by(arguments),
        "`predict_limit` from start to end with measuring, once per arithmetic and in this order, on the same trained "
        "weights. The first prediction also warms the device up. Networks are trained for a few epochs on images of "
        "random bytes in the shape of CIFAR-10, whose classes a random convolutional network tells: times and "
        "differences between arithmetics speak of this project, limits do not speak of any real network. Arguments: "
        f"{given}.",
        "float32: without TF32, which PyTorch by default allows in convolutions. TF32: allowed in convolutions and in "
        "matrix products. bfloat16: `precision='bfloat16'`, without TF32. Errors are those of one product with a "
        f"random vector on {COMPARED_SAMPLES} samples, relative to the product in float64.",
        machine_note(made_on),
    ]
    title = "Predictions on a GPU, and the effect of TF32 and bfloat16"
    write_table(arguments.out, Page("predictions", title, notes, columns), rows, environment=made_on)


def text(asked: dict[str, Any]) -> str:
    """Return arguments in one line."""
    return ", ".join(f"{key}={value}" for key, value in asked.items()) or "the engine's own choice"


def main() -> None:
    """Write both tables, or print the rows of one part."""
    parser = options(__doc__, runs=False)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--smoke", action="store_true", help="tiny networks, to try everything out")
    parser.add_argument("--seconds", type=float, help="most that a part may take; default 70 or 90")
    parser.add_argument("--part", nargs=2, metavar=("TABLE", "NETWORK"), help="print the rows of this part only")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(NO_DEVICE)
        return
    if arguments.part:
        table, network = arguments.part
        with equal_terms():
            for row in PARTS[table](network, device, arguments.smoke):
                print(json.dumps(row), flush=True)
        return
    rows: dict[str, list[Row]] = {table: [] for table in PARTS}
    for table, networks in NETWORKS.items():
        for network in networks:
            rows[table] += rows_of(table, network, arguments)
            print(*rows[table][-len(keys(table, network)) :], sep="\n", flush=True)
    made_on = machine(device)  # only now: a GPU may serve one process at a time
    write_products(arguments, rows["products"], made_on)
    write_predictions(arguments, rows["predictions"], made_on)


if __name__ == "__main__":
    main()
