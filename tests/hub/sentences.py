"""Train nltk's sentence tokenizer, as ``punkt_tab`` data: ``NLTK_DATA=FOLDER python sentences.py``.

The published data cannot be fetched here; nltk's own trainer makes the same kind of data from any
text. It runs in a process of its own, because nltk only writes below the folders it was told of.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TEXT = """Dr. Smith went home. He slept well. Mr. Jones came at 5 p.m. and left. It rained all day.
Is it late? It is. Mrs. Brown lives in St. Paul. She paints. Dr. Gray has a dog. The dog barks. """


def train_sentences(home: Path) -> Path:
    """Put a trained tokenizer where ``fdllm`` looks for it under ``HF_HOME``; its folder."""
    data = home / "nltk_data"
    environment = os.environ | {"NLTK_DATA": str(data)}
    command = [sys.executable, str(Path(__file__)), str(data)]
    subprocess.run(command, env=environment, check=True, timeout=120)
    return data / "tokenizers" / "punkt_tab" / "english"


def _train(data: Path) -> None:
    from nltk.tokenize.punkt import PunktTrainer, save_punkt_params  # noqa: PLC0415

    folder = data / "tokenizers" / "punkt_tab" / "english"
    folder.mkdir(parents=True)
    trainer = PunktTrainer()
    trainer.train(TEXT * 20)
    save_punkt_params(trainer.get_params(), dir=str(folder))


if __name__ == "__main__":
    _train(Path(sys.argv[1]))
