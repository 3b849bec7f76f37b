"""Controllers: floats in, a coefficient out; the same object in every loop and trainer."""

import math

from entreg import PI, Observed, Plateau, TargetEntropy, linear, targets

# --8<-- [start:machine]
controller = TargetEntropy(target=0.5, lr=0.1, init_coef=0.01)
state = controller.init()
for entropy in (0.9, 0.4, 0.3, 0.3):  # nats, as the loop measures them
    state = controller.update(state, Observed(entropy))
    print(f"entropy {entropy}: coef {controller.coef(state):.5f}")
# --8<-- [end:machine]

# --8<-- [start:nested]
annealed = TargetEntropy(linear(1.0, 0.2, steps=1000), lr=0.03, init_coef=0.01)  # a schedule on the target
patient = Plateau(linear(0.01, 0.0, steps=1000), patience=10, factor=0.5)  # lower it when the reward stops improving
ceiling = PI(target=0.5, kp=0.1, ki=0.01, bounds=(-1.0, 1.0))  # a negative coefficient pushes entropy down
print(annealed, patient, ceiling, sep="\n")
# --8<-- [end:nested]

# --8<-- [start:targets]
print(targets.resolve(TargetEntropy(targets.fraction_of_max(0.5)), max_entropy=math.log(4), lr=0.03, init_coef=0.01))
print(targets.resolve(linear(0.01, 0.0), steps=500))
print("-1 nat a dimension at mean 2.5:", targets.feasible(-1.0, 2.5))
# --8<-- [end:targets]
