"""Two lines put a controller into a trainer of TRL: here supervised fine-tuning of a tiny model that is made on the spot (no network, no GPU)."""

import os
import tempfile
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"
warnings.simplefilter("ignore")  # of what the hosts' own future will change

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from entreg import TargetEntropy
from entreg.integrations.trl import attach
from entreg.lm import arithmetic, start

task = arithmetic.make("split", 9)
model, tokenizer = start.beginner(task, 0, steps=60, batch=64, width=16)
rows = Dataset.from_list(arithmetic.demonstrations(task, 32, 0))
with tempfile.TemporaryDirectory() as folder:
    settings = {"bf16": False, "use_cpu": True, "report_to": "none", "disable_tqdm": True, "gradient_checkpointing": False}
    arguments = SFTConfig(output_dir=folder, max_steps=3, per_device_train_batch_size=8, save_strategy="no", **settings)
    trainer = SFTTrainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)
    # --8<-- [start:attach]
    attached = attach(trainer, TargetEntropy(0.6))  # from entreg.integrations.trl import attach
    trainer.train()
    # --8<-- [end:attach]
    print(attached.record())
