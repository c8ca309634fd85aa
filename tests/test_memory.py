"""Memory: splitting batches, refusals, resident size, attention, special modules."""

import copy
import gc
import json
import os
import subprocess
import sys
import weakref

import pytest
import torch
from helpers import CASES, Dense, assert_close, random, same, seeded, snapshot
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, prune

from estimators import GGN, Hessian, Lanczos, Objective, UserError, lanczos, spectral_measure
from estimators.memory import _free_in_group, available, retried
from estimators.parameters import choose_parameters
from pruning_limits import predict_limit

OPERATORS = {"hessian": Hessian, "ggn": GGN}
kinds = pytest.mark.parametrize("kind", OPERATORS)
CPU = torch.device("cpu")


def data(*shape, classes=3, samples=6):
    return [(random(samples, *shape), torch.arange(samples) % classes)]


def columns(operator):
    return operator.matmat(torch.eye(operator.shape[0], dtype=operator.dtype)).double()


# ------------------------------------------------------------------------------------------ when memory runs out


class Small(nn.Module):
    """A network that more than ``most`` samples do not fit into, and that notes how many it was given."""

    def __init__(self, most, error=None):
        super().__init__()
        self.layers = CASES["ragged"].build()
        self.most, self.error, self.sizes = most, error or MemoryError(), []

    def forward(self, x):
        self.sizes.append(len(x))
        if len(x) > self.most:
            raise self.error
        return self.layers(x)


def mean(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


ERRORS = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError(),
]


@kinds
@pytest.mark.parametrize("loss", [None, mean], ids=["per sample", "mean"])
@pytest.mark.parametrize("error", ERRORS, ids=["cuda", "cpu", "cublas", "python"])
def test_batches_are_split(kind, loss, error):
    large, small = seeded(lambda: Small(99)), seeded(lambda: Small(2, error))
    batches = CASES["ragged"].loader()
    v = random(35, 2)
    before = snapshot(small)
    operator = OPERATORS[kind](Objective(small, batches, loss))
    assert_close(operator @ v, OPERATORS[kind](Objective(large, batches, loss)) @ v)
    assert operator.objective.most == 2
    assert small.sizes[-6:] == [2, 2, 1, 2, 1, 1]
    first = len(small.sizes)
    operator @ v
    assert small.sizes[first:] == [2, 2, 1, 2, 1, 1]
    assert (operator.passes, operator.products) == (2, 4)
    assert same(before, snapshot(small))


@pytest.mark.parametrize("loss", [None, mean], ids=["per sample", "mean"])
def test_sums_over_split_batches(loss):
    large, small = (Objective(seeded(lambda m=m: Small(m)), CASES["ragged"].loader(), loss) for m in (99, 2))
    assert_close(small.gradient(), large.gradient())
    assert small.most == 2
    assert_close(small.value(), large.value())
    losses, sizes = small.sample_losses()
    assert sizes.tolist() == [1] * 9 if loss is None else sizes.tolist() == [2, 2, 1, 2, 1, 1]
    assert_close((losses * sizes).sum() / sizes.sum(), large.value())
    assert small.subset(5).most == 2


def test_running_out_in_the_product_first_gives_up_kept_graphs():
    operator = Hessian(Objective(seeded(lambda: Small(99)), CASES["ragged"].loader()))
    v = random(35)
    expected = operator @ v
    failures = [1]

    def once(vector, product=operator._graphs[1]):
        if failures:
            raise MemoryError(failures.pop())
        return product(vector)

    operator._graphs[1] = once
    assert torch.equal(operator @ v, expected)
    assert operator.objective.most is None
    assert operator._graphs is None
    assert operator.memory == operator.forwards.memory == 0


def test_a_single_sample_that_does_not_fit():
    objective = Objective(seeded(lambda: Small(0)), CASES["ragged"].loader())
    for use in (objective.value, objective.gradient, lambda: Hessian(objective) @ random(35)):
        with pytest.raises(UserError, match=r"^memory: ran out with a single sample on cpu, [\d.]+ GiB free; use .*$"):
            use()


def test_other_errors_are_not_retried():
    model = seeded(lambda: Small(2, RuntimeError("boom")))
    with pytest.raises(UserError, match="RuntimeError: boom"):
        Hessian(Objective(model, CASES["ragged"].loader())) @ random(35)
    assert model.sizes == [5]


