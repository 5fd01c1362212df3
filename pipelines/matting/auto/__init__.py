"""The matting backend that lets motion and saliency networks vote."""
