"""Where the attackers and the books lie: they are a script, and not part of what is installed."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "scripts"))
