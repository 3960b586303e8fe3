"""``python -m fdllm``."""

import sys

from fdllm.cli.main import main

sys.exit(main())
