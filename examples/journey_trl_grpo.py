"""A day with TRL's GRPO: a policy that knows many right answers keeps one, `entreg diagnose` says why, two lines keep the others alive.

A tiny model is made on the spot (no network, no GPU). The task: name a sum that makes the number ("9=" to "4+5"); all n + 1 answers are right.
"""

import os
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"
warnings.simplefilter("ignore")  # of what the hosts' own future will change

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from entreg import PI
from entreg.integrations.trl import attach
from entreg.lm import arithmetic, sampling, start

STEPS = 320
TASK = arithmetic.make("split", 9)


def alive(prompts, completions, **_):
    """How many different right answers the prompt of each completion got; weight 0: it is only logged."""
    kept = {
        prompt: {answer for asked, answer in zip(prompts, completions, strict=True) if asked == prompt and TASK.right(prompt, answer)} for prompt in prompts
    }
    return [float(len(kept[prompt])) for prompt in prompts]


def made(folder, seed=1):
    """A trainer whose policy has seen demonstrations of all right answers."""
    torch.set_num_threads(1)
    model, tokenizer = start.beginner(TASK, seed, steps=1000)
    quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "bf16": False, "gradient_checkpointing": False}
    settings = {"max_steps": STEPS, "per_device_train_batch_size": 128, "num_generations": 16, "learning_rate": 2.5e-3, "lr_scheduler_type": "constant"}
    how = {"beta": 0.0, "max_completion_length": 5, "logging_steps": 1, "save_steps": STEPS, "seed": seed, "top_k": 0, "reward_weights": [1.0, 0.0]}
    arguments = GRPOConfig(str(folder), **settings, **how, **quiet)
    rows = Dataset.from_list(arithmetic.questions(TASK, STEPS * 128))
    return GRPOTrainer(model=model, reward_funcs=[arithmetic.reward(TASK), alive], args=arguments, train_dataset=rows, processing_class=tokenizer)


def answers(trainer):
    """Judges 64 answers to each number: the share that is right, and how many different right ones there are."""
    drawn = sampling.sample(trainer.model, trainer.processing_class, TASK.judged, 64)
    return sampling.judge(TASK, TASK.judged, drawn)


if __name__ == "__main__":
    trainer = made("grpo/without")
    trainer.train()
    print("without:", answers(trainer))
    trainer = made("grpo/with")
    # --8<-- [start:two]
    # hold .35 nats a token, about two thirds of what the first steps have
    attach(trainer, PI(0.35, kp=0.7, ki=0.07, bounds=(-0.2, 2.0)))
    trainer.train()
    # --8<-- [end:two]
    print("with:", answers(trainer))
