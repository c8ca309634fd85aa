"""What a GPU must give: the numbers of the CPU, the same bits in every run, and no more memory than was foreseen.

``make gpu`` runs the tests marked ``cuda``. Each has a twin on the CPU, which shows that the test itself is right. The
references are computed in float64 on the CPU, so that the twins can fail, too.
"""

import contextlib
import copy
import os
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import CASES, Loader, assert_close, random, reference, same, seeded, snapshot, tolerance, without_cost
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, TensorDataset

from estimators import (
    GGN,
    L1,
    L2,
    Hessian,
    Lanczos,
    Objective,
    block_traces,
    diagonal,
    eigenpairs,
    hutch_plus_plus,
    hutchinson,
    spectral_measure,
    sphere_probes,
    xtrace,
)
from estimators.spectrum import dense_measure
from pruning_limits import predict_limit

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used; sums in a fixed order

AVAILABLE = torch.cuda.is_available()
ON_GPU = pytest.param(
    "cuda", marks=[pytest.mark.cuda, pytest.mark.skipif(not AVAILABLE, reason="there is no CUDA device")]
)
devices = pytest.mark.parametrize("device", ["cpu", ON_GPU])
kinds = pytest.mark.parametrize("kind", ["hessian", "ggn"])
OPERATORS = {"hessian": Hessian, "ggn": GGN}
# A thread that calls cuBLAS before anything else is told that it got the context of the process, as it should.
pytestmark = pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS")

NUMBERS = ("sparsity", "retrained", "directional", "upper")
OPTIONS = {"epsilon": 0.05, "probes": 1, "progress": False}
LIMIT = OPTIONS | {"steps": 24, "criterion": "objective"}
BRACKETS = 2 * 0.05 * 0.005


@pytest.fixture(autouse=True)
def exact_sums():
    """No TF32, which has three digits and which convolutions on a GPU use by default; sums in a fixed order."""
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    deterministic = torch.are_deterministic_algorithms_enabled()
    for switch in switches:
        switch.allow_tf32 = False
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(deterministic)
    for switch, old in zip(switches, before, strict=True):
        switch.allow_tf32 = old


# --------------------------------------------------------------------------------------------------------- problems