def test_the_limit_of_a_network_that_needs_small_batches(tiny):
    model, batches = tiny

    class Tight(nn.Sequential):
        def forward(self, x):
            if torch.is_grad_enabled() and len(x) > 8:
                raise MemoryError
            return super().forward(x)

    tight = Tight(*copy.deepcopy(model))
    for loss in (None, mean):
        options = {"loss_fn": loss, "epsilon": 0.05, "steps": 100, "progress": False}
        assert_close(
            predict_limit(tight, batches, **options).sparsity, predict_limit(model, batches, **options).sparsity
        )


def test_memory_is_given_back_before_the_next_attempt():
    held = []

    class Big:
        def __init__(self):
            held.append(1)

        def __del__(self):
            held.pop()

    def compute():
        big = Big()
        if len(attempts) < 2:
            raise MemoryError(str(big))
        return len(held)

    attempts = []

    def make_room():
        attempts.append(len(held))

    assert retried(compute, make_room) == 1
    assert attempts == [0, 0]


SHORTAGE = """
import resource, sys, torch
from torch import nn
from estimators import Hessian, Objective
torch.manual_seed(0)
model = nn.Sequential(*[layer for _ in range(6) for layer in (nn.Linear(64, 64), nn.Tanh())])
data = [(torch.randn(32768, 64), torch.randint(0, 64, (32768,)))]
v = torch.randn(6 * 64 * 64)
Hessian(Objective(model, [(data[0][0][:64], data[0][1][:64])])) @ v
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20), -1))
objective = Objective(model, data)
result = Hessian(objective) @ v
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
whole = Hessian(Objective(model, data)) @ v
print(objective.most, float((result - whole).abs().max() / whole.abs().max()))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and a limit of the address space")
def test_a_real_shortage():
    run = subprocess.run([sys.executable, "-c", SHORTAGE], check=True, capture_output=True, text=True)
    most, error = run.stdout.split()
    assert 1024 <= int(most) < 32768
    assert float(error) < 1e-4


# --------------------------------------------------------------------------------------------------- refusals


def test_available_memory_is_that_of_this_machine():
    assert 1 << 26 < available(CPU) < 1 << 50


def test_available_memory_in_a_control_group(tmp_path):
    free = _free_in_group
    assert free(tmp_path) == float("inf")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 600\ninactive_file 50\n")
    for limit, expected in (("max\n", float("inf")), ("1000\n", 350), ("500\n", 0)):
        (tmp_path / "memory.max").write_text(limit)
        assert free(tmp_path) == expected


def test_a_basis_that_does_not_fit_is_refused():
    steps = 1 << 20  # more than any machine holds: 4 TiB
    operator, start = Dense(torch.ones(steps)), torch.ones(steps)
    message = (
        r"reorthogonalise: 'full' over 1048576 steps of 1 vectors of 1,048,576 needs 4\.1e\+03 GiB, [\d.e+]+ GiB are "
        r"free on cpu; use reorthogonalise='none' or fewer steps"
    )
    with pytest.raises(UserError, match=f"^{message}$"):
        lanczos(operator, start, steps)
    with pytest.raises(UserError, match=r"'full' over 1048576 steps of 2 vectors .* needs 8\.19e\+03 GiB"):
        spectral_measure(operator, 2, steps)
    assert operator.calls == 0
    assert lanczos(operator, start, steps, "none").steps == 1


def test_a_run_goes_on_as_it_began():
    operator = Dense(torch.linspace(1, 2, 40, dtype=torch.float64))
    first, second = (Lanczos(operator, random(40, 2), mode) for mode in ("full", "none"))
    first.advance(5)
    second.load_state(first.state())
    second.advance(5)
    first.advance(5)
    assert second.reorthogonalise == "full"
    for before, after in zip(first.tridiagonals(), second.tridiagonals(), strict=True):
        assert torch.equal(before.basis, after.basis)
        assert (before.alpha == after.alpha).all()


# ----------------------------------------------------------------------------------------------- resident size


@kinds
def test_rebuilt_graphs_are_freed(kind):
    case = CASES["batch norm"]
    operator = OPERATORS[kind](Objective(case.model(), case.loader(), case.loss_fn), memory=1)
    v = random(operator.shape[0])
    counts = []
    gc.freeze()  # what other tests have left is not counted, nor walked through each time
    try:
        for _ in range(4):
            operator @ v
            gc.collect()
            counts.append(sum(issubclass(type(tracked), torch.Tensor) for tracked in gc.get_objects()))
    finally:
        gc.unfreeze()
    assert counts[1:] == counts[:1] * 3


@kinds
def test_one_rebuilt_graph_at_a_time(kind):
    losses = []

    class Noting(OPERATORS[kind]):
        def _differentiate(self, forward):
            losses.append(weakref.ref(forward.loss))
            return super()._differentiate(forward)

    def loss_fn(model, batch):
        assert all(loss() is None for loss in losses)
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    case = CASES["ragged"]
    operator = Noting(Objective(case.model(), case.loader(), loss_fn), memory=0)
    v = random(operator.shape[0], 2)
    product = operator @ v
    assert len(losses) > 1
    assert torch.equal(product, OPERATORS[kind](operator.objective) @ v)


SIZES = """
import json, resource, torch
import estimators
from estimators import Hessian, Lanczos, Objective
from estimators.spectrum import sphere_probes
from estimators.trace import block_traces

