"""Stacked classifiers against torch's own layers, member by member."""

import pytest
import torch
from torch import nn

from entreg.vision import networks
from entreg.vision.networks import Architecture, make

SMALL = Architecture("wrn", (3, 8, 8), 4, depth=10, width=1)


class Block(nn.Module):
    def __init__(self, inside, out, stride, first):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(inside, 1e-3, 1e-3), nn.BatchNorm2d(out, 1e-3, 1e-3)
        self.conv1, self.conv2 = nn.Conv2d(inside, out, 3, stride, 1, bias=False), nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(inside, out, 1, stride, bias=False) if inside != out else nn.Identity()
        self.first = first

    def forward(self, x):
        y = nn.functional.leaky_relu(self.norm1(x), 0.1)
        x = y if self.first else x
        return self.shortcut(x) + self.conv2(nn.functional.leaky_relu(self.norm2(self.conv1(y)), 0.1))


class Reference(nn.Module):
    """WRN-10-1 in torch's modules."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.blocks = nn.ModuleList([Block(16, 16, 1, True), Block(16, 32, 2, False), Block(32, 64, 2, False)])
        self.last, self.head = nn.BatchNorm2d(64, 1e-3, 1e-3), nn.Linear(64, 4)

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.head(nn.functional.leaky_relu(self.last(x), 0.1).mean((2, 3)))

    def named(self, name):
        """The parameter of ours called `name`."""
        parts = name.replace(".scale", ".weight").replace(".shift", ".bias").replace(".mean", ".running_mean").replace(".var", ".running_var").split(".")
        if parts[0].isdigit():
            parts = ["blocks", parts[0], *parts[2:]]
        found = self
        for part in parts:
            found = getattr(found, part)
        return found


def test_a_wide_resnet_its_gradients_and_its_statistics_equal_torchs_modules():
    torch.manual_seed(0)
    ours, theirs = make(SMALL, [0, 1]), [Reference(), Reference()]
    ours.parameters.data.add_(0.1 * torch.randn_like(ours.parameters.data))
    for member, reference in enumerate(theirs):
        for name, view in ours.parameters.plain.items():
            reference.named(name).data.copy_(view[member])
    x = torch.randn(2, 6, 3, 8, 8)
    found = ours(x)
    expected = torch.stack([reference(one) for reference, one in zip(theirs, x, strict=True)])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    weights = torch.randn_like(found)
    ours.parameters.backward((found, weights))
    (expected * weights).sum().backward()
    kept = ours.parameters.grad
    for member, reference in enumerate(theirs):
        offset = 0
        for name, shape in ours.parameters.shapes.items():
            size = torch.Size(shape).numel()
            torch.testing.assert_close(kept[member, offset : offset + size].view(shape), reference.named(name).grad, rtol=1e-3, atol=1e-4)
            offset += size
        for name, view in ours.statistics.plain.items():
            torch.testing.assert_close(view[member], reference.named(name), rtol=1e-4, atol=1e-5)
        reference.eval()
        with torch.no_grad():
            torch.testing.assert_close(ours(x, train=False)[member], reference(x[member]), rtol=1e-4, atol=1e-4)


def test_wrn_28_2_has_the_published_size_and_others_are_refused():
    assert make(Architecture("wrn", (3, 32, 32), 10), [0]).parameters.data.shape[1] == 1_467_610
    with pytest.raises(ValueError, match="depth is 12; legal are 10, 16, 22, 28"):
        make(SMALL._replace(depth=12), [0])
    with pytest.raises(ValueError, match="4 x 4; legal are 8 x 8"):
        make(SMALL._replace(shape=(3, 4, 4)), [0])


@pytest.mark.parametrize("network", ["mlp", "wrn"])
def test_a_member_is_the_network_it_would_be_alone(network):
    architecture = SMALL._replace(network=network, hidden=(6, 5))
    together, alone = make(architecture, [3, 8]), make(architecture, [8])
    x = torch.randn(2, 5, 3, 8, 8)
    torch.testing.assert_close(together(x)[1], alone(x[1:])[0], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(together(x[:1].expand_as(x))[0], together(x[:1].expand_as(x))[1])


def test_dropout_multiplies_hidden_units():
    network = make(SMALL._replace(network="mlp", hidden=(6, 5)), [0])
    x = torch.randn(1, 4, 3, 8, 8)
    ones = [torch.ones(1, 4, 6), torch.ones(1, 4, 5)]
    torch.testing.assert_close(network(x, noise=ones), network(x))
    nothing = network(x, noise=[ones[0], torch.zeros(1, 4, 5)])
    torch.testing.assert_close(nothing, torch.zeros_like(nothing))  # biases begin at 0


def test_a_teacher_moves_towards_its_student_and_takes_its_statistics():
    student, teacher = make(SMALL, [0]), make(SMALL, [1])
    before = teacher.parameters.data.clone()
    student(torch.randn(1, 4, 3, 8, 8))
    networks.take_over(teacher, student, 0.75)
    torch.testing.assert_close(teacher.parameters.data, 0.75 * before + 0.25 * student.parameters.data)
    assert torch.equal(teacher.statistics.data, student.statistics.data)
    again = make(SMALL, [2])
    networks.load_state(again, networks.state_of(teacher))
    assert torch.equal(again.parameters.data, teacher.parameters.data) and torch.equal(again.statistics.data, teacher.statistics.data)
