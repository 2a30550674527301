"""`python -m tools.gpu_proof`."""

import sys

from tools.gpu_proof.run import main

sys.exit(main())
