"""The former place of ``layerflow.media.video``, kept for scripts that name it."""

import sys

from layerflow.media import video

sys.modules[__name__] = video
