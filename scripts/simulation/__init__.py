"""A pool on machines that are not at hand: the core of every pool, a clock that jumps, and no processes."""
