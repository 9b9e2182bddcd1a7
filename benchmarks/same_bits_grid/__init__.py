"""The grid of small trainings that `same_bits.py` runs bare and recorded."""
