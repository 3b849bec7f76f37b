"""Stacked layers and optimizer: every member equals the same thing alone, computed by torch."""

from itertools import pairwise

import pytest
import torch

from entreg import stacked

SHAPES = {"weight": (3, 4), "bias": (4,)}


def _parameters(members, seed=0):
    parameters = stacked.FlatParameters(members, SHAPES)
    parameters.data.copy_(torch.randn(parameters.data.shape, generator=torch.Generator().manual_seed(seed)))
    return parameters


def test_parameters_view_the_flat_buffer_and_gradients_are_gathered_in_the_same_order():
    parameters = _parameters(2)
    assert torch.equal(parameters["weight"].detach().flatten(1), parameters.data[:, :12])
    loss = (parameters["bias"] * torch.arange(8.0).view(2, 4)).sum()
    parameters.backward((loss, torch.tensor(1.0)))
    assert torch.equal(parameters.grad[:, 12:], torch.arange(8.0).view(2, 4))
    assert torch.equal(parameters.grad[:, :12], torch.zeros(2, 12))
    with torch.no_grad():
        parameters.data.zero_()
    assert parameters["weight"].abs().sum() == 0


def test_linear_is_each_members_own_affine_map():
    parameters = _parameters(3)
    x = torch.randn(3, 5, 3)
    found = stacked.linear(x, parameters["weight"], parameters["bias"])
    for member in range(3):
        own = parameters.member(member)
        torch.testing.assert_close(found[member], x[member] @ own["weight"] + own["bias"])


def _towers(members, sizes, seed):
    draw = torch.Generator().manual_seed(seed)
    return [(torch.randn(members, i, o, generator=draw) / i**0.5, torch.randn(members, o, generator=draw)) for i, o in pairwise(sizes)]


def _grads(outputs, inputs):
    draw = torch.Generator().manual_seed(9)
    weights = [torch.randn(part.shape, generator=draw) for part in outputs]
    return torch.autograd.grad(outputs, inputs, weights)


@pytest.mark.parametrize("items", [5, 100])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_networks_and_their_gradients_equal_torchs_own_operations(activation, items):
    towers = [_towers(3, (4, 16, 8, 2), 0), _towers(3, (4, 16, 1), 1), _towers(3, (4, 12), 2)]
    x = torch.randn(3, items, 4)
    leaves = [x, *(part for tower in towers for layer in tower for part in layer)]
    for leaf in leaves:
        leaf.requires_grad_()
    expected = [stacked.plain_mlp(x, tower, getattr(torch, activation)) for tower in towers]
    found = stacked.mlps(x, towers, activation)
    with torch.no_grad():
        without = stacked.mlps(x, towers, activation)
    for one, other, plain in zip(found, without, expected, strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, plain, rtol=1e-5, atol=1e-6)
    for one, plain in zip(_grads(found, leaves), _grads(expected, leaves), strict=True):
        torch.testing.assert_close(one, plain, rtol=1e-4, atol=1e-5)


def test_a_network_in_a_population_is_the_one_it_is_alone():
    towers, x = [_towers(3, (4, 16, 16, 2), 0), _towers(3, (4, 16, 16, 1), 1)], torch.randn(3, 100, 4)
    together = stacked.mlps(x, towers, "tanh")
    for member in range(3):
        at = slice(member, member + 1)
        alone = stacked.mlps(x[at], [[(weight[at], bias[at]) for weight, bias in tower] for tower in towers], "tanh")
        for one, other in zip(together, alone, strict=True):
            torch.testing.assert_close(one[at], other, rtol=1e-6, atol=1e-6)


