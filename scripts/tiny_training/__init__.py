"""What the embedded model is trained on; ``scripts/train_tiny.py`` trains it."""
