"""A checkpoint's files: where they lie, what they say, their tensors. Only the last needs torch.

No code that comes with a checkpoint is ever executed, and no pickle is ever opened.
"""
