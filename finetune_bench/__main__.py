"""Run the command line as `python -m finetune_bench`."""

import sys

from finetune_bench.cli.entry import main

sys.exit(main())