def peak(work):
    open("/proc/self/clear_refs", "w").write("5")
    read = lambda key: next(int(l.split()[1]) << 10 for l in open("/proc/self/status") if l.startswith(key))
    before = read("VmRSS")
    work()
    return (read("VmHWM") - before) / (4 * D)

torch.set_num_threads(1)
D = 1 << 20
model = torch.nn.Linear(1 << 10, 1 << 10, bias=False)
operator = Hessian(Objective(model, [(torch.randn(4, 1 << 10), torch.arange(4))]))
v = sphere_probes(operator, 1)
operator @ v[:, 0]
print(json.dumps({
    "product": peak(lambda: operator @ v[:, 0]),
    "trace": peak(lambda: block_traces(operator, [D], probes=2)),
    "few": peak(lambda: Lanczos(operator, v, "none").advance(3)),
    "many": peak(lambda: Lanczos(operator, v, "none").advance(12)),
    "full few": peak(lambda: Lanczos(operator, v).advance(3)),
    "full many": peak(lambda: Lanczos(operator, v).advance(12)),
    "full basis": peak(lambda: estimators.lanczos(operator, v[:, 0], 12)),
}))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_resident_size_in_vectors():
    """Vectors go back to the system as soon as they are freed, so that the peak of each part can be read."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}
    run = subprocess.run([sys.executable, "-c", SIZES], check=True, capture_output=True, text=True, env=environment)
    peak = json.loads(run.stdout)
    assert peak["product"] < 5
    assert peak["trace"] < 14
    assert peak["few"] < 10
    assert abs(peak["many"] - peak["few"]) < 1
    assert abs(peak["full many"] - peak["full few"] - 9) < 1
    assert peak["full many"] < 12 + peak["few"] + 1
    assert peak["full basis"] < 12 + peak["few"] + 1


# --------------------------------------------------------------------------------------------------- attention


class ByHand(nn.Module):
    """What ``nn.TransformerEncoderLayer`` of the same weights computes."""

    def __init__(self, layer, heads):
        super().__init__()
        self.layer, self.heads = layer, heads

    def attend(self, x):
        n, length, width = x.shape
        own = self.layer.self_attn
        q, k, v = nn.functional.linear(x, own.in_proj_weight, own.in_proj_bias).chunk(3, -1)
        q, k, v = (part.view(n, length, self.heads, -1).transpose(1, 2) for part in (q, k, v))
        share = torch.softmax(q @ k.transpose(2, 3) / q.shape[-1] ** 0.5, -1)
        mixed = (share @ v).transpose(1, 2).reshape(n, length, width)
        return nn.functional.linear(mixed, own.out_proj.weight, own.out_proj.bias)

    def forward(self, x):
        layer = self.layer
        x = layer.norm1(x + self.attend(x))
        hidden = nn.functional.gelu(nn.functional.linear(x, layer.linear1.weight, layer.linear1.bias))
        return layer.norm2(x + nn.functional.linear(hidden, layer.linear2.weight, layer.linear2.bias))


class Encoder(nn.Module):
    def __init__(self, by_hand):
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 5, activation="gelu", batch_first=True)
        self.body = ByHand(layer, 2) if by_hand else layer
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.body(x).mean(1))


@kinds
@pytest.mark.parametrize("parameters", ["*", "head.*"])
def test_transformer_layer_equals_its_explicit_form(kind, parameters):
    operators = [
        OPERATORS[kind](Objective(seeded(lambda h=h: Encoder(h)), data(3, 4), parameters=parameters)) for h in (0, 1)
    ]
    layer, by_hand = (columns(operator) for operator in operators)
    assert float(layer.abs().max()) > 1e-3
    assert_close(layer, by_hand)
    assert_close(operators[0].objective.value(), operators[1].objective.value())


class Causal(nn.Module):
    def __init__(self, by_hand):
        super().__init__()
        self.maps, self.head, self.by_hand = nn.Linear(4, 12), nn.Linear(4, 3), by_hand

    def forward(self, x):
        q, k, v = self.maps(x).chunk(3, -1)
        if not self.by_hand:
            return self.head(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).mean(1))
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        scores = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).masked_fill(later, float("-inf"))
        return self.head((torch.softmax(scores, -1) @ v).mean(1))


@kinds
def test_dot_product_attention_equals_its_explicit_form(kind):
    fused, by_hand = (
        columns(OPERATORS[kind](Objective(seeded(lambda h=h: Causal(h)), data(3, 4)))) for h in (False, True)
    )
    assert_close(fused, by_hand)


# ------------------------------------------------------------------- tied, parametrised and pruned modules


def tied():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    model[2].weight = model[0].weight
    return model


def normalised():
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3))


def orthogonal():
    layer = parametrizations.orthogonal(nn.Linear(4, 4), orthogonal_map="cayley")
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(4, 3))


def pruned():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    prune.l1_unstructured(model[0], "weight", 0.5)
    return model


def dense_reference(model, batches, patterns):
    """Hessian by double differentiation of a function of one flat vector, without the package's operators."""
    model = model.eval()
    chosen = choose_parameters(model, patterns)
    sizes = [p.numel() for p in chosen.values()]

    def value(flat):
        parts = zip(chosen.items(), flat.split(sizes), strict=True)
        x, y = batches[0]
        return nn.functional.cross_entropy(
            functional_call(model, {key: part.view(p.shape) for (key, p), part in parts}, (x,)), y
        )

    return torch.autograd.functional.hessian(value, torch.cat([p.detach().reshape(-1) for p in chosen.values()]))


