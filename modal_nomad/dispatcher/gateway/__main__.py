"""``python -m modal_nomad.dispatcher.gateway``: one of several processes on a port."""

import sys

from modal_nomad.dispatcher.gateway.process import main

sys.exit(main())
