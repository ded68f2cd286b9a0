"""``python -m dhc.cli``: the same as the ``dhc`` script."""

from __future__ import annotations

import sys

from dhc.cli.main import main

sys.exit(main())
