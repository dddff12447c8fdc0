"""What cowtree remembers beside the images: one SQLite file."""