def test_a_network_whose_outputs_are_unused_gets_no_gradient_and_second_derivatives_are_refused():
    towers, x = [_towers(1, (2, 3, 1), 0), _towers(1, (2, 3, 1), 1)], torch.randn(1, 4, 2, requires_grad=True)
    parameters = [part.requires_grad_() for tower in towers for layer in tower for part in layer]
    first, _ = stacked.mlps(x, towers, "tanh")
    grads = torch.autograd.grad(first.sum(), parameters, retain_graph=True)
    assert all(grad.abs().sum() > 0 for grad in grads[:4]) and all(grad.abs().sum() == 0 for grad in grads[4:])
    with pytest.raises(NotImplementedError, match="first derivatives"):
        torch.autograd.grad(first.sum(), x, create_graph=True)


def test_convolution_is_each_members_own():
    x, weight, bias = torch.randn(2, 3, 4, 8, 8), torch.randn(2, 6, 4, 3, 3), torch.randn(2, 6)
    found = stacked.conv2d(x, weight, bias, 2)
    for member in range(2):
        torch.testing.assert_close(found[member], torch.nn.functional.conv2d(x[member], weight[member], bias[member], stride=2))


def test_clipping_is_by_each_members_norm():
    parameters = _parameters(2)
    parameters.grad.copy_(torch.stack([torch.full((16,), 1.0), torch.full((16,), 0.01)]))
    norm = stacked.clip_grad_norm(parameters, 0.5)
    assert norm.tolist() == pytest.approx([4.0, 0.04])
    assert parameters.grad.norm(dim=1).tolist() == pytest.approx([0.5, 0.04], rel=1e-5)


@pytest.mark.parametrize("frozen", [None, 1])
def test_adam_equals_torchs_on_each_member_alone(frozen):
    parameters = _parameters(2)
    alone = [parameters.data[member].clone().requires_grad_() for member in range(2)]
    theirs = [torch.optim.Adam([tensor], lr=0.01, eps=1e-5) for tensor in alone]
    ours = stacked.StackedAdam(parameters, eps=1e-5)
    generator = torch.Generator().manual_seed(1)
    for step in range(20):
        active = torch.tensor([True, frozen is None or step % 3 == 0])
        parameters.grad.copy_(torch.randn(2, 16, generator=generator))
        ours.step(0.01, active)
        for member in range(2):
            if active[member]:
                alone[member].grad = parameters.grad[member].clone()
                theirs[member].step()
    for member in range(2):
        torch.testing.assert_close(parameters.data[member], alone[member].detach(), rtol=1e-5, atol=1e-6)


def test_adam_goes_on_from_its_state():
    first, second = _parameters(2), _parameters(2)
    one, other = stacked.StackedAdam(first), stacked.StackedAdam(second)
    for parameters, optimizer in ((first, one), (second, other)):
        parameters.grad.fill_(0.3)
        optimizer.step(0.1)
    resumed = stacked.StackedAdam(second)
    resumed.load_state_dict(other.state_dict())
    first.grad.fill_(-0.2), second.grad.fill_(-0.2)
    one.step(0.1), resumed.step(0.1)
    assert torch.equal(first.data, second.data)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("towers", [[(3, 2)], [(3, 5, 2)], [(3, 5, 4, 2), (3, 4, 1)]], ids=str)
def test_networks_are_their_layers_in_turn_with_their_gradients(towers, activation):
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    x, layers = drawn(2, 7, 3), [[(drawn(2, i, o), drawn(2, o)) for i, o in pairwise(widths)] for widths in towers]
    found, expected = stacked.mlps(x, layers, activation), []
    for tower in layers:
        read = x
        for place, (weight, bias) in enumerate(tower):
            read = stacked.linear(getattr(torch, activation)(read) if place else read, weight, bias)
        expected.append(read)
    torch.testing.assert_close(found, tuple(expected))
    leaves = [x, *(part for tower in layers for layer in tower for part in layer)]
    weights = [drawn(*one.shape).detach() for one in expected]
    for ours, theirs in zip(torch.autograd.grad(found, leaves, weights), torch.autograd.grad(expected, leaves, weights), strict=True):
        torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        torch.testing.assert_close(stacked.mlps(x, layers, activation), tuple(expected))
