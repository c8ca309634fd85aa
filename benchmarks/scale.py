"""Measured costs of curvature work on GPT-2 small, ResNet-50 and ViT-B/16, and estimates for larger models.

Run by hand: ``python benchmarks/scale.py --out docs/results/benchmarks``. It takes about twenty minutes and 8 GiB.
Every number is measured in a process of its own. It needs Linux, because it reads the peak of the resident size from
``/proc``.
"""

from __future__ import annotations

import gc
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from gpu import Passes, Tokens
from growth import exponent, resident
from timing import FREEING, environment, environment_note, in_own_process, options
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from estimators import GGN, Hessian, Lanczos, Objective, sphere_probes
from estimators.memory import GIB
from pruning_limits import predict_limit
from pruning_limits.magnitude import MagnitudeProfile
from pruning_limits.one_shot import one_shot_limit
from pruning_limits.parts import Cost
from validation.tables.writing import Column, Page, Row, write_table

SMALL = 768  # width of GPT-2 small
WIDTHS, WINDOWS = (192, 384, SMALL), (2, 4, 8)
TOKENS, LENGTH, BATCH, SIDE = 50_257, 64, 2, 224
ATTENTION = "*.attn.*weight"
STEPS, BRACKET = 2, 0.01
TASKS = {
    "forward": "losses",
    "hessian": "one Hessian product",
    "ggn": "one GGN product",
    "recurrence": f"{STEPS} Lanczos steps",
    "one-shot": "one-shot",
}
# What larger models are assumed to look like, and the machines: sustained rates of one GPU of 80 GB.
LARGER = {"1 B": (1e9, 24, 2048), "7 B": (7e9, 32, 4096), "70 B": (70e9, 80, 8192)}
RATES = {"float32": 50e12, "bfloat16": 300e12}
GPU_BYTES, LINK = 80e9, 200e9
WINDOW = 512
# One prediction: its arguments, and how many windows are read in batches of how many.
RECIPE = {"samples": 128, "steps": 8, "probes": 1, "max_batches": 64}
READ, READ_BATCH = 256, 4


@dataclass(frozen=True)
class Case:
    """A network of random weights and its data.

    Attributes:
        network: ``"gpt2"``, ``"resnet50"`` or ``"vit_b_16"``.
        series: What is varied.
        width: Width of GPT-2.
        samples: Windows of text or images.
        batch: Samples of a batch.
        parameters: Patterns of the chosen weights.
    """

    network: str
    series: str = "networks"
    width: int = SMALL
    samples: int = BATCH
    batch: int = BATCH
    parameters: str | None = None

    @property
    def classes(self) -> int:
        """Number of classes, or of different tokens."""
        return TOKENS if self.network == "gpt2" else 1000

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"gpt2, width {self.width}" if self.network == "gpt2" else self.network

    def problem(self) -> tuple[nn.Module, Passes]:
        """Build model and batches; labels are the network's own answers, so that pruning it loses something."""
        torch.manual_seed(0)
        if self.network == "gpt2":
            from transformers import GPT2Config, GPT2LMHeadModel

            config = GPT2Config(vocab_size=TOKENS, n_embd=self.width, bos_token_id=0, eos_token_id=0)
            model: nn.Module = Tokens(GPT2LMHeadModel(config)).eval()
            x = torch.randint(0, TOKENS, (self.samples, LENGTH))
        else:
            model = getattr(torchvision.models, self.network)()
            x = torch.randn(self.samples, 3, SIDE, SIDE)
            if self.network == "vit_b_16":
                nn.init.normal_(model.heads.head.weight, std=0.02)  # torchvision leaves them zero: constant scores
            with torch.no_grad():
                for layer in model.modules():
                    if isinstance(layer, nn.BatchNorm2d):
                        layer.momentum = 1.0
                model.train()(x)  # the statistics of batch norm
            model.eval()
        with torch.no_grad():
            return model, Passes((part, model(part).argmax(1)) for part in x.split(self.batch))


CASES = [
    *(Case(network) for network in ("gpt2", "resnet50", "vit_b_16")),
    *(Case("gpt2", "weights", width=width) for width in WIDTHS if width < SMALL),
    *(Case("gpt2", "samples", samples=windows) for windows in WINDOWS if windows > BATCH),
    Case("gpt2", "batch", samples=max(WINDOWS), batch=max(WINDOWS)),
    Case("gpt2", "part", parameters=ATTENTION),
]


