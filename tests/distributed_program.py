"""What one rank of two does; ``test_distributed.py`` starts both and compares what they write with one process."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from helpers import CASES, classification, mlp, random, seeded
from retuning_problems import classes
from test_predict import Stop, batched, wide_problem
from test_refusals import Once, nested
from torch import distributed as dist
from torch import nn
from torch.distributed import fsdp
from torch.distributed.device_mesh import init_device_mesh

from estimators import GGN, L1, L2, DifferenceGGN, DifferenceHessian, Hessian, Objective, Shard, UserError, distributed
from estimators.automatic import AutomaticCurvature
from estimators.derivatives import untrue_derivatives
from pruning_limits import Retuning, losses, predict_limit
from pruning_limits.dense_network import CHANCE_SAMPLES

NAMES = ("ragged", "scalar mean", "dict", "batch norm")
FIVE = classification(4, sizes=(5, 3, 1, 4, 2))()
OWN_VALUES = [{"x": x, "scale": torch.tensor(1.0 + max(0, k - 2)).double(), "y": y} for k, (x, y) in enumerate(FIVE)]
LIMIT = {"epsilon": 0.02, "steps": 8, "probes": 2, "samples": 41, "penalty": L1(1e-4)}


def measured(objective: Objective) -> dict[str, Any]:
    """Everything that is summed over the data."""
    part = objective.subset(7, seed=1)
    vectors = random(objective.dimension, 2)
    losses, sizes = objective.sample_losses()
    return {
        "samples": objective.samples,
        "value": objective.value(),
        "value elsewhere": objective.value(objective.vector() + 0.1 * vectors[:, 0]),
        "losses": losses,
        "sizes": sizes,
        "losses elsewhere": objective.sample_losses(objective.vector() + 0.1 * vectors[:, 0])[0],
        "losses again": objective.losses_and_gradient()[0],
        "gradient": objective.gradient(),
        "hessian": Hessian(objective) @ vectors,
        "rebuilt hessian": Hessian(objective, memory=0) @ vectors,
        "ggn": GGN(objective) @ vectors,
        "part": part.samples,
        "value of part": part.value(),
        "hessian of part": Hessian(part) @ vectors,
        "ggn of part of part": GGN(part.subset(3)) @ vectors,
        "hessian of one sample": Hessian(objective.subset(1)) @ vectors,
    }


def scaled(model: nn.Module, batch: Any) -> Any:
    """Losses that a value of the whole batch multiplies; of the first three batches it is the same."""
    return batch["scale"] * nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none")


def objectives() -> dict[str, Objective]:
    built = {
        name: Objective(CASES[name].model(), CASES[name].loader(), CASES[name].loss_fn, L2(0.3), **CASES[name].options)
        for name in NAMES
    }
    return built | {
        "five batches": Objective(seeded(mlp), FIVE),
        "own values": Objective(seeded(mlp), OWN_VALUES, scaled),
    }


def limits() -> dict[str, str]:
    model, x, y = wide_problem()
    loader = batched(x, y, 20)
    images = seeded(lambda: nn.Sequential(nn.Linear(80, 8), model[1], nn.Linear(8, 8)))
    narrowed = batched(random(96, 80, seed=3), y, 20)
    x_many, y_many = random(2500, 12, seed=4), torch.arange(2500) % 8
    many, middle = batched(x_many, y_many, 100), 13
    own = many if distributed.world() == 1 else many[middle:] if distributed.rank() else many[:middle]
    with mock.patch.object(losses, "DRAWN_SAMPLES", 2100):
        drawn = predict_limit(model, Shard(own), **LIMIT, measure=False)
    assert drawn.cost.forward_samples == 2 * 2100 + 4 * CHANCE_SAMPLES
    return {
        "drawn": drawn.to_json(),
        "shards": predict_limit(model, Shard(own), **LIMIT).to_json(),
        "narrowed": predict_limit(images, narrowed, **LIMIT, measure=False).to_json(),
        "measured": predict_limit(model, loader, **LIMIT).to_json(),
        "quadratic": predict_limit(model, loader, **LIMIT, measure=False, curvature="ggn").to_json(),
        "dense": predict_limit(model, loader, parameters="2.weight").to_json(),
    }


def re_tuned() -> dict[str, Any]:
    """Networks that are pruned in stages and re-tuned, of a normalised network and of whole batches of their own."""
    result = {}
    for name, batches in (("few", batched(*data_of_retuning(), 20)), ("many", batched(*data_of_retuning(), 7))):
        model = classes(normalised=True)[0]
        options = LIMIT | {"metric": "accuracy", "epsilon": 0.2, "penalty": None}
        limit = predict_limit(model, batches, **options, retune=Retuning(samples=100, passes=2))
        points = limit.evidence.retuned.points
        result[name] = torch.tensor([[point.sparsity, point.rise, point.drop] for point in points])
    return result


def data_of_retuning() -> tuple[torch.Tensor, torch.Tensor]:
    data = classes(normalised=True)[1]
    return torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])


def resumed(checkpoint: Path) -> dict[str, str]:
    model, x, y = wide_problem()
    loader = batched(x, y, 20)
    try:
        predict_limit(model, loader, **LIMIT, checkpoint=checkpoint, progress=Stop("ggn", 4))
    except KeyboardInterrupt:
        limit = predict_limit(model, loader, **LIMIT, checkpoint=checkpoint)
    return {"resumed": limit.to_json()}


def failures(rank: int, folder: Path) -> dict[str, str]:
    """What every rank is told; none may wait for another, and what comes after must not be disturbed."""
    model, x, y = wide_problem()
    loader = batched(x, y, 20)
    unequal, scaled = seeded(mlp, seed=rank), random(35) * (1 + rank)

    def failing(model: nn.Module, batch: Any) -> Any:
        if rank == 1:
            raise RuntimeError("boom\nand more")
        return model(batch[0]).square().sum(1)

    calls = {
        "few batches": lambda: predict_limit(model, loader[:1]),
        "no batches": lambda: predict_limit(model, []),
        "shuffled": lambda: predict_limit(model, loader[::-1] if rank else loader),
        "weights": lambda: Hessian(Objective(unequal, FIVE)) @ random(35),
        "vectors": lambda: Hessian(Objective(seeded(mlp), FIVE)) @ scaled,
        "arguments": lambda: predict_limit(model, loader, **LIMIT | {"epsilon": 0.02 + rank}),
        "checkpoints": lambda: predict_limit(model, loader, **LIMIT, checkpoint=folder / ("none.pt", "run.pt")[rank]),
        "one fails": lambda: GGN(Objective(seeded(mlp), FIVE, failing)) @ random(35),
        "wrapped": lambda: Objective(nn.Sequential(nn.parallel.DistributedDataParallel(seeded(mlp))), FIVE),
    }
    told = {}
    for name, call in calls.items():
        try:
            call()
        except (UserError, RuntimeError) as error:
            told[name] = str(error)
    return told


def by_differences() -> dict[str, Any]:
    """Products of a network without second derivatives."""
    model = seeded(lambda: nested(Once()))
    operators = {kind: AutomaticCurvature(kind, Objective(model, FIVE)) for kind in ("hessian", "ggn")}
    products = {kind: operator.matmat(random(28, 2)) for kind, operator in operators.items()}
    return products | {f"{kind} reason": operator.reason for kind, operator in operators.items()}


def in_parallel() -> dict[str, Any]:
    """A model inside of DistributedDataParallel and by itself."""
    wrapped = Objective(nn.parallel.DistributedDataParallel(seeded(mlp)), FIVE)
    limit = predict_limit(nn.parallel.DistributedDataParallel(seeded(mlp)), FIVE, epsilon=0.02)
    return {
        "names": wrapped.names,
        "gradient": wrapped.gradient(),
        "limit": limit.sparsity,
        "plain gradient": Objective(seeded(mlp), FIVE).gradient(),
        "plain limit": predict_limit(seeded(mlp), FIVE, epsilon=0.02).sparsity,
        "copy": type(limit.prune(nn.parallel.DistributedDataParallel(seeded(mlp)), 0.5)).__name__,
    }


def convolutional() -> nn.Module:
    return nn.Sequential(nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3), nn.Tanh(), nn.Flatten(), nn.Linear(9, 3))


FULLY_SHARD = getattr(fsdp, "fully_shard", None)  # torch before 2.6 has none
SHARDED = {
    "mlp": (mlp, FIVE),
    "batch norm": (convolutional, classification(2, 4, sizes=(5, 3, 1, 4, 2))()),
    "without second derivatives": (lambda: nested(Once()), FIVE),
}


def of_sharded(model: nn.Module, loader: Any) -> dict[str, Any]:
    """What is computed of a model, be it sharded or not."""
    objective = Objective(model, loader, penalty=L2(0.3))
    vectors = random(objective.dimension, 2)
    operators = {kind: AutomaticCurvature(kind, objective) for kind in ("hessian", "ggn")}
    results = {kind: operator.matmat(vectors) for kind, operator in operators.items()}
    limit = predict_limit(model, loader, epsilon=0.02)
    return results | {
        "reasons": [operator.reason for operator in operators.values()],
        "names": objective.names,
        "value": objective.value(),
        "gradient": objective.gradient(),
        "hessian by differences": DifferenceHessian(objective).matmat(vectors),
        "ggn by differences": DifferenceGGN(objective).matmat(vectors),
        "limit": [limit.sparsity, limit.lower, limit.retrained],
        "masks": limit.mask(0.5),
    }


def sharded() -> dict[str, Any]:
    """Models that ``fully_shard`` has spread over both ranks, before and after a pass of their own."""
    result: dict[str, Any] = {}
    for name, (build, loader) in SHARDED.items():
        model, mesh = seeded(build), init_device_mesh("cpu", (2,))
        FULLY_SHARD(model[0], mesh=mesh)
        FULLY_SHARD(model, mesh=mesh)
        before = own_parts(model)
        results = of_sharded(model, loader)
        results["left as it was"] = own_parts(model) == before
        passed = model.eval()(loader[0][0]).sum()
        results["while gathered"] = Objective(model, loader, penalty=L2(0.3)).gradient()
        passed.backward()
        results["own gradient"] = [weight.grad.full_tensor() for weight in model.parameters()]
        result[name] = results
    try:
        limit = predict_limit(model, loader, epsilon=0.02)
        limit.prune(model, 0.5)
    except UserError as error:
        result["refusal"] = str(error)
    return result


def own_parts(model: nn.Module) -> list[Any]:
    """This rank's shards, the modes and the hooks of a model, in order."""
    shards = [(type(w).__name__, w.to_local().tolist(), w.grad is None) for w in model.parameters()]
    hooks = [list(store.values()) for m in model.modules() for store in (m._forward_hooks, m._forward_pre_hooks)]
    return [shards, hooks, [module.training for module in model.modules()], [b.tolist() for b in model.buffers()]]


