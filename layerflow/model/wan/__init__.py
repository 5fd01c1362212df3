"""Wan 2.1 and 2.2 as a base: what differs from other bases, on diffusers' classes."""
