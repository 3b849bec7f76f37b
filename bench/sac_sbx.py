"""The measured side of sbx (JAX) for `bench.sac_speed`: reads a number of steps a line, takes them, answers with the CPU seconds they took."""

import sys
import time

from sbx import SAC

model = SAC("MlpPolicy", "Pendulum-v1", seed=0, buffer_size=10**5)
model.learn(110)
for line in sys.stdin:
    start = time.process_time()
    model.learn(int(line), reset_num_timesteps=False)
    print(time.process_time() - start, flush=True)
