"""Proofs: which images no attack can break, decided one by one; exact behind a hard quantizer."""
