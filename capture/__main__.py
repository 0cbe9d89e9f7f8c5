"""`python -m http_capture.capture` is `http-capture`."""

import sys

from .cli import main

sys.exit(main())
