"""Coupled channels against derivatives, and the masked network against the physically smaller one."""

import copy
import sys

import pytest
import torch
from helpers import assert_close, random, seeded
from torch import nn
from torch.func import functional_call

from estimators import Objective, UserError
from pruning_limits import predict_limit
from pruning_limits.channels import smaller_network
from pruning_limits.group_profile import GroupProfile
from pruning_limits.groups import NONE
from pruning_limits.patterns import groups_of
from pruning_limits.trials import Trial


class Flattened(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.Tanh(),
            nn.Conv2d(4, 3, 2, stride=2),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(27, 5),
            nn.Tanh(),
            nn.Linear(5, 3),
        )


class Residual(nn.Module):
    """Two blocks, the second with a projection, so that the first sum ties three layers to each other."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.a, self.norm_a, self.b = nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)
        self.c, self.d, self.short = nn.Conv2d(4, 3, 1), nn.Conv2d(3, 5, 1), nn.Conv2d(4, 5, 1)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        x = torch.tanh(self.norm(self.stem(x)))
        x = x + self.b(torch.tanh(self.norm_a(self.a(x))))
        x = torch.tanh(self.short(x) + self.d(torch.tanh(self.c(x))))
        return self.head(x.mean((2, 3)))


class Padded(nn.Module):
    """A shortcut without parameters: zeros beside the channels, one before and two behind them, then two more."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 3, 3, 2, 1), nn.Conv2d(3, 7, 1)
        self.norm, self.c, self.head = nn.BatchNorm2d(7), nn.Conv2d(7, 9, 1), nn.Linear(9, 3)

    def forward(self, x):
        x = torch.tanh(self.stem(x))
        x = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 2)) + self.norm(self.b(torch.tanh(self.a(x))))
        x = torch.tanh(x)
        x = nn.functional.pad(x, (0, 0, 0, 0, 2, 0)) + self.c(x)
        return self.head(torch.tanh(x).mean((2, 3)))


