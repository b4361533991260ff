"""The child side: the zygote, and the loaders and workers that it forks."""
