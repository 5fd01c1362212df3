"""The authors' checkpoints: names, safe reading, conversion, proof against golden vectors."""
