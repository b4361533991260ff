"""Where the benchmarks lie: they are scripts, and not part of what is installed."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "scripts" / "benchmarks"))