# ------------------------------------------------------------------------------------------------------- measuring


def one_shot(objective: Objective, classes: int) -> float:
    """Prune until half of what the network can lose, against constant scores, is lost."""
    losses, _ = objective.sample_losses()
    rise = (math.log(classes) - float(losses.mean())) / 2
    return one_shot_limit(objective, MagnitudeProfile(objective.chosen), rise, BRACKET)


def child(case: Case, task: str) -> None:
    """Measure one task."""
    torch.set_num_threads(1)
    model, batches = case.problem()
    total = sum(weight.numel() for weight in model.parameters())
    gc.collect()
    before = resident("VmRSS")
    objective = Objective(model, batches, parameters=case.parameters)
    works: dict[str, Callable[[], object]] = {
        "forward": objective.value,
        "hessian": lambda: Hessian(objective, memory=0).matmat(sphere_probes(probe, 1)),
        "ggn": lambda: GGN(objective, memory=0).matmat(sphere_probes(probe, 1)),
        "recurrence": lambda: Lanczos(Hessian(objective), sphere_probes(probe, 1), "none").advance(STEPS),
        "one-shot": lambda: one_shot(objective, case.classes),
    }
    probe, work = Hessian(objective), works[task]
    assert objective.samples == case.samples
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    passes, started = batches.passes, time.process_time()
    work()
    seconds = time.process_time() - started
    peak, passes = resident("VmHWM"), batches.passes - passes
    row: Row = {"dimension": objective.dimension, "total": total, "samples": case.samples, "seconds": seconds}
    row |= {"peak": peak / GIB, "above": (peak - before) / GIB, "passes": passes if task == "one-shot" else None}
    row["vectors"] = (peak - before) / (4 * objective.dimension)
    if task in ("forward", "hessian", "ggn"):
        with FlopCounterMode(display=False) as counter:
            work()
        row["flops"] = counter.get_total_flops()
    print(json.dumps(row))


def measured(case: Case, task: str) -> Row:
    """Measure one task in a new process that gives freed memory back to the system at once."""
    numbers = in_own_process(__file__, json.dumps(asdict(case)), task, **FREEING)
    row = asdict(case) | {"name": case.name, "task": task} | numbers
    print(row, flush=True)
    return row


# ------------------------------------------------------------------------------------------------------ extrapolating


def fits(rows: list[Row]) -> dict[str, dict[str, float]]:
    """Exponents of time and memory in D and in the samples, by task."""
    result: dict[str, dict[str, float]] = {}
    for task in TASKS:
        own = [row for row in rows if row["task"] == task and row["network"] == "gpt2"]
        base = [row for row in own if row["series"] == "networks"]
        for series, across in (("weights", "dimension"), ("samples", "samples")):
            points = base + [row for row in own if row["series"] == series]
            result.setdefault(series, {})
            for key in ("seconds", "above"):
                result[series][f"{task} {key}"] = exponent(points, across, key)
    return result


def row_of(rows: list[Row], task: str, series: str = "networks", samples: int = BATCH) -> Row:
    """Return a row of GPT-2 small."""
    wanted = {"network": "gpt2", "series": series, "task": task, "samples": samples}
    return next(row for row in rows if all(row[key] == value for key, value in wanted.items()))


def laws(rows: list[Row]) -> dict[str, float]:
    """What is read off GPT-2 small: FLOPs of a product, bytes per weight, and bytes per token, layer and width.

    The memory of a product is a sum: so many bytes for every weight of the model, for every chosen weight, and for
    every token of a batch. The differences of two rows give each.
    """
    forward, whole = row_of(rows, "forward"), {task: row_of(rows, task) for task in ("hessian", "ggn")}
    result = {"forward FLOPs per weight and token": forward["flops"] / (forward["dimension"] * BATCH * LENGTH)}
    for task in ("hessian", "ggn"):
        result[f"{task} FLOPs of a forward pass"] = whole[task]["flops"] / forward["flops"]
    large, small = (row_of(rows, "hessian", series, max(WINDOWS)) for series in ("batch", "samples"))
    token_bytes = (large["above"] - small["above"]) * GIB / ((large["batch"] - small["batch"]) * LENGTH)
    result["bytes per token, layer and width"] = token_bytes / (12 * SMALL)
    for task in ("recurrence", "one-shot"):
        all_of_it, part = row_of(rows, task), row_of(rows, task, "part")
        slope = (all_of_it["above"] - part["above"]) * GIB / (all_of_it["dimension"] - part["dimension"])
        result[f"{task} bytes per chosen weight"] = slope
    result["bytes per weight of the model"] = 4 + forward["above"] * GIB / forward["total"]
    return result


