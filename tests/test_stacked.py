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


def _networks(members, towers, seed=0):
    """Parameters with random values of networks with these widths, and the names of their layers."""
    names = [[(f"{tower}.{layer}.weight", f"{tower}.{layer}.bias") for layer in range(len(widths) - 1)] for tower, widths in enumerate(towers)]
    shapes = {}
    for layers, widths in zip(names, towers, strict=True):
        for (weight, bias), (i, o) in zip(layers, pairwise(widths), strict=True):
            shapes |= {weight: (i, o), bias: (o,)}
    parameters = stacked.FlatParameters(members, shapes)
    parameters.data.copy_(torch.randn(parameters.data.shape, generator=torch.Generator().manual_seed(seed)) / 2)
    return parameters, names


@pytest.mark.parametrize("items", [7, 100])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("towers", [[(3, 2)], [(3, 5, 2)], [(3, 5, 4, 2), (3, 4, 1)]], ids=str)
def test_networks_are_their_layers_in_turn_with_their_gradients(towers, activation, items):
    parameters, names = _networks(2, towers)
    x = torch.randn(2, items, 3, requires_grad=True)
    expected = []
    for tower in names:
        read = x
        for place, (weight, bias) in enumerate(tower):
            read = stacked.linear(getattr(torch, activation)(read) if place else read, parameters[weight], parameters[bias])
        expected.append(read)
    weights = [torch.randn(one.shape) for one in expected]
    of_x = torch.autograd.grad(expected, x, weights, retain_graph=True)
    parameters.backward(*zip(expected, weights, strict=True))
    theirs = parameters.grad, *of_x
    found = stacked.mlps(x, parameters, names, activation)
    torch.testing.assert_close(found, tuple(expected), rtol=1e-5, atol=1e-5)
    parameters.backward(*zip(found, weights, strict=True))
    ours = parameters.grad, *torch.autograd.grad(stacked.mlps(x, parameters, names, activation), x, weights)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        assert all(torch.equal(one, other) for one, other in zip(stacked.mlps(x, parameters, names, activation), found, strict=True))


def test_gradients_of_named_parameters_and_of_networks_add_up():
    parameters, ((layer, other),) = _networks(2, [(3, 4, 1)])
    x = torch.randn(2, 6, 3)
    (outputs,) = stacked.mlps(x, parameters, [[layer, other]], "tanh")
    parameters.backward((outputs, torch.ones_like(outputs)))
    alone = parameters.grad.clone()
    (outputs,) = stacked.mlps(x, parameters, [[layer, other]], "tanh")
    parameters.backward((outputs, torch.ones_like(outputs)), (parameters[layer[1]].sum(), torch.tensor(2.0)))
    alone[:, 12:16] += 2
    torch.testing.assert_close(parameters.grad, alone)


def test_a_network_in_a_population_is_the_one_it_is_alone():
    widths = [(4, 16, 16, 2), (4, 16, 16, 1)]
    (parameters, names), (own, _), x = _networks(3, widths), _networks(1, widths), torch.randn(3, 100, 4)
    together = stacked.mlps(x, parameters, names, "tanh")
    parameters.backward(*((one, torch.ones_like(one)) for one in together))
    for member in range(3):
        own.data.copy_(parameters.data[member])
        alone = stacked.mlps(x[member : member + 1], own, names, "tanh")
        own.backward(*((one, torch.ones_like(one)) for one in alone))
        for one, other in zip(together, alone, strict=True):
            torch.testing.assert_close(one[member], other[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(parameters.grad[member], own.grad[0], rtol=1e-4, atol=1e-5)


def test_a_network_whose_outputs_are_unused_gets_no_gradient_and_second_derivatives_are_refused():
    parameters, names = _networks(1, [(2, 3, 1), (2, 3, 1)])
    first, _ = stacked.mlps(torch.randn(1, 4, 2), parameters, names, "tanh")
    with pytest.raises(NotImplementedError, match="first derivatives"):
        torch.autograd.grad(first.sum(), parameters.whole, create_graph=True)
    parameters.backward((first, torch.ones_like(first)))
    assert (parameters.grad[:, :13] != 0).all() and (parameters.grad[:, 13:] == 0).all()


@pytest.mark.parametrize("members", [1, 3])
def test_convolutions_and_their_gradients_equal_one_grouped_convolution_of_contiguous_images(members):
    x = torch.randint(0, 256, (members, 3, 4, 12, 12), dtype=torch.uint8)
    shapes = [(members, 6, 4, 3, 3), (members, 6), (members, 5, 6, 2, 2), (members, 5)]
    first, second = ([part.clone().requires_grad_() for part in parts] for parts in [[torch.randn(shape) / 10 for shape in shapes]] * 2)
    found = stacked.convolutions(x, [(first[0], first[1]), (first[2], first[3])], (2, 1))
    grouped = x.float().transpose(0, 1).flatten(1, 2)
    for weight, bias, stride in ((second[0], second[1], 2), (second[2], second[3], 1)):
        grouped = torch.relu(torch.nn.functional.conv2d(grouped, weight.flatten(0, 1), bias.flatten(), stride=stride, groups=members))
    expected = grouped.unflatten(1, (members, -1)).transpose(0, 1).flatten(2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    weights = torch.randn_like(found)
    for one, other in zip(torch.autograd.grad(found, first, weights), torch.autograd.grad(expected, second, weights), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=0.05)


def test_convolutions_in_bfloat16_are_close_and_give_float32():
    x, weight, bias = torch.randint(0, 256, (1, 5, 4, 20, 20), dtype=torch.uint8), torch.randn(1, 8, 4, 8, 8) / 255, torch.randn(1, 8)
    exact, rounded = (stacked.convolutions(x, [(weight, bias)], [4], dtype) for dtype in (torch.float32, torch.bfloat16))
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).norm() < 0.02 * exact.norm()


def test_convolutions_of_no_images():
    assert stacked.convolutions(torch.zeros(2, 0, 4, 8, 8, dtype=torch.uint8), [(torch.ones(2, 6, 4, 3, 3), torch.ones(2, 6))], [1]).shape == (2, 0, 216)


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


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_gradient_descent_with_momentum_equals_torchs_on_each_member_alone(decay):
    parameters = stacked.FlatParameters(2, {"weight": (3, 4), "bias": (4,)})
    parameters.data.normal_(generator=torch.Generator().manual_seed(0))
    alone = [[view[member].clone().requires_grad_() for view in parameters.plain.values()] for member in range(2)]
    groups = [[{"params": [weight], "weight_decay": decay}, {"params": [bias], "weight_decay": 0.0}] for weight, bias in alone]
    theirs = [torch.optim.SGD(group, lr=0.1, momentum=0.9, nesterov=True) for group in groups]
    ours = stacked.StackedSGD(parameters, 0.9, decay)
    generator = torch.Generator().manual_seed(1)
    for step in range(5):
        parameters.grad = torch.randn(2, 16, generator=generator)
        for member in range(2):
            alone[member][0].grad, alone[member][1].grad = parameters.grad[member, :12].view(3, 4).clone(), parameters.grad[member, 12:].clone()
            theirs[member].step()
        ours.step(0.1)
        if step == 2:  # goes on from its state
            again = stacked.StackedSGD(parameters, 0.9, decay)
            again.load_state_dict(ours.state_dict())
            ours = again
    for member in range(2):
        torch.testing.assert_close(parameters.plain["weight"][member], alone[member][0].detach())
        torch.testing.assert_close(parameters.plain["bias"][member], alone[member][1].detach())