class Depthwise(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(2, 4, 1),
            nn.Tanh(),
            nn.Conv2d(4, 4, 3, groups=4),
            nn.BatchNorm2d(4),
            nn.Tanh(),
            nn.Conv2d(4, 5, 1),
            nn.Tanh(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(5, 3),
        )


class Joined(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 3, 1), nn.Conv2d(5, 4, 1)
        self.c, self.head = nn.Conv2d(9, 4, 1), nn.Linear(4, 3)

    def forward(self, x):
        x = torch.tanh(self.stem(x))
        x = torch.cat([x, torch.tanh(self.a(x))], 1)
        x = torch.cat([x, torch.tanh(self.b(x))], 1)
        return self.head(torch.tanh(self.c(x)).mean((2, 3)))


class Branched(nn.Module):
    """Passes half of the channels through two layers, and shuffles the halves together."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(2, 6, 1), nn.Conv2d(3, 5, 1), nn.Conv2d(5, 3, 1)
        self.c, self.head = nn.Conv2d(6, 4, 1), nn.Linear(4, 3)

    def forward(self, x):
        left, right = torch.tanh(self.stem(x)).chunk(2, 1)
        x = torch.cat((left, torch.tanh(self.b(torch.tanh(self.a(right))))), 1)
        x = x.view(len(x), 2, 3, *x.shape[2:]).transpose(1, 2).reshape(x.shape)
        return self.head(torch.tanh(self.c(x)).mean((2, 3)))


def elsewhere():
    """A linear layer of transformers, whose weight lies the other way round, between convolution and linear layer."""
    layers = pytest.importorskip("transformers.pytorch_utils")
    first, second = layers.Conv1D(6, 36), layers.Conv1D(4, 6)
    activations = (nn.Tanh(), nn.Flatten(), nn.Tanh(), nn.Tanh())
    model = nn.Sequential(nn.Conv2d(2, 4, 2, stride=2), *activations[:2], first, activations[2], second)
    return nn.Sequential(*model, activations[3], nn.Linear(4, 3))


class JoinedToInputs(Joined):
    def __init__(self):
        super().__init__()
        self.stem = nn.Identity()


class Halves(nn.Module):
    """A gated unit: the channels of the first layer go in pairs."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(4, 3)

    def forward(self, x):
        left, right = self.a(x).chunk(2, dim=1)
        return self.b(torch.tanh(left) * torch.tanh(right))


SHAPES = hasattr(torch.ones(1, requires_grad=True).exp().grad_fn, "_input_metadata")
needs_shapes = pytest.mark.skipif(not SHAPES, reason="this torch does not tell the shapes of a graph")
IMAGES = {"flattened": Flattened, "residual": Residual, "padded": Padded, "depthwise": Depthwise, "joined": Joined}
IMAGES["elsewhere"] = elsewhere
IMAGES |= {"beside inputs": JoinedToInputs, "branched": Branched}


def objective_of(build, shape=(2, 6, 6)):
    model = seeded(build).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(1 + 0.3 * random(len(module.weight), seed=7))
                module.bias.copy_(random(len(module.bias), seed=8))
                module.running_mean.copy_(random(len(module.bias), seed=9))
    return Objective(model, [(random(9, *shape, seed=1), torch.arange(9) % 3)])


def without(objective, groups, group, members, companions=True):
    """Parameters of the network with zeros in one group's rows, columns or both, and in what goes with it."""
    state = {name: p.detach().clone() for name, p in objective.model.named_parameters()}
    for member in members:
        for name, ids in member.items():
            state[name] = torch.where(ids.expand(state[name].shape) == group, 0.0, state[name])
    for name, ids in groups.companions.items() if companions else ():
        state[name] = torch.where(ids == group, 0.0, state[name])
    return state


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=needs_shapes) if name in ("padded", "beside inputs", "branched") else name
        for name in IMAGES
    ],
)
def test_the_columns_of_a_group_are_those_that_read_its_channel_and_no_others(name):
    objective = objective_of(IMAGES[name])
    groups = groups_of("channels", objective)
    assert groups.count > 5
    rows, columns = groups.members
    x = objective.loader[0][0]
    for group in range(groups.count):
        state = without(objective, groups, group, [rows])
        chosen = {key: state[key].requires_grad_() for key in objective.names}
        jacobian = torch.autograd.functional.jacobian(
            lambda *weights, state=state, chosen=chosen: functional_call(
                objective.model, state | dict(zip(chosen, weights, strict=True)), (x,)
            ),
            tuple(chosen.values()),
        )
        for key, slopes in zip(chosen, jacobian, strict=True):
            idle = slopes.abs().flatten(0, 1).amax(0) < 1e-12
            reading = columns[key].expand(idle.shape) == group if key in columns else torch.zeros_like(idle)
            own = rows[key].expand(idle.shape) == group if key in rows else torch.zeros_like(idle)
            assert torch.equal(idle & ~own, reading & ~own), (group, key)


@pytest.mark.parametrize("name", IMAGES)
def test_the_physically_smaller_network_puts_out_what_the_masked_one_does(name):
    objective = objective_of(IMAGES[name])
    groups = groups_of("channels", objective)
    profile, trial, x = GroupProfile(objective.chosen, groups), Trial(objective), objective.loader[0][0]
    for sparsity in (0.1, 0.8 * profile.most, profile.most):
        masks = profile.masks(sparsity) | profile.companions(sparsity)  # of biases and normalisation: vectors
        state = {key: p.detach() for key, p in objective.model.named_parameters()}
        state |= {key: state[key] * mask for key, mask in masks.items()}
        gone = profile.gone(sparsity)
        removed = {root: gone[ids].nonzero().flatten().tolist() for root, ids in groups.roots.items()}
        smaller = smaller_network(objective.model, trial, removed)
        assert_close(smaller(x), functional_call(objective.model, state, (x,)))
        size = sum(p.numel() for p in smaller.parameters())
        companions = sum(int((~mask).sum()) for mask in profile.companions(sparsity).values())
        total = sum(p.numel() for p in objective.model.parameters())
        assert size == total - profile.count(sparsity) - companions