class Images(nn.Sequential):
    """Convolutions with batch normalisation and dropout, of 1,328 weights."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(2, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.Tanh(),
            nn.Conv2d(8, 8, 3, stride=2, padding=1),
            nn.Tanh(),
            nn.Dropout(),
            nn.Flatten(),
            nn.Linear(8 * 9, 8),
            nn.Tanh(),
            nn.Linear(8, 4),
        )


class Texts(nn.Module):
    """An encoder layer with attention, of 112 weights."""

    def __init__(self):
        super().__init__()
        self.embed, self.body = nn.Embedding(7, 4), nn.TransformerEncoderLayer(4, 2, 4, batch_first=True)
        self.head = nn.Linear(4, 4)

    def forward(self, ids):
        return self.head(self.body(self.embed(ids)).mean(1))


class Sequences(nn.Module):
    """Recurrent layers, which run without cuDNN, of 56 weights in the layers around them."""

    def __init__(self):
        super().__init__()
        self.first, self.cell, self.head = nn.Linear(4, 6), nn.GRU(6, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.cell(torch.tanh(self.first(x)))[0][:, -1])


def mlp():
    """A fully connected network of 1,036 weights, too many for the whole matrix."""
    widths = (10, 32, 18, 7, 2)
    layers = [layer for sizes in pairwise(widths) for layer in (nn.Linear(*sizes), nn.Tanh())]
    return nn.Sequential(*layers[:-1])


KINDS = {
    "mlp": (mlp, (10,)),
    "images": (Images, (2, 6, 6)),
    "texts": (Texts, (5,)),
    "sequences": (Sequences, (3, 4)),
}
networks = pytest.mark.parametrize("name", KINDS)


def problem(name, device="cpu", dtype=torch.float32, samples=96):
    """Return a network on a device whose answers are mostly the labels, and batches in main memory."""
    build, shape = KINDS[name]
    model = seeded(build)
    x = torch.arange(samples * 5).reshape(samples, 5) ** 2 % 7 if name == "texts" else random(samples, *shape, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
        spread = copy.deepcopy(model).eval()(x).std()
        for parameter in [*model.parameters()][-2:]:
            parameter.mul_(3 / spread)
        scores = copy.deepcopy(model).eval()(x)
        y = (scores + 0.5 * random(*scores.shape, seed=2)).argmax(1)
    x = x.to(dtype) if x.is_floating_point() else x
    batches = [(x[start : start + 40], y[start : start + 40]) for start in range(0, samples, 40)]
    return model.to(device, dtype), batches


def operator(kind, name, device="cpu", dtype=torch.float32, **options):
    return OPERATORS[kind](Objective(*problem(name, device, dtype), penalty=L2(1e-3)), **options)


def on_cpu(value):
    return value.cpu() if isinstance(value, torch.Tensor) else value


# --------------------------------------------------------------------------------------------- equality with the CPU

# Every entry is a chain of sums of up to 96 * 72 terms, taken forth, back, and twice more. Rounding errors of float32,
# 6e-8 each, add up like their root: 6e-8 * sqrt(4 * 6912) = 1e-5, and ``tolerance`` allows 2.4e-5 of the largest entry.


@devices
@kinds
@pytest.mark.parametrize(
    "name",
    ["ragged", "dict", "batch norm", "grouped", "tied", "idle layer", "multi-head attention", "dot product attention"],
)
def test_every_column_of_small_curvatures(name, kind, device):
    case = CASES[name]
    model, loader = case.model(torch.float32).to(device), case.loader(torch.float32)
    objective = Objective(model, loader, case.loss_fn, **case.options)
    for memory in (2 << 30, 0):
        curvature = OPERATORS[kind](objective, memory)
        columns = curvature.matmat(torch.eye(curvature.shape[0]))
        assert columns.device.type == device
        assert_close(columns.cpu(), reference(name, torch.float32)[kind == "ggn"], torch.float32)


@devices
@kinds
@networks
def test_products(name, kind, device):
    expected = operator(kind, name, dtype=torch.float64)
    vectors = random(expected.shape[0], 2)
    product = operator(kind, name, device) @ vectors
    assert product.device.type == device
    assert_close(product.cpu(), expected @ vectors, torch.float32)


@devices
@networks
def test_values_losses_and_gradients(name, device):
    exact, rounded = (
        Objective(*problem(name, place, dtype), penalty=L1(1e-3))
        for place, dtype in (("cpu", torch.float64), (device, torch.float32))
    )
    assert_close(rounded.value(), exact.value(), torch.float32)
    losses, sizes = rounded.sample_losses()
    assert losses.device.type == sizes.device.type == "cpu"
    assert_close(losses, exact.sample_losses()[0], torch.float32)
    assert_close(rounded.gradient().cpu(), exact.gradient(), torch.float32)


@devices
def test_batches_may_lie_anywhere(device):
    model, batches = problem("mlp", device)
    x, y = (torch.cat(part) for part in zip(*batches, strict=True))
    loaders = [
        batches,
        [(x.to(device), y.to(device)) for x, y in batches],
        DataLoader(TensorDataset(x, y), 40, pin_memory=device == "cuda"),
    ]
    v = random(1036)
    first, *others = (Hessian(Objective(model, loader)) @ v for loader in loaders)
    assert float(first.norm()) > 0
    for product in others:
        assert torch.equal(product, first)


@devices
@kinds
def test_spectra(kind, device):
    """Weyl: eigenvalues move by no more than the largest one of the error, here that of a product."""
    exact, rounded = operator(kind, "texts", dtype=torch.float64), operator(kind, "texts", device)
    values, nodes = (dense_measure(matrix).nodes for matrix in (exact, rounded))
    assert_close(nodes, values, torch.float32)
    largest = float(np.abs(values).max())
    measures = [spectral_measure(matrix, probes=2, steps=12, seed=3) for matrix in (exact, rounded)]
    for function in (np.abs, np.square, lambda x: 1 / (1 + np.abs(x))):
        expected, value = (measure.integrate(function)[0] for measure in measures)
        # |x|, x^2 and 1/(1 + |x|) have slopes of at most 1, 2 * largest and 1
        assert abs(value - expected) <= tolerance(torch.float32) * largest * max(1.0, 2 * largest)
    for exact_rule, rounded_rule in zip(*(measure.rules for measure in measures), strict=True):
        assert_close(rounded_rule[0][[0, -1]], exact_rule[0][[0, -1]], torch.float32)


@devices
@kinds
def test_top_eigenpairs(kind, device):
    exact, rounded = operator(kind, "images", dtype=torch.float64), operator(kind, "images", device)
    pairs = eigenpairs(rounded, count=3)
    assert pairs.vectors.device.type == device
    assert pairs.converged
    assert_close(pairs.values, eigenpairs(exact, count=3).values, torch.float32)
    residuals = exact @ pairs.vectors.cpu().double() - pairs.vectors.cpu().double() * torch.as_tensor(pairs.values)
    assert float(residuals.norm(dim=0).max()) <= 2e-4 * np.abs(pairs.values).max()


@devices
@kinds
def test_traces(kind, device):
    """A quadratic form of a vector of length sqrt(D) errs by D times the largest eigenvalue's error at most."""
    exact, rounded = operator(kind, "images", dtype=torch.float64), operator(kind, "images", device)
    dimension = exact.shape[0]
    scale = dimension * float(np.abs(eigenpairs(exact, count=1).values[0]))
    for estimator in (hutchinson, hutch_plus_plus, xtrace):
        expected, estimate = (estimator(matrix, 16) for matrix in (exact, rounded))
        assert_close(estimate.value, expected.value, torch.float32, scale)
        assert_close(estimate.standard_error, expected.standard_error, torch.float32, scale)
        assert estimate.value == pytest.approx(expected.value, rel=1e-2)
    for part in zip(*(block_traces(matrix, matrix.blocks, probes=4) for matrix in (exact, rounded)), strict=True):
        assert_close(part[1], part[0], torch.float32, scale)
    estimates, errors = diagonal(rounded, probes=4)
    assert estimates.device.type == errors.device.type == device
    assert_close(estimates.cpu(), diagonal(exact, probes=4)[0], torch.float32, scale / dimension)


