"""Figures of generated images from features: functions of tensors, no files, no networks; table.py lists them."""