def test_layers_of_transformers_stay_what_they_are_in_the_smaller_network():
    objective = objective_of(elsewhere)
    model, groups = objective.model, groups_of("channels", objective)
    assert groups.members[0]["3.weight"].shape == (1, 6)
    assert groups.members[1]["3.weight"].shape == (36, 1)
    assert list(groups.roots) == ["5", "3", "0"]
    smaller = smaller_network(model, Trial(objective), {"3": [0, 4], "5": [1]})
    assert [type(part) for part in smaller] == [type(part) for part in model]
    assert (smaller[3].nx, smaller[3].nf, smaller[5].nx, smaller[5].nf) == (36, 4, 4, 3)
    assert torch.equal(smaller[3].weight, model[3].weight[:, [1, 2, 3, 5]])
    assert torch.equal(smaller[5].weight, model[5].weight[[1, 2, 3, 5]][:, [0, 2, 3]])
    assert torch.equal(smaller[5].bias, model[5].bias[[0, 2, 3]])


def test_the_hidden_layer_of_a_block_of_gpt2_loses_channels():
    gpt2 = pytest.importorskip("transformers.models.gpt2.modeling_gpt2")
    config = gpt2.GPT2Config(n_embd=6, resid_pdrop=0.0)
    objective = objective_of(lambda: nn.Sequential(gpt2.GPT2MLP(8, config), nn.Flatten(), nn.Linear(12, 3)), (2, 6))
    groups = groups_of("channels", objective)
    assert groups.members[0]["0.c_fc.weight"].flatten().tolist() == [*range(8)]
    assert groups.members[1]["0.c_proj.weight"].flatten().tolist() == [*range(8)]


class Kept(nn.Module):
    """Attention of one head whose keys go behind those that it keeps, none at first; a hidden layer follows."""

    def __init__(self):
        super().__init__()
        self.maps = nn.Linear(6, 12)
        self.hidden, self.back, self.head = nn.Linear(6, 5), nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x):
        query, key = (part.view(len(x), -1, 1, 6).transpose(1, 2) for part in self.maps(x).split(6, dim=2))
        key = torch.cat([torch.tensor([], dtype=x.dtype), key], dim=-2)
        x = x + nn.functional.scaled_dot_product_attention(query, key, key).transpose(1, 2).flatten(2)
        return self.head(x + self.back(torch.tanh(self.hidden(x)))).mean(1)


@needs_shapes
def test_tokens_that_are_joined_are_no_channels():
    groups = groups_of("channels", objective_of(Kept, (4, 6)))
    assert groups.members[0]["hidden.weight"].flatten().tolist() == [*range(5)]
    assert groups.members[1]["back.weight"].flatten().tolist() == [*range(5)]
    assert set(groups.left) >= {"maps.weight", "head.weight"}


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "GPT2ForSequenceClassification"])
def test_a_gpt2_loses_the_channels_of_its_hidden_layers(name):
    transformers = pytest.importorskip("transformers")
    places = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=8, n_inner=12, vocab_size=11, n_positions=5, **places)
    tokens = torch.arange(45).reshape(9, 5) % 10 + 1

    def losses(model, batch):
        scores = model(input_ids=batch).logits
        return scores.double().square().reshape(len(batch), -1).mean(1)

    objective = Objective(seeded(lambda: getattr(transformers, name)(config)).eval(), [tokens], losses)
    groups = groups_of("channels", objective)
    for layer in ("transformer.h.0.mlp.c_fc.weight", "transformer.h.1.mlp.c_fc.weight"):
        ids, back = groups.members[0][layer].flatten(), layer.replace("c_fc", "c_proj")
        assert len(ids.unique()) == 12
        assert torch.equal(groups.members[1][back].flatten(), ids)
        assert torch.equal(groups.companions[layer.replace("weight", "bias")], ids)
    assert groups.count == 24
    assert all(f"transformer.h.{block}.attn.c_attn.weight" in groups.left for block in (0, 1))
    profile = GroupProfile(objective.chosen, groups)
    masks = profile.masks(0.1) | profile.companions(0.1)
    gone = {path: profile.gone(0.1)[ids].nonzero().flatten().tolist() for path, ids in groups.roots.items()}
    smaller = smaller_network(objective.model, Trial(objective), gone)
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in objective.model.parameters())
    zeroed = copy.deepcopy(objective.model)
    with torch.no_grad():
        for path, mask in masks.items():
            zeroed.get_parameter(path).mul_(mask)
        assert_close(losses(smaller, tokens), losses(zeroed, tokens))


