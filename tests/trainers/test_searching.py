"""The copy in which attacks search is the same function, in fewer operations, and leaves the network alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from trainers.evaluation.searching import for_fast_search, for_search
from trainers.models.normalize import Normalized
from trainers.models.preact_resnet import preact_resnet18
from trainers.models.resnet import resnet18
from trainers.models.small import small
from trainers.models.stem import Stem
from trainers.models.wide_resnet import wide_resnet

# network, and how many of its batch norms follow a convolution that nothing else reads, of how many
NETWORKS = {
    "small": (lambda: small(10, 3, width=4), 3, 3),
    "resnet18": (lambda: resnet18(10, 3, width=4), 20, 20),
    "preact_resnet18": (lambda: preact_resnet18(10, 3, width=4), 8, 17),
    "wide_resnet": (lambda: wide_resnet(10, 3, depth=10, widen_factor=1), 3, 7),
}


def used(network):
    """A network whose statistics and affine weights are far from their initial values, in eval mode."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -2, 2)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.1, 3)
    return Normalized(network, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)).eval()


def batch_norms(model):
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_and_input_gradients_are_the_networks(name):
    build, folded, norms = NETWORKS[name]
    model = used(build()).double()
    searching = for_search(model)
    found = []
    for network in (model, searching):
        images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
        logits = network(images)
        found.append((logits.detach(), *torch.autograd.grad(logits.logsumexp(1).sum(), images)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert (batch_norms(model), batch_norms(searching)) == (norms, norms - folded)


class Shared(nn.Module):
    """One convolution in two places, each with a batch norm of its own."""

    def __init__(self):
        super().__init__()
        self.convolution, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 10)
        self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, images):
        hidden = self.first(self.convolution(images)).relu()
        return self.head(self.second(self.convolution(hidden)).mean((2, 3)))


class Aliased(Shared):
    """The same, each place under its own name."""

    def __init__(self):
        super().__init__()
        self.again = self.convolution

    def forward(self, images):
        hidden = self.first(self.convolution(images)).relu()
        return self.head(self.second(self.again(hidden)).mean((2, 3)))


class Deciding(Shared):
    """The forward asks the data, which no trace can follow."""

    def forward(self, images):
        return super().forward(images) * (2 if images.mean() > 0.25 else 1)


class Counting(Shared):
    """A number of Python's own is made of what is traced."""

    def forward(self, images):
        return super().forward(images) * len(images)


@pytest.mark.parametrize("network", [Shared, Aliased, Deciding, Counting])
def test_a_network_of_another_package_is_the_same_function_too(network):
    model = used(network())
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(for_search(model)(images), model(images), rtol=1e-4, atol=1e-4)


def test_the_network_itself_stays_as_it_is(natural_net):
    before = copy.deepcopy(natural_net)
    searching = for_search(natural_net)
    assert not any(parameter.requires_grad for parameter in searching.parameters())
    assert [p.requires_grad for p in natural_net.parameters()] == [p.requires_grad for p in before.parameters()]
    assert all(torch.equal(natural_net.state_dict()[name], value) for name, value in before.state_dict().items())


def test_a_network_of_the_users_own_is_copied_as_it_is():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution, self.norm = nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2)

        def forward(self, images):
            features = self.norm(self.convolution(images if images.mean() > 0.5 else -images))
            return features.view(len(images), -1)[:, :10]  # an error where features lie channels-last

    model = Branching().train()
    images = torch.rand(3, 3, 8, 8)
    searching = for_search(model)
    assert model.training
    torch.testing.assert_close(searching(images), model.eval()(images))
    assert batch_norms(searching) == 1


# In bfloat16


def test_the_fast_copy_is_nearly_the_network_and_leaves_it_alone(natural_net, splits):
    images = splits.test.floats(0, 100)
    fast = for_fast_search(natural_net)
    expected, found = natural_net(images), fast(images)
    assert found.dtype == torch.float32
    assert 0 < (found - expected).abs().max() < 0.03 * expected.abs().max()
    assert all(parameter.dtype == torch.float32 for parameter in natural_net.parameters())
    assert sum(isinstance(module, nn.Conv2d) for module in natural_net.modules()) == 3


def test_the_fast_copy_sees_steps_that_bfloat16_would_round_away():
    torch.manual_seed(0)
    network = Normalized(nn.Sequential(Stem(3, 2), nn.Flatten(), nn.Linear(128, 4)), (0.0,) * 3, (1.0,) * 3)
    weight = torch.zeros(2, 3, 3, 3)
    weight[:, :, 1, 1] = torch.tensor([[1.0, 0, 0], [1000, -1000, 0]])
    network.network[0].weight.data = weight
    images = torch.full((1, 3, 8, 8), 0.9)
    redder = images.clone()
    redder[:, 0] = 0.9001
    assert torch.equal(redder.bfloat16(), images.bfloat16())
    fast = for_fast_search(network)
    torch.testing.assert_close(fast(redder) - fast(images), network(redder) - network(images), rtol=0.05, atol=0.01)


def test_a_network_of_the_users_own_is_searched_fast_too():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).eval()
    images = torch.rand(5, 3, 2, 2)
    torch.testing.assert_close(for_fast_search(model)(images), model(images), rtol=0.02, atol=0.02)
