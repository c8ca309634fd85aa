"""One stage of re-tuning: a mask from the present weights, then brief fine-tuning of the kept ones on few samples."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from estimators import Objective, UserError
from estimators.default_loss import cross_entropy
from estimators.objective import LossFunction
from estimators.operations import operations_per_sample
from estimators.user_code import plain_modes
from estimators.vectors import flatten, named
from pruning_limits.batch_statistics import ByBatch, Statistics, measured_statistics, normalising
from pruning_limits.compute_budget import EPOCH
from pruning_limits.descent import Descent
from pruning_limits.group_profile import GroupProfile
from pruning_limits.groups import Groups
from pruning_limits.matching import DenseScores, matching
from pruning_limits.one_shot import Evaluated
from pruning_limits.reconstruction import (
    MOST_FEATURES,
    Moments,
    damped,
    layers_of,
    moments_of,
    reconstructed,
    saliencies,
    solving_cost,
)
from pruning_limits.stage_sample import StageSample

WIDTH = 64  # samples of a mini-batch
# Processor time in samples of an epoch of training, whose mini-batches are larger; measured on a small convolutional
# network: of a sample that is trained on, that is only passed forward, and that is only read.
TRAINED, FORWARD, READ = 1.5, 0.45, 0.005
# An operation of a solve in double precision takes about so many times as long as one of training, from 2 to 5 on
# LeNet-300-100, MnistNet and ResNet-8 at sparsities from 30 to 98 %.
SOLVING = 4.0
HALF = (torch.float16, torch.bfloat16)


class Steps(Protocol):
    """How weights move along a gradient, see ``Descent``."""

    def step(self, weights: Tensor, slope: Tensor, done: float) -> None:
        """Move weights in place."""

    def gentler(self) -> None:
        """Take shorter steps from now on."""


@dataclass(frozen=True)
class Network:
    """A network that is pruned and re-tuned: what differs from the trained one.

    Attributes:
        vector: Prunable and trainable weights ``[T]``, in float32 where the model's type is shorter; zero where
            removed.
        kept: Which weights are there, bool ``[T]``.
        buffers: Statistics of batch normalisation by name.
        loss: Mean loss, and the penalty that counts, on the stopping samples of the last stage.
    """

    vector: Tensor
    kept: Tensor
    buffers: Statistics
    loss: float = math.inf

    def on(self, objective: Objective) -> tuple[Objective, Tensor]:
        """Return the objective that evaluates this network, from one of the weights ``[T]``, and where."""
        return objective.with_buffers(self.buffers), self.vector.to(objective.dtype)


@dataclass(frozen=True)
class Turn:
    """One pass over the samples of a stage.

    Attributes:
        number: Its number, from 0.
        passes: How many there are.
        by_batch: Whether batch normalisation goes by the batch, and its statistics are measured anew afterwards.
    """

    number: int
    passes: int
    by_batch: bool


class FineTuning:
    r"""Stages of re-tuning of a trained network; each is a function of where it begins, its mask and the seed.

    A stage removes the smallest of the weights that are left, or of their groups, or begins with the dense network
    reconstructed layer by layer where that is better, see ``reconstructed``, and trains all parameters that are not
    frozen on a fresh sample, in evaluation mode. Where statistics of batch normalisation that are measured anew serve
    the pruned network better, they take the place of the old ones, and batch normalisation goes by the batch meanwhile.

    With the default loss the network shall give the scores of the dense one, see ``matching``; a loss of the user's own
    is trained on itself. After every pass the loss on other samples tells whether it helped; a pass that did not is
    undone, and the next takes shorter steps. What comes out is at least as good on these samples as the network pruned
    in one shot.

    Args:
        objective: The criterion on all training data, of the prunable weights.
        samples: Training samples of a stage.
        passes: Passes over them; as many more where there are fewer samples.
        seed: Seed of samples and their order.
        steps: Makes the rule of the steps from the weights whose norms set the scale.
        layerwise: Whether a stage may begin with the reconstruction of its layers.
        groups: Weights that go together; None removes single weights.

    Attributes:
        objective: The criterion of all weights ``[T]`` that are pruned or trained, or go with those that are pruned.
        dense: The trained network.
        cost: Processor time that was spent so far, in samples of an epoch of training, by number of samples.
        size: Number of training samples of the last stage.

    Raises:
        UserError: All parameters are frozen.

    Example:
        >>> data = [(torch.randn(64, 4), torch.arange(64) % 2)]
        >>> tuning = FineTuning(Objective(torch.nn.Linear(4, 2), data), samples=32, passes=1, seed=0)
        >>> int(tuning.stage(tuning.dense, 6).vector[tuning.prunable].count_nonzero())
        2
    """

    def __init__(
        self,
        objective: Objective,
        samples: int,
        passes: int,
        seed: int,
        steps: Callable[[Tensor], Steps] = Descent,
        layerwise: bool = True,
        groups: Groups | None = None,
    ) -> None:
        prunable, dtype = set(objective.names), objective.dtype
        companions = set[str]() if groups is None else set(groups.companions)
        trained = {
            name for name, p in objective.model.named_parameters() if p.requires_grad and p.dtype == dtype and p.numel()
        }
        if not trained:
            raise UserError(
                "model: all its parameters are frozen, so that nothing can be re-tuned; set requires_grad of those "
                "that may change"
            )
        counted = prunable | trained | companions
        names = [name for name, p in objective.model.named_parameters() if name in counted and p.dtype == dtype]
        self.objective = objective.among(names)
        self.samples, self.passes, self.seed, self.steps = samples, passes, seed, steps
        self.groups, self._prunable_names = groups, objective.names
        chosen = self.objective.chosen
        self.prunable, self.trained = (
            flatten([torch.full_like(weight, name in which, dtype=torch.bool) for name, weight in chosen.items()])
            for which in (prunable, trained)
        )
        self._layers = layers_of(objective.model, prunable & trained) if layerwise else {}
        self._biases = trained - prunable
        layers = normalising(objective.model)
        self._by_batch = _of_loss(self.objective, ByBatch(self.objective.loss_fn, layers.values())) if layers else None
        self._matches = self.objective.loss_fn is cross_entropy
        loss: Any = matching if self._matches else self.objective.loss_fn
        self._single = _of_loss(self.objective, loss)
        self._training = _of_loss(self.objective, ByBatch(loss, layers.values())) if layers else self._single
        vector = self.objective.vector()
        vector = vector.float() if dtype in HALF else vector
        self.dense = Network(vector, ~self.prunable | (vector != 0), {})
        self.cost, self.size, self._operations = 0.0, 0, 0.0

    @property
    def dimension(self) -> int:
        """Number D of prunable weights."""
        return int(self.prunable.sum())

    def evaluated_by(self, network: Network) -> Evaluated:
        """Return what compares a network with others, see ``PairedDifferences.of``."""
        return lambda part: network.on(part.among(self.objective.names))

    def stage(self, base: Network, count: int) -> Network:
        """Remove weights until so many are removed, and re-tune the others; see ``improvements``."""
        *_, last = self.improvements(base, count)
        return last

    @plain_modes()
    def sample(self, count: int) -> StageSample:
        """Draw the samples of a stage, given by its number of removed weights."""
        self.cost += READ * self.objective.samples
        return StageSample(self.objective, self.samples, self._seed(count))

    def improvements(self, base: Network, count: int) -> Iterator[Network]:
        """Re-tune in one stage.

        Args:
            base: Network to begin with, such as ``dense``.
            count: Number of prunable weights that are removed afterwards, at least as many as in ``base``, and one
                that can be had, see ``attained``.

        Yields:
            The pruned network, and every better one that is found; the last is the result of the stage.

        Raises:
            UserError: No gradient reaches a weight, or there are too few samples.
        """
        sample = self.sample(count)
        self.size = sample.size
        passes = max(1, round(self.passes * self.samples / sample.size))
        pruned = self.pruned(base, count)
        alone = self._alone(pruned, count)
        scores, moments = self.of_dense(alone, sample)
        best = start = self._best([pruned, self.reconstructed(alone, moments)], sample)
        yield best
        generator = torch.Generator().manual_seed(self._seed(count))
        by_batch = start.buffers is not base.buffers and start.buffers is not self.dense.buffers
        steps = self.steps(start.kept & self.prunable & self.trained)
        for number in range(passes):
            tuned = self._passed(start, sample, scores, steps, generator, Turn(number, passes, by_batch))
            if tuned.loss < start.loss:
                start = tuned
            else:
                steps.gentler()
            if start.loss < best.loss:
                best = start
                yield best
        if base is not self.dense:
            alone = self._best([alone], sample)
            if alone.loss < best.loss:
                yield alone

    def pruned(self, base: Network, count: int) -> Network:
        """Remove the smallest of the prunable weights or groups that are left, until so many weights are removed."""
        kept = base.kept.clone()
        if self.groups is None:
            magnitudes = torch.where(base.kept, base.vector.abs(), -1.0)[self.prunable]
            places = self.prunable.nonzero().squeeze(1)
            kept[places[torch.sort(magnitudes, stable=True).indices[:count]]] = False
        else:
            parts = self._named(kept)
            for name, mask in self._masks(self.profile(base), count).items():
                parts[name] &= mask
        return Network(torch.where(kept, base.vector, 0.0), kept, base.buffers)

    def attained(self, base: Network, count: int) -> int:
        """Return the least number of removed weights that the groups which are left in a network allow from one on."""
        return count if self.groups is None else self.profile(base).count(count / self.dimension)

    def between(self, base: Network, count: int, low: int, high: int) -> int | None:
        """Return a number of removed weights that can be had and lies between two others; None where there is none.

        Args:
            base: Network to begin with.
            count: The wanted number; the least that can be had from there on is taken, or else the largest.
            low: Lower end.
            high: Upper end.
        """
        if self.groups is None:
            return count if low < count < high else None
        counts = [int(number) for number in self.profile(base).counts if low < number < high]
        return next((number for number in counts if number >= count), counts[-1] if counts else None)

    def profile(self, base: Network, scores: Mapping[str, Tensor] | None = None) -> GroupProfile:
        """Return the groups in the order in which they go from a network.

        Args:
            base: The network.
            scores: Importance of every prunable weight by name; None takes their squares.
        """
        assert self.groups is not None
        parts = self._named(base.vector)
        return GroupProfile({name: parts[name] for name in self._prunable_names}, self.groups, scores)

    def _masks(self, profile: GroupProfile, count: int) -> dict[str, Tensor]:
        """Return masks of what groups remove, and of what goes with them, where it has a part in the vector."""
        chosen, sparsity = self.objective.chosen, count / self.dimension
        beside = {
            name: mask.reshape(-1, *[1] * (chosen[name].dim() - 1)).to(chosen[name].device)
            for name, mask in profile.companions(sparsity).items()
            if name in chosen
        }
        return profile.masks(sparsity) | beside

    def _alone(self, pruned: Network, count: int) -> Network:
        """Return the dense network pruned in one shot; where its groups allow no such number, as a stage prunes it."""
        if self.attained(self.dense, count) == count:
            return self.pruned(self.dense, count)
        return replace(pruned, vector=torch.where(pruned.kept, self.dense.vector, 0.0), buffers=self.dense.buffers)

    @plain_modes()
    def normalised(self, network: Network, sample: StageSample) -> Network:
        """Measure the statistics of batch normalisation anew, where there are some."""
        if self._by_batch is None:
            return network
        self.cost += FORWARD * sample.size
        at, vector = network.on(self._by_batch)
        buffers = measured_statistics(at, self._named(vector), sample.training)
        return replace(network, buffers=network.buffers | buffers)

    @plain_modes()
    @torch.no_grad()
    def evaluated(self, network: Network, sample: StageSample) -> Network:
        """Measure the loss on the stopping samples."""
        at, vector = network.on(self.objective)
        weights, total, count = self._named(vector), 0.0, 0
        for batch, size in sample.stopping:
            losses = at.losses(weights, batch).double()
            total += float(losses.sum() if losses.dim() else losses * size)
            count += size
        self.cost += FORWARD * count
        loss = total / count + at.penalty_value(weights)
        return replace(network, loss=loss if math.isfinite(loss) else math.inf)

    def _best(self, pruned: Sequence[Network | None], sample: StageSample) -> Network:
        """Return the best of pruned networks, each as it is and with statistics of batch normalisation anew."""
        networks = [network for network in pruned if network is not None]
        if self._by_batch is not None:
            networks += [self.normalised(network, sample) for network in networks]
        return min((self.evaluated(network, sample) for network in networks), key=lambda network: network.loss)

    @plain_modes()
    def of_dense(self, pruned: Network, sample: StageSample) -> tuple[DenseScores | None, Moments]:
        """Pass the training samples through the dense network once.

        Args:
            pruned: The dense network without the weights that go.
            sample: The samples of the stage.

        Returns:
            The scores that the pruned network shall keep, None where the loss is the user's own; and the moments of
            what reaches the layers that are worth it, see ``reconstructed``.
        """
        kept = self._named(pruned.kept)
        layers = {name: layer for name, layer in self._layers.items() if self._worth(kept[name].flatten(1))}
        scores = list[DenseScores]()

        def passes() -> None:
            if self._matches:
                scores.append(DenseScores(self.objective, sample))
            elif layers:
                at, vector = self.dense.on(self.objective)
                for batch, _ in sample.training:
                    at.losses(self._named(vector), batch)

        moments = moments_of(layers, passes)
        if layers and not self._operations:
            self._operations = operations_per_sample(self.objective, sample.stopping)
        if layers or scores:
            self.cost += FORWARD * sample.size
        if layers:
            self.cost += self._samples(moments.operations)
        return scores[0] if scores else None, moments

    @plain_modes()
    @torch.no_grad()
    def reconstructed(self, pruned: Network, moments: Moments) -> Network | None:
        """Let the kept weights of layers, and their biases, make up for the others in the layers' outputs.

        Every layer keeps as many weights as ``pruned``, and their bias, and they reproduce the layer's outputs on the
        training samples. The saliencies of the optimal brain surgeon say which ones stay: of the layer, or of every
        run of N:M; of other groups those of ``pruned`` do. Layers that are too wide, or whose inputs cannot be seen,
        stay as ``pruned`` leaves them.

        Args:
            pruned: The dense network without the weights that go.
            moments: Second moments of what reaches its layers.

        Returns:
            The network; None where no layer can be reconstructed.
        """
        if not moments.of:
            return None
        before, weights = self._named(self.dense.vector), self._named(pruned.vector.clone())
        kept = self._named(self._selected(pruned, moments))
        for name, moment in moments.of.items():
            weight, mask = before[name].flatten(1), kept[name].flatten(1)
            self.cost += self._samples(SOLVING * solving_cost(mask))
            bias = self._bias(name)
            if bias is None:
                solved = reconstructed(weight, mask, damped(moment[:-1, :-1]))
            else:
                joined = torch.cat([weight, before[bias][:, None]], 1)
                solved = reconstructed(joined, nn.functional.pad(mask, (0, 1), value=True), damped(moment))
                weights[bias].copy_(solved[:, -1])
                solved = solved[:, :-1]
            weights[name].copy_(solved.reshape(weights[name].shape))
        stays = flatten(list(kept.values()))
        return Network(torch.where(stays, flatten(list(weights.values())), 0.0), stays, self.dense.buffers)

    def _selected(self, pruned: Network, moments: Moments) -> Tensor:
        """Return which weights the saliencies of layers keep, bool ``[T]``."""
        if self.groups is not None and not self.groups.pattern.fixed:
            return pruned.kept
        result = pruned.kept.clone()
        before, alive, kept = (self._named(part) for part in (self.dense.vector, self.dense.kept, result))
        scores = {}
        for name, moment in moments.of.items():
            score = saliencies(before[name].flatten(1), damped(moment[:-1, :-1])).view_as(before[name])
            scores[name] = torch.where(alive[name], score, 0.0)
        if self.groups is None:
            for name, score in scores.items():
                order = torch.sort(score.flatten(), descending=True, stable=True).indices
                mask = torch.zeros_like(kept[name]).flatten().index_fill_(0, order[: int(kept[name].sum())], True)
                kept[name].copy_(mask.view_as(kept[name]))
        else:
            squares = {name: before[name].double().square() for name in self._prunable_names}
            profile = self.profile(self.dense, squares | scores)
            masks = profile.masks(profile.most)
            for name in scores:
                kept[name].copy_(masks[name] & alive[name])
        return result

    def _samples(self, operations: float) -> float:
        """Return the number of samples that an epoch of training passes with so many operations."""
        return operations / (EPOCH * self._operations)

    def _worth(self, kept: Tensor) -> bool:
        """Tell whether a layer's reconstruction costs no more than the passes over the samples."""
        passes = 6.0 * kept.numel() * self.samples * self.passes
        return kept.shape[1] <= MOST_FEATURES and solving_cost(kept) <= passes

    def _bias(self, name: str) -> str | None:
        """Return the name of the bias that belongs to a weight and is trained, or None."""
        path, _, key = name.rpartition(".")
        bias = f"{path}.bias" if path else "bias"
        return bias if key == "weight" and bias in self._biases else None

    @plain_modes()
    def _passed(
        self,
        network: Network,
        sample: StageSample,
        scores: DenseScores | None,
        steps: Steps,
        generator: torch.Generator,
        turn: Turn,
    ) -> Network:
        """Train on all samples once, in one pass of several; a loss that is not finite ends the pass."""
        free = network.kept & self.trained
        vector = network.vector.clone()
        single = self._single.with_buffers(network.buffers)
        several = self._training.with_buffers(network.buffers) if turn.by_batch else single
        done, whole = turn.number * sample.size, turn.passes * sample.size
        for place, batch, size in sample.shuffled(WIDTH, generator):
            at = several if size > 1 else single
            given = batch if scores is None else scores.of(place, batch)
            values, slope = at.losses_and_slopes(vector.to(at.dtype), given, size)
            done += size
            if not values.isfinite().all():
                return replace(network, loss=math.inf)
            if slope is None:
                raise UserError(
                    "loss_fn: no gradient reaches the weights, so that nothing can be re-tuned; return a loss that "
                    "depends on the model's outputs and is not detached"
                )
            slope = slope.to(vector.dtype) / size
            if at.penalty is not None:
                slope += at.penalty.gradient(vector)
            slope = torch.where(free, slope, 0.0)
            steps.step(vector, slope, (done - size) / whole)
        self.cost += TRAINED * sample.size
        tuned = replace(network, vector=vector)
        return self.evaluated(self.normalised(tuned, sample) if turn.by_batch else tuned, sample)

    def _named(self, vector: Tensor) -> dict[str, Tensor]:
        return named(vector, self.objective.chosen)

    def _seed(self, count: int) -> int:
        """Return the seed of a stage."""
        digest = hashlib.blake2b(f"{self.seed} {count}".encode(), digest_size=7).digest()
        return int.from_bytes(digest, "big")


def _of_loss(objective: Objective, loss_fn: LossFunction) -> Objective:
    """Return the objective of another loss of the same samples."""
    changed = copy.copy(objective)
    changed.loss_fn = loss_fn
    return changed