def test_a_llama_loses_the_channels_of_its_gated_layers():
    transformers = pytest.importorskip("transformers")
    places = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    sizes = {"hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 1, "vocab_size": 11}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 5}
    config = transformers.LlamaConfig(**sizes, **heads, **places)
    tokens = torch.arange(45).reshape(9, 5) % 10 + 1

    def losses(model, batch):
        return model(input_ids=batch).logits.double().square().mean((1, 2))

    groups = groups_of(
        "channels", Objective(seeded(lambda: transformers.LlamaForCausalLM(config)).eval(), [tokens], losses)
    )
    rows, columns = groups.members
    assert set(rows) == {f"model.layers.0.mlp.{name}_proj.weight" for name in ("up", "gate")}
    ids = rows["model.layers.0.mlp.up_proj.weight"].flatten()
    assert sorted(ids.tolist()) == [*range(6)]
    assert torch.equal(rows["model.layers.0.mlp.gate_proj.weight"].flatten(), ids)
    assert torch.equal(columns["model.layers.0.mlp.down_proj.weight"].flatten(), ids)


def test_a_gate_ties_its_halves():
    objective = objective_of(Halves, (6,))
    groups = groups_of("channels", objective)
    assert groups.count == 4
    assert groups.members[0]["a.weight"].flatten().tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert groups.members[1]["b.weight"].flatten().tolist() == [0, 1, 2, 3]
    assert groups.companions["a.bias"].tolist() == [0, 1, 2, 3] * 2


def test_outputs_of_the_network_and_what_reaches_them_stay():
    objective = objective_of(lambda: nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)), (6,))
    groups = groups_of("channels", objective)
    assert groups.count == 4
    assert "2.weight" not in groups.members[0]
    with pytest.raises(UserError, match=r"channels fits no layer .*weight: its channels are outputs of the network"):
        groups_of("channels", objective_of(lambda: nn.Linear(6, 3), (6,)))


class Exposed(nn.Module):
    """A network whose loss reads a hidden layer, too."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 4), nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        hidden = torch.tanh(self.a(x))
        return self.c(torch.tanh(self.b(hidden))), hidden


def test_a_layer_that_the_loss_reads_is_left_dense():
    model = seeded(Exposed)

    def loss(model, batch):
        logits, hidden = model(batch[0])
        weights = torch.arange(1.0, 5.0, dtype=hidden.dtype)
        return nn.functional.cross_entropy(logits, batch[1], reduction="none") + (hidden * weights).square().sum(1)

    groups = groups_of("channels", Objective(model, [(random(9, 6), torch.arange(9) % 3)], loss))
    assert "a.weight" not in groups.members[0]
    assert groups.left == {"a.weight": groups.left["a.weight"]}
    assert groups.left["a.weight"].startswith("the network without its channels puts out something else")
    assert groups.count == 5


class Normalised(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.a, self.norm, self.b, self.c = nn.Linear(6, 4), kind(4), nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.c(torch.tanh(self.b(torch.tanh(self.norm(self.a(x))))))


def test_channels_before_a_normalisation_over_channels_are_left_dense():
    groups = groups_of("channels", objective_of(lambda: Normalised(nn.LayerNorm), (6,)))
    assert groups.count == 5
    assert "LayerNorm" in groups.left["a.weight"]
    free = groups_of("channels", objective_of(lambda: Normalised(nn.BatchNorm1d), (6,)))
    assert free.count == 9
    assert set(free.companions) == {"a.bias", "norm.weight", "norm.bias", "b.bias"}


@needs_shapes
def test_channels_of_a_padding_alone_stay():
    groups = groups_of("channels", objective_of(Padded))
    rows = {name: ids.flatten().tolist() for name, ids in groups.members[0].items()}
    stem = rows["stem.weight"]
    assert len(set(stem)) == 4
    assert rows["b.weight"] == [NONE, *stem, NONE, NONE]
    assert rows["c.weight"] == [NONE] * 3 + [*stem, NONE, NONE]
    assert groups.companions["norm.bias"].tolist() == rows["b.weight"]
    assert groups.members[1]["head.weight"].flatten().tolist() == rows["c.weight"]


@needs_shapes
def test_shortcuts_of_the_residual_networks_of_the_suites_are_followed():
    from validation.models import build_model

    model = build_model("resnet8", (3, 8, 8), 4).eval()
    groups = groups_of("channels", Objective(model, [(random(4, 3, 8, 8).float(), torch.arange(4))]))
    assert groups.count == 16 + 16 + 32 + 64
    assert list(groups.roots) == ["conv1", *(f"blocks.{k}.conv1" for k in range(3))]
    assert not groups.left


def test_a_padding_of_tokens_is_no_padding_of_channels():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 4), nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x):
            x = nn.functional.pad(torch.tanh(self.a(x)), (0, 0, 1, 0))
            return self.c(torch.tanh(self.b(x))).mean(1)

    groups = groups_of("channels", objective_of(Tokens, (2, 6)))
    assert set(groups.members[0]) == {"a.weight", "b.weight"}
    assert groups.count == 9


class Shuffled(nn.Module):
    """Channels that are put in another order, which the graph does not follow."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1)
        self.c, self.head = nn.Conv2d(4, 5, 1), nn.Linear(5, 3)

    def forward(self, x):
        x = torch.tanh(self.a(x))
        x = torch.tanh(self.b(x)) + x.flip(1)
        return self.head(torch.tanh(self.c(x)).mean((2, 3)))


