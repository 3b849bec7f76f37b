"""A platform for verl, which has none for processors: set through its own seam before anything asks for one, so that its workers and engines run on a CPU."""

import os
import types

import torch
from verl.plugin.platform.platform_cuda import PlatformCUDA
from verl.plugin.platform.platform_manager import set_platform


class Device(types.ModuleType):
    """What verl asks of `torch.cuda`."""

    def __getattr__(self, name):
        return getattr(torch.cpu, name)

    def max_memory_allocated(self):
        return 0

    max_memory_reserved = memory_allocated = memory_reserved = max_memory_allocated

    def mem_get_info(self):
        return 0, 0

    def empty_cache(self):
        return None

    def get_device_name(self):
        return "cpu"

    def get_rng_state(self):
        return torch.get_rng_state()

    def set_rng_state(self, state):
        torch.set_rng_state(state)


class Platform(PlatformCUDA):
    device_name = vendor_name = "cpu"
    device_module = Device("cpu")

    def is_available(self):
        return True

    def current_device(self):
        return "cpu"

    def device_count(self):
        return 1

    def communication_backend_name(self):
        return "gloo"

    def set_device(self, _):
        return None

    def synchronize(self, _=None):
        return None

    manual_seed = manual_seed_all = set_device

    def empty_cache(self):
        return None


def use():
    """Makes verl work on a CPU."""
    os.environ |= {"VERL_ENGINE_DEVICE": "cuda", "VERL_ENGINE_VENDOR": "nvidia"}  # under which verl keeps its engines
    set_platform(Platform())
