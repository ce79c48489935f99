"""Run the command line as `python -m finetune_bench.cli`."""

import sys

from finetune_bench.cli.entry import main

sys.exit(main())
