"""lm-eval task definitions of the embedded model, with their test rows."""
