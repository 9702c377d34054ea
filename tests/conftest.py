"""Makes test modules importable by the names that pytest gives them, for the processes that tests start."""

import sys
from pathlib import Path

# Last, so that what is installed comes before what is checked out here.
sys.path.append(str(Path(__file__).parent.parent))