def test_what_the_graph_does_not_follow_is_left_dense_and_told_by_name():
    groups = groups_of("channels", objective_of(Shuffled))
    assert set(groups.members[0]) == {"c.weight"}
    assert {"a.weight", "b.weight"} <= set(groups.left)
    limit = predict_limit(
        seeded(Shuffled).eval(),
        [(random(40, 2, 4, 4, seed=1), torch.arange(40) % 3)],
        pattern="channels",
        epsilon=0.1,
        steps=4,
        probes=1,
        progress=False,
    )
    (note,) = [note for note in limit.notes if "dense (" in note]
    assert note.startswith("channels leaves ")
    assert "a.weight: the network without its channels puts out something else than with zeros in their place" in note


def test_channels_that_reach_weights_that_are_not_prunable_stay():
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))
    data = [(random(9, 6), torch.arange(9) % 3)]
    groups = groups_of("channels", Objective(model, data, parameters=["0.weight", "2.weight"]))
    assert groups.count == 4
    with pytest.raises(UserError, match=r"0\.weight: its channels reach 2\.weight, which is not among the prunable"):
        groups_of("channels", Objective(model, data, parameters="0.weight"))


def test_biases_that_were_chosen_count_as_weights_of_their_channel():
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)))
    objective = Objective(model, [(random(9, 6), torch.arange(9) % 3)], parameters="*")
    groups = groups_of("channels", objective)
    profile = GroupProfile(objective.chosen, groups)
    assert groups.companions == {}
    assert profile.counts.tolist() == [0, 10, 20, 30]
    assert groups.left == {"2.bias": "no channel of it can go"}


def test_masks_of_torch_do_not_matter():
    from torch.nn.utils import prune

    model = seeded(lambda: nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)))
    prune.l1_unstructured(model[0], "weight", 5)
    groups = groups_of("channels", Objective(model, [(random(9, 6), torch.arange(9) % 3)]))
    assert list(groups.members[0]) == ["0.weight_orig"]
    assert list(groups.companions) == ["0.bias"]


def test_the_model_is_left_as_it_was():
    from helpers import same, snapshot

    objective = objective_of(Residual)
    before = snapshot(objective.model)
    groups = groups_of("channels", objective)
    assert same(snapshot(objective.model), before)
    assert (torch.cat([ids.flatten() for ids in groups.members[0].values()]) != NONE).any()


def test_a_missing_package_is_told_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(UserError, match=r"^pattern: channels need the package torch-pruning; install it with pip"):
        groups_of("channels", objective_of(Flattened))
