"""SLURM (render pure, submit thin) and command lines of the image."""
