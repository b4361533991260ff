"""A pool under attack: load of every kind, an adversary, and books that tell whether it kept its promises."""
