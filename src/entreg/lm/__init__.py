"""What the language-model recipes share: tiny models and tokenizers made on the spot, verifiable tasks, sampling, a run around somebody else's trainer."""
