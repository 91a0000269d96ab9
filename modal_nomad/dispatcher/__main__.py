"""``python -m modal_nomad.dispatcher``: the embedded daemon, or a cluster's dispatcher."""

import sys

from modal_nomad.dispatcher.serve import main

sys.exit(main())
