"""``python -m fdllm.cli``."""

import sys

from fdllm.cli.main import main

sys.exit(main())
