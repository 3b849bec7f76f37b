"""One actor of verl on a CPU, from verl's own configuration to its checkpoint: `verl_worker.py` runs this file in processes of their own.

    ENTREG_VERL=... python -m tests.integrations.verl_actor FOLDER RANK RANKS UPDATES save|- [KEY=VALUE ...]

`FOLDER/model` is made where it is absent; a checkpoint `FOLDER/checkpoint` is loaded where one is. Prints one line of JSON.
"""

import json
import os
import sys
from pathlib import Path

import torch
import verl  # loads the plugins
from hydra import compose, initialize_config_dir
from tensordict import TensorDict
from transformers import Qwen2Config, Qwen2ForCausalLM
from verl.utils import tensordict_utils as tu
from verl.workers.engine_workers import ActorRolloutRefWorker
from verl.workers.utils.padding import left_right_2_no_padding

from tests.integrations import verl_cpu

V, B, PROMPT, RESPONSE = 32, 4, 3, 5
FLOAT32 = "{param_dtype:fp32,reduce_dtype:fp32,buffer_dtype:fp32}"
SETTINGS = [
    "actor_rollout_ref.model.use_remove_padding=False",
    "actor_rollout_ref.model.enable_gradient_checkpointing=False",
    "+actor_rollout_ref.model.override_config.attn_implementation=eager",
    "+actor_rollout_ref.model.load_tokenizer=False",
    "actor_rollout_ref.actor.strategy=fsdp2",
    "actor_rollout_ref.actor.fsdp_config.dtype=float32",
    f"+actor_rollout_ref.actor.fsdp_config.mixed_precision={FLOAT32}",
    "actor_rollout_ref.actor.fsdp_config.use_torch_compile=False",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1",
    "actor_rollout_ref.actor.ppo_mini_batch_size=4",
    "+actor_rollout_ref.actor.optim.override_optimizer_config.eps=0.1",  # a step that is nearly linear in the gradient: rounding stays small
    "actor_rollout_ref.actor.optim.lr=0.5",
    "actor_rollout_ref.actor.calculate_entropy=True",
    "actor_rollout_ref.rollout.name=vllm",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=2",
]


def batch(rank, ranks):
    """Responses of unequal length; this rank's rows, half of them each for two ranks."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(V, (B, PROMPT + RESPONSE), generator=generator)
    there = torch.ones_like(ids)
    there[1, -2:], there[2, 0], there[3, -3:] = 0, 0, 0
    columns = {
        "prompts": ids[:, :PROMPT],
        "responses": ids[:, PROMPT:],
        "input_ids": ids,
        "attention_mask": there,
        "position_ids": (there.cumsum(1) - 1).clamp(min=0),
        "response_mask": there[:, PROMPT:],
        "old_log_probs": torch.full((B, RESPONSE), -3.4),
        "advantages": torch.randn(B, RESPONSE, generator=generator),
    }
    rows = slice(rank * B // ranks, (rank + 1) * B // ranks)
    data = left_right_2_no_padding(TensorDict({name: column[rows] for name, column in columns.items()}, batch_size=[B // ranks]))
    how = {"global_batch_size": B, "mini_batch_size": B, "epochs": 1, "seed": 0, "dataloader_kwargs": {"shuffle": False}}
    tu.assign_non_tensor(data, calculate_entropy=True, temperature=1.0, compute_loss=True, **how)
    return data


def main(folder, rank, ranks, updates, save, *settings):
    folder, rank, ranks = Path(folder), int(rank), int(ranks)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    verl_cpu.use()
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}-{ranks}", rank=rank, world_size=ranks)
    if not (folder / "model").is_dir():
        torch.manual_seed(0)
        shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
        Qwen2ForCausalLM(Qwen2Config(vocab_size=V, max_position_embeddings=64, **shape)).save_pretrained(folder / "model")
    with initialize_config_dir(str(Path(verl.__file__).parent / "trainer" / "config"), version_base=None):
        config = compose("ppo_trainer", overrides=[*SETTINGS, f"actor_rollout_ref.model.path={folder / 'model'}", *settings])
    worker = ActorRolloutRefWorker(config.actor_rollout_ref, role="actor")
    worker.init_model()
    if (folder / "checkpoint").is_dir():
        worker.load_checkpoint(str(folder / "checkpoint"))
    found = [tu.get(worker.update_actor(batch(rank, ranks)), "metrics") for _ in range(int(updates))]
    if save == "save":
        worker.save_checkpoint(str(folder / "checkpoint"))
    regularizer = getattr(worker.actor.loss_fn, "regularizer", None)
    answer = {
        "worker": type(worker.actor).__name__,
        "weights": torch.cat([p.flatten().double() for _, p in worker.actor.engine.get_per_tensor_param()[0]]).tolist(),
        "coefs": [one.get("entreg/coef") for one in found],  # one a micro-batch
        "state": None if regularizer is None else regularizer.state_dict(),
    }
    print("ANSWER " + json.dumps(answer), flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
