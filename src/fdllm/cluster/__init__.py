"""The cluster: SLURM (render pure, submit thin), the image's command lines, doctor, prefetch."""
