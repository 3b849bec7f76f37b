"""The actor-critic of images: shared hidden layers, precision, and stacks that are assembled piece by piece."""

import numpy as np
import pytest
import torch

from entreg.rl import networks
from entreg.rl.networks import ActorCritic, Architecture, from_weights, shapes
from entreg.rl.stacks import Stacks

IMAGES = Architecture((4, 40, 40), True, 3, (16,), "relu", shared=True)


def network(architecture, members=2):
    return ActorCritic(architecture, [torch.Generator().manual_seed(member) for member in range(members)])


@pytest.mark.parametrize("activation", ["relu", "tanh", "elu"])
def test_shared_layers_are_read_by_both_towers(activation):
    made = network(IMAGES._replace(activation=activation))
    images = torch.randint(0, 256, (2, 5, 4, 40, 40), dtype=torch.uint8)
    outputs, value = made.both(images)
    p = {name: view.detach() for name, view in made.parameters.plain.items()}
    for member in range(2):
        x = images[member].float() / 255
        for layer, stride in enumerate((4, 2, 1)):
            x = torch.relu(torch.nn.functional.conv2d(x, p[f"image.{layer}.weight"][member], p[f"image.{layer}.bias"][member], stride))
        x = getattr(torch.nn.functional, activation)(x.flatten(1) @ p["trunk.0.weight"][member] + p["trunk.0.bias"][member])
        torch.testing.assert_close(outputs[member], x @ p["actor.0.weight"][member] + p["actor.0.bias"][member], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(value[member], (x @ p["critic.0.weight"][member] + p["critic.0.bias"][member])[:, 0], rtol=1e-4, atol=1e-5)
    made.parameters.backward((value, torch.ones_like(value)))
    sizes = {name: int(np.prod(shape)) for name, shape in shapes(made.architecture).items()}
    moved = {name: bool((part != 0).any()) for name, part in zip(sizes, made.parameters.grad.split([*sizes.values()], 1), strict=True)}
    assert moved["trunk.0.weight"] and moved["image.0.weight"] and moved["critic.0.weight"] and not moved["actor.0.weight"]


def test_shared_layers_begin_as_others_do_and_heads_as_heads():
    made = network(IMAGES._replace(observation=(8,), image=False), members=1)
    assert list(made.parameters.shapes) == [f"{name}.0.{kind}" for name in ("trunk", "actor", "critic") for kind in ("weight", "bias")]
    gains = {name: float(made.parameters.plain[f"{name}.0.weight"][0].norm(2)) for name in ("trunk", "actor", "critic")}
    assert gains == pytest.approx({"trunk": (2 * 8) ** 0.5, "actor": 0.01 * 3**0.5, "critic": 1.0}, rel=1e-4)


def test_weights_go_out_and_come_back():
    made = network(IMAGES, members=1)
    images = torch.randint(0, 256, (1, 2, 4, 40, 40), dtype=torch.uint8)
    torch.testing.assert_close(from_weights(IMAGES, made.parameters.member(0)).actor(images), made.actor(images))


def test_stacks_are_read_as_the_tensor_they_stand_for(monkeypatch):
    monkeypatch.setattr(networks, "_PIECE", 4)
    made = network(IMAGES)
    stacks = Stacks(torch.randint(0, 256, (30, 40, 40), dtype=torch.uint8), torch.randint(0, 30, (2, 11, 4)))
    whole = made.both(stacks.tensor())
    with torch.no_grad():
        pieces = made.both(stacks)
    for one, other, graded in zip(whole, pieces, made.both(stacks), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one, graded)


def test_precision_that_cannot_be_meant():
    with pytest.raises(ValueError, match="precision must be one of float32, bfloat16, got 'half'"):
        network(IMAGES._replace(precision="half"))
    with pytest.raises(ValueError, match="is for the convolutions of images"):
        network(IMAGES._replace(image=False, observation=(4,), precision="bfloat16"))