@cache
def expected_limit(name, penalty):
    return predict_limit(*problem(name, dtype=torch.float64), penalty=penalty, **LIMIT)


@devices
@pytest.mark.parametrize(
    ("name", "penalty"),
    [("mlp", None), ("mlp", L1(1e-3)), ("mlp", L2(1e-3)), ("images", None), ("texts", L2(1e-3)), ("sequences", None)],
)
def test_limits(name, penalty, device):
    r"""A limit is the root of a falling function of s, so that it moves by no more than the function does.

    The slope of f_s(x) = c/(c + |x|) is at most 1/c with c = 2 epsilon/R^2, and eigenvalues err by a share of the
    largest one.
    """
    expected, limit = expected_limit(name, penalty), predict_limit(*problem(name, device), penalty=penalty, **LIMIT)
    slope = expected.evidence.curve.squared_norm(expected.sparsity) / (2 * expected.epsilon)
    allowed = tolerance(torch.float32) * max(1.0, slope * expected.sharpness.top_eigenvalue)
    for key in NUMBERS:
        assert getattr(limit, key) == pytest.approx(getattr(expected, key), abs=allowed), key
    assert limit.objective == pytest.approx(expected.objective, rel=tolerance(torch.float32))
    # The measured limit is known to a bracket of a twentieth of the tolerance, and a loss may fall on either side.
    assert limit.achieved == pytest.approx(expected.achieved, abs=BRACKETS + 2 / expected.parameters)


