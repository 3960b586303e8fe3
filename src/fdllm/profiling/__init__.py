"""How redundant a model's layers are on a task, and how much reuse could save at all."""
