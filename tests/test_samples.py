"""What a sample is: values of whole batches, batches that cannot be cut, and sub-samples of each."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import assert_close, classification, random, same, seeded, snapshot
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, TensorDataset

from estimators import Hessian, Objective, Shard, UserError
from estimators.samples import first_batches
from pruning_limits import predict_limit

SIZES = (20, 20, 20, 20, 12)


def mlp():
    return seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)))


def data(sizes=SIZES):
    x, y = random(sum(sizes), 4, seed=1), torch.arange(sum(sizes)) * 7 % 3
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


def dense(model, losses, batches):
    """Loss and Hessian of the mean over all samples, in plain autograd, row by row."""
    kinds = nn.Linear | nn.Conv2d
    weights = [module.weight for module in model.modules() if isinstance(module, kinds)]
    each = torch.cat([losses(model, batch).reshape(-1) for batch in batches])
    gradient = torch.autograd.grad(each.mean(), weights, create_graph=True)
    flat = torch.cat([part.flatten() for part in gradient])
    parts = (torch.autograd.grad(entry, weights, retain_graph=True, materialize_grads=True) for entry in flat)
    return each.detach(), torch.stack([torch.cat([part.flatten() for part in row]) for row in parts]).detach()


def check(model, batches, losses, loss_fn=None):
    """Hold losses, value, Hessian and a sub-sample of an objective against the dense computation."""
    before = snapshot(model)
    each, matrix = dense(model, losses, batches)
    objective = Objective(model, batches, loss_fn or losses)
    assert objective.samples == len(each)
    assert_close(objective.value(), each.mean())
    assert_close(Hessian(objective) @ torch.eye(len(matrix), dtype=torch.float64), matrix)
    values, sizes = objective.sample_losses()
    assert int(sizes.sum()) == len(each)
    assert_close((values * sizes).sum() / sizes.sum(), each.mean())
    part = objective.subset(len(each) // 3, seed=2)
    assert len(each) // 3 <= part.samples < len(each)
    assert_close(part.value(), each[part.picked].mean())
    assert same(before, snapshot(model))
    return objective, each, part


def refusal(call, *arguments, **options):
    with pytest.raises(UserError) as error:
        call(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


# ------------------------------------------------------------------------------- values that belong to a whole batch


def scaled(model, batch):
    return batch["scale"] * functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none")


def tempered(model, batch):
    temperature = 0.5 if batch["kind"] == "sharp" else 2.0
    return functional.cross_entropy(model(batch["x"]) / temperature, batch["y"], reduction="none")


def reweighted(model, batch):
    return functional.cross_entropy(model(batch["x"]), batch["y"], weight=batch["weight"], reduction="none")


def moved(model, batch):
    return functional.cross_entropy(model(batch["x"] + batch["shift"]), batch["y"], reduction="none")


OWN_VALUES = {
    "scalar tensors": (lambda k: {"scale": torch.tensor(1.0 + 3 * k, dtype=torch.float64)}, scaled),
    "numbers": (lambda k: {"scale": 1.0 + 3 * k}, scaled),
    "whole numbers": (lambda k: {"scale": 1 + 3 * k}, scaled),
    "strings": (lambda k: {"kind": ("sharp", "flat")[k % 2]}, tempered),
    "flags": (lambda k: {"scale": bool(k % 2)}, scaled),
    "class weights": (lambda k: {"weight": torch.tensor([1.0, 2.0 + k, 5.0], dtype=torch.float64)}, reweighted),
    "arrays": (lambda k: {"shift": torch.tensor(np.full(4, 0.3 * k))}, moved),
    "numpy arrays": (lambda k: {"scale": torch.tensor(2.0), "array": np.arange(3) + k}, scaled),
    "undefined numbers": (lambda k: {"scale": 1.0 + k, "missing": float("nan")}, scaled),
}


@pytest.mark.parametrize("name", OWN_VALUES)
def test_batches_that_carry_values_of_their_own_are_drawn_whole(name):
    extra, losses = OWN_VALUES[name]
    batches = [{"x": x, **extra(k), "y": y} for k, (x, y) in enumerate(data())]
    objective, each, part = check(mlp(), batches, losses)
    assert part.samples in (32, 40)
    starts = np.cumsum([0, *SIZES])
    picked = set(part.picked.tolist())
    for start, end in pairwise(starts.tolist()):
        assert len(picked & set(range(start, end))) in (0, end - start)
    drawn = [losses(mlp(), batch).detach() for batch in part.loader]
    assert_close(torch.cat(drawn), each[part.picked])
    vectors = random(objective.dimension, 2)
    kept = [batch for batch, start in zip(batches, starts[:-1], strict=True) if start in picked]
    assert_close(Hessian(part) @ vectors, dense(mlp(), losses, kept)[1] @ vectors)


@pytest.mark.parametrize("name", ["scalar tensors", "strings"])
def test_whole_batches_with_a_mean_loss(name):
    extra, losses = OWN_VALUES[name]
    batches = [{"x": x, **extra(k), "y": y} for k, (x, y) in enumerate(data())]
    check(mlp(), batches, losses, lambda model, batch: losses(model, batch).mean())


def test_values_that_are_the_same_in_every_batch_do_not_forbid_a_draw():
    batches = [{"x": x, "scale": torch.tensor(2.0).double(), "kind": "sharp", "y": y, "one": None} for x, y in data()]
    _, _, part = check(mlp(), batches, scaled)
    assert part.samples == sum(SIZES) // 3


def test_a_limit_of_few_samples_is_close_to_that_of_all():
    """Scales of 0.1 and 10 in turn: with the scale of the first batch for all the limit would be another one."""
    model, sizes = fitted(), (32,) * 16
    batches = [
        {"x": x, "scale": torch.tensor(10.0 if k % 2 else 0.1, dtype=torch.float64), "y": y}
        for k, (x, y) in enumerate(data(sizes))
    ]
    options = {"epsilon": 0.02, "progress": False, "measure": False, "loss_fn": scaled}
    whole = predict_limit(model, batches, samples=sum(sizes), **options)
    few = predict_limit(model, batches, samples=160, **options)
    wrong = predict_limit(model, [batch | {"scale": batches[0]["scale"]} for batch in batches], samples=160, **options)
    assert abs(few.sparsity - whole.sparsity) < 0.25 * abs(wrong.sparsity - whole.sparsity)
    assert few.interval[0] <= whole.sparsity <= few.interval[1]


def fitted():
    model = mlp()
    x, y = (torch.cat(part) for part in zip(*data((300,)), strict=True))
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=30)

    def closure():
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    optimizer.step(closure)
    return model.zero_grad() or model


# ----------------------------------------------------------------------------------- tensors as long as the batch


def weighted_classes(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1], weight=batch[2], reduction="none")


def weighted_by_name(model, batch):
    return functional.cross_entropy(model(batch["x"]), batch["y"], weight=batch["weights"], reduction="none")


WEIGHTS = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)
AS_LONG = {
    "third": (lambda x, y: (x, y, WEIGHTS), weighted_classes),
    "third of a list": (lambda x, y: [x, y, WEIGHTS], weighted_classes),
    "after x": (lambda x, y: {"x": x, "y": y, "weights": WEIGHTS}, weighted_by_name),
    "before x": (lambda x, y: {"weights": WEIGHTS, "x": x, "y": y}, weighted_by_name),
    "between": (lambda x, y: {"x": x, "weights": WEIGHTS, "y": y}, weighted_by_name),
}


@pytest.mark.parametrize("sizes", [(3, 3, 3, 3), (3, 3, 2, 1), (2, 3, 3, 3)], ids=str)
@pytest.mark.parametrize("name", AS_LONG)
def test_class_weights_as_long_as_the_batch_are_never_cut(name, sizes):
    wrap, losses = AS_LONG[name]
    check(mlp(), [wrap(x, y) for x, y in data(sizes)], losses)


def mixed(model, batch):
    """Every sample has a weight, and every class."""
    losses = functional.cross_entropy(model(batch[0]), batch[1], weight=batch[2], reduction="none")
    return losses * batch[3]


def test_class_weights_beside_weights_of_samples():
    batches = [(x, y, WEIGHTS, torch.tensor([1.0, 0.5, 4.0]).double()) for x, y in data((3, 3, 3, 3))]
    check(mlp(), batches, mixed)


def masked(model, batch):
    return (functional.cross_entropy(model(batch[0]), batch[1], reduction="none") * batch[2]).double()


def test_weights_of_samples_are_cut():
    batches = [(x, y, random(len(x), seed=k)) for k, (x, y) in enumerate(data())]
    _, _, part = check(mlp(), batches, masked)
    assert part.samples == sum(SIZES) // 3


# ---------------------------------------------------------------------------------------------- sizes that differ


class Text(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(11, 4, padding_idx=0), nn.Linear(4, 3)

    def forward(self, tokens):
        lengths = (tokens > 0).sum(1, keepdim=True)
        return self.head(torch.tanh(self.embedding(tokens).sum(1) / lengths))


def entropies(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def texts(samples=90, size=16):
    generator = torch.Generator().manual_seed(4)
    batches = []
    for start in range(0, samples, size):
        count = min(size, samples - start)
        length = int(torch.randint(3, 9, (), generator=generator))
        tokens = torch.randint(1, 11, (count, length), generator=generator)
        tokens[:, length // 2 :] *= torch.randint(0, 2, (count, 1), generator=generator)
        batches.append((tokens, torch.randint(0, 3, (count,), generator=generator)))
    return batches


def test_text_padded_per_batch_is_drawn_in_parts_of_batches():
    batches = texts()
    objective, _, part = check(seeded(Text), batches, entropies)
    assert part.samples == 30
    assert len({batch[0].shape[1] for batch in part.loader}) > 1
    scores = torch.linspace(1, 3, 90, dtype=torch.float64)
    assert objective.subset(30, 1, scores).samples == 30


def test_two_thousand_texts_of_different_lengths():
    model, batches = seeded(Text), texts(2000, 50)
    limit = predict_limit(model, batches, epsilon=0.01, progress=False)
    assert 0 < limit.sparsity <= 1
    assert limit.cost.samples > 0
    assert limit.evidence.hessian.samples < 2001
    each, _ = dense(model, entropies, batches)
    assert_close(Objective(model, batches).value(), each.mean())


# ---------------------------------------------------------------------------------------- batches that cannot be cut


class Tagger(nn.Module):
    """Scores of a packed sequence, by its last words."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.RNN(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, words):
        return self.head(self.body(words)[1][-1])