def without_graph(rank: int) -> tuple[str, ...]:
    """Names of weights without a true derivative where the losses of one rank alone have no graph."""

    def loss(model: nn.Module, batch: Any) -> Any:
        losses = nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")
        return losses.detach() * 0 if rank else losses

    return untrue_derivatives(Objective(seeded(mlp), Shard(FIVE[3:] if rank else FIVE[:3]), loss))


def dies(rank: int) -> tuple[str, float]:
    """Rank 1 is killed in its second pass; rank 0 tells what it hears of that, and after how many seconds."""
    batches = []

    def loss(model: nn.Module, batch: Any) -> Any:
        batches.append(batch)
        if rank == 1 and len(batches) > 2:
            os._exit(9)
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    objective = Objective(seeded(mlp), FIVE, loss)
    objective.value()
    started = time.perf_counter()
    try:
        objective.value()
    except UserError as error:
        return str(error), time.perf_counter() - started
    return "nothing", 0.0


def main(rank: int, folder: Path) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(minutes=10)
    )
    result: dict[str, Any] = {name: measured(problem) for name, problem in objectives().items()}
    result["limits"] = limits() | resumed(folder / "run.pt")
    result["re-tuned"] = re_tuned()
    result["failures"] = failures(rank, folder)
    result["shards"] = measured(Objective(seeded(mlp), Shard(FIVE[3:] if rank else FIVE[:3])))
    own = Shard(OWN_VALUES[3:] if rank else OWN_VALUES[:3])
    result["shards of own values"] = measured(Objective(seeded(mlp), own, scaled))
    result["differences"], result["in parallel"] = by_differences(), in_parallel()
    result["sharded"] = sharded() if FULLY_SHARD else {}
    result["loose ends"] = {"one without a graph": without_graph(rank)}
    torch.save(result, folder / f"{rank}.pt")
    result["death"] = dies(rank)
    torch.save(result, folder / f"{rank}.pt")
    os._exit(0)  # the threads of a broken group may still run, and C++ aborts a program that ends before them