def prediction() -> Cost:
    """Count what one prediction passes, on a tiny GPT-2."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    text = torch.randint(0, 50, (READ, 17))
    batches = [(part[:, :-1], part[:, 1:]) for part in text.split(READ_BATCH)]
    return predict_limit(Tokens(GPT2LMHeadModel(config)), batches, progress=False, **RECIPE).cost


def costs(law: dict[str, float], passed: Cost) -> list[Row]:
    """What a prediction of larger models costs by these laws."""
    result = []
    for name, (weights, layers, width) in LARGER.items():
        forward = law["forward FLOPs per weight and token"] * weights * WINDOW
        product = (law["hessian FLOPs of a forward pass"] + law["ggn FLOPs of a forward pass"]) / 2 * forward
        activations = law["bytes per token, layer and width"] * WINDOW * layers * width
        row: Row = {"model": name, "activations": activations / 1e9, "share": 1.0, "memory": 0.0, "frozen": 0.0}
        for task, taken in (("recurrence", activations), ("one-shot", 0.0)):
            model = law["bytes per weight of the model"] * weights + taken
            chosen = law[f"{task} bytes per chosen weight"] * weights
            row["memory"] = max(row["memory"], (model + chosen) / 1e9)
            row["frozen"] = max(row["frozen"], model / 1e9)
            row["share"] = max(0.0, min(row["share"], (GPU_BYTES - model) / chosen))
        for arithmetic, rate in RATES.items():
            seconds = passed.samples * product / rate + passed.forward_samples * forward / RATES["float32"]
            for gpus in (1, 8):
                sums = 0.0 if gpus == 1 else passed.products * 2 * 4 * weights / LINK
                row[f"{arithmetic} {gpus}"] = (seconds / gpus + sums) / 60
        result.append(row)
    return result


def arguments_of(values: dict[str, int]) -> str:
    """Write arguments as in a call."""
    return "`" + ", ".join(f"{name}={value}" for name, value in values.items()) + "`"


def as_table(columns: list[Column], rows: list[Row]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(column.heading for column in columns) + " |"]
    lines.append("|" + "|".join("---:" if column.form else "---" for column in columns) + "|")
    lines += ["| " + " | ".join(column.text(row) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def report(rows: list[Row], passed: Cost, out: Path) -> None:
    """Write the table, the fits and the costs."""
    fitted, law = fits(rows), laws(rows)
    larger = costs(law, passed)
    columns = [
        Column("name", "network"),
        Column("series", "series"),
        Column("task", "task"),
        Column("dimension", "D", ",d"),
        Column("samples", "samples", "d"),
        Column("batch", "batch", "d"),
        Column("seconds", "s", ".2f"),
        Column("relative", "FLOPs, of a forward pass", ".2f"),
        Column("passes", "passes", "d"),
        Column("peak", "peak, GiB", ".2f"),
        Column("above", "above the model, GiB", ".2f"),
        Column("vectors", "in vectors", ".1f"),
    ]
    for row in rows:
        same = [peer for peer in rows if peer["task"] == "forward" and peer["series"] == row["series"]]
        forward = next(r for r in same if all(r[key] == row[key] for key in ("network", "width", "samples")))
        row["relative"] = row["flops"] / forward["flops"] if row.get("flops") else None
    said = "; ".join(
        f"{words} {fitted['weights'][f'{task} seconds']:.2f} and {fitted['weights'][f'{task} above']:.2f} in D, "
        f"{fitted['samples'][f'{task} seconds']:.2f} and {fitted['samples'][f'{task} above']:.2f} in the samples"
        for task, words in TASKS.items()
    )
    cost_columns = [
        Column("model", "model"),
        *(
            Column(f"{arithmetic} {gpus}", f"{arithmetic}, {gpus} GPU{'s' * (gpus > 1)}, minutes", ",.1f")
            for arithmetic in RATES
            for gpus in (1, 8)
        ),
        Column("memory", "memory of each GPU, all weights, GB", ",.0f"),
        Column("frozen", "of it whatever is chosen, GB", ",.0f"),
        Column("activations", "of that for one window, GB", ",.1f"),
        Column("share", "share of the weights that fits into 80 GB", ".1%"),
    ]
    notes = [
        f"Made by `python benchmarks/scale.py --out {out}`.",
        f"Random weights, float32, one thread. GPT-2 with 12 layers and 12 heads, of the width that is named; "
        f"{SMALL} is GPT-2 small. Samples are windows of {LENGTH} random tokens or images of {SIDE} x {SIDE}; labels "
        "are the network's own answers; weights of convolution and linear layers, the tied embedding among them. "
        "Series: `weights` varies the width, `samples` their number, `batch` takes all of them at once, `part` chooses "
        f"`parameters={ATTENTION!r}`. Products rebuild their graphs batch by batch. The {STEPS} Lanczos steps are "
        "of the Hessian, `reorthogonalise='none'`, and keep graphs up to 2 GiB. One-shot pruning goes on until half of "
        "what the network can lose is lost, bracketed to one point, by differences of losses per sample; `passes` are "
        "those over the data.",
        "Every row is a process of its own, which does its task once: processor seconds; FLOPs of matrix products and "
        "convolutions as `torch.utils.flop_counter` counts them; largest resident size, Python and libraries "
        "included; the same above the process that holds the model and its data only, also in vectors of D float32 "
        "numbers.",
        f"Exponents of time and of memory above the model, by least squares of the logarithms, GPT-2: {said}.",
        environment_note(),
        "## Larger models, extrapolated",
        "Nothing in this part was measured on a GPU. Read off GPT-2 small above: "
        + "; ".join(f"{words}: {value:.3g}" for words, value in law.items())
        + ". Memory of a model is taken for a sum: bytes for each of its weights (the model and the library's private "
        "copy of it), bytes for each chosen weight (vectors and gradients), and bytes for each token of a batch, in "
        "proportion to layers times width, the scores of all different tokens among them. The larger of Lanczos steps "
        "and one-shot pruning counts, and a fixed part of 0.4 GiB is left out.",
        f"Counted on a tiny GPT-2: one prediction with {arguments_of(RECIPE)}, which reads {READ} windows in batches "
        f"of {READ_BATCH}, passes {passed.samples:,} windows in {passed.products} products and "
        f"{passed.forward_samples:,} in forward passes.",
        f"Assumed: half of the products are with the Hessian, half with the GGN; windows of {WINDOW:,} tokens, one at "
        f"a time; no basis of Lanczos vectors is kept, which would take one more vector for each step; each "
        f"GPU sustains {RATES['float32'] / 1e12:.0f} TFLOP/s in float32 (TF32 off) and "
        f"{RATES['bfloat16'] / 1e12:.0f} TFLOP/s in bfloat16, which `precision='bfloat16'` takes for products only; "
        f"eight GPUs share the data, and every product ends with a sum over them at {LINK / 1e9:.0f} GB/s; 24, 32 and "
        "80 layers of width 2,048, 4,096 and 8,192. Left out: softmax, norms and other work that is not a matrix "
        "product, attention's share in FLOPs and in memory, which grows with the length of a window, and sorting the "
        "weights. Minutes are those of the FLOPs, whether or not the memory suffices. Vectors and weights are not "
        "spread over GPUs: where the memory of each GPU exceeds what it has, only a part of the weights can be chosen, "
        "or none at all; the last column says how large a part.",
        as_table(cost_columns, larger),
        "## What was measured",
    ]
    extra: dict[str, Any] = {"environment": environment(), "exponents": fitted, "laws": law, "costs": larger}
    extra["prediction"] = asdict(passed)
    write_table(out, Page("scale", "Large models", notes, columns), rows, **extra)


def main() -> None:
    """Write the tables, or measure one number."""
    parser = options(__doc__, runs=False)
    parser.add_argument("--child", nargs=2)
    arguments = parser.parse_args()
    if arguments.child:
        child(Case(**json.loads(arguments.child[0])), arguments.child[1])
        return
    torch.set_num_threads(1)
    report([measured(case, task) for case in CASES for task in TASKS], prediction(), arguments.out)


if __name__ == "__main__":
    main()
