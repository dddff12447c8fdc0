"""One function for each thing that people ask for."""
