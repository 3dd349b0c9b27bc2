"""The reliability tests write results folders as the report's tests do."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "report"))