@devices
@pytest.mark.parametrize("metric", ["accuracy", "function"])
def test_metric_and_held_out(metric, device):
    def confidence(model, batch):
        return model(batch[0]).softmax(1).gather(1, batch[1][:, None])[:, 0]

    limits = []
    for place, dtype in (("cpu", torch.float64), (device, torch.float32)):
        model, batches = problem("mlp", place, dtype)
        options = OPTIONS | {"epsilon": "batch-std", "steps": 8, "held_out": batches[1:], "max_drop": 0.1}
        options["metric"] = "accuracy" if metric == "accuracy" else confidence
        limits.append(predict_limit(model, batches, **options))
    expected, limit = limits
    assert limit.dense_metric == pytest.approx(expected.dense_metric, rel=tolerance(torch.float32))
    assert 0.5 < limit.dense_metric < 1
    assert limit.achieved == pytest.approx(expected.achieved, abs=BRACKETS + 2 / expected.parameters)
    assert limit.allowed.origin == expected.allowed.origin
    assert limit.epsilon == pytest.approx(expected.epsilon, rel=1e-3)


@devices
@kinds
def test_products_in_bfloat16(kind, device):
    """Eight bits: an error of more than float32's, of the order of a hundredth."""
    exact = operator(kind, "mlp", dtype=torch.float64)
    v = random(exact.shape[0])
    expected, product = exact @ v, (operator(kind, "mlp", device, precision="bfloat16") @ v).cpu().double()
    assert 1e-4 < float((product - expected).norm() / expected.norm()) < 0.1


# ------------------------------------------------------------------------------------------------------- determinism


@devices
@networks
def test_two_runs_give_the_same_bits(name, device):
    """With ``torch.use_deterministic_algorithms(True)``, which the fixture sets, and ``CUBLAS_WORKSPACE_CONFIG``."""
    runs = [without_cost(predict_limit(*problem(name, device), steps=8, **OPTIONS)) for _ in range(2)]
    assert runs[0] == runs[1]
    v = random(runs[0].parameters)
    products = [operator(kind, name, device) @ v for kind in OPERATORS for _ in range(2)]
    assert torch.equal(products[0], products[1])
    assert torch.equal(products[2], products[3])
    assert not torch.equal(products[0], products[2])


@devices
def test_another_seed_gives_another_limit(device):
    first, other = (predict_limit(*problem("mlp", device), steps=8, seed=seed, **OPTIONS) for seed in (0, 1))
    assert first.sparsity != other.sparsity


@devices
def test_a_run_from_a_checkpoint_gives_the_same_bits(device, tmp_path):
    whole = without_cost(predict_limit(*problem("mlp", device), steps=8, **OPTIONS))

    def stopping(stage, done, total):
        if "directions" in stage:
            raise KeyboardInterrupt

    options = OPTIONS | {"steps": 8, "checkpoint": tmp_path / "run.pt"}
    with pytest.raises(KeyboardInterrupt):
        predict_limit(*problem("mlp", device), **(options | {"progress": stopping}))
    assert (tmp_path / "run.pt").exists()
    assert without_cost(predict_limit(*problem("mlp", device), **options)) == whole


# ------------------------------------------------------------------------------------------------ threads and streams


# Recurrent layers run with cuDNN off in the whole process, so that convolutions beside them would round otherwise.
@devices
@pytest.mark.parametrize("names", [("mlp", "images", "texts"), ("mlp", "sequences", "texts")], ids="+".join)
def test_predictions_beside_each_other_are_those_of_each_alone(names, device):
    def alone(name):
        return without_cost(predict_limit(*problems[name], steps=8, **OPTIONS))

    def beside(name):
        stream = torch.cuda.stream(torch.cuda.Stream()) if device == "cuda" else contextlib.nullcontext()
        with stream:
            return alone(name)

    problems = {name: problem(name, device) for name in names}
    expected = [alone(name) for name in names]
    if device == "cuda":
        torch.cuda.synchronize()  # what lies on the device was written in the stream of this thread
    with ThreadPoolExecutor(len(names)) as pool:
        assert list(pool.map(beside, names)) == expected
    assert torch.backends.cudnn.enabled


# --------------------------------------------------------------------------------------------- the model is left alone


