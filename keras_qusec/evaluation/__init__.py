"""Attacks on Keras models, with Foolbox."""