def packed(sizes=(4, 3, 5, 4)):
    batches = []
    for k, size in enumerate(sizes):
        words = [random(2 + (k + j) % 3, 4, seed=10 * k + j) for j in range(size)]
        batches.append((pack_sequence(words, enforce_sorted=False), torch.arange(size) % 3))
    return batches


class Readout(nn.Module):
    """A graph network that adds up its nodes."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(2, 4), nn.Linear(4, 1)

    def forward(self, graphs):
        hidden = torch.tanh(self.body(graphs.nodes))
        sums = hidden.new_zeros(graphs.num_graphs, 4).index_add(0, graphs.of, hidden)
        return self.head(sums).squeeze(1)


class Graphs:
    def __init__(self, nodes, of, targets):
        self.nodes, self.of, self.targets = nodes, of, targets

    @property
    def num_graphs(self):
        return len(self.targets)

    def to(self, device):
        return Graphs(*(part.to(device) for part in (self.nodes, self.of, self.targets)))


def graphs(sizes=(3, 4, 2, 3)):
    batches = []
    for k, size in enumerate(sizes):
        of = torch.arange(size).repeat_interleave(torch.arange(size) % 3 + 1)
        batches.append(Graphs(random(len(of), 2, seed=k), of, random(size, seed=30 + k)))
    return batches


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 2, 2), nn.Linear(2, 3)

    def forward(self, images):
        return torch.cat([self.head(torch.tanh(self.body(image)).mean((1, 2)))[None] for image in images])


def pictures(sizes=(3, 4, 2, 3), channels=3, label=True):
    batches = []
    for k, size in enumerate(sizes):
        images = [random(channels, 3 + (j + k) % 3, 4, seed=10 * k + j) for j in range(size)]
        batches.append((images, torch.arange(size) % 3) if label else images)
    return batches


def by_image(model, images):
    return model(images).square().sum(1)


def squares(model, batch):
    return (model(batch) - batch.targets).square()


def boxes(model, batch):
    outputs = model(batch[0])
    return torch.stack(
        [(row[:2] - target["boxes"]).square().sum() for row, target in zip(outputs, batch[1], strict=True)]
    )


def detections(sizes=(2, 4, 3, 3)):
    return [
        (images, [{"boxes": random(1 + j % 3, 2, seed=j), "id": j} for j in range(len(images))])
        for images, _ in pictures(sizes)
    ]


class NodeReadout(Readout):
    def forward(self, graphs):
        return self.head(torch.tanh(self.body(graphs.nodes))).squeeze(1)


def per_node(model, batch):
    return model(batch).square()


UNCUTTABLE = {
    "packed sequences": (Tagger, packed, entropies),
    "graphs": (Readout, graphs, squares),
    "graphs in a tuple": (
        Readout,
        lambda: [(batch, torch.arange(batch.num_graphs)) for batch in graphs()],
        lambda model, batch: squares(model, batch[0]) * (batch[1] + 1),
    ),
    "images and labels": (Detector, pictures, entropies),
    "as many images as channels": (Detector, lambda: pictures((3, 4, 3, 5)), entropies),
    "images alone": (Detector, lambda: pictures((4, 3, 5), label=False), by_image),
    "as many images alone as channels": (Detector, lambda: pictures((3, 4, 5), label=False), by_image),
    "images and boxes": (Detector, detections, boxes),
    "losses of nodes": (NodeReadout, graphs, per_node),
}


@pytest.mark.parametrize("name", UNCUTTABLE)
def test_batches_that_cannot_be_cut_are_counted_by_their_losses_and_drawn_whole(name):
    build, make, losses = UNCUTTABLE[name]
    model, batches = seeded(build), make()
    objective, each, part = check(model, batches, losses)
    assert not objective.data.layout.cuttable
    picked, start = set(part.picked.tolist()), 0
    for batch in batches:
        count = len(losses(model, batch))
        assert len(picked & set(range(start, start + count))) in (0, count)
        start += count
    limit = predict_limit(model, batches, losses, epsilon=0.05, measure=False, progress=False)
    assert_close(limit.objective, each.mean())


def test_graphs_with_a_mean_loss_are_weighed_by_the_number_that_they_state():
    check(seeded(Readout), graphs(), squares, lambda model, batch: squares(model, batch).mean())


@pytest.mark.parametrize("name", ["packed sequences", "images and labels", "images and boxes"])
def test_a_mean_loss_of_samples_that_nothing_counts_is_refused(name):
    build, make, losses = UNCUTTABLE[name]
    told = refusal(predict_limit, seeded(build), make(), lambda model, batch: losses(model, batch).mean())
    assert told == (
        "loss_fn: returns one mean of a batch whose tensors do not share a leading dimension, so that its samples "
        "cannot be counted; return per-sample losses, shape (n,)"
    )


def test_memory_that_runs_out_on_a_batch_that_cannot_be_cut():
    model, batches = seeded(Readout), graphs()

    def loss(model, batch):
        if batch.num_graphs == 4:
            raise MemoryError
        return squares(model, batch)

    told = refusal(predict_limit, model, batches, loss, progress=False)
    assert told.startswith("memory: ran out with a whole batch on cpu, ")
    assert told.endswith("give smaller batches")
    objective = Objective(model, batches, squares)
    assert objective.samples == 12
    objective.loss_fn = loss
    told = refusal(objective.value)
    assert told.startswith("memory: ran out with a batch of 4 samples on cpu, ")
    assert told.endswith(", which cannot be cut; give smaller batches")


def test_a_batch_built_otherwise_than_the_first():
    """An entry that only some batches have comes before the others."""
    batches = [{"x": x, "y": y} for x, y in data()]
    batches[2] = {"a": torch.ones(3, 4).double(), **batches[2]}

    def losses(model, batch):
        return functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none") * (2 if "a" in batch else 1)

    check(mlp(), batches, losses)
    check(mlp(), [*batches[:2], {"a": batches[3]["x"], **batches[3]}, *batches[3:]], losses)


# ------------------------------------------------------------------------------------- order, and loaders without end


class Endless(IterableDataset):
    def __iter__(self):
        number = 0
        while True:
            yield random(4, seed=number), torch.tensor(number % 3)
            number += 1


class Forever:
    """A loader without end that counts the batches it has made."""

    def __init__(self):
        self.made = 0

    def __iter__(self):
        while True:
            self.made += 1
            yield data((20,))[0]


def endless_function():
    class Stream:
        def __iter__(self):
            yield from iter(lambda: data((20,))[0], None)

    return Stream()


@pytest.mark.parametrize("build", [lambda: DataLoader(Endless(), 20), Forever, endless_function])
def test_a_loader_without_end_is_read_as_far_as_asked(build):
    loader = build()
    limit = predict_limit(mlp(), loader, max_batches=3, samples=64, measure=False, epsilon=0.05, progress=False)
    assert limit.parameters == 42
    finite = [batch for batch, _ in zip(build(), range(3), strict=False)]
    expected = predict_limit(mlp(), finite, samples=64, measure=False, epsilon=0.05, progress=False)
    assert limit.sparsity == expected.sparsity
    assert limit.objective == expected.objective


def test_no_batch_beyond_the_last_is_made():
    loader = Forever()
    assert Objective(mlp(), first_batches(loader, 2)).samples == 40
    assert loader.made == 2
    assert first_batches(loader, None) is loader
    assert len(list(first_batches(Shard(loader), 3))) == 3


@pytest.mark.parametrize("count", [0, -1])
def test_a_number_of_batches_that_is_none(count):
    assert refusal(predict_limit, mlp(), data(), max_batches=count) == (
        f"max_batches: expected at least 1 or None, got {count}"
    )


def test_more_batches_than_there_are():
    limit = predict_limit(mlp(), data(), max_batches=99, measure=False, progress=False)
    assert_close(limit.objective, Objective(mlp(), data()).value())


def test_a_loader_that_goes_on_and_on_is_warned_of(caplog):
    """A batch of so many rows costs nothing: one row, expanded."""

    class Large:
        def __iter__(self):
            for _ in range(3):
                yield torch.zeros(1, 4).double().expand(1 << 19, 4), torch.zeros(1 << 19, dtype=torch.long)

    objective = Objective(mlp(), Large())
    assert objective.samples == 3 << 19
    messages = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert messages == ["a loader: 1048576 samples and no end so far; give max_batches= if it has none"]
    caplog.clear()
    assert Objective(mlp(), list(Large())).samples == 3 << 19
    assert not caplog.records


def batch_means(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1])


def table():
    return TensorDataset(*(torch.cat(part) for part in zip(*data(), strict=True)))


ORDERS = {
    "shuffled": lambda: DataLoader(table(), 20, shuffle=True),
    "with replacement": lambda: DataLoader(table(), 20, sampler=RandomSampler(table(), replacement=True)),
}


@pytest.mark.parametrize("loss_fn", [None, batch_means], ids=["per sample", "mean"])
@pytest.mark.parametrize("name", ORDERS)
def test_orders_that_change_are_named(name, loss_fn):
    if (name, loss_fn) == ("shuffled", None):
        limit = predict_limit(mlp(), ORDERS[name](), progress=False)
        assert limit.objective == pytest.approx(Objective(mlp(), data()).value(), rel=1e-12)
        return
    with torch.random.fork_rng():
        torch.manual_seed(0)
        told = refusal(predict_limit, mlp(), ORDERS[name](), loss_fn, progress=False)
    assert told == (
        "loader: two passes give different losses; turn off shuffling, sampling with replacement, random augmentation "
        "and dropout so that every pass yields the same samples"
    )


@pytest.mark.parametrize("place", [0, 1, 3])
@pytest.mark.parametrize("samples", [None, 20])
def test_batches_without_samples_do_not_count(place, samples):
    data = classification(6)()
    empty = tuple(part[:0] for part in data[0])
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)))
    options = {"progress": False, "epsilon": 0.05, "samples": samples}
    assert predict_limit(model, [*data[:place], empty, *data[place:]], **options).answers == (
        predict_limit(model, data, **options).answers
    )