def everything(model, device):
    """What must not change, the states of random numbers and of the device's libraries included."""
    cuda = {"random": torch.cuda.get_rng_state()} if device == "cuda" else {}
    settings = [torch.backends.cudnn.enabled, torch.backends.cudnn.allow_tf32, torch.backends.cuda.math_sdp_enabled()]
    places = [str(tensor.device) for tensor in (*model.parameters(), *model.buffers())]
    return [snapshot(model), cuda, settings, places]


@devices
@networks
def test_the_model_stays_on_its_device_bit_for_bit(name, device):
    model, batches = problem(name, device)
    model.train()
    before, inputs = everything(model, device), copy.deepcopy(batches)
    limit = predict_limit(model, batches, steps=4, metric="accuracy", max_drop=0.1, probes=1, progress=False)
    assert same(before, everything(model, device))
    assert same(inputs, batches)
    assert {parameter.device.type for parameter in model.parameters()} == {device}
    masks, pruned = limit.mask(0.5), limit.prune(model, 0.5)
    removed = sum(int((~mask).sum()) for mask in masks.values())
    assert removed == -(-limit.parameters // 2)
    for key, mask in masks.items():
        assert mask.device == model.get_parameter(key).device == pruned.get_parameter(key).device
        assert torch.equal(pruned.get_parameter(key), model.get_parameter(key) * mask)


@devices
def test_draws_of_the_model_leave_the_generators_of_the_device(device):
    class Noisy(nn.Sequential):
        def forward(self, x):
            noise = torch.randn(x.shape, device=x.device) + torch.rand_like(x)
            return super().forward(nn.functional.dropout(x + 0.1 * noise))

    model, batches = problem("mlp", device)
    noisy = Noisy(*model).eval()
    before = everything(noisy, device)
    first, second = (Objective(noisy, batches).value() for _ in range(2))
    assert same(before, everything(noisy, device))
    assert first == second != Objective(model, batches).value()


# ------------------------------------------------------------------------------------------------------------ memory


class LiveBytes(TorchDispatchMode):
    """Most bytes, made inside, that were alive at once: what the allocator of a GPU tells, for the CPU."""

    def __init__(self):
        super().__init__()
        self.live, self.peak, self.known = 0, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        def storages(values):
            leaves = (leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor))
            return {storage._cdata: storage for storage in (leaf.untyped_storage() for leaf in leaves)}

        given = storages((args, kwargs))
        result = func(*args, **(kwargs or {}))
        for key, storage in storages(result).items():
            if key not in self.known and key not in given:
                self._add(storage)
        return result

    def _add(self, storage):
        key, size = storage._cdata, storage.nbytes()
        self.known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key, size):
        self.known.discard(key)
        self.live -= size


def memory_of(call, device):
    """Return what a call returns, the most bytes that it took, and those that it left taken, its result included."""
    if device == "cpu":
        with LiveBytes() as counter:
            result = call()
        return result, counter.peak, counter.live
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    torch.cuda.synchronize()
    return result, torch.cuda.max_memory_allocated() - before, torch.cuda.memory_allocated() - before


VECTOR = 4 << 20  # bytes of a vector of D float32 numbers, D = 2^20


def wide(device):
    model = seeded(lambda: nn.Linear(1 << 10, 1 << 10, bias=False)).float().to(device)
    return Objective(model, [(random(4, 1 << 10).float(), torch.arange(4))])


@devices
@kinds
def test_a_product_takes_few_vectors(kind, device):
    """As many as on the CPU, see ``test_resident_size_in_vectors``."""
    curvature = OPERATORS[kind](wide(device))
    v = sphere_probes(curvature, 1)[:, 0]
    curvature @ v  # libraries take room for their work once
    _, peak, left = memory_of(lambda: curvature @ v, device)
    assert VECTOR <= left < 2 * VECTOR
    assert VECTOR < peak < 5 * VECTOR


