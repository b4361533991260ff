"""A module for each fact: what is said of it, and the experiment that shows whether it is so."""
