"""One function for each thing that people ask for of a guest, whatever kind of guest it is."""
