"""Run a script whose huggingface_hub may talk to this machine, while programs that it starts stay offline."""

import runpy
import sys

from huggingface_hub import constants

constants.HF_HUB_OFFLINE = False
runpy.run_path(sys.argv[1], run_name="__main__")