@devices
@kinds
def test_kept_graphs_take_what_is_counted_for_them(kind, device):
    """At most ``memory`` bytes beside the product; where they need more, not all of them are kept."""
    model = seeded(lambda: nn.Sequential(*[layer for _ in range(6) for layer in (nn.Linear(64, 64), nn.Tanh())]))
    batches = [(random(2048, 64, seed=seed).float(), torch.arange(2048) % 64) for seed in range(2)]
    loader = Loader(batches)
    objective = Objective(model.float().to(device), loader)
    v = random(objective.dimension).float().to(device)
    OPERATORS[kind](objective, memory=0) @ v
    generous = OPERATORS[kind](objective, memory=1 << 30)
    _, _, left = memory_of(lambda: generous @ v, device)
    assert left > 2 * 6 * 2048 * 64 * 4  # what every layer puts out, of both batches
    passes = loader.passes
    generous @ v
    assert loader.passes == passes
    generous.forget()
    for memory in (left // 2, left // 8, 0):
        scarce = OPERATORS[kind](objective, memory=memory)
        _, _, left = memory_of(lambda scarce=scarce: scarce @ v, device)
        assert left <= memory + 3 * v.nbytes  # the product, and what an allocator adds to every tensor
    passes = loader.passes
    scarce @ v
    assert loader.passes == passes + 1


@devices
def test_a_recurrence_takes_the_basis_that_is_foreseen(device):
    """Sixteen vectors for as many steps, and ten for everything else, as on the CPU."""
    curvature = Hessian(wide(device))
    starts = sphere_probes(curvature, 1)
    curvature @ starts
    peaks = {
        mode: memory_of(lambda mode=mode: Lanczos(curvature, starts, mode).advance(16), device)[1]
        for mode in ("full", "none")
    }
    assert peaks["none"] < 10 * VECTOR
    assert abs(peaks["full"] - peaks["none"] - 16 * VECTOR) < 2 * VECTOR


SHORTAGE = """
import sys, torch
from torch import nn
from estimators import Hessian, Objective
device = sys.argv[1]
torch.manual_seed(0)
model = nn.Sequential(*[layer for _ in range(6) for layer in (nn.Linear(64, 64), nn.Tanh())]).to(device)
data = [(torch.randn(32768, 64), torch.randint(0, 64, (32768,)))]
v = torch.randn(6 * 64 * 64)
Hessian(Objective(model, [(data[0][0][:64], data[0][1][:64])])) @ v
room = 200 << 20
if device == "cuda":
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + room) / whole)
    back = lambda: torch.cuda.set_per_process_memory_fraction(1.0)
else:
    import resource
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + room, -1))
    back = lambda: resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
objective = Objective(model, data)
result = Hessian(objective) @ v
back()
whole = Hessian(Objective(model, data)) @ v
print(objective.most, float((result - whole).abs().max() / whole.abs().max()))
"""


@devices
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_a_shortage_splits_batches(device):
    run = subprocess.run([sys.executable, "-c", SHORTAGE, device], check=True, capture_output=True, text=True)
    most, error = run.stdout.split()
    assert 1024 <= int(most) < 32768
    assert float(error) < 1e-4


@devices
def test_patterns(device):
    from pruning_limits import predict_limit

    def limits(device):
        model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)).to(device)
        with torch.no_grad():
            for number, parameter in enumerate(model.parameters()):
                values = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
                parameter.copy_(values)
            x = torch.randn(64, 8, generator=torch.Generator().manual_seed(9))
            y = model(x.to(device)).argmax(1).cpu()
        asked = ("unstructured", "2:4", "blocks:4x1", "channels")
        limit = predict_limit(model, [(x, y)], epsilon=0.1, pattern=asked, progress=False)
        smaller = limit.for_pattern("channels").shrink(model, [(x, y)], 0.3)
        rows = limit.for_pattern("2:4").layers(measured=True)
        return limit, [tuple(parameter.shape) for parameter in smaller.parameters()], rows

    (here, sizes, rows), (there, others, other_rows) = limits("cpu"), limits(device)
    assert sizes == others
    for own, other in zip(here.evidence.patterns, there.evidence.patterns, strict=True):
        assert own.most == other.most
        assert [point.sparsity for point in own.points] == [point.sparsity for point in other.points]
        assert [p.rise for p in own.points] == pytest.approx([p.rise for p in other.points], abs=1e-3)
    assert [row.sensitivity for row in rows] == pytest.approx([row.sensitivity for row in other_rows], abs=1e-3)
