"""Bytes that come from outside, made up by the million: what a parser takes, and what it says of the rest."""
