"""One-shot 3-D medical image segmentation and registration guided by the Segment Anything Model."""

__version__ = "0.1.0"
