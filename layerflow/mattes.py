"""The former place of ``layerflow.media.mattes``, kept for scripts that name it."""

import sys

from layerflow.media import mattes

sys.modules[__name__] = mattes