SPECIAL = {
    "tied": (tied, None),
    "orthogonal": (orthogonal, ["*original", "2.weight"]),
    "pruned": (pruned, None),
}


@pytest.mark.parametrize("name", SPECIAL)
def test_special_modules(name):
    build, patterns = SPECIAL[name]
    model = seeded(build)
    before = snapshot(model)
    weight = vars(model[0]).get("weight")
    operator = Hessian(Objective(model, data(4), parameters=patterns))
    matrix = columns(operator)
    assert torch.equal(matrix, columns(Hessian(operator.objective, memory=0)))
    assert same(before, snapshot(model))
    assert vars(model[0]).get("weight") is weight
    assert_close(matrix, dense_reference(seeded(build), data(4), patterns))
    with torch.no_grad():
        outputs = model(data(4)[0][0])
    assert_close(operator.objective.value(), nn.functional.cross_entropy(outputs, data(4)[0][1]))


def test_weight_normalisation():
    """PyTorch's fused form has wrong second derivatives but right first ones, which is all that the GGN needs."""
    by_hand = seeded(normalised)
    by_hand[0].parametrizations.weight[0].forward = lambda g, v: v * (g / v.norm(dim=1, keepdim=True))
    fused, exact = (Objective(model, data(4), parameters="*") for model in (seeded(normalised), by_hand))
    with pytest.raises(UserError, match=r"^model: PyTorch computes wrong second derivatives of weight normalisation"):
        Hessian(fused) @ random(fused.dimension)
    assert_close(columns(GGN(fused)), columns(GGN(exact)))
    assert_close(columns(Hessian(exact)), dense_reference(by_hand, data(4), "*"))
    only = [Objective(objective.model, data(4), parameters="2.weight") for objective in (fused, exact)]
    assert_close(*(columns(Hessian(objective)) for objective in only))


@pytest.mark.parametrize("build", [normalised, orthogonal])
def test_weights_that_are_not_parameters_are_refused_by_default(build):
    with pytest.raises(UserError, match=r"^model: the weight of layer '0' is computed .*or name the parameters.*$"):
        Objective(seeded(build), data(4))


def test_a_pruned_module_made_permanent():
    model = seeded(pruned)
    prune.remove(model[0], "weight")
    assert_close(columns(Hessian(Objective(model, data(4)))), dense_reference(model, data(4), None))
