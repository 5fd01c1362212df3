"""What the jobs find by a name: built-in ones, and those that installed packages add."""

from __future__ import annotations

from layerflow.plugins import Plugins

MATTING = Plugins(
    "layerflow.matting",
    "matting backend",
    {
        "motion": "pipelines.matting.motion.backend:MotionMatter",
        "rembg": "pipelines.matting.rembg:RembgMatter",
        "onnx": "pipelines.matting.onnx_session:OnnxMatter",
        "transparent-background": (
            "pipelines.matting.transparent_background:TransparentBackgroundMatter"
        ),
        "alpha": "pipelines.matting.alpha:AlphaMatter",
        "chroma": "pipelines.matting.chroma:ChromaMatter",
    },
    needs=("name", "version", "licence", "__call__"),
)
"""Classes of ``pipelines.matting.Matter``."""

CAPTIONERS = Plugins(
    "layerflow.captioners",
    "captioner",
    {
        "local": "pipelines.captions.local:VlmCaptioner",
        "endpoint": "pipelines.captions.endpoint:EndpointCaptioner",
    },
    needs=("name", "licence", "answer", "check"),
)
"""Classes of ``pipelines.captions.request.Captioner``, made of ``manifests.mine.Captions``."""

INPAINTERS = Plugins(
    "layerflow.inpainters",
    "inpainter",
    {
        "opencv": "pipelines.vision.inpaint:OpenCvInpainter",
        "lama": "pipelines.vision.inpaint:LamaInpainter",
    },
    needs=("name", "licence", "__call__"),
)
"""Classes of ``pipelines.vision.inpaint.Inpainter``."""

IMPORTERS = Plugins(
    "layerflow.importers",
    "layout",
    {
        "layerflow-images": "pipelines.inputs.importers:LAYERFLOW_IMAGES",
        "mulan": "pipelines.inputs.importers:MULAN",
        "dataset": "pipelines.inputs.importers:DATASET",
        "rgba": "pipelines.inputs.importers:RGBA",
        "pairs": "pipelines.inputs.importers:PAIRS",
        "matting": "pipelines.inputs.importers:MATTING",
        "triplets": "pipelines.inputs.importers:TRIPLETS",
        "davis": "pipelines.inputs.importers:DAVIS",
        "layerflow": "pipelines.inputs.importers:LAYERFLOW",
        "vidlayer": "pipelines.inputs.importers:VIDLAYER",
        "psd": "pipelines.inputs.importers:PSD",
        "stills": "pipelines.inputs.importers:STILLS",
        "films": "pipelines.inputs.importers:FILMS",
    },
    needs=("name", "recognises", "list", "lacks"),
)
"""Objects of ``pipelines.inputs.importers.Importer``. ``auto`` asks the built-in ones only, so that
what is installed does not change what a folder is taken for."""
